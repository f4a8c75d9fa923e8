import shutil

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ext.errors import BadNumbers, MissingTensors, NotACheckpoint
from dreambooth_ext.host import Txt2Img
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.checkpoint_writer import output_of, write_safetensors
from dreambooth_ext.models.convert import resolved, to_ldm
from dreambooth_ext.models.diffusers_folder import load_diffusers, save_diffusers
from dreambooth_ext.models.family import SD1, SD2, SDXL
from dreambooth_ext.models.load import inspect, load_checkpoint, recognise
from dreambooth_ext.models.networks import built, shapes_of, tensors_of
from dreambooth_ext.models.sampling import render
from dreambooth_ext.models.specimen import specimen
from dreambooth_ext.models.text_encoder import encode_prompts
from dreambooth_ext.models.vae_file import open_with_vae

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def write(path, tensors):
    with path.open("wb") as stream:
        write_safetensors(stream, [output_of(name, tensor) for name, tensor in tensors.items()], {})
    return path


@pytest.fixture(scope="module")
def structure():
    """(family key, inpainting) -> its rules; modules are built once."""
    known = {}

    def get(file, *key):
        if key not in known:
            known[key] = [rule for layout in recognise(file)[2]
                          for rule in resolved(layout.rules, file.shapes, shapes_of(built(layout, "x")), "x")]
        return known[key]

    return get


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inpainting", [False, True])
def test_ldm_to_diffusers_to_ldm_is_exact(specimens, structure, family, inpainting, dtype, suffix):
    """Every tensor that the modules hold comes back under its name, with its shape, dtype and bits."""
    with open_checkpoint(specimens(family.key, inpainting, suffix, dtype)) as file:
        rules = structure(file, family.key, inpainting)
        ours = {}
        for rule in rules:
            original = file.tensor(rule.ldm)
            parts = rule.to_ours(original)
            back = rule.to_ldm(parts, original.shape)
            assert back.dtype == original.dtype == dtype and torch.equal(back, original), rule.ldm
            ours |= dict(zip(rule.ours, parts, strict=True))
        rest = set(file.entries) - {rule.ldm for rule in rules}
    unused = ("position_ids", "logit_scale", "betas", "alphas", "posterior", "resblocks.23.", "model.text_projection")
    assert all(any(mark in name for mark in unused) for name in rest), rest
    unet = [rule for rule in rules if rule.ldm.startswith("model.diffusion_model.")]
    assert len(unet) == (1680 if family is SDXL else 686)


def test_a_loaded_model_holds_the_files_numbers(specimens, family):
    path = specimens(family.key, True, "ckpt", torch.float16)
    model = load_checkpoint(path, dtype=torch.float16)
    assert model.inpainting and model.family == family
    with open_checkpoint(path) as file:
        for layout in recognise(file)[2]:
            module = model.parts[layout.part]
            rules = resolved(layout.rules, file.shapes, shapes_of(module), path.name)
            for name, tensor in to_ldm(tensors_of(module), rules, file.shapes).items():
                assert torch.equal(tensor, file.tensor(name)), name


def test_values_are_distinct_so_that_no_two_tensors_can_be_confused(specimens):
    with open_checkpoint(specimens("sdxl")) as file:
        prints = {name: (entry.shape, file.tensor(name).flatten()[:64].sum().item()) for name, entry in file.entries.items()}
    assert len(set(prints.values())) == len(prints)


@pytest.fixture(scope="module")
def loaded(specimens, tmp_path_factory):
    """Family key -> a model and the diffusers folder written from it."""
    known = {}

    def get(key):
        if key not in known:
            model = load_checkpoint(specimens(key))
            folder = tmp_path_factory.mktemp(key) / "folder"
            save_diffusers(model, folder)
            known[key] = model, folder
        return known[key]

    return get


def test_the_folder_gives_the_same_model(loaded, family):
    model, folder = loaded(family.key)
    again = load_diffusers(folder)
    for part, module in model.parts.items():
        other = tensors_of(again.parts[part])
        assert all(torch.equal(tensor, other[name]) for name, tensor in tensors_of(module).items())
        assert len(other) == len(tensors_of(module))
    assert (again.family, again.resolution, again.prediction_type) == (family, model.resolution, model.prediction_type)
    request = Txt2Img("a dog", (1,), width=64, height=64, steps=2)
    assert next(render(model, request)).tobytes() == next(render(again, request)).tobytes()


