"""Networks that FSDP splits over two processes learn what whole ones learn, and leave the same files: gloo, on the CPU."""

import functools
import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from campaign import SMALLEST
from launching import LIMIT_S, ended, forked, held_after, metrics
from PIL import Image
from safetensors.torch import load_file

from dreambooth_ext.models.family import SD1, SDXL
from dreambooth_ext.models.specimen import Size, specimen
from dreambooth_ext.training import checkpoint, sharding

pytestmark = pytest.mark.skipif(not sharding.runs_on("cpu"), reason=f"FSDP of torch {torch.__version__} runs on GPUs alone")
FSDP = {"ACCELERATE_USE_FSDP": "true"}
SMALLEST_SDXL = Size((32, 32, 64), (0, 1, 1), 1, (32, 64), (2, 2), (32, 32, 32, 32), 8)
# Between them: both families, both optimizers, EMA or none, and what is gathered more than once in a step.
ROOMS = {
    "sd1": (SD1, SMALLEST, {"memory_profile": "fast", "ema_decay": 0.9, "clip_skip": 2, "max_grad_norm": 0.5}),
    "sdxl": (SDXL, SMALLEST_SDXL, {"optimizer": "lion", "gradient_checkpointing": True, "gradient_accumulation_steps": 2,
                                   "text_encoder_stop_step": 4}),
}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """By name: settings of a short run on small networks, and what one process and two made of it, once."""
    return functools.cache(lambda name: filled(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=ROOMS)
def room(request, rooms):
    return rooms(request.param)


def filled(name, folder):
    """All text encoders are trained."""
    family, size, changes = ROOMS[name]
    base = specimen(family, size=size).write(folder / "base.safetensors", torch.float16)
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / "pictures" / f"{number}.png")
    settings = {
        "base": str(base), "instance_dir": str(folder / "pictures"), "token": "rxz", "class_noun": "dog", "steps": 6,
        "resolution": 64, "num_class_images": 3, "class_steps": 2, "preview_steps": 2, "snapshot_every": 3,
        "publish_format": "safetensors", "train_text_encoder": True, "device": "cpu", "runs_dir": str(folder / "runs"),
        "models_dir": str(folder / "models"), **changes}
    (folder / "settings.json").write_text(json.dumps(settings))
    ended(train(folder, "alone", 1))
    ended(train(folder, "split", 2))
    return folder


def train(folder, name, processes, **variables):
    command = ["train", "--config", "settings.json", "--output-name", name, "--train-batch-size", str(2 // processes)]
    return forked(folder, processes, command, **(FSDP if processes > 1 else {}), **variables)


def require_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert torch.allclose(ours[name].float(), tensor.float(), atol=1e-4), name


def require_same_run(folder, name, like):
    ours, theirs = metrics(folder, name), metrics(folder, like)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    # So small a network's gradients grow the last bit of a sum into the third digit of their norm.
    for figure, tolerance in (("loss", 1e-3), ("validation_loss", 1e-3), ("grad_norm", 5e-2)):
        both = [[line.get(figure, 0) for line in lines] for lines in (ours, theirs)]
        assert both[0] == pytest.approx(both[1], rel=tolerance), figure
    require_close(*(load_file(folder / "models" / f"{each}.safetensors") for each in (name, like)))


def test_split_networks_learn_what_whole_ones_learn(room):
    assert "networks split over the processes" in (room / "runs" / "split" / "log.txt").read_text()
    require_same_run(room, "split", "alone")
    before = load_file(room / "base.safetensors")
    after = load_file(room / "models" / "split.safetensors")
    learnt = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor.float(), after[name].float())}
    assert {"model"} < learnt and len(learnt) == 2  # the text encoders, too


def test_snapshots_of_split_networks_are_those_of_whole_ones(room):
    ours, theirs = (room / "runs" / name / "checkpoints" / "step-000003" for name in ("split", "alone"))
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*"))
    assert names == sorted(path.relative_to(ours) for path in ours.rglob("*"))
    for name in names:
        if name.suffix == ".safetensors":
            require_close(load_file(ours / name), load_file(theirs / name))
    weights, expected = (checkpoint.read(folder)[0] for folder in (ours, theirs))
    assert weights.keys() == expected.keys() and "text_encoder" in weights
    for part, each in expected.items():
        require_close(weights[part], each)
    split, whole = (torch.load(folder / "state.pt", weights_only=True) for folder in (ours, theirs))
    assert split.keys() == whole.keys()
    assert split["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]
    assert split["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    for index, entries in whole["optimizer"]["state"].items():
        require_close(*({name: torch.as_tensor(value) for name, value in each.items()}
                        for each in (split["optimizer"]["state"][index], entries)))
    assert checkpoint.made_of(ours).channels_last is None  # one process may lay it out as it likes
    if whole["ema"]:
        require_close(*(dict(enumerate(each["ema"]["shadows"])) for each in (split, whole)))


def test_previews_of_split_networks_are_those_of_whole_ones(room):
    names = sorted(path.name for path in (room / "runs" / "alone" / "previews").glob("*.png"))
    assert len(names) == 6 and names == sorted(path.name for path in (room / "runs" / "split" / "previews").glob("*.png"))
    for name in names:
        ours, theirs = (np.asarray(Image.open(room / "runs" / run / "previews" / name), int) for run in ("split", "alone"))
        assert np.abs(ours - theirs).max() <= 2, name


def test_a_killed_run_goes_on_exactly_and_with_another_number_of_processes(rooms):
    room = rooms("sd1")
    processes = train(room, "killed", 2, **held_after(4, room / "never"))
    run, end = room / "runs" / "killed", time.monotonic() + LIMIT_S
    while not (run / "checkpoints" / "step-000003").exists() and time.monotonic() < end:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(LIMIT_S)
    assert (run / "checkpoints" / "step-000003").exists() and not (room / "models" / "killed.safetensors").exists()
    shutil.copytree(run, room / "kept")
    ended(forked(room, 2, ["resume", "killed", "--runs-dir", "runs"], **FSDP))
    again, undisturbed = (load_file(room / "models" / f"{name}.safetensors") for name in ("killed", "split"))
    assert all(torch.equal(again[name], undisturbed[name]) for name in undisturbed)
    shutil.rmtree(run)
    (room / "models" / "killed.safetensors").unlink()
    (room / "kept").rename(run)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "train_batch_size": 2}))  # one process has all of a step's pictures
    ended(forked(room, 1, ["resume", "killed", "--runs-dir", "runs"]))
    require_same_run(room, "killed", "alone")


def test_a_run_of_one_process_goes_on_with_split_networks(rooms):
    room = rooms("sd1")
    ended(train(room, "grown", 1))
    config = room / "runs" / "grown" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "train_batch_size": 1}))
    ended(forked(room, 2, ["resume", "grown", "--snapshot", "step-000003", "--runs-dir", "runs"], **FSDP))
    assert "networks split over the processes" in (room / "runs" / "grown" / "log.txt").read_text()
    require_same_run(room, "grown", "alone")
