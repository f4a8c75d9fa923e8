"""bf16 copies that compute for fp32 weights: what is learnt, how gradients come home, and when they are used.

A GPU is where they are used; here their arithmetic is that of `low` on a CPU, fp32 on weights that were rounded to bf16.
"""

import ctypes
import dataclasses
import sys

import pytest
import torch

from dreambooth_ext.errors import Cancelled
from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import half_copies, kernels, loop, memory, passes, precision, session
from dreambooth_ext.training.half_copies import HalfCopies
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.memory import faults, plan_for
from dreambooth_ext.training.optimizers.adamw import _quantized_step

from .played_graph import PlayedGraph, fresh

pytestmark = pytest.mark.engine


@pytest.fixture
def with_copies(monkeypatch):
    """As if this CPU were a GPU that has bf16."""
    monkeypatch.setattr(precision, "best_autocast", lambda device: "bf16")


def trained(config, tiny, former, dataset, path, progress=None, **more):
    run = RunFolder(path)
    if not run.exists:
        run.create(config)
    train(config, fresh(tiny, former), dataset, run, progress or Progress(), **more)
    return run, load_diffusers(run.diffusers_dir, former).unet.state_dict()


def losses(run, name="loss"):
    return [entry[name] for entry in run.metrics() if name in entry]


def test_it_learns_what_fp32_learns(tiny, tiny_model, tiny_dataset, config, tmp_path, with_copies):
    config = dataclasses.replace(config, steps=12, learning_rate=3e-3)
    plain, _ = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "plain")
    run, weights = trained(dataclasses.replace(config, memory_profile="fast"), tiny, tiny_model, tiny_dataset, tmp_path / "copies")
    assert losses(run, "validation_loss")[-1] == pytest.approx(losses(plain, "validation_loss")[-1], rel=0.02)
    assert losses(run) != losses(plain)  # weights that were rounded have computed
    # What is published are the fp32 weights, not their roundings.
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "gradient_accumulation_steps": 2, "clip_skip": 2}], ids=str)
def test_a_cut_run_ends_like_a_whole_one(changes, tiny, tiny_model, tiny_dataset, config, tmp_path, with_copies):
    config = dataclasses.replace(config, **{"memory_profile": "fast", "steps": 3, **changes})
    whole, ends = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "whole")
    stopped = Progress()
    stopped.listen(lambda report: stopped.cancel() if report.phase == "training" and report.done == 2 else None)
    with pytest.raises(Cancelled):
        trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "cut", stopped)
    cut, ends_again = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "cut", resume=True)
    assert losses(whole) == losses(cut)
    assert all(torch.equal(ends[name], tensor) for name, tensor in ends_again.items())


def test_a_recorded_pass_hands_its_gradients_over(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, with_copies):
    config = dataclasses.replace(config, memory_profile="fast", steps=12, text_encoder_stop_step=6)
    launched, ends = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "launched")
    running, graphs, make = [], [], passes.pass_for

    def graph(device):
        graphs.append(PlayedGraph([each for each in running[0].parameters_with_gradients() if each.requires_grad]))
        return graphs[-1]

    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: running.insert(0, session) or make(session, *rest))
    monkeypatch.setattr(passes, "CudaGraph", graph)
    monkeypatch.setattr(loop, "plan_for", lambda *arguments: dataclasses.replace(plan_for(config), speed_up="graphs"))
    recorded, ends_again = trained(dataclasses.replace(config, speed_up="graphs"), tiny, tiny_model, tiny_dataset,
                                   tmp_path / "recorded")
    assert len(graphs) == 2 and all(graph.plays for graph in graphs)
    assert losses(recorded) == losses(launched)
    assert all(torch.equal(ends[name], tensor) for name, tensor in ends_again.items())


class CutShort:
    """A graph for whose last gradients there was no memory any more."""

    def __init__(self, session):
        self.session = session

    def record(self, work):
        def full():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        self.session.collect_gradients = full
        try:
            return work()
        finally:
            del self.session.collect_gradients


def test_a_recording_that_is_given_up_leaves_no_gradients(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch,
                                                          with_copies):
    config = dataclasses.replace(config, memory_profile="fast", steps=8)
    launched, ends = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "launched")
    running, make = [], passes.pass_for
    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: running.append(session) or make(session, *rest))
    monkeypatch.setattr(passes, "CudaGraph", lambda device: CutShort(running[0]))
    monkeypatch.setattr(loop, "plan_for", lambda *arguments: dataclasses.replace(plan_for(config), speed_up="graphs"))
    given_up, ends_again = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "given up")
    assert losses(given_up) == losses(launched)
    assert all(torch.equal(ends[name], tensor) for name, tensor in ends_again.items())


