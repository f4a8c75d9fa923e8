"""`convert` as a person calls it: both ways, all families, formats and precisions, bit for bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_ext.cli import BAD_INPUT, DONE, run
from dreambooth_ext.errors import CheckpointError
from dreambooth_ext.models.checkpoint_file import CheckpointFile, open_checkpoint
from dreambooth_ext.models.diffusers_folder import WEIGHT_FILES, PartFiles, load_diffusers, save_part, saved_part
from dreambooth_ext.models.family import SD1, SD2, SDXL
from dreambooth_ext.models.load import inspect, load_checkpoint
from dreambooth_ext.models.networks import tensors_of
from dreambooth_ext.models.specimen import FULL, specimen

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def tensors(path):
    with open_checkpoint(path) as file:
        return {name: file.tensor(name) for name in file.entries}


def require_same(one, two):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and tensor.shape == two[name].shape and torch.equal(tensor, two[name]), name


@pytest.fixture(scope="module")
def folders(specimens, tmp_path_factory):
    """(family key, inpainting, dtype, suffix) -> (file, folder made of it by the command)."""
    made = {}

    def get(key, inpainting=False, dtype=torch.float32, suffix="safetensors"):
        place = key, inpainting, dtype, suffix
        if place not in made:
            source = specimens(key, inpainting, suffix, dtype)
            folder = tmp_path_factory.mktemp("folders") / "model"
            assert run(["convert", str(source), str(folder)]) == DONE
            made[place] = source, folder
        return made[place]

    return get


@pytest.mark.parametrize("suffix, dtype, inpainting", [
    ("safetensors", torch.float32, False), ("ckpt", torch.float16, True), ("safetensors", torch.bfloat16, False),
    ("ckpt", torch.float32, False), ("safetensors", torch.float16, False), ("ckpt", torch.bfloat16, False),
])
def test_file_to_folder_to_file_is_exact(folders, tmp_path, family, suffix, dtype, inpainting):
    source, folder = folders(family.key, inpainting, dtype, suffix)
    back = tmp_path / f"back.{suffix}"
    assert run(["convert", str(folder), str(back)]) == DONE
    require_same(tensors(source), tensors(back))
    one, two = inspect(source, check_numbers=False), inspect(back, check_numbers=False)
    assert (one.family, one.inpainting, one.prediction_type, one.dtype) == (two.family, two.inpainting, two.prediction_type,
                                                                            two.dtype)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_ckpt_to_safetensors_to_ckpt_is_exact_to_the_last_key(specimens, webui_accepts, tmp_path, family, dtype):
    source = specimens(family.key, False, "ckpt", dtype)
    assert run(["convert", str(source), str(tmp_path / "a.safetensors")]) == DONE
    assert run(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")]) == DONE
    require_same(tensors(source), tensors(tmp_path / "a.safetensors"))
    require_same(tensors(source), tensors(tmp_path / "b.ckpt"))
    webui_accepts(tmp_path / "b.ckpt")
    assert list(load_file(tmp_path / "a.safetensors")) and torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]


def test_the_folder_is_the_model(folders, family):
    """Loaded by us and, strictly, by diffusers and transformers, it holds the numbers of the file."""
    from diffusers import DiffusionPipeline

    source, folder = folders(family.key)
    model, again = load_checkpoint(source), load_diffusers(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for part, module in model.parts.items():
        ours, theirs = tensors_of(again.parts[part]), tensors_of(getattr(pipeline, part))
        mine = tensors_of(module)
        assert mine.keys() == ours.keys() == theirs.keys()
        assert all(torch.equal(mine[name], ours[name]) and torch.equal(mine[name], theirs[name]) for name in mine), part
    assert (again.family, again.resolution, again.prediction_type) == (family, model.resolution, model.prediction_type)


def test_the_names_in_a_folder_do_not_depend_on_the_installed_transformers(folders, family):
    _, folder = folders(family.key)
    for row in family.text_encoders:
        names = set(load_file(folder / WEIGHT_FILES[row.part]))
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
        assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_a_network_that_was_saved_is_read_back_by_our_names_bit_for_bit(folders, family, tmp_path, dtype):
    """Snapshots keep trained weights in this form alone. The number of names in the file is that of our names: none meet."""
    model = load_checkpoint(folders(family.key)[0]).to(dtype=dtype)
    for part, module in model.parts.items():
        save_part(module, tmp_path, part)
        require_same(tensors_of(module), saved_part(tmp_path, part))
        assert len(load_file(tmp_path / WEIGHT_FILES[part])) == len(tensors_of(module))


def test_precision_is_changed_on_request_for_weights_alone(specimens, tmp_path):
    source = specimens("sd1")
    assert run(["convert", str(source), str(tmp_path / "half.safetensors"), "--half"]) == DONE
    assert run(["convert", str(source), str(tmp_path / "bf16"), "--format", "ckpt", "--dtype", "bf16"]) == DONE
    assert run(["convert", str(source), str(tmp_path / "folder"), "--dtype", "fp16"]) == DONE
    whole = tensors(source)
    for path, dtype in ((tmp_path / "half.safetensors", torch.float16), (tmp_path / "bf16.ckpt", torch.bfloat16)):
        for name, tensor in tensors(path).items():
            kept = not name.startswith(("model.", "first_stage_model.", "cond_stage_model.")) or not tensor.is_floating_point()
            assert torch.equal(tensor, whole[name] if kept else whole[name].to(dtype)), name
    assert {tensor.dtype for tensor in load_file(tmp_path / "folder" / WEIGHT_FILES["unet"]).values()} == {torch.float16}


@pytest.mark.parametrize("way", ["file", "folder", "back"])
def test_another_vae_is_put_in(folders, tmp_path, way):
    source, folder = folders("sd1")
    other = {name: tensor * 2 for name, tensor in tensors(source).items() if name.startswith("first_stage_model.")}
    save_file({name.removeprefix("first_stage_model."): tensor for name, tensor in other.items()}, tmp_path / "vae.safetensors")
    target = tmp_path / ("folder" if way == "folder" else "with.safetensors")
    arguments = ["convert", str(folder if way == "back" else source), str(target), "--vae", str(tmp_path / "vae.safetensors")]
    assert run(arguments) == DONE
    if way == "folder":
        donor = load_diffusers(target).vae
        assert torch.equal(donor.encoder.conv_in.weight, other["first_stage_model.encoder.conv_in.weight"])
        assert torch.equal(donor.decoder.mid_block.attentions[0].to_q.weight,
                           other["first_stage_model.decoder.mid.attn_1.q.weight"][:, :, 0, 0])
        return
    require_same({**tensors(source), **other}, tensors(target))


def test_averages_stay_unless_pruned(tmp_path, specimens):
    made = {**tensors(specimens("sd1")), "model_ema.decay": torch.tensor(0.9999), "strange.key": torch.arange(3)}
    save_file(made, tmp_path / "ema.safetensors")
    assert run(["convert", str(tmp_path / "ema.safetensors"), str(tmp_path / "all.ckpt")]) == DONE
    assert run(["convert", str(tmp_path / "ema.safetensors"), str(tmp_path / "less.ckpt"), "--prune"]) == DONE
    require_same(made, tensors(tmp_path / "all.ckpt"))
    require_same({name: made[name] for name in made if name != "model_ema.decay"}, tensors(tmp_path / "less.ckpt"))


@pytest.mark.parametrize("key", ["sd1", "sd2", "sdxl"])
def test_velocity_and_zero_snr_survive_the_folder(tmp_path, key):
    """The scheduler's configuration carries them there, marks, sidecar and header back."""
    made = specimen({"sd1": SD1, "sd2": SD2, "sdxl": SDXL}[key])
    made.fixed |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = made.write(tmp_path / "v.safetensors")
    assert run(["convert", str(path), str(tmp_path / "folder")]) == DONE
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"] is True
    assert run(["convert", str(tmp_path / "folder"), str(tmp_path / "back.ckpt")]) == DONE
    info = inspect(tmp_path / "back.ckpt", check_numbers=False)
    assert info.prediction_type == "v_prediction" and info.zero_terminal_snr


