"""Every family, with and without inpainting, goes through the corridor: loaded, trained, published, rendered."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ext.cli import BAD_INPUT, DONE, run
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.models.family import FAMILIES, SD1, SD2, SDXL, UNET, VAE
from dreambooth_ext.models.load import inspect
from dreambooth_ext.models.networks import tensors_of
from dreambooth_ext.models.specimen import Size, specimen

# The smallest that has every kind of block.
TINY = {"sd1": Size((32, 32, 32, 32), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32)),
        "sd2": Size((32, 64, 64, 64), (1, 1, 1, 0), 1, (32,), (3,), (32, 32, 32, 32), 8),
        "sdxl": Size((32, 32, 32), (0, 1, 2), 2, (32, 64), (2, 2), (32, 32, 32, 32), 8)}


def tensors(path):
    with open_checkpoint(path) as file:
        return {name: file.tensor(name) for name in file.entries}


def training(base, folder):
    """The command for a run of two steps."""
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{number}.png")
    return ["train", "--base", str(base), "--instance-dir", str(pictures), "--token", "rxz", "--class-noun", "dog",
            "--output-name", "model", "--models-dir", str(folder / "models"), "--runs-dir", str(folder / "runs"),
            "--steps", "2", "--resolution", "64", "--num-class-images", "2", "--class-steps", "2", "--preview-steps", "2",
            "--learning-rate", "1e-2"]


@pytest.mark.parametrize("inpainting", [False, True], ids=["plain", "inpainting"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_a_model_of_each_family_is_trained_and_published(family, inpainting, tmp_path):
    base = tmp_path / "base.safetensors"
    specimen(family, size=TINY[family.key], inpainting=inpainting).write(base, torch.float16)
    assert run([*training(base, tmp_path), "--prediction-type", "epsilon"]) == DONE
    before, after = tensors(base), tensors(tmp_path / "models" / "model.ckpt")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(name.startswith(VAE) for name in changed)
    trained = [name for name in before if name.startswith(UNET)]
    assert len(changed.intersection(trained)) > 0.9 * len(trained)
    assert any(name.startswith(("cond_stage_model.", "conditioner.")) for name in changed)
    if inpainting:
        entrance = UNET + "input_blocks.0.0.weight"
        difference = (after[entrance].float() - before[entrance].float()).abs().amax(dim=(0, 2, 3))
        assert bool((difference > 0).all()), "mask and masked picture teach too"
    assert run(["render", "--base", str(tmp_path / "models" / "model.ckpt"), "--prompt", "rxz dog", "--out",
                str(tmp_path / "out"), "--render-steps", "2", "--size", "64"]) == DONE


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_velocity_is_trained_and_told(family, tmp_path):
    """SD 2.x at 768 px as it is found out, SD 1.x and SDXL as they are asked for; zero terminal SNR on top for SDXL."""
    base, zero_snr = tmp_path / "base.safetensors", family is SDXL
    made = specimen(family, size=TINY[family.key])
    made.fixed["model.diffusion_model.out.2.bias"] = torch.full((4,), -9.0)  # what the test of hosts takes for velocity
    made.write(base)
    asked = {SD1: ["--prediction-type", "v_prediction"], SD2: [],
             SDXL: ["--prediction-type", "v_prediction", "--zero-terminal-snr"]}[family]
    if family is not SD2:
        assert run([*training(base, tmp_path), "--zero-terminal-snr"]) == BAD_INPUT  # the file tells of no velocity
    assert run([*training(base, tmp_path), *asked]) == DONE
    published = tmp_path / "models" / "model.ckpt"
    info = inspect(published)
    assert (info.prediction_type, info.zero_terminal_snr) == ("v_prediction", zero_snr)
    names = tensors(published).keys()
    assert ("v_pred" in names, "ztsnr" in names) == (family is not SD2, zero_snr)
    runs = tmp_path / "runs" / "model"
    for folder in (runs / "diffusers", *sorted((runs / "checkpoints").iterdir())):
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", zero_snr)
    snapshot = sorted((runs / "checkpoints").iterdir())[0]
    assert run(["publish", "model", "--runs-dir", str(tmp_path / "runs"), "--snapshot", str(snapshot), "--name", "early"]) == DONE
    early = inspect(tmp_path / "models" / "early.ckpt")
    assert (early.prediction_type, early.zero_terminal_snr) == ("v_prediction", zero_snr)


def test_a_lora_merged_into_a_base_of_which_settings_alone_told_velocity_is_told_so(tmp_path):
    """Hosts would take the merged file for one that predicts noise."""
    base = specimen(SDXL, size=TINY["sdxl"]).write(tmp_path / "base.safetensors")
    asked = ["--prediction-type", "v_prediction", "--zero-terminal-snr", "--lora-rank", "2"]
    assert run([*training(base, tmp_path), *asked]) == DONE
    lora, merged = tmp_path / "models" / "model.safetensors", tmp_path / "merged.safetensors"
    assert run(["merge-lora", str(base), str(lora), str(merged)]) == DONE
    info = inspect(merged)
    assert (info.prediction_type, info.zero_terminal_snr) == ("v_prediction", True)
    other = specimen(SDXL, size=TINY["sdxl"]).write(tmp_path / "other.safetensors")
    assert run(["merge-lora", str(other), str(lora), str(tmp_path / "plain.safetensors")]) == DONE
    assert inspect(tmp_path / "plain.safetensors").prediction_type == "epsilon"


def delta(learnt, layer):
    """What a LoRA adds to the layer's weight; None if it does not adapt it."""
    if f"{layer}.alpha" not in learnt:
        return None
    up, down, alpha = (learnt[f"{layer}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "alpha"))
    return up.flatten(1) @ down.flatten(1) * alpha / len(down)


@pytest.mark.parametrize("family, inpainting", [(SD1, False), (SD1, True), (SD2, False), (SDXL, False)],
                         ids=["sd1", "sd1-inpainting", "sd2", "sdxl"])
def test_a_lora_of_each_family_merges_into_what_the_run_ended_with(family, inpainting, tmp_path):
    """UNet, all text encoders and convolutions: the file for the Lora tab holds the whole of what was learnt."""
    base = specimen(family, size=TINY[family.key], inpainting=inpainting).write(tmp_path / "base.safetensors")
    assert run([*training(base, tmp_path), "--lora-rank", "3", "--lora-conv-rank", "2", "--lora-alpha", "2",
                "--prediction-type", "epsilon"]) == DONE
    lora = tmp_path / "models" / "model.safetensors"
    merged = tmp_path / "merged.safetensors"
    assert run(["merge-lora", str(base), str(lora), str(merged)]) == DONE
    assert run(["convert", str(merged), str(tmp_path / "merged")]) == DONE
    assert run(["convert", str(base), str(tmp_path / "unchanged")]) == DONE
    again, before = (load_diffusers(tmp_path / name) for name in ("merged", "unchanged"))
    learnt = load_file(tmp_path / "runs" / "model" / "diffusers" / "lora.safetensors")  # by the run's own names
    changed = set()
    for part, module in before.parts.items():
        merged_tensors = tensors_of(again.parts[part])
        for name, tensor in tensors_of(module).items():
            added = delta(learnt, f"{part}.{name.removesuffix('.weight')}")
            assert torch.allclose(tensor + added.view_as(tensor) if added is not None else tensor, merged_tensors[name], atol=1e-6)
            if not torch.equal(tensor, merged_tensors[name]):
                changed.add((part, name))
    assert {part for part, _ in changed} == set(before.parts) - {"vae"}
    layers = len(tensors(lora)) // 3  # up, down, alpha
    # Where the picture has come down to one place, attention has nothing to choose, and its query and key do not learn.
    assert 0.95 * layers < len(changed) <= layers