class PlainKernels:
    """What kernels/copied_adamw.py does, by torch's operations: a whole run would take its interpreter minutes."""

    @staticmethod
    def launches(rows, device):
        return [[read(row[0], address, dtype) for address, dtype in zip(row[1:], KINDS, strict=True)] for row in rows]

    @staticmethod
    def norm(of):
        return torch.cat([tensors[4] for each in of for tensors in each]).float().norm()

    @staticmethod
    def norm_of(gradients):
        return torch.cat([gradient.flatten() for gradient in gradients]).float().norm()

    @staticmethod
    def step(of, number, lr, betas, eps, weight_decay, scale):
        for weights, first, second, copy, gradient in of:
            wide = gradient.float() * (1.0 if scale is None else scale)
            first.lerp_(wide, 1 - betas[0])
            second.mul_(betas[1]).addcmul_(wide, wide, value=1 - betas[1])
            divisor = (second / (1 - betas[1] ** number)).sqrt() + eps
            weights.mul_(1 - lr * weight_decay).addcdiv_(first, divisor, value=-lr / (1 - betas[0] ** number))
            copy.copy_(weights)


class PlainQuantizedKernel:
    """The same of kernels/adamw.py."""

    @dataclasses.dataclass(frozen=True)
    class Quantized:
        weights: torch.Tensor
        gradient: torch.Tensor
        share_codes: torch.Tensor
        root_codes: torch.Tensor
        root_scales: torch.Tensor
        seed: int
        copy: torch.Tensor | None = None

    @staticmethod
    def step(parameters, number, lr, betas, eps, weight_decay, scale):
        group = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        for each in parameters:
            assert each.gradient.dtype == torch.bfloat16 and each.copy is not None
            wide = each.gradient.float() * (1.0 if scale is None else scale)
            state = {**vars(each), "step": number}
            _quantized_step(each.weights, wide, state, slice(0, len(wide)), group, torch.Generator().manual_seed(each.seed))
            each.copy.copy_(each.weights)


KINDS = [torch.float32] * 3 + [torch.bfloat16] * 2


def read(count, address, dtype):
    """(count,): what lies at an address."""
    return torch.frombuffer((ctypes.c_byte * (count * dtype.itemsize)).from_address(address), dtype=dtype)


@pytest.fixture
def with_kernels(with_copies, monkeypatch):
    """As if this CPU were a GPU on which they run."""
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "")
    for name, kernel in (("copied_adamw", PlainKernels), ("adamw", PlainQuantizedKernel)):
        monkeypatch.setitem(sys.modules, f"dreambooth_ext.training.kernels.{name}", kernel)
        monkeypatch.setattr(kernels, name, kernel, raising=False)


def test_narrow_gradients_teach_the_same(tiny, tiny_model, tiny_dataset, config, tmp_path, with_kernels):
    config = dataclasses.replace(config, memory_profile="fast", steps=3, text_encoder_stop_step=2)
    assert plan_for(config).narrow_gradients
    wide, ends = trained(dataclasses.replace(config, kernels="torch"), tiny, tiny_model, tiny_dataset, tmp_path / "wide")
    narrow, ends_again = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "narrow")
    assert losses(narrow) == pytest.approx(losses(wide), rel=1e-5)
    assert losses(narrow, "grad_norm") == pytest.approx(losses(wide, "grad_norm"), rel=1e-3)
    apart, moved = (torch.stack([(ends_again[name] - tensor).norm() for name, tensor in others.items()]).norm()
                    for others in (ends, fresh(tiny, tiny_model).unet.state_dict()))
    assert apart < 0.01 * moved  # a copy that is rounded the other way changes what follows