def test_a_folder_of_early_diffusers_is_understood(folders, tmp_path):
    """`query`, `key`, `value`, `proj_attn` in the VAE, pickled weights in the text encoder."""
    source, folder = folders("sd1")
    early = tmp_path / "early"
    shutil.copytree(folder, early)
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(early / WEIGHT_FILES["vae"])
    for new, old in words.items():
        vae = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): tensor for name, tensor in vae.items()}
    save_file(vae, early / WEIGHT_FILES["vae"])
    text = early / WEIGHT_FILES["text_encoder"]
    torch.save(load_file(text), text.with_name("pytorch_model.bin"))
    text.unlink()
    assert run(["convert", str(early), str(tmp_path / "back.safetensors")]) == DONE
    require_same(tensors(source), tensors(tmp_path / "back.safetensors"))


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(folders, specimens, tmp_path, capsys):
    source, folder = folders("sd1")
    (tmp_path / "taken.ckpt").write_bytes(b"precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("precious")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    unet = load_file(broken / WEIGHT_FILES["unet"])
    unet.pop("conv_in.bias")
    save_file(unet, broken / WEIGHT_FILES["unet"])
    (tmp_path / "text.safetensors").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    for arguments, word in (
        ([source, tmp_path / "taken.ckpt"], "already"), ([source, tmp_path / "full"], "already"),
        ([source, tmp_path / "full", "--overwrite"], "already"), ([source, source, "--overwrite"], "the base itself"),
        ([folder, tmp_path / "other"], "folder already"), ([broken, tmp_path / "x.ckpt"], "conv_in.bias"),
        ([tmp_path / "text.safetensors", tmp_path / "x.ckpt"], "neither"),
        ([tmp_path / "full", tmp_path / "x.ckpt"], "model_index"),
        ([tmp_path / "none.ckpt", tmp_path / "x.safetensors"], "no such file"), ([source, tmp_path / "con.ckpt"], "name"),
        ([source, tmp_path / "x.ckpt", "--half", "--dtype", "fp32"], "--half"),
    ):
        assert run(["convert", *map(str, arguments)]) == BAD_INPUT, arguments
        assert word in capsys.readouterr().err, arguments
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "taken.ckpt").read_bytes() == b"precious"


