"""A recorded pass, bitsandbytes and prefetched batches: the same numbers as without; and what they need."""

import contextlib
import dataclasses
import sys
import threading
import traceback
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dreambooth_ext.errors import Cancelled, DreamboothError, ResumeError
from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import loop, memory, passes, precision, session
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.optimizers import vendor
from dreambooth_ext.training.prefetch import Prefetched

from .played_graph import PlayedGraph, fresh

pytestmark = pytest.mark.engine


def end_of(config, tiny, tiny_model, tiny_dataset, path, **more):
    run = RunFolder(path)
    if not run.exists:
        run.create(config)
    progress, said = Progress(), []
    progress.listen(lambda report: said.append(report.text) if report.phase == "log" else None)
    train(config, fresh(tiny, tiny_model), tiny_dataset, run, progress, **more)
    weights = load_diffusers(run.diffusers_dir, tiny_model).unet.state_dict()
    return weights, [entry["loss"] for entry in run.metrics()], said


def test_a_recorded_pass_learns_what_a_launched_one_learns(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch):
    """Batches of another shape come between, and the text encoder stops on the way."""
    config = dataclasses.replace(config, steps=15, text_encoder_stop_step=7, random_flip=True)
    launched = end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "launched")
    graphs = []

    def graph(device):
        parameters = running[0].trained_parameters()
        graphs.append(PlayedGraph([each for each in parameters if each.requires_grad]))
        return graphs[-1]

    running, make = [], passes.pass_for
    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: running.insert(0, session) or make(session, *rest))
    monkeypatch.setattr(passes, "CudaGraph", graph)
    recorded = end_of(dataclasses.replace(config, speed_up="graphs"), tiny, tiny_model, tiny_dataset, tmp_path / "recorded")
    assert recorded[1] == launched[1]
    assert all(torch.equal(launched[0][name], tensor) for name, tensor in recorded[0].items())
    assert len(graphs) == 2 and all(graph.plays >= 2 for graph in graphs)
    assert any("recorded as a CUDA graph" in text for text in recorded[2])


def test_what_cannot_be_recorded_is_told(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch):
    def refuse(device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(passes, "CudaGraph", refuse)
    config = dataclasses.replace(config, steps=8, train_batch_size=1, speed_up="graphs")
    with pytest.raises(DreamboothError, match="not permitted") as caught:
        end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "run")
    assert "--speed-up none" in caught.value.instead


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing"),
                                   torch.cuda.OutOfMemoryError("CUDA out of memory")], ids=lambda error: type(error).__name__)
def test_what_nobody_asked_for_is_given_up(error, tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, steps=8, train_batch_size=1)
    launched = end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "launched")

    def refuse(device):
        raise error

    monkeypatch.setattr(passes, "CudaGraph", refuse)
    own = loop.plan_for
    monkeypatch.setattr(loop, "plan_for", lambda *args, **more: dataclasses.replace(own(*args, **more), speed_up="graphs"))
    given_up = end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "given up")
    assert given_up[1] == launched[1]
    assert sum("launched operation by operation" in text and str(error) in text for text in given_up[2]) == 1


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_recording_makes_room_for_what_does_not_fit_beside_it(asked_for, tiny, tiny_model, tiny_dataset, config, tmp_path,
                                                                monkeypatch):
    """The smaller last batch of a round, here."""
    config = dataclasses.replace(config, steps=12, speed_up="graphs" if asked_for else "auto")
    launched = end_of(dataclasses.replace(config, speed_up="none"), tiny, tiny_model, tiny_dataset, tmp_path / "launched")
    graphs, own_run, own_plan = [], passes.RecordedPass._run, loop.plan_for

    def full(recorded_pass, *arguments):
        result = own_run(recorded_pass, *arguments)
        if recorded_pass._recording is not None and not graphs[0].playing:  # with gradients that are whole, or nearly
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return result

    def graph(device):
        graphs.append(PlayedGraph(sessions[0].trained_parameters()))
        return graphs[-1]

    sessions, make = [], passes.pass_for
    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: sessions.append(session) or make(session, *rest))
    monkeypatch.setattr(passes, "CudaGraph", graph)
    monkeypatch.setattr(passes.RecordedPass, "_run", full)
    monkeypatch.setattr(loop, "plan_for", lambda *args, **more: dataclasses.replace(own_plan(*args, **more), speed_up="graphs"))
    if asked_for:
        monkeypatch.setattr(memory, "_faults_of_speed_up", lambda *_: [])
        with pytest.raises(torch.cuda.OutOfMemoryError):
            end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "run")
        return
    recorded = end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "run")
    assert recorded[1] == launched[1] and graphs[0].plays
    assert all(torch.equal(launched[0][name], tensor) for name, tensor in recorded[0].items())
    assert sum("operation by operation from now on" in text for text in recorded[2]) == 1