@pytest.mark.parametrize(("before", "after"), [("auto", "torch"), ("torch", "auto")])
def test_a_run_that_goes_on_by_other_kernels_computes_as_if_it_had_begun_so(before, after, tiny, tiny_model, tiny_dataset, config,
                                                                            tmp_path, monkeypatch, with_kernels):
    config = dataclasses.replace(config, memory_profile="fast", steps=2)
    sessions, make = [], passes.pass_for
    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: sessions.append(session) or make(session, *rest))
    stopped = Progress()
    stopped.listen(lambda report: stopped.cancel() if report.phase == "training" and report.done == 1 else None)
    with pytest.raises(Cancelled):
        trained(dataclasses.replace(config, kernels=before), tiny, tiny_model, tiny_dataset, tmp_path / "run", stopped)
    trained(dataclasses.replace(config, kernels=after), tiny, tiny_model, tiny_dataset, tmp_path / "run", resume=True)
    trained(dataclasses.replace(config, kernels=after), tiny, tiny_model, tiny_dataset, tmp_path / "other")
    _, gone_on, begun_so = ([{name: value for name, value in group.items() if name != "params"}
                             for group in session.optimizer.param_groups] for session in sessions)
    assert gone_on == begun_so


@pytest.mark.parametrize("profile", ["fast", "balanced"])
def test_a_cut_run_with_narrow_gradients_ends_like_a_whole_one(profile, tiny, tiny_model, tiny_dataset, config, tmp_path,
                                                               with_kernels):
    changes = {"ema_decay": 0.9, "memory_profile": profile}
    test_a_cut_run_ends_like_a_whole_one(changes, tiny, tiny_model, tiny_dataset, config, tmp_path, None)


def test_balanced_learns_what_fast_learns(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, with_kernels):
    """By copies, too, with 8-bit state; and each pass computes its activations again."""
    config = dataclasses.replace(config, memory_profile="fast", steps=6, learning_rate=3e-3)
    fast, ends = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "fast")
    counts, own = [], session.Session.update

    def update(self, last=False):
        counts.append(sum(bool(getattr(layer, "gradient_checkpointing", False)) for layer in self.computing["unet"].modules()))
        assert all(weight.grad is None for weight in self.trained_parameters())
        return own(self, last)

    monkeypatch.setattr(session.Session, "update", update)
    config = dataclasses.replace(config, memory_profile="balanced")
    balanced, ends_again = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "balanced")
    assert losses(balanced) == pytest.approx(losses(fast), rel=0.02)
    apart, moved = (torch.stack([(ends_again[name] - tensor).norm() for name, tensor in others.items()]).norm()
                    for others in (ends, fresh(tiny, tiny_model).unet.state_dict()))
    assert apart < 0.25 * moved
    assert counts and all(counts)
    plan = plan_for(config)
    assert plan.narrow_gradients and plan.gradient_checkpointing and plan.optimizer == "adamw_8bit"


@pytest.mark.parametrize(("changes", "state", "copies"), [
    ({}, None, True), ({}, "bitsandbytes", False), ({"kernels": "torch"}, None, False), ({"lora_rank": 4}, None, False),
    ({"gradient_accumulation_steps": 2}, None, False)])
def test_when_balanced_computes_by_copies(changes, state, copies, config, monkeypatch, with_copies):
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "")
    monkeypatch.setattr(memory.vendor, "version_that_works", lambda device: "0.45")
    config = dataclasses.replace(config, memory_profile="balanced", optimizer="adamw_8bit" if changes.get("lora_rank") else "adamw",
                                 **changes)
    plan = plan_for(config, eight_bit=state)
    assert (plan.half_copies, plan.narrow_gradients) == (copies, copies)
    assert plan.channels_last == copies and plan.eight_bit == ("own" if copies else "bitsandbytes")


def test_a_recorded_pass_leaves_narrow_gradients(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, with_kernels):
    test_a_recorded_pass_hands_its_gradients_over(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, None)


@pytest.mark.parametrize(("changes", "processes", "narrow"), [
    ({}, 1, True), ({"kernels": "torch"}, 1, False), ({"gradient_accumulation_steps": 2}, 1, False), ({}, 2, False),
    ({"draw_order": "diffusers"}, 1, False)])
def test_when_gradients_stay_narrow(changes, processes, narrow, config, monkeypatch, with_copies):
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert plan_for(dataclasses.replace(config, memory_profile="fast", **changes)).narrow_gradients == narrow


def test_compiled_copies_learn_the_same(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, with_copies):
    """By a compiler that traces, and leaves the kernels as they are."""
    monkeypatch.setattr(precision, "COMPILER", "eager")
    config = dataclasses.replace(config, memory_profile="fast", steps=2)
    launched, ends = trained(config, tiny, tiny_model, tiny_dataset, tmp_path / "launched")
    compiled, ends_again = trained(dataclasses.replace(config, speed_up="compile"), tiny, tiny_model, tiny_dataset,
                                   tmp_path / "compiled")
    assert losses(compiled) == pytest.approx(losses(launched), rel=1e-4)
    assert ends.keys() == ends_again.keys()


