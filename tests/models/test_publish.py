"""What a published file is: the source with the trained tensors in it, and told in every way that hosts understand."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_ext.cli import BAD_INPUT, DONE, run
from dreambooth_ext.errors import BadNumbers, Cancelled, ConfigError, DiskFull, MissingTensors
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.conversion import Wishes, convert
from dreambooth_ext.models.diffusers_folder import WEIGHT_FILES
from dreambooth_ext.models.family import FAMILIES, SD1, SD2, SDXL, UNET, VAE
from dreambooth_ext.models.load import inspect
from dreambooth_ext.models.lora_file import extract_lora
from dreambooth_ext.models.publish import publish
from dreambooth_ext.models.specimen import Size, specimen
from dreambooth_ext.progress import Progress

# The smallest that has every kind of block.
TINY = {"sd1": Size((32, 32, 32, 32), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32)),
        "sd2": Size((32, 64, 64, 64), (1, 1, 1, 0), 1, (32,), (3,), (32, 32, 32, 32), 8),
        "sdxl": Size((32, 32, 32), (0, 1, 2), 2, (32, 64), (2, 2), (32, 32, 32, 32), 8)}
STRANGE = {"model_ema.decay": torch.tensor(0.9999), "model_ema.diffusion_modelout2bias": torch.ones(4),
           "strange.key": torch.arange(5, dtype=torch.int32), "model.diffusion_model.nobody.knows": torch.full((3,), 0.5).half(),
           "alphas_cumprod": torch.linspace(0.99, 0.0047, 1000)}
Usage = namedtuple("Usage", "total used free")


def tensors(path):
    with open_checkpoint(path) as file:
        return {name: file.tensor(name) for name in file.entries}


def same(one, two):
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def trained_folder(base, folder):
    """A base's networks after a training that moved every tensor of UNet and text encoders."""
    convert(base, folder)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (folder / part).is_dir():
            path = folder / WEIGHT_FILES[part]
            save_file({name: (tensor.float() * 1.5 + 0.25).to(tensor.dtype) for name, tensor in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Family key -> (base with averages and unknown keys, in fp16; folder of its networks, trained)."""
    made = {}

    def get(key):
        if key not in made:
            folder = tmp_path_factory.mktemp(key)
            family = next(family for family in FAMILIES if family.key == key)
            sample = specimen(family, size=TINY[key])
            sample.fixed |= STRANGE
            base = sample.write(folder / "base.safetensors", torch.float16, {"modelspec.license": "open", "modelspec.date": "2022",
                                                                             "sshs_model_hash": "1", "custom": "kept"})
            made[key] = base, trained_folder(base, folder / "trained")
        return made[key]

    return get


@pytest.mark.parametrize("publish_format", ["ckpt", "safetensors"])
def test_only_what_was_trained_changes(world, tmp_path, family, publish_format):
    base, folder = world(family.key)
    before = tensors(base)
    progress, said = Progress(), []
    progress.listen(lambda report: said.append(report.text) if report.phase == "log" else None)
    path, = publish(base, folder, tmp_path, "new", publish_format=publish_format, progress=progress)
    after = tensors(path)
    assert list(after) == [name for name in before if not name.startswith("model_ema.")]  # in the source's order too
    assert any("2 tensors of averaged weights" in text for text in said)
    texts = ("cond_stage_model.", "conditioner.")
    aside = ("position_ids", "logit_scale", *(("resblocks.2.", "model.text_projection") if family is SD2 else ()))
    for name, tensor in after.items():
        untouched = not name.startswith((UNET, *texts)) or any(mark in name for mark in aside) or "nobody" in name
        assert same(tensor, before[name]) == untouched, name
        if not untouched:
            expected = (before[name].float() * 1.5 + 0.25).half()
            assert same(tensor, expected), name


def test_both_formats_hold_the_same_and_hosts_take_them(world, tmp_path, webui_accepts, family):
    base, folder = world(family.key)
    ckpt, safetensors = publish(base, folder, tmp_path, "new", publish_format="both", metadata={"global_step": 42})
    one, two = tensors(ckpt), tensors(safetensors)
    assert one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    webui_accepts(ckpt)
    for way in ({}, {"mmap": True}):
        loaded = torch.load(str(ckpt), weights_only=True, **way)  # torch 2.1 maps files named by a text alone
        assert loaded["global_step"] == 42
        assert all(same(loaded["state_dict"][name], tensor) for name, tensor in one.items())
    assert all(same(tensor, one[name]) for name, tensor in load_file(safetensors).items())


@pytest.mark.parametrize("wish, dtype", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_precision_is_chosen_for_weights_alone(world, tmp_path, wish, dtype):
    base, folder = world("sd1")
    path, = publish(base, folder, tmp_path, "new", dtype=wish)
    before = tensors(base)
    for name, tensor in tensors(path).items():
        weight = name.startswith((UNET, VAE, "cond_stage_model.")) and tensor.is_floating_point()
        assert tensor.dtype == (dtype if weight else before[name].dtype), name


def test_what_fp16_training_did_not_change_keeps_the_sources_own_bits(tmp_path):
    """An fp32 base trained in half precision: a tensor that comes back as it went in is not rounded in the file."""
    base = specimen(SD1, size=TINY["sd1"]).write(tmp_path / "base.safetensors")
    convert(base, tmp_path / "half", wishes=Wishes("fp16"))
    path, = publish(base, tmp_path / "half", tmp_path, "new", publish_format="safetensors")
    after = tensors(path)
    assert all(same(tensor, after[name]) for name, tensor in tensors(base).items())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_not_published(world, tmp_path, number):
    base, folder = world("sd1")
    shutil.copytree(folder, tmp_path / "bad")
    path = tmp_path / "bad" / WEIGHT_FILES["unet"]
    weights = load_file(path)
    weights["mid_block.resnets.1.conv2.weight"][3, 1, 0, 2] = number
    save_file(weights, path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "new.ckpt").write_bytes(b"the one before")
    with pytest.raises(BadNumbers, match=r"middle_block\.2\.out_layers\.3\.weight"):
        publish(base, tmp_path / "bad", tmp_path / "models", "new")
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["new.ckpt"]
    assert (tmp_path / "models" / "new.ckpt").read_bytes() == b"the one before"


def test_a_full_disk_is_seen_before_anything_is_written(world, tmp_path, monkeypatch):
    base, folder = world("sd1")
    size = base.stat().st_size
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(size, size, size // 2))
    from dreambooth_ext.models import publish as module

    monkeypatch.setattr(module, "write_atomically", lambda *_: pytest.fail("something was written"))
    with pytest.raises(DiskFull, match="The finished model is to be written"):
        publish(base, folder, tmp_path / "models", "new", publish_format="both")
    assert not list((tmp_path / "models").iterdir())


def test_publishing_is_told_and_can_be_stopped(world, tmp_path):
    base, folder = world("sd1")
    progress, done = Progress(), []

    def watch(report):
        if report.total:
            done.append(report.done / report.total)
        if done and done[-1] > 0.5:
            progress.cancel()

    progress.listen(watch)
    with pytest.raises(Cancelled):
        publish(base, folder, tmp_path / "models", "new", progress=progress)
    assert done == sorted(done) and len(done) > 20 and sum(share > 0.5 for share in done) == 1
    assert not list((tmp_path / "models").iterdir())


def test_networks_of_another_model_are_refused(world, tmp_path):
    with pytest.raises(MissingTensors, match="to be published over"):
        publish(world("sd1")[0], world("sd2")[1], tmp_path, "new")


def test_another_vae_is_baked_in(world, tmp_path):
    base, folder = world("sd1")
    before = tensors(base)
    other = {name: tensor + 1 for name, tensor in before.items() if name.startswith(VAE)}
    save_file({name.removeprefix(VAE): tensor for name, tensor in other.items()}, tmp_path / "vae.safetensors")
    path, = publish(base, folder, tmp_path, "new", vae=tmp_path / "vae.safetensors")
    after = tensors(path)
    assert all(same(after[name], tensor) for name, tensor in other.items())
    kept = tensors(publish(base, folder, tmp_path, "kept")[0])
    assert all(same(kept[name], before[name]) for name in other)


@pytest.mark.parametrize("publish_format", ["safetensors", "ckpt"])
def test_a_base_without_vae_is_published_whole_with_the_one_that_is_named(world, tmp_path, family, publish_format):
    base, folder = world(family.key)
    expected = tensors(publish(base, folder, tmp_path, "whole", publish_format=publish_format)[0])
    before = {name: tensor.clone() for name, tensor in tensors(base).items()}
    vae = {name.removeprefix(VAE): before.pop(name) for name in list(before) if name.startswith(VAE)}
    save_file(vae, tmp_path / "vae.safetensors")
    save_file(before, tmp_path / "lacking.safetensors")
    if base.with_suffix(".yaml").exists():
        shutil.copy(base.with_suffix(".yaml"), tmp_path / "lacking.yaml")
    with pytest.raises(MissingTensors, match="no VAE of its own"):
        publish(tmp_path / "lacking.safetensors", folder, tmp_path, "new")
    path, = publish(tmp_path / "lacking.safetensors", folder, tmp_path, "new", publish_format=publish_format,
                    vae=tmp_path / "vae.safetensors")
    after = tensors(path)
    assert after.keys() == expected.keys() and all(same(after[name], tensor) for name, tensor in expected.items())


ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}


def test_the_header_tells_what_it_is_and_how_it_was_made(world, tmp_path, family):
    base, folder = world(family.key)
    given = {"title": "my dog", "date": "2026-01-02", "base_name": base.name, "base_sha256": "ab" * 32, "steps": 800,
             "instance_prompts": ["rxz dog"], "prediction_type": "epsilon"}
    path, = publish(base, folder, tmp_path, "new", publish_format="safetensors", metadata=given)
    told = header(path)
    side = {"sd1": 64, "sd2": 64, "sdxl": 1024}[family.key]
    assert told["modelspec.architecture"] == ARCHITECTURES[family.key]
    assert told["modelspec.resolution"] == f"{side}x{side}" and told["modelspec.prediction_type"] == "epsilon"
    assert (told["modelspec.title"], told["modelspec.date"], told["modelspec.license"]) == ("my dog", "2026-01-02", "open")
    assert told["dreambooth.base_sha256"] == "ab" * 32 and json.loads(told["dreambooth.instance_prompts"]) == ["rxz dog"]
    assert told["custom"] == "kept" and "sshs_model_hash" not in told and all(isinstance(value, str) for value in told.values())
    again = header(convert(path, tmp_path / "half.safetensors", wishes=Wishes("fp16")))
    assert again == told  # another precision, the same model
    assert header(convert(convert(path, tmp_path / "folder"), tmp_path / "back.safetensors")) == told


@pytest.mark.parametrize("zero_snr", [False, True])
def test_velocity_is_recorded_for_every_host(world, tmp_path, family, zero_snr):
    """Asked for, since no file of SD 1.x or SDXL tells by itself: then key, header and yaml tell it, and we read them."""
    base, folder = world(family.key)
    asked = {"prediction_type": "v_prediction", "zero_terminal_snr": zero_snr}
    paths = publish(base, folder, tmp_path, "new", publish_format="both", metadata=asked)
    for path in paths:
        names = tensors(path).keys()
        assert ("v_pred" in names) == (family is not SD2) and ("ztsnr" in names) == zero_snr
        info = inspect(path)
        assert (info.prediction_type, info.zero_terminal_snr) == ("v_prediction", zero_snr)
    assert header(paths[1])["modelspec.prediction_type"] == "v"
    params = yaml.safe_load((tmp_path / "new.yaml").read_text())["model"]["params"]
    if family is SDXL:
        inner = params["denoiser_config"]["params"]
        assert inner["scaling_config"]["target"].endswith(".VScaling")
        assert inner["discretization_config"]["target"].endswith(".ZeroSNRDDPMDiscretization") == zero_snr
    else:
        assert params["parameterization"] == "v"
    shutil.copy(base.with_suffix(".yaml"), tmp_path / "new.yaml")  # which says nothing of it: the file alone is enough
    if family is not SD2:
        assert all(inspect(path).prediction_type == "v_prediction" for path in paths)


def test_full_size_models_of_epsilon_need_no_sidecar_and_those_of_velocity_get_one():
    from dreambooth_ext.models.layout import layouts
    from dreambooth_ext.models.sidecar_yaml import sidecar_for
    from dreambooth_ext.models.specimen import FULL

    for family in FAMILIES:
        for inpainting in (False, True):
            parts = layouts(specimen(family, size=FULL[family.key], inpainting=inpainting).shapes, family, None, "x")
            nowhere = Path("nowhere.safetensors")
            assert sidecar_for(nowhere, family, parts, "epsilon", False) is None
            text = sidecar_for(nowhere, family, parts, "v_prediction", True)
            assert (text is None) == (family is SD2)
            if text is not None:
                made = yaml.safe_load(text)["model"]["params"]
                network = made["network_config" if family is SDXL else "unet_config"]["params"]
                assert network["in_channels"] == (9 if inpainting else 4) and network["model_channels"] == 320
                assert network["context_dim"] == (2048 if family is SDXL else 768)


def test_marks_that_are_no_longer_true_go(world, tmp_path):
    base, _ = world("sdxl")
    velocity = convert(base, tmp_path / "v.safetensors", wishes=Wishes(prediction_type="v_prediction", zero_terminal_snr=True))
    assert {"v_pred", "ztsnr"} <= tensors(velocity).keys()
    epsilon = convert(velocity, tmp_path / "e.ckpt", wishes=Wishes(prediction_type="epsilon"))
    assert not {"v_pred", "ztsnr"} & tensors(epsilon).keys() and inspect(epsilon).prediction_type == "epsilon"
    with pytest.raises(ConfigError, match="--zero-terminal-snr"):
        convert(base, tmp_path / "x.ckpt", wishes=Wishes(zero_terminal_snr=True))
    assert run(["convert", str(base), str(tmp_path / "x.ckpt"), "--zero-terminal-snr"]) == BAD_INPUT
    asked = ["--zero-terminal-snr", "--prediction-type", "v_prediction"]
    assert run(["convert", str(base), str(tmp_path / "folder"), *asked]) == DONE
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"] is True


@pytest.mark.parametrize("way", ["convert", "publish", "merge-lora"])
def test_the_sidecar_of_a_model_that_is_replaced_goes_with_it(world, tmp_path, way):
    """It would make hosts render the new one as the former one predicts: noise."""
    base, folder = world("sd1")
    plain = Path(shutil.copy(base, tmp_path / "plain.safetensors"))  # of eight heads, as all of SD 1.x: it needs none
    convert(plain, tmp_path / "x.ckpt", wishes=Wishes(prediction_type="v_prediction"))
    assert inspect(tmp_path / "x.ckpt").prediction_type == "v_prediction"
    if way == "publish":
        publish(plain, folder, tmp_path, "x", publish_format="ckpt")
    else:
        command = ["convert", str(plain)]
        if way == "merge-lora":
            lora = tmp_path / "lora.safetensors"
            extract_lora(plain, convert(folder, tmp_path / "tuned.safetensors"), lora, 1)
            command = ["merge-lora", str(plain), str(lora)]
        (tmp_path / "x.ckpt").unlink()  # of the same name, in another format, a sidecar is another model's
        assert run([*command, str(tmp_path / "x.ckpt")]) == BAD_INPUT
        assert inspect_sidecar(tmp_path / "x.yaml") == "v" and not (tmp_path / "x.ckpt").exists()
        assert run([*command, str(tmp_path / "x.ckpt"), "--overwrite"]) == DONE
    assert not (tmp_path / "x.yaml").exists() and inspect(tmp_path / "x.ckpt").prediction_type == "epsilon"


def inspect_sidecar(path):
    return yaml.safe_load(path.read_text())["model"]["params"]["parameterization"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**30, -1])
def test_a_count_of_steps_that_is_none_breaks_no_conversion(world, tmp_path, number):
    base, _ = world("sd1")
    torch.save({"state_dict": tensors(base), "global_step": number}, tmp_path / "odd.ckpt")
    with open_checkpoint(convert(tmp_path / "odd.ckpt", tmp_path / "x.ckpt")) as file:
        assert file.numbers == {"global_step": 0}


def test_an_ending_in_capitals_is_an_ending(world, tmp_path):
    base, _ = world("sd1")
    written = convert(base, tmp_path / "OUT.CKPT")
    assert written.name == "OUT.ckpt" and written.read_bytes()[:2] == b"PK"


def test_a_stored_schedule_that_ends_in_zero_is_seen(tmp_path):
    sample = specimen(SD1, size=TINY["sd1"])
    sample.fixed |= {"alphas_cumprod": torch.linspace(0.99, 0.0, 1000)}
    assert inspect(sample.write(tmp_path / "z.safetensors"), prediction_type="v_prediction").zero_terminal_snr


@pytest.mark.parametrize("publish_format", ["ckpt", "safetensors"])
def test_a_tensor_that_stands_in_the_base_under_both_of_its_names_is_published_once(world, tmp_path, publish_format):
    """The WebUI renames the early name and takes whichever comes last: it would load the base's text encoder."""
    source, trained = world("sd1")
    own = load_file(source)
    root = "cond_stage_model.transformer."
    early = {root + name.removeprefix(f"{root}text_model."): tensor for name, tensor in own.items() if name.startswith(root)}
    assert len(early) > 20
    base = tmp_path / "twice.ckpt"
    torch.save({"state_dict": {**own, **early}}, base)
    out, = publish(base, trained, tmp_path, "new", publish_format=publish_format)
    alone, = publish(source, trained, tmp_path, "alone", publish_format=publish_format)
    written, wanted = tensors(out), tensors(alone)
    assert written.keys() - wanted.keys() <= {f"{root}embeddings.position_ids"}
    assert all(same(written[name], wanted[name]) for name in wanted)
