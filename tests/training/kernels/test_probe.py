import dataclasses

import pytest
import torch

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.training import memory
from dreambooth_ext.training.kernels import probe


@pytest.fixture
def config():
    return TrainConfig(base="base.safetensors", concepts=(Concept(instance_dir="x", token="rxz"),), memory_profile="fast")


def test_without_a_gpu_there_are_none(config):
    assert probe.why_none("cpu") == "they are for GPUs"
    assert not memory.plan_for(dataclasses.replace(config, device="cpu")).kernels


def test_a_kernel_runs_where_triton_is():
    pytest.importorskip("triton", reason="Triton is not installed here")
    assert probe.tried("cpu") == ""


def test_what_computes_wrongly_is_not_used(monkeypatch):
    doubling = pytest.importorskip("dreambooth_ext.training.kernels.doubling", reason="Triton is not installed here")
    monkeypatch.setattr(doubling, "doubled", lambda numbers: torch.zeros_like(numbers))
    assert probe.tried("cpu") == "what they compute is wrong"


def test_the_reason_is_one_line(monkeypatch):
    doubling = pytest.importorskip("dreambooth_ext.training.kernels.doubling", reason="Triton is not installed here")

    def fails(numbers):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(doubling, "doubled", fails)
    assert probe.tried("cpu") == "RuntimeError: Failed to find C compiler."


@pytest.mark.parametrize(("wanted", "why", "used"), [
    ("auto", "", True), ("auto", "ModuleNotFoundError: No module named 'triton'", False), ("torch", "", False)])
def test_they_are_used_where_they_run_and_are_wanted(config, monkeypatch, wanted, why, used):
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: why)
    plan = memory.plan_for(dataclasses.replace(config, kernels=wanted))
    assert plan.kernels == used
    assert ("own kernels" in plan.sentence) == used
