"""What a snapshot holds: weights once, exactly those that are trained, and a state that goes on from there."""

import dataclasses
import shutil
import sys
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_ext import recipe
from dreambooth_ext.config import TrainConfig
from dreambooth_ext.errors import DiskFull, ResumeError
from dreambooth_ext.models.diffusers_folder import WEIGHT_FILES, load_diffusers
from dreambooth_ext.models.networks import tensors_of
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import checkpoint
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.memory import PROFILES, plan_for
from dreambooth_ext.training.precision import accelerator_for
from dreambooth_ext.training.session import Session

# Each profile with averages and without, and with text encoders and without: all pairs.
KINDS = [{"memory_profile": profile, "ema_decay": ema, "train_text_encoder": (number % 2 == 0) == (ema == 0)}
         for (number, profile), ema in product(enumerate(("none", *PROFILES)), (0.0, 0.9))]
KINDS += [{"lora_rank": 2}, {"lora_rank": 2, "memory_profile": "low"}, {"mixed_precision": "bf16"}]


def named(kind):
    return "-".join(f"{name}={value}" for name, value in kind.items())


def fresh_model(tiny, former):
    unet, vae, text_encoder = tiny.modules()
    return dataclasses.replace(former, unet=unet, vae=vae, text_encoders=(text_encoder,))


def require_same(one, two):
    """Names, kinds of numbers and bits."""
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]), name


@pytest.fixture
def asked(monkeypatch):
    """The bytes that room was asked for."""
    found = []
    monkeypatch.setattr(checkpoint, "require_space", lambda folder, count, what: found.append(count))
    return found


def tensors_in(folder):
    """(bytes of all tensors in safetensors files, bytes of all files but the tokenizer's)"""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.parent.name.startswith("tokenizer")]
    inside = sum(checkpoint.bytes_of(load_file(path)) for path in files if path.suffix == ".safetensors")
    return inside, sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_each_weight_is_stored_once_and_read_back_bit_for_bit(kind, tiny, tiny_model, config, tmp_path, asked):
    config = dataclasses.replace(config, **kind)
    plan = plan_for(config)
    with accelerator_for(config, plan.autocast) as accelerator:
        session = Session(config, plan, tiny_model, accelerator)
        with torch.no_grad():
            for number, parameter in enumerate(session.trained_parameters()):  # so that averages are others than weights
                parameter.add_(0.01 * (1 + number % 3))
        if session.ema is not None:
            session.ema.update()
        kept = session.kept(3)
        folder = checkpoint.write(tmp_path, 3, kept, keep=1)
        weights, state = checkpoint.read(folder)
        require_same_parts(weights, kept.weights)
        with session.published_weights():
            published = {part: tensors_of(module) for part, module in session.model.parts.items() if not session.lora}
            require_same_parts({part: checkpoint.saved_part(folder, part) for part in published}, published)
        apart = session.ema is not None or session.lora is not None
        assert {path.stem for path in folder.glob("trained/*")} == (kept.weights.keys() if apart else set())
        assert set(state["in_folder"]) == (set() if apart else kept.weights.keys())
        expected = checkpoint.bytes_of(published) + (checkpoint.bytes_of(kept.weights) if apart else 0)
        expected += checkpoint.bytes_of(kept.weights) if session.lora else 0  # the file that would be published
        inside, whole = tensors_in(folder)
        assert inside == expected and asked == [expected + checkpoint.bytes_of(kept.state)]
        assert 0 <= whole - asked[0] < 500_000  # headers, configurations, and what pickle says about each tensor
        with torch.no_grad():
            for parameter in session.trained_parameters():
                parameter.zero_()
        session.load_trained_weights(weights)
        require_same_parts(session.trained_weights(), weights)
        session.close()


def require_same_parts(one, two):
    assert one.keys() == two.keys()
    for part, weights in one.items():
        require_same(weights, two[part])


# ---- going on