def test_numbers_that_leave_the_range_are_named_and_nothing_is_written(specimens, tmp_path, capsys):
    made = tensors(specimens("sd1"))
    name = "model.diffusion_model.out.2.bias"
    made[name][1] = 1e6
    save_file(made, tmp_path / "large.safetensors")
    assert run(["convert", str(tmp_path / "large.safetensors"), str(tmp_path / "half.ckpt"), "--half"]) == BAD_INPUT
    assert name in (said := capsys.readouterr().err) and "too large" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.safetensors"]


def test_progress_and_result_for_programs(specimens, tmp_path, capsys):
    assert run(["convert", str(specimens("sd1")), str(tmp_path / "a.ckpt"), "--json"]) == DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["written"] == str(tmp_path / "a.ckpt") and lines[-1]["bytes"] == (tmp_path / "a.ckpt").stat().st_size
    counts = [line["done"] for line in lines[:-1] if line["phase"] == "converting"]
    assert counts == sorted(counts) and len(counts) > 2


def test_lora_commands(specimens, tmp_path, capsys):
    base = specimens("sd1")
    made = tensors(base)
    made["cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight"] += torch.ones(128, 32)
    save_file(made, tmp_path / "tuned.safetensors")
    shutil.copy(base.with_suffix(".yaml"), tmp_path / "tuned.yaml")
    lora = tmp_path / "lora.safetensors"
    extract = ["extract-lora", str(base), str(tmp_path / "tuned.safetensors"), str(lora), "--rank", "1", "--dtype", "fp32"]
    assert run(extract) == DONE
    assert "1 layers; 0.0% of their difference is lost" in capsys.readouterr().out
    assert run(["merge-lora", str(base), str(lora), str(tmp_path / "merged.ckpt")]) == DONE
    merged = tensors(tmp_path / "merged.ckpt")
    assert max((made[name].float() - merged[name].float()).abs().max() for name in made) < 1e-5
    for arguments in (["merge-lora", base, lora, tmp_path / "merged.ckpt"], ["merge-lora", base, lora, tmp_path / "merged"],
                      ["merge-lora", base, base, tmp_path / "new.ckpt"], ["merge-lora", base, lora, base],
                      ["extract-lora", base, tmp_path / "tuned.safetensors", lora],
                      ["extract-lora", base, tmp_path / "tuned.safetensors", tmp_path / "x.safetensors", "--rank", "0"]):
        assert run([str(part) for part in arguments]) == BAD_INPUT, arguments