def test_validation_puts_what_computes_into_eval_mode(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, with_copies):
    """Dropout, where a text encoder has it."""
    modes, own = [], session.Session.backward_pass

    def watch(self, last):
        modes.append({module.training for module in self.computing.values()})
        return own(self, last)

    seen, predict = [], passes.Objective._predicted

    def predicted(self, part):
        seen.append((torch.is_grad_enabled(), {module.training for module in self._session.computing.values()}))
        return predict(self, part)

    monkeypatch.setattr(session.Session, "backward_pass", watch)
    monkeypatch.setattr(passes.Objective, "_predicted", predicted)
    trained(dataclasses.replace(config, memory_profile="fast", steps=2), tiny, tiny_model, tiny_dataset, tmp_path / "run")
    assert modes == [{True}, {True}]
    assert all(training == {gradients} for gradients, training in seen) and {gradients for gradients, _ in seen} == {True, False}


def network():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(2, 2, 1)
    net = torch.nn.Sequential(*layers)
    net[3].requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [0, half_copies.COLLECTED_BYTES], ids=["as they come", "all at the end"])
def test_gradients_of_several_passes_add_up_in_fp32(limit, monkeypatch):
    monkeypatch.setattr(half_copies, "COLLECTED_BYTES", limit)
    net = network()
    halves = HalfCopies({"net": net})
    copied = halves.modules["net"]
    expected = [torch.zeros(weight.shape, dtype=torch.float64) for weight in net[:3].parameters()]
    for _ in range(40):
        halved = torch.randn(2, 3, 8, 8).bfloat16()
        wanted = torch.autograd.grad(copied(halved).float().square().sum(), list(copied[:3].parameters()))
        copied(halved).float().square().sum().backward()
        halves.collect()
        expected = [total + each.double() for total, each in zip(expected, wanted, strict=True)]
    for weight, total in zip(net[:3].parameters(), expected, strict=True):
        assert weight.grad.dtype == torch.float32 and weight.grad.stride() == weight.stride()
        assert torch.allclose(weight.grad.double(), total, rtol=1e-5, atol=1e-4 * float(total.abs().max()))
    assert all(weight.grad is None for weight in (*copied.parameters(), *net[3].parameters()))


def test_copies_lie_and_round_as_their_weights_do():
    net = network()
    halves = HalfCopies({"net": net})
    with torch.no_grad():
        for weight in net[:3].parameters():
            weight.mul_(1.3)
    halves.refresh()
    for half, weight in zip(halves.modules["net"].parameters(), net.parameters(), strict=True):
        assert half.stride() == weight.stride() and half.requires_grad == weight.requires_grad
        assert torch.equal(half, weight.bfloat16()) and half.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(("changes", "bf16", "processes", "copies", "autocast"), [  # two processes: with NCCL
    ({"memory_profile": "fast"}, True, 1, True, "no"),
    ({"memory_profile": "balanced"}, True, 1, False, "bf16"),
    ({"memory_profile": "fast"}, False, 1, False, "fp16"),
    ({"memory_profile": "fast", "lora_rank": 4}, True, 1, False, "no"),
    ({"memory_profile": "fast"}, True, 2, True, "no"),
    ({"memory_profile": "fast", "gradient_accumulation_steps": 2}, True, 1, True, "no"),
    ({"memory_profile": "fast", "gradient_accumulation_steps": 2}, True, 2, False, "bf16"),
    ({"mixed_precision": "bf16"}, True, 1, False, "bf16"),
    ({"memory_profile": "low"}, True, 1, False, "no"),
])
def test_when_they_are_used(changes, bf16, processes, copies, autocast, config, monkeypatch):
    monkeypatch.setattr(memory.precision, "device_of", lambda config: "cuda")
    monkeypatch.setattr(memory.precision, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = dataclasses.replace(config, device="auto", **changes)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert plan_for(config).half_copies == (copies and processes == 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    plan = plan_for(config)
    assert (plan.half_copies, plan.autocast) == (copies, autocast)
    assert ("copies of them" in plan.sentence) == copies
    if copies:  # it is what is used anyway
        assert not faults(dataclasses.replace(config, mixed_precision="bf16"))
        assert faults(dataclasses.replace(config, mixed_precision="fp16"))