def end_of(run, model):
    return {f"{part}.{name}": tensor.clone() for part, module in load_diffusers(run.diffusers_dir, model).parts.items()
            for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def made():
    """By kind: (its run taken back to the first step, how it ended)"""
    return {}


@pytest.fixture
def taken(made, tmp_path, tmp_path_factory, tiny, tiny_model, tiny_dataset, config):
    """A function: two steps of a run, taken back to the snapshot of the first one, and how it ended. And what goes on with it."""
    def trained(run, settings, resume):
        train(settings, fresh_model(tiny, tiny_model), tiny_dataset, run, Progress(), resume=resume)
        return end_of(run, tiny_model)

    def take(**kind):
        if named(kind) not in made:
            settings, run = dataclasses.replace(config, steps=2, **kind), RunFolder(tmp_path_factory.mktemp("taken") / "run")
            run.create(settings)
            end = trained(run, settings, False)
            shutil.rmtree(run.diffusers_dir)
            shutil.rmtree(run.checkpoints_dir / "step-000002")
            made[named(kind)] = run.path, end
        path, end = made[named(kind)]
        run = RunFolder(shutil.copytree(path, tmp_path / "run"))
        return run, run.checkpoints_dir / "step-000001", end

    return take, lambda run: trained(run, run.config(), True)


@pytest.mark.parametrize("profile", ["none", *PROFILES])
def test_a_run_without_averages_goes_on_from_what_would_be_published(profile, taken):
    """With averages: test_memory.py."""
    take, go_on = taken
    kind = {} if profile == "none" else {"memory_profile": profile, "train_text_encoder": profile not in ("balanced", "ultra")}
    run, folder, end = take(**kind)
    assert not (folder / "trained").exists()
    require_same(go_on(run), end)


def test_how_a_snapshot_was_made_is_known_without_reading_its_weights(taken, monkeypatch):
    load = torch.load

    def of_torch_2_1(f, *more, mmap=None, **how):
        if mmap and not isinstance(f, str):
            raise ValueError("f must be a string filename in order to use mmap argument")
        return load(f, *more, mmap=mmap, **how)

    monkeypatch.setattr(torch, "load", of_torch_2_1)
    take, _ = taken
    run, folder, _ = take(memory_profile="ultra")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert checkpoint.made_of(folder) == checkpoint.Made("ultra", "adafactor", "own", False, run.config().learning_rate)
    (folder / "state.pt").write_bytes(b"damaged")
    with pytest.raises(ResumeError, match="cannot be read"):
        checkpoint.made_of(folder)


def test_a_snapshots_rate_may_be_a_whole_number(tmp_path):
    """As Prodigy's is in a file of settings."""
    torch.save({"profile": "none", "learning_rate": 1}, tmp_path / "state.pt")
    assert recipe._at_its_rate(TrainConfig(learning_rate=0.5), tmp_path).learning_rate == 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_disk_that_is_full_is_told_as_such(tmp_path):
    """A file may have 64 KiB, and the state has more."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint._save({"numbers": torch.zeros(2**18)}, tmp_path / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoint._save({"numbers": torch.arange(9)}, tmp_path / "state.pt")
    assert torch.equal(torch.load(tmp_path / "state.pt", weights_only=True)["numbers"], torch.arange(9))


def as_it_was_written_before(folder):
    """All weights in `trained`, nothing about it in the state; what stands in the folder is not what goes on."""
    weights, state = checkpoint.read(folder)
    (folder / "trained").mkdir()
    for part, tensors in weights.items():
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "trained" / f"{part}.safetensors")
        published = load_file(folder / WEIGHT_FILES[part])
        save_file({name: torch.zeros_like(tensor) for name, tensor in published.items()}, folder / WEIGHT_FILES[part])
    del state["in_folder"]
    torch.save(state, folder / "state.pt")


def test_a_snapshot_of_an_earlier_version_goes_on(taken):
    take, go_on = taken
    run, folder, end = take()
    as_it_was_written_before(folder)
    require_same(go_on(run), end)


def cut(folder):
    path = folder / WEIGHT_FILES["unet"]
    path.write_bytes(path.read_bytes()[:-1])


def without_a_part(folder):
    shutil.rmtree(folder / "text_encoder")


def without_a_tensor(folder):
    path = folder / WEIGHT_FILES["unet"]
    save_file({name: tensor.clone() for name, tensor in load_file(path).items() if name != "conv_in.bias"}, path)


def with_another_part(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**state, "in_folder": ["unet", "../unet"]}, folder / "state.pt")


def without_trained(folder):
    shutil.rmtree(folder / "trained")


@pytest.mark.parametrize(("damage", "kind"), [
    (cut, {}), (without_a_part, {}), (without_a_tensor, {}), (with_another_part, {}),
    (without_trained, {"ema_decay": 0.9}),  # averages are never taken for what is trained
], ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_snapshot_is_refused(damage, kind, taken):
    take, go_on = taken
    run, folder, _ = take(**kind)
    damage(folder)
    with pytest.raises(ResumeError, match="Delete that snapshot"):
        go_on(run)
    assert not run.diffusers_dir.exists()


@pytest.mark.parametrize(("place", "error", "told"), [
    ("checkpoint.torch.load", OSError(5, "Input/output error"), "Check that the drive is there"),
    ("checkpoint.torch.load", PermissionError(13, "Permission denied"), "the files may be read"),
    ("checkpoint.saved_part", OSError("The paging file is too small. (os error 1455)"), "Close what else needs memory"),
    ("checkpoint.torch.load", MemoryError(), "Close what else needs memory"),
    ("session.Session.load_state_dict", RuntimeError("alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried"),
     "Close what else needs memory"),
    ("session.Session.load_state_dict", torch.cuda.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
], ids=str)
def test_a_whole_snapshot_is_not_to_be_deleted_for_want_of_memory_or_of_its_disk(place, error, told, taken, monkeypatch):
    def fail(*given, **named):
        raise error

    take, go_on = taken
    run, _, end = take()
    with monkeypatch.context() as patch, pytest.raises((ResumeError, torch.cuda.OutOfMemoryError), match=told) as caught:
        patch.setattr(f"dreambooth_ext.training.{place}", fail)
        go_on(run)
    assert "Delete" not in str(caught.value)
    require_same(go_on(run), end)


@pytest.mark.parametrize(("found", "goes_on"), [("fast", True), ("balanced", True), ("low", False), ("ultra", False)])
def test_a_run_that_began_on_a_cpu_goes_on_by_profiles_that_take_its_state(found, goes_on, taken, monkeypatch):
    take, go_on = taken
    run, _, _ = take(memory_profile="auto")
    monkeypatch.setattr("dreambooth_ext.training.loop.profile_that_fits", lambda config, model: found)
    with nullcontext() if goes_on else pytest.raises(ResumeError, match="it began on a CPU"):
        go_on(run)


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    kept = checkpoint.Kept({"unet": {"a": torch.ones(2)}}, {}, lambda folder: pytest.fail("it was written"), 2**60, in_folder=True)
    with pytest.raises(DiskFull, match="A snapshot"):
        checkpoint.write(tmp_path / "checkpoints", 1, kept, keep=1)
    assert not list(tmp_path.iterdir())