def test_diffusers_loads_the_folder_and_encodes_alike(loaded, family):
    from diffusers import DiffusionPipeline

    model, folder = loaded(family.key)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        theirs = pipeline.encode_prompt("a red dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    ours = encode_prompts(model, ["a red dog"])
    assert torch.allclose(theirs[0], ours.hidden_states, atol=1e-5)
    if family is SDXL:
        assert torch.allclose(theirs[2], ours.pooled, atol=1e-5)
    assert pipeline.scheduler.config.prediction_type == "epsilon" and not pipeline.scheduler.config.clip_sample
    loaded_by_them = tensors_of(pipeline.unet)
    assert all(torch.equal(tensor, loaded_by_them[name]) for name, tensor in tensors_of(model.unet).items())


def test_size_and_heads_come_from_the_file_and_its_sidecar(specimens):
    model = load_checkpoint(specimens("sd1"))
    assert model.resolution == 64 and model.unet.config.block_out_channels == (32, 64, 96, 96)
    assert model.unet.config.attention_head_dim == 8
    assert load_checkpoint(specimens("sdxl")).unet.config.attention_head_dim == (4, 8, 12)
    assert load_checkpoint(specimens("sd2")).text_encoder.config.num_hidden_layers == 23


def test_without_a_sidecar_the_familys_resolution_counts(tmp_path):
    path = specimen(SD1).write(tmp_path / "plain.safetensors")
    path.with_suffix(".yaml").unlink()
    assert inspect(path).resolution == 512


@pytest.mark.parametrize("line, expected", [
    ('    parameterization: "v"', ("v_prediction", 64)), ("    linear_start: 1.e-3", ("epsilon", 64)),
])
def test_the_sidecar_tells_prediction_type_and_schedule(tmp_path, line, expected):
    path = specimen(SD1).write(tmp_path / "m.safetensors")
    sidecar = path.with_suffix(".yaml")
    sidecar.write_text(sidecar.read_text().replace("    image_size: 8", f"{line}\n    image_size: 8"))
    model = load_checkpoint(path)
    assert (model.prediction_type, model.resolution) == expected
    assert model.linear_start == (0.001 if "linear" in line else 0.00085)
    assert load_checkpoint(path, prediction_type="epsilon").prediction_type == "epsilon"


@pytest.mark.parametrize("text", ["", "[1, 2", "model: 3",
                                  "model:\n  params:\n    unet_config:\n      params:\n        num_heads: many",
                                  "- " * 30000, "&a [*a, *a]", "!!python/object/apply:os.system [true]", "{" * 2000])
def test_a_broken_sidecar_is_named(tmp_path, text):
    path = specimen(SD1).write(tmp_path / "m.safetensors")
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(NotACheckpoint, match=r"m\.yaml"):
        inspect(path)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    path = specimen(SD1).write(tmp_path / "m.safetensors")
    path.with_suffix(".yaml").write_text("model:\n  params:\n    unet_config:\n      params:\n        num_heads: 7\n")
    with pytest.raises(MissingTensors, match="attention heads"):
        inspect(path)


@pytest.mark.parametrize("gone", ["model.diffusion_model.time_embed.0.bias", "model.diffusion_model.middle_block.1.norm.weight",
                                  "first_stage_model.decoder.up.2.block.1.conv2.weight", "first_stage_model.quant_conv.bias",
                                  "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight",
                                  "cond_stage_model.transformer.text_model.final_layer_norm.bias"])
def test_each_missing_tensor_is_named(tmp_path, gone):
    tensors = specimen(SD1).tensors()
    del tensors[gone]
    path = write(tmp_path / "m.safetensors", tensors)
    with pytest.raises(MissingTensors, match=gone.replace(".", r"\.")):
        inspect(path)


def test_a_wrong_shape_is_named(tmp_path):
    tensors = specimen(SD1).tensors()
    tensors["model.diffusion_model.input_blocks.1.0.out_layers.3.bias"] = torch.zeros(33)
    with pytest.raises(MissingTensors, match=r"out_layers\.3\.bias has shape \[33\] instead of \[32\]"):
        load_checkpoint(write(tmp_path / "m.safetensors", tensors))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.weight", "first_stage_model.encoder.conv_in.bias"])
def test_numbers_that_are_none_are_named(tmp_path, name, number):
    tensors = specimen(SD1).tensors()
    tensors[name].view(-1)[-1] = number
    path = write(tmp_path / "m.safetensors", tensors)
    for judge in (inspect, load_checkpoint):
        with pytest.raises(BadNumbers, match=name.replace(".", r"\.")):
            judge(path)


def test_old_names_of_attention_and_text_encoder_load(tmp_path, specimens):
    """2-D `to_q` of old converters, and text encoders without `text_model.`."""
    tensors = {}
    for name, tensor in specimen(SD1).tensors().items():
        if ".mid.attn_1." in name:
            head, leaf, kind = name.rsplit(".", 2)
            new = {"q": "to_q", "k": "to_to_k", "v": "to_v", "proj_out": "to_out.0"}.get(leaf, leaf)
            name, tensor = f"{head}.{new}.{kind}", tensor.reshape(tensor.shape[:2]) if tensor.ndim == 4 else tensor
        tensors[name.replace("transformer.text_model.", "transformer.")] = tensor
    path = write(tmp_path / "old.safetensors", tensors)
    shutil.copy(specimens("sd1").with_suffix(".yaml"), path.with_suffix(".yaml"))
    old, new = load_checkpoint(path), load_checkpoint(specimens("sd1"))
    for part, module in new.parts.items():
        other = tensors_of(old.parts[part])
        assert all(torch.equal(tensor, other[name]) for name, tensor in tensors_of(module).items())


@pytest.mark.parametrize("form", ["whole", "ldm", "diffusers", "early diffusers"])
def test_another_vae_is_used_in_every_form(tmp_path, tiny_base, form):
    other = specimen(SD1)
    values = {name: other.value(name, torch.float32) * 2 for name in other.shapes if name.startswith("first_stage_model.")}
    if form.endswith("diffusers"):
        from dreambooth_ext.models.diffusers_folder import WEIGHT_FILES

        donor = load_checkpoint(write_with_sidecar(tmp_path / "donor.safetensors", {**other.tensors(), **values}, tiny_base))
        save_diffusers(donor, tmp_path / "folder")
        path = tmp_path / "folder" / WEIGHT_FILES["vae"]
        if form == "early diffusers":  # as sd-vae-ft-mse is published to this day; some keep 1x1 convolutions
            own = {name: tensor.clone() for name, tensor in load_file(path).items()}
            write(path, {early_name(name): tensor[..., None, None] if early_name(name) != name and tensor.ndim == 2 else tensor
                         for name, tensor in own.items()})
    else:
        cut = len("first_stage_model.") if form == "ldm" else 0
        path = write(tmp_path / "vae.safetensors", {name[cut:]: tensor for name, tensor in values.items()})
    model = load_checkpoint(tiny_base, vae=path)
    expected = values["first_stage_model.decoder.mid.attn_1.q.weight"][:, :, 0, 0]
    assert torch.equal(model.vae.decoder.mid_block.attentions[0].to_q.weight, expected)
    assert torch.equal(model.vae.encoder.conv_in.weight, values["first_stage_model.encoder.conv_in.weight"])


@pytest.mark.parametrize("form", ["whole", "ldm", "diffusers", "early diffusers"])
@pytest.mark.parametrize("key", ["sd1", "sdxl"])
def test_a_checkpoint_without_vae_is_completed_by_one_in_every_form(tmp_path, specimens, key, form):
    """Loaded, judged, merged with a LoRA, and read tensor by tensor as the whole one, whose VAE is named."""
    whole, values = specimens(key), load_file(specimens(key))
    vae = {name: values.pop(name) for name in list(values) if name.startswith("first_stage_model.")}
    lacking = write_with_sidecar(tmp_path / "lacking.safetensors", values, whole)
    if form.endswith("diffusers"):
        from dreambooth_ext.models.diffusers_folder import WEIGHT_FILES

        save_diffusers(load_checkpoint(whole), tmp_path / "folder")
        path = tmp_path / "folder" / WEIGHT_FILES["vae"]
        own = {name: tensor.clone() for name, tensor in load_file(path).items()}
        write(path, {early_name(name) if form.startswith("early") else name: tensor for name, tensor in own.items()})
    else:
        path = write(tmp_path / "vae.safetensors", {name[len("first_stage_model.") if form == "ldm" else 0:]: tensor
                                                    for name, tensor in vae.items()})
    with pytest.raises(MissingTensors, match="it has no VAE of its own"):
        load_checkpoint(lacking)
    assert inspect(lacking, vae=path).family.key == key
    one, other = load_checkpoint(whole), load_checkpoint(lacking, vae=path)
    for part, module in one.parts.items():
        mine = tensors_of(other.parts[part])
        assert all(torch.equal(tensor, mine[name]) for name, tensor in tensors_of(module).items())
    with open_with_vae(lacking, path) as file:
        assert {name: entry.shape for name, entry in file.entries.items()} == {
            name: tuple(tensor.shape) for name, tensor in {**values, **vae}.items()}
        assert all(torch.equal(file.tensor(name), tensor) for name, tensor in vae.items())
        assert all(b"".join(chunk.numpy().tobytes() for chunk in file.chunks(name)) == tensor.numpy().tobytes()
                   for name, tensor in vae.items())
    with open_with_vae(whole, path) as file:
        assert type(file).__name__ == "CheckpointFile"  # a VAE of its own is not exchanged here


def test_half_a_vae_is_none(tmp_path, tiny_base):
    values = load_file(tiny_base)
    decoder = {name: tensor for name, tensor in values.items() if not name.startswith("first_stage_model.encoder.")}
    half = write_with_sidecar(tmp_path / "half.safetensors", decoder, tiny_base)
    with pytest.raises(MissingTensors):
        load_checkpoint(half)
    model = load_checkpoint(half, vae=tiny_base)
    assert torch.equal(model.vae.encoder.conv_in.weight, values["first_stage_model.encoder.conv_in.weight"])


def early_name(name):
    for early, now in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".{now}.", f".{early}.")
    return name