def test_a_preview_that_does_not_fit_beside_a_recording_is_tried_again(tiny, tiny_model, tiny_dataset, config, tmp_path,
                                                                       monkeypatch):
    config = dataclasses.replace(config, steps=8, train_batch_size=1, preview_steps=1, preview_every=8)
    graphs, tries, own_plan, make, render = [], [], loop.plan_for, passes.pass_for, loop.render_previews
    sessions = []

    def rendered(*arguments, **more):
        tries.append(1)
        if len(tries) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return render(*arguments, **more)

    def graph(device):
        graphs.append(PlayedGraph(sessions[0].trained_parameters()))
        return graphs[-1]

    monkeypatch.setattr(loop, "render_previews", rendered)
    monkeypatch.setattr(loop, "pass_for", lambda session, *rest: sessions.append(session) or make(session, *rest))
    monkeypatch.setattr(passes, "CudaGraph", graph)
    monkeypatch.setattr(loop, "plan_for", lambda *args, **more: dataclasses.replace(own_plan(*args, **more), speed_up="graphs"))
    end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "run")
    assert len(tries) == 3 and graphs[0].plays  # before the run, and twice at its end
    assert list((tmp_path / "run").glob("previews/step-000008-*.png"))


class Card:
    """What torch.cuda keeps about recordings, as its sources have it: where one ends in an error, stream and generator stay."""

    def __init__(self, ends):
        self.stream, self.draws, self.recorded_on, self.ends = "the host's", True, [], list(ends)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        before, self.stream, self.draws = self.stream, stream, False
        self.recorded_on.append(stream)
        try:
            yield
        finally:
            error = self.ends.pop(0)
            if error is not None:
                raise error
            self.stream, self.draws = before, True


def stream(device):
    return torch.device("cuda", device) if isinstance(device, int) else device, object()


@pytest.fixture
def card(monkeypatch):
    def install(ends):
        card = Card(ends)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "Stream", stream)
        monkeypatch.setattr(torch.cuda, "stream", card.on)
        monkeypatch.setattr(torch.cuda, "graph", card.graph)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
        passes._stream.cache_clear()
        return card

    yield install
    passes._stream.cache_clear()


def test_a_recording_that_fails_leaves_the_card_as_it_was(card):
    there = card([RuntimeError("operation failed due to a previous error during capture"), None])
    with pytest.raises(RuntimeError, match="previous error"):
        passes.CudaGraph(torch.device("cuda:1")).record(dict)
    assert there.stream == "the host's" and there.draws
    assert {device for device, _ in there.recorded_on} == {torch.device("cuda:1")}


def test_a_card_that_records_nothing_more_tells_its_first_error(card):
    there = card([RuntimeError("first"), RuntimeError("second")])
    with pytest.raises(RuntimeError, match="first"):
        passes.CudaGraph(torch.device("cuda:0")).record(dict)
    assert there.stream == "the host's"


def test_each_card_has_one_stream_for_all_recordings(card):
    there = card([None] * 3)
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        passes.CudaGraph(torch.device(device)).record(dict)
    assert [device.index for device, _ in there.recorded_on] == [0, 1, 0]
    assert there.recorded_on[0] is there.recorded_on[2]


