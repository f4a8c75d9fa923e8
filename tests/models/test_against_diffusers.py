"""The same file loaded by us and by diffusers' own single-file loaders: networks with equal outputs, to the last bit.

Nothing of ours helps the library: it works from the configurations that the models' authors publish (v1-inference.yaml,
v2-inference.yaml, sd_xl_base.yaml, CLIP's config.json), written out here, with the specimens' sizes put in.
"""

import json

import pytest
import torch

from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.family import FAMILIES, SD1, SD2, SDXL
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.networks import tensors_of
from dreambooth_ext.models.specimen import FULL, SMALL, specimen


def original_config(family, size, in_channels):
    unet = {"in_channels": in_channels, "out_channels": 4, "model_channels": size.widths[0], "num_res_blocks": 2,
            "channel_mult": [width // size.widths[0] for width in size.widths], "context_dim": sum(size.text_widths),
            "use_spatial_transformer": True, "use_checkpoint": True, "legacy": False, "transformer_depth": 1}
    if family is SD1:
        unet |= {"num_heads": 8, "attention_resolutions": [4, 2, 1], "image_size": 32}
    elif family is SD2:
        unet |= {"num_head_channels": size.head_channels, "attention_resolutions": [4, 2, 1], "image_size": 32,
                 "use_linear_in_transformer": True}
    vae = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": size.vae_widths[0],
           "ch_mult": [width // size.vae_widths[0] for width in size.vae_widths], "num_res_blocks": 2, "attn_resolutions": []}
    return {"model": {"params": {
        "scale_factor": 0.13025 if family is SDXL else 0.18215, "first_stage_config": {"params": {"ddconfig": vae}},
        "unet_config": {"params": unet}}}}


def sdxl_config(size, in_channels):
    """unet/config.json of SDXL's repository: the library reads sd_xl_base.yaml for the real width of the context alone."""
    return {"_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "attention_head_dim": [width // size.head_channels for width in size.widths],
            "block_out_channels": list(size.widths), "center_input_sample": False, "cross_attention_dim": sum(size.text_widths),
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
            "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": in_channels, "layers_per_block": 2,
            "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4,
            "projection_class_embeddings_input_dim": size.text_widths[1] + 6 * 256, "resnet_time_scale_shift": "default",
            "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": None,
            "use_linear_projection": True}


def text_config(row, width, layers):
    return {"model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width,
            "num_hidden_layers": layers - (row.prefix == "cond_stage_model.model."), "num_attention_heads": max(1, width // 64),
            "max_position_embeddings": 77, "hidden_act": "quick_gelu" if row.layout == "clip" else "gelu",
            "projection_dim": width, "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def by_diffusers(path, family, size, inpainting, folder):
    """The networks of the file by part, as the library makes them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    config = original_config(family, size, 9 if inpainting else 4)
    given = {"unet": {"original_config": config}, "vae": {"original_config": config}}
    if family is SDXL:
        (folder / "unet").mkdir()
        (folder / "unet" / "config.json").write_text(json.dumps(sdxl_config(size, 9 if inpainting else 4)))
        given["unet"] = {"config": str(folder), "subfolder": "unet"}
    found = {part: kind.from_single_file(str(path), local_files_only=True, **given[part])
             for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))}
    for row, width, layers in zip(family.text_encoders, size.text_widths, size.text_layers, strict=True):
        (folder / row.part).mkdir()
        (folder / row.part / "config.json").write_text(json.dumps(text_config(row, width, layers)))
        found[row.part] = create_diffusers_clip_model_from_ldm(
            CLIPTextModelWithProjection if row.projected else CLIPTextModel, dict(load_single_file_checkpoint(str(path))),
            subfolder=row.part, config=str(folder), local_files_only=True)
    return {part: settled(module) for part, module in found.items()}


def settled(module):
    """In fp32 and in memory of its own: matrix products differ in the last bit with the alignment of mapped files."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.float().clone() if tensor.is_floating_point() else tensor.data.clone()
    return module.eval()


@torch.no_grad()
def outputs_of(networks, family, inpainting):
    """What each network answers to the same questions, by name; the text encoders' answers go to the UNet."""
    ids = torch.arange(2 * 77).reshape(2, 77) * 317 % 49000
    ids[:, 0], ids[0, 20:], ids[1, 70:] = 49406, 49407, 49407
    found, states, pooled = {}, [], None
    for row in family.text_encoders:
        out = networks[row.part](ids, output_hidden_states=True)
        found |= {f"{row.part} layer {number}": layer for number, layer in enumerate(out.hidden_states)}
        if row.projected:
            pooled = found["pooled"] = out.text_embeds
        elif not row.penultimate:
            found[row.part] = out.last_hidden_state
        states.append(out.hidden_states[-2] if row.penultimate else out.last_hidden_state)
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9 if inpainting else 4, 16, 8, generator=draws)
    added = None
    if family is SDXL:
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 64, 0, 8, 128, 64]]).expand(2, 6)}
    found["unet"] = networks["unet"](x, torch.tensor([17, 801]), torch.cat(states, -1), added_cond_kwargs=added).sample
    pictures = torch.rand(1, 3, 64, 32, generator=draws) * 2 - 1
    found["encoded"] = networks["vae"].encode(pictures).latent_dist.parameters
    found["decoded"] = networks["vae"].decode(x[:1, :4]).sample
    return found