def write_with_sidecar(path, tensors, base):
    shutil.copy(base.with_suffix(".yaml"), path.with_suffix(".yaml"))
    return write(path, tensors)


def test_a_file_without_vae_is_no_vae(tmp_path, tiny_base):
    path = write(tmp_path / "no.safetensors", {"weights": torch.zeros(3)})
    with pytest.raises(MissingTensors, match="no VAE"):
        load_checkpoint(tiny_base, vae=path)


def test_velocity_is_found_by_trying_where_nothing_tells(tmp_path):
    """SD 2.x: the WebUI's own test. The last layer's bias decides what so small a model seems to predict."""
    for bias, expected, side in ((0.0, "epsilon", 64), (-9.0, "v_prediction", 768)):
        made = specimen(SD2)
        made.fixed["model.diffusion_model.out.2.bias"] = torch.full((4,), bias)
        path = made.write(tmp_path / f"{expected}.safetensors")
        info = inspect(path)
        assert (info.prediction_type, info.resolution) == (expected, side)
        assert load_checkpoint(path).prediction_type == expected


def test_marks_in_the_file_tell_velocity_and_zero_snr(tmp_path):
    made = specimen(SDXL)
    made.fixed |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    info = inspect(made.write(tmp_path / "v.safetensors"))
    assert info.prediction_type == "v_prediction" and info.zero_terminal_snr
    model = load_checkpoint(specimen(SD1).write(tmp_path / "m.safetensors", metadata={"modelspec.prediction_type": "v"}))
    assert model.prediction_type == "v_prediction" and not model.zero_terminal_snr


def test_loading_needs_no_network_and_no_hub(tiny_base, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_checkpoint(tiny_base)