@pytest.mark.parametrize(("changes", "processes", "recorded"), [
    ({}, 1, True), ({"speed_up": "none"}, 1, False), ({"memory_profile": "low"}, 1, False),
    ({"memory_profile": "balanced"}, 1, False),
    ({"gradient_accumulation_steps": 2}, 1, False), ({}, 2, False), ({"lora_rank": 4}, 1, True),
    ({"memory_profile": "none", "mixed_precision": "bf16"}, 1, False)])
def test_when_passes_are_recorded_unasked(changes, processes, recorded, config, monkeypatch):
    monkeypatch.setattr(memory.precision, "device_of", lambda config: "cuda")
    monkeypatch.setattr(memory.precision, "has_bf16", lambda device: True)
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "no Triton")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = dataclasses.replace(config, **{"memory_profile": "fast", "speed_up": "auto", **changes})
    assert memory.plan_for(config).speed_up == ("graphs" if recorded else "none")


@pytest.mark.parametrize(("changes", "told"), [
    ({"speed_up": "graphs"}, "needs an NVIDIA GPU"),
    ({"speed_up": "graphs", "memory_profile": "low"}, "save no memory"),
    ({"speed_up": "compile", "gradient_checkpointing": True}, "save no memory"),
    ({"speed_up": "compile"}, "cannot be had here: RuntimeError: no compiler"),
])
def test_speed_ups_that_cannot_be_had_are_refused(changes, told, config, monkeypatch):
    def compiled(*arguments, **named):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", compiled)
    precision.why_not_compiled.cache_clear()
    try:
        assert any(told in fault for fault in memory.faults(dataclasses.replace(config, **changes)))
    finally:
        precision.why_not_compiled.cache_clear()


def test_compiled_networks_learn_the_same(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch):
    """By a compiler that traces, and leaves the kernels as they are: the real one takes minutes."""
    monkeypatch.setattr(precision, "COMPILER", "eager")
    config = dataclasses.replace(config, steps=2)
    plain = end_of(config, tiny, tiny_model, tiny_dataset, tmp_path / "plain")
    traced = end_of(dataclasses.replace(config, speed_up="compile"), tiny, tiny_model, tiny_dataset, tmp_path / "traced")
    assert traced[1] == pytest.approx(plain[1], rel=1e-5)
    assert traced[0].keys() == plain[0].keys()
    assert any("speed-up compile" in text for text in traced[2])


OF_THE_CPU_ITSELF = {"_single_tensor_adam", "_single_tensor_adamw"}  # torch's AdamW, which on a GPU is the fused one