def test_what_a_folder_has_no_place_for_comes_back(tmp_path, specimens):
    """Unknown names and what is beside the networks, in another precision if asked for; averages do not."""
    strange = {"strange.key": torch.arange(3), "model_ema.decay": torch.tensor(0.9999), "model.diffusion_model.x": torch.ones(2)}
    made = {**tensors(specimens("sd2")), **strange}
    save_file(made, tmp_path / "s.safetensors", metadata={"modelspec.author": "me", "modelspec.title": "mine"})
    shutil.copy(specimens("sd2").with_suffix(".yaml"), tmp_path / "s.yaml")
    del made["model_ema.decay"]
    assert run(["convert", str(tmp_path / "s.safetensors"), str(tmp_path / "folder")]) == DONE
    assert run(["convert", str(tmp_path / "folder"), str(tmp_path / "back.safetensors")]) == DONE
    require_same(made, tensors(tmp_path / "back.safetensors"))
    with open_checkpoint(tmp_path / "back.safetensors") as file:
        assert (file.metadata["modelspec.author"], file.metadata["modelspec.title"]) == ("me", "mine")
    assert run(["convert", str(tmp_path / "folder"), str(tmp_path / "half.ckpt"), "--half"]) == DONE
    half = tensors(tmp_path / "half.ckpt")
    assert half.keys() == made.keys() and half["strange.key"].dtype == torch.int64
    assert half["cond_stage_model.model.transformer.resblocks.23.ln_1.weight"].dtype == torch.float16


MATRIX = [(suffix, dtype, inpainting) for suffix in ("safetensors", "ckpt") for dtype in NAMES for inpainting in (False, True)]


@pytest.mark.full_size
@pytest.mark.parametrize("suffix, dtype, inpainting", MATRIX, ids=str)
def test_every_round_trip_through_a_folder_is_exact(specimens, tmp_path, family, suffix, dtype, inpainting):
    require_round_trip(specimens(family.key, inpainting, suffix, dtype), tmp_path, suffix)


@pytest.mark.full_size
@pytest.mark.parametrize("suffix, dtype, inpainting", MATRIX, ids=str)
def test_every_round_trip_of_sd15_in_full_size_is_exact(tmp_path, suffix, dtype, inpainting):
    source = specimen(SD1, size=FULL["sd1"], inpainting=inpainting).write(tmp_path / f"full.{suffix}", dtype)
    require_round_trip(source, tmp_path, suffix)
    shutil.rmtree(tmp_path)


def require_round_trip(source, folder, suffix):
    """File to folder to file: same names, dtypes, shapes, bits; a tensor at a time."""
    assert run(["convert", str(source), str(folder / "folder")]) == DONE
    back = folder / f"back.{suffix}"
    assert run(["convert", str(folder / "folder"), str(back)]) == DONE
    with open_checkpoint(source) as one, open_checkpoint(back) as two:
        assert one.entries.keys() == two.entries.keys()
        for name, entry in one.entries.items():
            assert (entry.dtype, entry.shape) == (two.entries[name].dtype, two.entries[name].shape), name
            assert torch.equal(one.tensor(name), two.tensor(name)), name


def test_where_the_second_of_several_files_is_damaged_the_first_is_closed(tmp_path, monkeypatch):
    first, second = (tmp_path / "unet" / f"part-{number}.safetensors" for number in (1, 2))
    first.parent.mkdir()
    save_file({"a": torch.zeros(1)}, first)
    second.write_bytes(b"x")
    (tmp_path / f"{WEIGHT_FILES['unet']}.index.json").write_text(json.dumps({"weight_map": {"a": first.name, "b": second.name}}))
    closed, close = [], CheckpointFile.close
    monkeypatch.setattr(CheckpointFile, "close", lambda self: (closed.append(self.path), close(self)))
    with pytest.raises(CheckpointError):
        PartFiles(tmp_path, "unet")
    assert first in closed
    save_file({"b": torch.ones(1)}, second)
    with PartFiles(tmp_path, "unet") as files:
        assert files.where.keys() == {"a", "b"}
    assert closed[-2:] == [second, first]