def require_equal(path, family, size, inpainting, folder):
    model = load_checkpoint(path)
    theirs = by_diffusers(path, family, size, inpainting, folder)
    ours = {part: settled(module) for part, module in model.parts.items()}
    assert ours.keys() == theirs.keys()
    for part, module in ours.items():
        mine, other = tensors_of(module), tensors_of(theirs[part])
        assert mine.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in mine.items()), part
    assert ours["vae"].config.scaling_factor == theirs["vae"].config.scaling_factor
    one, two = outputs_of(ours, family, inpainting), outputs_of(theirs, family, inpainting)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.isfinite().all() and tensor.std() > 1e-3, name
        assert torch.equal(tensor, two[name]), (name, float((tensor - two[name]).abs().max()))


@pytest.mark.parametrize("inpainting, suffix, dtype", [
    (False, "safetensors", torch.float32), (True, "ckpt", torch.float16),
    pytest.param(False, "ckpt", torch.bfloat16, marks=pytest.mark.full_size)], ids=str)
def test_outputs_are_those_of_diffusers_own_loading(specimens, family, inpainting, suffix, dtype, tmp_path):
    require_equal(specimens(family.key, inpainting, suffix, dtype), family, SMALL[family.key], inpainting, tmp_path)


@pytest.mark.full_size
@pytest.mark.parametrize("inpainting", [False, True])
@pytest.mark.parametrize("key", ["sd1", "sd2"])
def test_outputs_in_full_size_are_those_of_diffusers_own_loading(key, inpainting, tmp_path):
    family = next(family for family in FAMILIES if family.key == key)
    path = specimen(family, size=FULL[key], inpainting=inpainting).write(tmp_path / "full.safetensors", torch.float16)
    require_equal(path, family, FULL[key], inpainting, tmp_path)


def test_one_changed_number_is_seen(specimens, tmp_path):
    """The comparison is no formality: a single weight of a text encoder that is off shows in the outputs."""
    model = load_checkpoint(specimens("sdxl"))
    networks = {part: settled(module) for part, module in model.parts.items()}
    before = outputs_of(networks, SDXL, False)
    networks["text_encoder_2"].text_projection.weight.data[3, 5] += 0.01
    after = outputs_of(networks, SDXL, False)
    assert not torch.equal(before["pooled"], after["pooled"]) and not torch.equal(before["unet"], after["unet"])


def test_diffusers_reads_what_we_convert(specimens, tmp_path):
    """Folder to file: the library's single-file loader finds in it what it found in the original."""
    from diffusers import UNet2DConditionModel

    from dreambooth_ext.models.conversion import convert

    source = specimens("sd2")
    back = convert(convert(source, tmp_path / "folder"), tmp_path / "back.safetensors")
    config = original_config(SD2, SMALL["sd2"], 4)
    one, two = (UNet2DConditionModel.from_single_file(str(path), original_config=config, local_files_only=True).state_dict()
                for path in (source, back))
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    with open_checkpoint(back) as file:
        assert len(file.entries) == len(one) + 248 + 294 + 12  # UNet, VAE, the whole of OpenCLIP's text tower, schedules
