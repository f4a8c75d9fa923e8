"""The same command in two processes, as `accelerate launch` and torchrun start them: gloo, on the CPU."""

import json
import os
import signal

import pytest
import torch
from launching import COPIES, LIMIT_S, ended, forked, held_after, launch, metrics, wait_for, weights

from dreambooth_ext.team import Team


@pytest.fixture(scope="module")
def room(tmp_path_factory, inputs):
    """Settings of a short run on small networks, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("team")
    settings = {
        "base": str(inputs[0]), "instance_dir": str(inputs[1]), "token": "rxz", "class_noun": "dog", "steps": 8, "resolution": 64,
        "num_class_images": 3, "class_steps": 2, "preview_steps": 2, "snapshot_every": 4, "publish_format": "safetensors",
        "clip_skip": 2,  # layers that nobody reads have no gradients, for which DistributedDataParallel would wait
        "device": "cpu", "runs_dir": str(folder / "runs"), "models_dir": str(folder / "models")}
    (folder / "settings.json").write_text(json.dumps(settings))
    ended(forked(folder, 1, ["train", "--config", "settings.json", "--output-name", "alone", "--train-batch-size", "2"]))
    return folder


def test_alone_nothing_is_distributed():
    team = Team.launched("cpu")
    assert (team.rank, team.count, team.follows) == (0, 1, False)
    assert not torch.distributed.is_initialized()


def test_two_processes_learn_what_one_learns(room):
    code, output = launch(room, "both", 2, "--device", "auto", CUDA_VISIBLE_DEVICES="")  # auto: no GPU, so the CPU
    assert code == 0, output
    alone, both = metrics(room, "alone"), metrics(room, "both")
    assert [line["step"] for line in both] == [line["step"] for line in alone]
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    of_one, of_two = weights(room, "alone"), weights(room, "both")
    assert max(float((of_one[name] - of_two[name]).abs().max()) for name in of_one) < 1e-4
    assert list((room / "models").glob("both.*"))
    assert output.count("Finished") == 1  # one process speaks


@pytest.mark.skipif(torch.__version__.startswith("2.1."), reason="gloo of torch 2.1 cannot add up bf16; NCCL, for which it is, can")
def test_two_processes_average_the_gradients_of_bf16_copies(room):
    """In `fast` on GPUs: what the processes average are the copies' gradients, what they train are the fp32 weights."""
    for name, processes in (("copies-alone", 1), ("copies-both", 2)):
        command = ["train", "--config", "settings.json", "--output-name", name, "--train-batch-size", str(2 // processes),
                   "--memory-profile", "fast", "--snapshot-every", "8", "--preview-steps", "0"]
        assert "bf16 copies of them that compute" in ended(forked(room, processes, command, **{COPIES: "1"}))
    alone, both, wide = (metrics(room, name) for name in ("copies-alone", "copies-both", "alone"))
    losses = [[line["loss"] for line in lines] for lines in (alone, both, wide)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3) and losses[0] != losses[2]
    of_one, of_two, of_wide = (weights(room, name) for name in ("copies-alone", "copies-both", "alone"))
    by_processes, by_rounding = (sum(float((of_one[name] - others[name]).square().sum()) for name in of_one)
                                 for others in (of_two, of_wide))
    assert 0 < by_processes < 0.5 * by_rounding


@pytest.mark.parametrize(("name", "flags"), [("lean", []), ("lora", ["--lora-rank", "4", "--learning-rate", "0.01"])])
def test_two_processes_learn_what_one_learns_with_gradients_checkpointed(room, name, flags):
    """Layers that are computed again, whose gradients the processes are to average once."""
    for processes in (1, 2):
        command = ["train", "--config", "settings.json", "--output-name", f"{name}-{processes}", "--train-batch-size",
                   str(2 // processes), "--snapshot-every", "8", "--preview-steps", "0", "--memory-profile", "balanced", *flags]
        ended(forked(room, processes, command))
    losses = [[line["loss"] for line in metrics(room, f"{name}-{processes}")] for processes in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0] != [line["loss"] for line in metrics(room, "alone")]


def test_stopped_with_two_processes_and_taken_up_by_one(room):
    heard = room / "stopped-heard"
    process = launch(room, "stopped", 2, wait=False, **held_after(2, heard))
    wait_for(process, room / "runs" / "stopped" / "metrics.jsonl")
    os.killpg(process.pid, signal.SIGINT)
    heard.touch()
    process.communicate(timeout=LIMIT_S)
    kept = sorted(path.name for path in (room / "runs" / "stopped" / "checkpoints").iterdir())
    assert kept and process.returncode != 0
    ended(forked(room, 1, ["resume", "stopped", "--runs-dir", str(room / "runs")]))
    assert [line["step"] for line in metrics(room, "stopped")] == [line["step"] for line in metrics(room, "alone")]


def test_bad_pictures_end_all_processes_with_one_message(room, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = json.loads((room / "settings.json").read_text())
    settings["instance_dir"] = str(empty)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    code, output = launch(tmp_path, "bad", 2)
    assert code != 0 and output.count("it holds no pictures") == 1
