"""Every family, with and without inpainting, goes through the corridor: loaded, trained, published, rendered."""

import pytest
import torch

from dreambooth_ext.cli import DONE, run
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.family import FAMILIES, UNET, VAE
from dreambooth_ext.models.specimen import specimen


def tensors(path):
    with open_checkpoint(path) as file:
        return {name: file.tensor(name) for name in file.entries}


@pytest.mark.parametrize("inpainting", [False, True], ids=["plain", "inpainting"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_a_model_of_each_family_is_trained_and_published(family, inpainting, tmp_path):
    from PIL import Image

    base, pictures = tmp_path / "base.safetensors", tmp_path / "pictures"
    specimen(family, inpainting=inpainting).write(base, torch.float16)
    pictures.mkdir()
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{number}.png")
    assert run(["train", "--base", str(base), "--instance-dir", str(pictures), "--token", "rxz", "--class-noun", "dog",
                "--output-name", "model", "--models-dir", str(tmp_path / "models"), "--runs-dir", str(tmp_path / "runs"),
                "--steps", "2", "--resolution", "64", "--num-class-images", "2", "--class-steps", "2", "--preview-steps", "2",
                "--learning-rate", "1e-2", "--prediction-type", "epsilon"]) == DONE
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
