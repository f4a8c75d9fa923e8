"""The estimate against what is known of Stable Diffusion 1.5, and against what a real step allocates."""

import contextlib
import dataclasses
import functools
import io
import json
import subprocess
import sys
import threading

import pytest
import torch

from dreambooth_ext import gpu
from dreambooth_ext.cli import run
from dreambooth_ext.config import TrainConfig
from dreambooth_ext.errors import OutOfMemory
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import SMALL, modules_of, specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import estimate as room
from dreambooth_ext.training.activations import Held, peak_bytes
from dreambooth_ext.training.checkpoint import snapshots
from dreambooth_ext.training.estimate import GIB, estimate, in_effect, of_all_processes, profile_that_fits
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.memory import PROFILES, faults
from dreambooth_ext.training.optimizers.chunked import CHUNK

pytestmark = pytest.mark.engine

PARAMETERS = 859_520_964 + 123_060_480  # UNet and text encoder of Stable Diffusion 1.5


@pytest.fixture(scope="module")
def on_a_gpu():
    """Estimates for SD 1.5 as if a GPU with bf16 and 6 GiB free were there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.precision, "device_of", lambda config: "cuda")
        patch.setattr(room.precision, "has_bf16", lambda device: True)
        patch.setattr(room, "free_bytes", lambda device: 6 * GIB)
        patch.setattr(room, "faults", lambda config: [])
        return {row.profile: row for row in estimate(TrainConfig())}


def test_weights_are_counted_to_the_byte(on_a_gpu):
    assert on_a_gpu["ultra"].weights == 2 * PARAMETERS
    assert on_a_gpu["none"].weights == on_a_gpu["none"].gradients == 4 * PARAMETERS
    assert on_a_gpu["none"].optimizer_state == 8 * PARAMETERS + 16 * CHUNK


@pytest.mark.parametrize("profile", ["none", *PROFILES])
def test_a_snapshot_takes_little_more_than_is_foreseen_at_least(profile, tiny_model, tiny_dataset, config, tmp_path):
    """The networks that are not trained come on top, and what offload keeps in RAM."""
    config = dataclasses.replace(config, memory_profile=profile, steps=1, train_text_encoder=True)
    run = RunFolder(tmp_path / "run")
    run.create(config)
    frozen = sum(each.numel() * each.element_size() for each in tiny_model.vae.parameters())
    least = room.least_snapshot_bytes(config, tiny_model)
    train(config, tiny_model, tiny_dataset, run, Progress())
    ((_, folder),) = snapshots(run.checkpoints_dir)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    in_ram = 6 * least if profile == "offload" else 0
    assert least < taken < 1.1 * (least + frozen + in_ram) + 1_000_000
    assert room.least_snapshot_bytes(dataclasses.replace(config, lora_rank=4)) == 0


def test_the_lean_profiles_stay_below_what_is_promised(on_a_gpu):
    assert on_a_gpu["ultra"].total - on_a_gpu["ultra"].context < 3.0 * GIB
    assert on_a_gpu["offload"].total - on_a_gpu["offload"].context < 3.0 * GIB
    assert on_a_gpu["low"].total - on_a_gpu["low"].context < 5.0 * GIB


def test_gradients_take_the_place_of_activations(on_a_gpu):
    """At batch 1 + 1 all weights' gradients are larger than what any layer needs, so that little comes on top of them: `balanced`
    is for cards of 12 GB. What is counted by fake tensors of a GPU, through the real session: 16.6 and 9.25 GiB."""
    for name, seen in (("fast", 16.56), ("balanced", 9.25)):
        row = on_a_gpu[name]
        assert row.gradients >= 4 * PARAMETERS and 0 <= row.activations < 0.25 * GIB
        assert seen * GIB <= row.total - row.context < 1.05 * seen * GIB


def test_several_processes_have_room_for_all_gradients_from_the_start(tiny_model, config, monkeypatch):
    alone = estimate(config, tiny_model, ["none"])[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = estimate(config, tiny_model, ["none"])[0]
    assert together.gradients == alone.gradients and together.activations > alone.activations


def test_neither_caches_nor_previews_set_the_peak(on_a_gpu):
    """The VAE works while the UNet is not on the device: what it takes at 512 px is less than a step of the leanest profile."""
    vae = modules_of(SD1)["vae"].eval()
    weights = 4 * sum(parameter.numel() for parameter in vae.parameters())
    with torch.no_grad():
        encoding = peak_bytes(lambda: vae.encode(torch.empty(1, 3, 512, 512, device="meta")).latent_dist.mean)
        decoding = peak_bytes(lambda: vae.decode(torch.empty(1, 4, 64, 64, device="meta")).sample)
    assert max(encoding, decoding) + weights < on_a_gpu["ultra"].total - on_a_gpu["ultra"].context


def test_the_verdict_says_which_fit(on_a_gpu):
    assert [name for name, row in on_a_gpu.items() if row.fits] == ["low", "ultra", "offload"]
    assert "GiB more" in on_a_gpu["fast"].verdict


def test_on_a_cpu_auto_is_the_settings_as_they_are(tiny_model, config, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    config = dataclasses.replace(config, memory_profile="auto", optimizer="lion", device="cpu")
    assert profile_that_fits(config, tiny_model) == "none"
    assert not faults(config)


def test_auto_says_what_it_would_replace(config, monkeypatch):
    monkeypatch.setattr(room.precision, "device_of", lambda config: "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(room.precision, "has_bf16", lambda device: True)
    config = dataclasses.replace(config, memory_profile="auto", device="auto")
    assert not faults(config)
    assert "auto brings its own" in faults(dataclasses.replace(config, optimizer="lion"))[0]
    assert not faults(dataclasses.replace(config, mixed_precision="bf16"))  # in which its profiles compute here
    assert "auto brings its own" in faults(dataclasses.replace(config, mixed_precision="fp16"))[0]


def test_auto_takes_the_first_that_fits_and_refuses_when_none_does(config, monkeypatch):
    config = dataclasses.replace(config, memory_profile="auto", base="")
    model = room._outline(config)  # in the tiny one an optimizer's temporaries outweigh its state
    monkeypatch.setattr(room.precision, "device_of", lambda config: "some card")
    monkeypatch.setattr(room, "faults", lambda config: [])
    monkeypatch.setattr(room, "free_bytes", lambda device: 1 << 40)
    by_name = {row.profile: row for row in estimate(config, model)}
    monkeypatch.setattr(room, "estimate", lambda config, model=None: [  # it takes seconds, and would find the same
        dataclasses.replace(row, free=room.free_bytes("some card")) for row in by_name.values()])
    between = (by_name["balanced"].total + by_name["low"].total) // 2
    monkeypatch.setattr(room, "free_bytes", lambda device: int(between / room.SHARE_OF_FREE))
    assert profile_that_fits(config, model) == "low"
    mine = in_effect(config, [dataclasses.replace(row, free=1 << 40) for row in by_name.values()])
    assert mine.profile == "fast"
    for theirs, agreed in (("balanced", "balanced"), ("fast", "fast")):  # of another process, whose card has less room
        monkeypatch.setattr(room, "of_all_processes", lambda row, theirs=theirs: [mine, by_name[theirs]])
        assert profile_that_fits(config, model) == agreed
    monkeypatch.setattr(room, "of_all_processes", lambda row: [mine, dataclasses.replace(by_name["fast"], free=1000)])
    with pytest.raises(OutOfMemory, match="even fast needs"):
        profile_that_fits(config, model)
    monkeypatch.setattr(room, "of_all_processes", of_all_processes)
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match="even ultra needs"):
        profile_that_fits(config, model)


def test_each_process_hears_what_the_others_cards_hold(tiny_model, config, monkeypatch):
    row = estimate(config, tiny_model, ["none"])[0]
    assert of_all_processes(row) == [row]
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda rows, own: rows.__setitem__(slice(None), [own] * len(rows)))
    assert of_all_processes(row) == [row, row, row]


def test_a_profile_that_cannot_run_says_why(tiny_model, config):
    rows = {row.profile: row for row in estimate(dataclasses.replace(config, gradient_accumulation_steps=2), tiny_model)}
    assert "accumulated" in rows["low"].verdict and not rows["low"].fits
    assert rows["balanced"].fits


def test_two_steps_of_the_real_thing_confirm_it(tmp_path):
    """By the command, on the CPU, where it is the process's memory that counts: in one of its own. Nothing is left behind."""
    base = specimen(SD1, size=SMALL["sd1"]).write(tmp_path / "base.safetensors", torch.float16)
    command = ["estimate", "--base", str(base), "--resolution", "64", "--device", "cpu", "--memory-profile", "ultra", "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "dreambooth_ext", *command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document = json.loads(line)
    estimated = {row["profile"]: row for row in document["estimates"]}["ultra"]
    trial = document["dry_run"]
    assert trial["profile"] == "ultra" and trial["seconds_a_step"] > 0
    assert trial["estimated"] == estimated["total"] - estimated["context"]
    assert trial["peak"] > estimated["weights"] / 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"] == ["base.safetensors"]


def test_a_dry_run_without_a_base_is_refused(capsys):
    assert run(["estimate", "--dry-run"]) == 2
    assert "name one" in capsys.readouterr().err


def test_live_storages_are_counted_and_views_are_not():
    def work():
        x = torch.empty(1000, device="meta")
        y = (x.view(10, 100) + 1).t()
        del x
        return y * 2

    assert peak_bytes(work) == 8000


def test_what_is_held_besides_counts_when_it_is_there():
    held = Held()

    def work():
        x = torch.empty(1000, device="meta")  # 4000 bytes, twice
        held.bytes = 500
        del x
        torch.empty(100, device="meta")
        held.bytes = 700

    assert peak_bytes(work, 2.0, held) == 8000
    held.bytes = 8100
    assert peak_bytes(lambda: setattr(held, "bytes", 9000), 1.0, held) == 9000


@pytest.mark.parametrize("option, value", [("train_batch_size", 4), ("resolution", 128)])
def test_more_pixels_need_more_activations(option, value, tiny_model, config):
    small, large = (estimate(dataclasses.replace(config, **change), tiny_model)[0] for change in ({}, {option: value}))
    assert large.activations > 1.5 * small.activations
    assert (large.weights, large.gradients) == (small.weights, small.gradients)


def test_two_estimates_at_once_do_not_disturb_each_other():
    """A form works one out while the run that was just started from it works out its own."""
    own, kinds = torch.nn.functional.scaled_dot_product_attention, []
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def attend():
        query = torch.empty((1, 2, 4, 8), device="meta", requires_grad=True)
        kinds.append(type(torch.nn.functional.scaled_dot_product_attention(query, query, query).grad_fn).__name__)

    def first():
        first_is_in.set()
        second_is_in.wait(0.3)
        attend()

    def second():
        second_is_in.set()
        first_is_out.wait(120)
        attend()

    def other():
        assert first_is_in.wait(120)
        peak_bytes(second)

    thread = threading.Thread(target=other)
    thread.start()
    peak_bytes(first)
    first_is_out.set()
    thread.join()
    assert kinds == ["_AttentionBackward"] * 2 and torch.nn.functional.scaled_dot_product_attention is own


@functools.cache
def of_a_card(*flags):
    """The rows that the command tells of a card that is not here, by profile."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert run(["estimate", "--json", "--gpu-gib", *flags]) == 0
    return {row["profile"]: row for row in json.loads(told.getvalue())["estimates"]}


def test_a_card_that_is_not_here_is_answered_for():
    """With what it has: SD 1.5 as it is promised, in the total 0.5 GiB for the driver."""
    fits = {gib: [name for name, row in of_a_card(gib).items() if row["fits"]] for gib in ("4", "12")}
    assert fits == {"4": ["ultra", "offload"], "12": ["balanced", "low", "ultra", "offload"]}
    assert gpu.imagined_gpu() is None


def test_without_a_base_a_family_may_be_named():
    """SDXL's UNet alone, 1024 px: 2,567,463,684 weights in bf16, and at most the 7.5 GiB that are promised of `ultra`."""
    ultra = of_a_card("8", "--family", "sdxl", "--no-train-text-encoder", "--memory-profile", "ultra")["ultra"]
    assert ultra["weights"] == 2 * 2_567_463_684 and ultra["fits"]
    assert ultra["total"] - ultra["context"] < 7.5 * GIB


def test_what_that_card_lacks_counts():
    fast = of_a_card("12")["fast"]
    assert fast["total"] < of_a_card("12", "--kernels", "torch", "--memory-profile", "fast")["fast"]["total"]
    old = of_a_card("24", "--gpu-without-bf16", "--memory-profile", "low")
    assert "no bf16" in old["low"]["verdict"] and old["fast"]["fits"]


@pytest.mark.parametrize(("flags", "told"), [
    (["--gpu-gib", "nan"], "is no card"), (["--gpu-gib", "-1"], "is no card"),
    (["--family", "sdxl", "--base", "x.safetensors"], "--base is given as well"),
    (["--gpu-gib", "8", "--dry-run"], "nothing can be tried"),
    (["--gpu-gib", "8", "--device", "cpu"], "--device cpu is given as well"),
])
def test_what_cannot_be_asked_of_such_a_card(flags, told, capsys):
    assert run(["estimate", *flags]) == 2
    assert told in capsys.readouterr().err
