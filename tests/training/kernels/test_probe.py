import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.training import memory
from dreambooth_ext.training.kernels import probe


@pytest.fixture
def config():
    return TrainConfig(base="base.safetensors", concepts=(Concept(instance_dir="x", token="rxz"),), memory_profile="fast")


@pytest.fixture
def trial():
    pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")
    from dreambooth_ext.training.kernels import trial

    return trial


def test_without_a_gpu_there_are_none(config):
    assert probe.why_none("cpu") == "they are for GPUs"
    assert not memory.plan_for(dataclasses.replace(config, device="cpu")).kernels


@pytest.mark.parametrize("has_bf16", [True, False])
def test_they_run_where_triton_is(trial, monkeypatch, has_bf16):
    monkeypatch.setattr(trial, "has_bf16", lambda device: has_bf16)
    draws = torch.get_rng_state()
    with torch.inference_mode():  # as a host may call it
        assert probe.tried("cpu") == ""
    assert torch.equal(torch.get_rng_state(), draws)


@pytest.mark.parametrize(("name", "told"), [("group_norm", "group norm"), ("geglu", "GEGLU")])
def test_what_computes_wrongly_is_not_used(trial, monkeypatch, name, told):
    own = getattr(trial, name)
    monkeypatch.setattr(trial, name, lambda *arguments: 1.1 * own(*arguments))
    assert probe.tried("cpu") == f"what they compute is wrong: {told}"


@pytest.mark.parametrize(("module", "told"), [
    ("adamw", "8-bit AdamW"), ("adafactor", "Adafactor"), ("copied_adamw", "AdamW of copies")])
def test_an_update_that_is_wrong_is_seen(trial, monkeypatch, module, told):
    from dreambooth_ext.training import kernels

    monkeypatch.setattr(getattr(kernels, module), "step", lambda *arguments: None)
    assert told in probe.tried("cpu")


@pytest.mark.parametrize(("missing", "told"), [("headers", "Python's headers are not installed"), ("compiler", "no C compiler")])
def test_what_triton_compiles_with_is_looked_for_first(monkeypatch, tmp_path, missing, told):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(probe.sysconfig, "get_path", lambda name: str(tmp_path / "nowhere" if missing == "headers" else tmp_path))
    monkeypatch.setattr(probe, "find_spec", lambda name: "there")
    monkeypatch.setattr(probe.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(probe, "tried", lambda device: pytest.fail("tried"))
    probe._found.cache_clear()
    assert told in probe.why_none("cuda")
    probe._found.cache_clear()


def test_without_triton_no_compiler_is_asked_for(monkeypatch):
    """It would not help."""
    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    monkeypatch.setattr(probe.shutil, "which", lambda name: None)
    probe._found.cache_clear()
    assert probe.why_none("cuda") == "Triton is not installed"
    probe._found.cache_clear()


def test_a_stand_in_for_triton_breaks_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(probe.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(probe.Path, "is_file", lambda path: True)
    assert probe._why_nothing_compiles() == ""


def test_on_windows_triton_brings_its_compiler(monkeypatch):
    monkeypatch.setattr(probe, "find_spec", lambda name: "there")
    monkeypatch.setattr(probe.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(probe, "os", SimpleNamespace(name="nt", environ={}))
    assert probe._why_nothing_compiles() == ""


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"),
                                   RuntimeError("Triton Error [CUDA]: out of memory")], ids=lambda error: type(error).__name__)
def test_a_card_that_is_full_is_asked_again(error, trial, monkeypatch):
    """The WebUI's own model may lie there, when the form asks first."""
    def full(device):
        raise error

    own = probe.tried
    monkeypatch.setattr(probe, "_why_nothing_compiles", lambda: "")
    monkeypatch.setattr(probe, "tried", lambda device: own("cpu"))
    monkeypatch.setattr(trial, "wrong_ones", full)
    probe._found.cache_clear()
    assert "out of memory" in probe.why_none("cuda")
    monkeypatch.setattr(trial, "wrong_ones", lambda device: [])
    assert probe.why_none("cuda") == ""
    probe._found.cache_clear()


def test_the_reason_is_one_line(trial, monkeypatch):
    def fails(device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(trial, "wrong_ones", fails)
    assert probe.tried("cpu") == "RuntimeError: Failed to find C compiler."


@pytest.mark.parametrize(("wanted", "why", "used"), [
    ("auto", "", True), ("auto", "ModuleNotFoundError: No module named 'triton'", False), ("torch", "", False)])
def test_they_are_used_where_they_run_and_are_wanted(config, monkeypatch, wanted, why, used):
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: why)
    plan = memory.plan_for(dataclasses.replace(config, kernels=wanted))
    assert plan.kernels == used
    assert ("own kernels" in plan.sentence) == used