class Asked(TorchDispatchMode):
    """Counts operations for whose number the CPU would have to wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            callers = [frame.name for frame in traceback.extract_stack()]
            if not OF_THE_CPU_ITSELF & set(callers):
                self.found.append(" < ".join(callers[-8:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [
    {"memory_profile": "fast", "snr_gamma": 5.0}, {"memory_profile": "low"}, {"memory_profile": "ultra"},
    {"optimizer": "prodigy", "learning_rate": 1.0}, {"train_text_encoder": False}, {"lora_rank": 2, "clip_skip": 2},
    {"ema_decay": 0.9},
], ids=str)
def test_no_step_asks_the_device_for_a_number(changes, tiny_model, tiny_dataset, config, run, monkeypatch):
    found = []

    def watched(owner, name):
        own = getattr(owner, name)

        def call(*arguments, **named):
            with Asked() as asked:
                result = own(*arguments, **named)
            found.extend(asked.found)
            return result

        monkeypatch.setattr(owner, name, call)

    watched(passes.Pass, "__call__")
    watched(session.Session, "gradient_norm")
    watched(session.Session, "update")
    train(dataclasses.replace(config, steps=2, **changes), tiny_model, tiny_dataset, run, Progress())
    assert not found, set(found)


class Numbered:
    def __init__(self):
        self.made, self.threads = [], set()

    def batch(self, step, micro):
        self.made.append((step, micro))
        self.threads.add(threading.get_ident())
        return (step, micro)


def test_batches_are_made_one_ahead_and_none_too_many():
    numbered = Numbered()
    with Prefetched(numbered, steps=3, micro_batches=2, device=torch.device("cpu")) as batches:
        wanted = [(step, micro) for step in range(3) for micro in range(2)]
        assert [batches.batch(*place) for place in wanted] == wanted
        assert batches.batch(1, 0) == (1, 0)  # from anywhere
    assert numbered.made[:6] == wanted and len(numbered.threads) == 2
    assert not any("dreambooth batches" in thread.name for thread in threading.enumerate())


def bitsandbytes_with(optimizer):
    module = types.ModuleType("bitsandbytes")
    module.__version__, module.optim = "9.9", types.SimpleNamespace(AdamW8bit=optimizer)
    return module


class Idle(torch.optim.AdamW):
    def step(self, closure=None):
        pass


class Broken(torch.optim.AdamW):
    def step(self, closure=None):
        raise RuntimeError("no kernel image is available")


@pytest.fixture
def installed(monkeypatch):
    def install(optimizer):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None if optimizer is None else bitsandbytes_with(optimizer))
        vendor._found.cache_clear()

    yield install
    vendor._found.cache_clear()


@pytest.mark.parametrize(("optimizer", "version"), [(torch.optim.AdamW, "9.9"), (Idle, ""), (Broken, ""), (None, "")])
def test_bitsandbytes_counts_only_if_its_step_works(installed, optimizer, version):
    installed(optimizer)
    assert vendor.version_that_works("cpu") == version


def test_bitsandbytes_is_tried_again_once_a_full_card_has_room(installed):
    class Full(torch.optim.AdamW):
        def step(self, closure=None):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    installed(Full)
    assert vendor.version_that_works("cpu") == ""
    sys.modules["bitsandbytes"].optim.AdamW8bit = torch.optim.AdamW
    assert vendor.version_that_works("cpu") == "9.9"


def test_8_bit_state_is_bitsandbytes_where_it_works_and_said_so(installed, config):
    installed(torch.optim.AdamW)
    balanced, low = (memory.plan_for(dataclasses.replace(config, memory_profile=name)) for name in ("balanced", "low"))
    assert "of bitsandbytes 9.9" in balanced.sentence
    assert "bitsandbytes" not in low.sentence  # it would round its bf16 weights to nearest
    installed(None)
    assert "bitsandbytes" not in memory.plan_for(dataclasses.replace(config, memory_profile="balanced")).sentence


def test_a_run_keeps_the_8_bit_state_that_it_began_with(installed, tiny, tiny_model, tiny_dataset, config, run):
    config = dataclasses.replace(config, memory_profile="balanced", steps=4)
    stopped = Progress()
    stopped.listen(lambda report: stopped.cancel() if report.phase == "training" and report.done == 2 else None)
    installed(torch.optim.AdamW)
    with pytest.raises(Cancelled):
        train(config, tiny_model, tiny_dataset, run, stopped)
    installed(None)
    with pytest.raises(ResumeError, match="bitsandbytes"):
        train(config, fresh(tiny, tiny_model), tiny_dataset, run, Progress(), resume=True)
    installed(torch.optim.AdamW)
    train(config, fresh(tiny, tiny_model), tiny_dataset, run, Progress(), resume=True)
    assert [entry["step"] for entry in run.metrics()] == [1, 2, 3, 4]


def test_a_numbered_cpu_is_no_gpu():
    """accelerate numbers the CPU of each process: cpu:1."""
    with Prefetched(Batches(), 2, 1, torch.device("cpu:1")) as batches:
        assert [batches.batch(step, 0) for step in (0, 1)] == [(0, 0), (1, 0)]  # the second one is made by the thread


class Batches:
    """Each batch is its own place."""

    def batch(self, step, micro_batch):
        return step, micro_batch
