"""Writing the NAME.yaml that a host needs to know what a published model predicts.

Hosts find out about SD 2.x by themselves. For SD 1.x and SDXL they take noise prediction for granted, unless a sidecar
says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .family import SD2, SDXL, Family
from .layout import PartLayout
from .sidecar import read_sidecar, sidecar_path

_SGM = "sgm.modules.diffusionmodules."


def sidecar_for(
    source: Path, family: Family, parts: tuple[PartLayout, ...], prediction_type: str, zero_terminal_snr: bool
) -> bytes | None:
    """What must stand beside a model made from `source`: its own sidecar where that holds, else one made for it."""
    own = read_sidecar(source)
    if own is None:
        if family is SD2 or prediction_type == "epsilon":
            return None
        unet, vae = (next(part.config for part in parts if part.part == name) for name in ("unet", "vae"))
        made = _sdxl(unet, vae) if family is SDXL else _ldm(unet, vae)
        return _dumped(_with_prediction(made, family, prediction_type, zero_terminal_snr))
    text = sidecar_path(source).read_bytes()
    if (own.prediction_type or "epsilon") == prediction_type and (own.zero_terminal_snr == zero_terminal_snr or family is not SDXL):
        return text
    import yaml

    return _dumped(_with_prediction(yaml.safe_load(text.decode("utf-8-sig")), family, prediction_type, zero_terminal_snr))


def sidecar_of_settings(
    family: Family, unet: dict[str, Any], vae: dict[str, Any], prediction_type: str, zero_terminal_snr: bool
) -> bytes | None:
    """What must stand beside a model that never had one, by its networks' configurations; None if nothing need be said."""
    widths = unet["block_out_channels"]
    heads = unet["attention_head_dim"]
    each = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    usual = [family.heads or width // 64 for width in widths]
    scale = vae.get("scaling_factor", family.scaling_factor)
    told = prediction_type == "epsilon" or family is SD2
    if each == usual and scale == family.scaling_factor and told and not zero_terminal_snr:
        return None
    unet = {**unet, "attention_head_dim": each}
    made = _sdxl(unet, {**vae, "scaling_factor": scale}) if family is SDXL else _ldm(unet, {**vae, "scaling_factor": scale})
    if family is not SDXL:
        network = made["model"]["params"]["unet_config"]["params"]
        if len(set(each)) == 1:
            network["num_heads"] = each[0]
        else:
            del network["num_heads"]
            network["num_head_channels"] = widths[0] // each[0]
    if family is SD2:
        made["model"]["params"]["unet_config"]["params"]["use_linear_in_transformer"] = True
        made["model"]["params"]["cond_stage_config"] = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": {"freeze": True, "layer": "penultimate"}}
    return _dumped(_with_prediction(made, family, prediction_type, zero_terminal_snr))


def _with_prediction(values: dict[str, Any], family: Family, prediction_type: str, zero_snr: bool) -> dict[str, Any]:
    velocity = prediction_type == "v_prediction"
    params = values["model"].setdefault("params", {})
    if family is SDXL:
        denoiser = params.setdefault("denoiser_config", {"target": _SGM + "denoiser.DiscreteDenoiser"})
        inner = denoiser.setdefault("params", {"num_idx": 1000})
        inner["scaling_config"] = {"target": f"{_SGM}denoiser_scaling.{'VScaling' if velocity else 'EpsScaling'}"}
        kind = "ZeroSNRDDPMDiscretization" if zero_snr else "LegacyDDPMDiscretization"
        inner["discretization_config"] = {"target": f"{_SGM}discretizer.{kind}"}
    elif velocity:
        params["parameterization"] = "v"
    else:
        params.pop("parameterization", None)
    return values


def _ldm(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    inpainting = unet["in_channels"] == 9
    network = _network(unet) | {"image_size": 32, "num_heads": unet["attention_head_dim"], "transformer_depth": 1,
                                "legacy": False}
    kind = "LatentInpaintDiffusion" if inpainting else "LatentDiffusion"
    return {"model": {"target": f"ldm.models.diffusion.ddpm.{kind}", "params": {
        "linear_start": 0.00085, "linear_end": 0.012, "num_timesteps_cond": 1, "log_every_t": 200, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "hybrid" if inpainting else "crossattn",
        "monitor": "val/loss_simple_ema", "scale_factor": vae["scaling_factor"], "use_ema": False,
        **({"finetune_keys": None} if inpainting else {}),
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network},
        "first_stage_config": _first_stage("ldm", vae),
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }}}


def _sdxl(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    depths = unet["transformer_layers_per_block"]
    network = _network(unet) | {
        "adm_in_channels": unet["projection_class_embeddings_input_dim"], "num_classes": "sequential",
        "num_head_channels": unet["block_out_channels"][0] // unet["attention_head_dim"][0],
        "use_linear_in_transformer": True, "transformer_depth": list(depths), "spatial_transformer_attn_type": "softmax-xformers",
    }
    text = "sgm.modules.encoders.modules."
    embedders: list[dict[str, Any]] = [
        {"is_trainable": False, "input_key": "txt", "target": text + "FrozenCLIPEmbedder",
         "params": {"layer": "hidden", "layer_idx": 11}},
        {"is_trainable": False, "input_key": "txt", "target": text + "FrozenOpenCLIPEmbedder2",
         "params": {"arch": "ViT-bigG-14", "version": "laion2b_s39b_b160k", "freeze": True, "layer": "penultimate",
                    "always_return_pooled": True, "legacy": False}},
    ]
    embedders += [{"is_trainable": False, "input_key": key, "target": text + "ConcatTimestepEmbedderND",
                   "params": {"outdim": unet["addition_time_embed_dim"]}}
                  for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")]
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": {
        "scale_factor": vae["scaling_factor"], "disable_first_stage_autocast": True,
        "network_config": {"target": _SGM + "openaimodel.UNetModel", "params": network},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
        "first_stage_config": _first_stage("sgm", vae),
    }}}


def _network(unet: dict[str, Any]) -> dict[str, Any]:
    widths = unet["block_out_channels"]
    return {
        "in_channels": unet["in_channels"], "out_channels": unet["out_channels"], "model_channels": widths[0],
        "attention_resolutions": [2**level for level, kind in enumerate(unet["down_block_types"]) if "CrossAttn" in kind][::-1],
        "num_res_blocks": unet["layers_per_block"], "channel_mult": [width // widths[0] for width in widths],
        "use_spatial_transformer": True, "context_dim": unet["cross_attention_dim"], "use_checkpoint": False,
    }


def _first_stage(library: str, vae: dict[str, Any]) -> dict[str, Any]:
    widths = vae["block_out_channels"]
    return {"target": f"{library}.models.autoencoder.AutoencoderKL", "params": {
        "embed_dim": vae["latent_channels"], "monitor": "val/rec_loss", "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": {"double_z": True, "z_channels": vae["latent_channels"], "resolution": 256, "in_channels": 3,
                     "out_ch": 3, "ch": widths[0], "ch_mult": [width // widths[0] for width in widths],
                     "num_res_blocks": vae["layers_per_block"], "attn_resolutions": [], "dropout": 0.0},
    }}


def _dumped(values: dict[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(values, sort_keys=False).encode("utf-8")
