"""Which family a file is of, and what is refused, by name."""

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ext.cli import BAD_INPUT, run
from dreambooth_ext.errors import CheckpointError, MissingTensors, UnsupportedFamily
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.checkpoint_writer import output_of, write_safetensors
from dreambooth_ext.models.family import FAMILIES, SD1, SDXL, detect
from dreambooth_ext.models.layout import layouts
from dreambooth_ext.models.load import inspect
from dreambooth_ext.models.specimen import FULL, specimen

UNET = "model.diffusion_model."
ENTRANCE = UNET + "input_blocks.0.0.weight"


def family_of(shapes, dtypes=None):
    return detect(shapes, dtypes or {}, "model.safetensors")


@pytest.mark.parametrize("inpainting", [False, True])
def test_real_sizes_are_recognised_and_laid_out(family, inpainting):
    """The full-size shapes of each family give the configuration that diffusers' own repositories have for it."""
    shapes = specimen(family, size=FULL[family.key], inpainting=inpainting).shapes
    assert family_of(shapes) is family
    unet, vae, *texts = (layout.config for layout in layouts(shapes, family, None, "model.safetensors"))
    widths = (320, 640, 1280, 1280)
    heads = {"sd1": 8, "sd2": (5, 10, 20, 20), "sdxl": (5, 10, 20)}
    depths = {"sd1": 1, "sd2": 1, "sdxl": (1, 2, 10)}
    assert unet["block_out_channels"] == (widths[:3] if family is SDXL else widths)
    assert unet["attention_head_dim"] == heads[family.key] and unet["transformer_layers_per_block"] == depths[family.key]
    assert unet["cross_attention_dim"] == {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family.key]
    assert unet["use_linear_projection"] == (family is not SD1) and unet["in_channels"] == (9 if inpainting else 4)
    assert unet["sample_size"] == (128 if family is SDXL else 64)
    assert vae["scaling_factor"] == (0.13025 if family is SDXL else 0.18215)
    assert [tuple(text[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"))
            for text in texts] == {
        "sd1": [(768, 12, 12, "quick_gelu")], "sd2": [(1024, 23, 16, "gelu")],
        "sdxl": [(768, 12, 12, "quick_gelu"), (1280, 32, 20, "gelu")]}[family.key]
    if family is SDXL:
        assert unet["projection_class_embeddings_input_dim"] == 2816 and unet["addition_time_embed_dim"] == 256


OTHERS = {
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", UNET + "x_embedder.proj.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight", "model.diffusion_model.double_blocks.3.txt_mlp.0.bias"],
    "Chroma": ["double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.layers.0.in_layer.weight"],
    "PixArt": ["t_block.1.weight", "x_embedder.proj.weight"], "Hunyuan-DiT": ["mlp_t5.0.weight", "x_embedder.proj.weight"],
    "AuraFlow": ["double_layers.0.attn.w1q.weight"], "Stable Cascade": ["clip_txt_mapper.weight"],
    "Lumina": ["cap_embedder.1.weight"], "Qwen-Image": ["transformer_blocks.0.img_mod.1.weight"],
    "Stable Video Diffusion": ["conditioner.embedders.0.open_clip.model.ln_final.weight", ENTRANCE],
    "Kolors": ["encoder_hid_proj.weight", "conv_in.weight"], "a LoRA": ["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"],
    "a LyCORIS file": ["lycoris_unet.hada_w1_a"], "a LyCORIS": ["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"],
    "LoRA, not": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "it is a LoRA": ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    "a textual inversion": ["emb_params"], "AnimateDiff": ["down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"],
    "an IP-Adapter": ["image_proj.proj.weight"], "Stable unCLIP": ["noise_augmentor.betas", ENTRANCE],
    "the depth model": ["depth_model.model.pretrained.conv.weight", ENTRANCE], "an upscaler": ["low_scale_model.betas", ENTRANCE],
    "AltDiffusion": ["cond_stage_model.roberta.embeddings.word_embeddings.weight", ENTRANCE],
    "Image Variations": ["cond_stage_model.model.visual.proj", ENTRANCE], "Zero123": ["cc_projection.weight", ENTRANCE],
    "a quantised model": ["model.diffusion_model.out.2.weight.absmax", ENTRANCE],
    "a VAE alone": ["encoder.down.0.block.0.conv1.weight"],
    "one part of a diffusers folder": ["down_blocks.0.resnets.0.conv1.weight"],
    "before Stable Diffusion": ["cond_stage_model.transformer.token_emb.weight", ENTRANCE],
    "CosXL": ["conditioner.embedders.1.model.ln_final.weight", "edm_vpred.sigma_max", ENTRANCE],
    "Playground 2.5": ["conditioner.embedders.1.model.ln_final.weight", "edm_mean", ENTRANCE],
    "latent consistency": ["cond_stage_model.transformer.text_model.x", UNET + "time_embed.cond_proj.weight", ENTRANCE],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_their_names(name):
    with pytest.raises(UnsupportedFamily, match=name) as caught:
        family_of(dict.fromkeys(OTHERS[name], (320, 4, 3, 3)))
    for family in FAMILIES:  # what can be used is said too, unless there is a better way
        assert family.name in caught.value.instead or "convert" in caught.value.instead


@pytest.mark.parametrize("left", ["embedding_manager.string_to_param_dict.*", "emb_params", "lora_unet_x.alpha"])
def test_what_a_trainer_left_in_a_whole_model_does_not_make_it_another(family, left):
    """Dreambooth's first trainers, forks of textual inversion, kept its embedding among the weights."""
    assert family_of(specimen(family).shapes | {left: (1, 768)}) is family


@pytest.mark.parametrize("width, name", [(1280, "the refiner of SDXL"), (1024, "SD-Turbo")])
def test_refiner_and_turbo_are_told_apart(width, name):
    shapes = {"conditioner.embedders.0.model.ln_final.weight": (width,), ENTRANCE: (384, 4, 3, 3)}
    with pytest.raises(UnsupportedFamily, match=name):
        family_of(shapes)


@pytest.mark.parametrize("channels, name", [(8, "InstructPix2Pix"), (5, "depth"), (7, "upscaler")])
def test_unets_that_read_something_else_are_named(family, channels, name):
    shapes = specimen(family).shapes
    with pytest.raises(UnsupportedFamily, match=name):
        family_of(shapes | {ENTRANCE: (32, channels, 3, 3)})


def test_smaller_sdxl_is_named():
    shapes = {name: shape for name, shape in specimen(SDXL).shapes.items() if ".middle_block.1." not in name}
    with pytest.raises(UnsupportedFamily, match="SSD-1B"):
        family_of(shapes)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "F4"])
def test_quantised_weights_are_named(family, dtype):
    """Of the UNet, the VAE, or a text encoder; what beside them is unknown may be anything."""
    shapes = specimen(family).shapes
    for name in (ENTRANCE, "first_stage_model.encoder.conv_in.weight", next(name for name in shapes if name.startswith("cond"))):
        with pytest.raises(UnsupportedFamily, match=dtype):
            family_of(shapes, {name: dtype})
    assert family_of(shapes | {"unknown": (4,)}, {"unknown": dtype}) is family


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_a_ckpt_in_fp8_is_told_to_be_quantised_and_not_to_be_dangerous(tmp_path, tiny_base, dtype):
    state = load_file(tiny_base)
    state |= {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items() if name.startswith(UNET)}
    try:
        torch.save({"state_dict": state}, tmp_path / "small.ckpt")
    except KeyError:
        pytest.skip(f"torch {torch.__version__} cannot write fp8 into a .ckpt")
    with pytest.raises(UnsupportedFamily, match=r"quantised to F8_E\dM\d"):
        inspect(tmp_path / "small.ckpt")
    with open_checkpoint(tmp_path / "small.ckpt") as file:
        assert file.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
        entry = file.entries[ENTRANCE]
        file.stream.seek(entry.start)
        assert file.stream.read(entry.nbytes) == bytes(state[ENTRANCE].view(torch.uint8).flatten().tolist())


def test_a_unet_alone_is_no_model():
    with pytest.raises(MissingTensors, match="text encoder"):
        family_of({name: shape for name, shape in specimen(SD1).shapes.items() if name.startswith(UNET)})


@pytest.mark.parametrize("content, word", [
    (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF"), (b"<!doctype html>" + bytes(60), "web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"", "empty"), (bytes(100), "neither"),
])
def test_the_command_names_what_it_was_given(tmp_path, content, word, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert run(["convert", str(path), str(tmp_path / "out.ckpt")]) == BAD_INPUT
    assert word in capsys.readouterr().err and not (tmp_path / "out.ckpt").exists()


def test_flux_is_refused_by_the_command_before_anything_is_written(tmp_path, capsys):
    path = tmp_path / "flux.safetensors"
    with path.open("wb") as stream:
        write_safetensors(stream, [output_of("double_blocks.0.img_attn.qkv.weight", torch.zeros(6, 2))], {})
    assert run(["convert", str(path), str(tmp_path / "folder")]) == BAD_INPUT
    assert "it is Flux" in capsys.readouterr().err and [entry.name for entry in tmp_path.iterdir()] == ["flux.safetensors"]


def test_any_file_of_a_family_with_a_damaged_table_is_refused_plainly():
    """Names lost, doubled and misspelt, shapes cut and grown: a refusal, or a layout; never anything else."""
    import random

    dice = random.Random(3)
    seen = set()
    for number in range(300):
        shapes = dict(specimen_shapes(FAMILIES[number % 3]))
        names = list(shapes)
        for _ in range(dice.choice([1, 1, 2, 5, 40])):
            name = dice.choice(names)
            shape = list(shapes.pop(name, (1,)))
            kind = dice.randrange(5)
            if kind == 0:
                continue
            if kind == 1:
                name = name.replace(dice.choice(["0", "1", "weight", "model"]), dice.choice(["7", "10", "bias", ""]), 1)
            elif kind == 2 and shape:
                shape[dice.randrange(len(shape))] = dice.choice([0, 1, 7, 33, 2**40])
            elif kind == 3:
                shape.append(dice.choice([1, 3]))
            else:
                shape = shape[1:]
            shapes[name] = tuple(shape)
        try:
            layouts(shapes, family_of(shapes), None, "model.safetensors")
            seen.add("laid out")
        except CheckpointError as error:
            seen.add(type(error).__name__)
            assert str(error).strip() and len(str(error)) < 1000
    assert {"laid out", "MissingTensors"} <= seen


_SHAPES: dict = {}


def specimen_shapes(family):
    if family.key not in _SHAPES:
        _SHAPES[family.key] = specimen(family).shapes
    return _SHAPES[family.key]


