"""The model families as rows of a table, and which of them a file belongs to. Names and shapes decide, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import MissingTensors, NotACheckpoint, UnsupportedFamily

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."
WEIGHT_PREFIXES = (UNET, VAE, "cond_stage_model.", "conditioner.")  # what is below them are weights; beside them stand schedules
V_PRED, ZTSNR = "v_pred", "ztsnr"  # empty tensors that tell velocity, and a last timestep without signal


@dataclass(frozen=True)
class TextEncoderRow:
    """One text encoder of a family, and which of its layers the UNet was trained on."""

    part: str  # its folder in diffusers' format
    prefix: str  # of its tensors in the file
    layout: str  # "clip" (transformers' names) or "openclip" (q, k, v joined)
    pad_token: str
    projected: bool = False  # gives the pooled embedding
    penultimate: bool = False  # the UNet reads the last but one layer, without final norm


@dataclass(frozen=True)
class Family:
    """A row: what all models of a family share. Inpainting models (9 input channels) have no rows of their own."""

    key: str
    name: str
    resolution: int  # px
    text_encoders: tuple[TextEncoderRow, ...]
    heads: int | None  # attention heads of the UNet; None: 64 channels each
    scaling_factor: float  # of the VAE's latents
    architecture: str  # modelspec's name

    @property
    def has_time_ids(self) -> bool:
        return self.key == "sdxl"


_END = "<|endoftext|>"
_CLIP_PREFIX = "cond_stage_model.transformer.text_model."
SD1 = Family("sd1", "Stable Diffusion 1.x", 512,
             (TextEncoderRow("text_encoder", _CLIP_PREFIX, "clip", _END),), 8, 0.18215, "stable-diffusion-v1")
SD2 = Family("sd2", "Stable Diffusion 2.x", 512,
             (TextEncoderRow("text_encoder", "cond_stage_model.model.", "openclip", "!"),),
             None, 0.18215, "stable-diffusion-v2")
SDXL = Family("sdxl", "Stable Diffusion XL", 1024,
              (TextEncoderRow("text_encoder", "conditioner.embedders.0.transformer.text_model.", "clip", _END,
                              penultimate=True),
               TextEncoderRow("text_encoder_2", "conditioner.embedders.1.model.", "openclip", "!",
                              projected=True, penultimate=True)),
              None, 0.13025, "stable-diffusion-xl-v1-base")
FAMILIES = (SD1, SD2, SDXL)

# What a file is, by a part of some tensor's name. The first that fits counts.
_ADDITIONS = (  # to a model; trainers of 2022 left such tensors in whole models, too
    (".hada_w1", "a LyCORIS file, not a whole model"),
    (".lokr_w1", "a LyCORIS file, not a whole model"),
    (".oft_", "a LyCORIS file, not a whole model"),
    ("lora_unet_", "a LoRA, not a whole model"),
    ("lora_te", "a LoRA, not a whole model"),
    (".lora_up.", "a LoRA, not a whole model"),
    (".lora.up.", "a LoRA, not a whole model"),
    ("_lora.up.", "a LoRA, not a whole model"),
    (".lora_A.", "a LoRA, not a whole model"),
    ("emb_params", "a textual inversion"),
    ("string_to_param", "a textual inversion"),
)
_OTHERS = (
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("individual_token_refiner.", "HunyuanVideo"),
    ("distilled_guidance_layer.", "Chroma"),
    ("double_blocks.", "Flux"),
    ("single_transformer_blocks.", "Flux"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("adaln_single.", "PixArt or LTX"),
    ("t_block.1.", "PixArt"),
    ("mlp_t5.", "Hunyuan-DiT"),
    ("x_embedder.proj.weight", "Stable Diffusion 3"),
    ("double_layers.", "AuraFlow"),
    ("joint_transformer_blocks.", "AuraFlow"),
    (".img_mod.1.", "Qwen-Image"),
    ("head.modulation", "Wan"),
    ("clip_txt_mapper", "Stable Cascade"),
    ("effnet_mapper", "Stable Cascade"),
    ("cap_embedder", "Lumina"),
    ("conditioner.conditioners.", "Stable Audio"),
    ("conditioner.embedders.0.open_clip.", "Stable Video Diffusion"),
    (".time_mixer.", "Stable Video Diffusion"),
    ("encoder_hid_proj.", "Kolors"),
    ("edm_vpred.", "CosXL, which is trained with EDM's noise"),
    ("edm_mean", "Playground 2.5, which is trained with EDM's noise"),
    ("time_embed.cond_proj.", "a latent consistency model"),
    ("position_net.", "GLIGEN"),
    ("depth_model.", "the depth model of Stable Diffusion 2"),
    ("low_scale_model.", "an upscaler"),
    ("noise_augmentor.", "Stable unCLIP"),
    ("cc_projection.", "Zero123"),
    ("cond_stage_model.model.visual.", "Stable Diffusion Image Variations"),
    ("cond_stage_model.transformer.token_emb.", "a latent diffusion model of before Stable Diffusion"),
    ("cond_stage_model.roberta.", "AltDiffusion"),
    ("cond_stage_model.transformation.", "AltDiffusion"),
    ("motion_modules.", "AnimateDiff"),
    ("image_proj.", "an IP-Adapter"),
    (".absmax", "a quantised model"),
    (".quant_state", "a quantised model"),
    (".qweight", "a quantised model"),
    (".scale_weight", "a quantised model"),
    ("text_encoders.", "a model with text encoders of another kind"),
)
_CHANNELS = {5: "a depth model", 7: "an upscaler", 8: "InstructPix2Pix"}
_UNUSABLE_DTYPES = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "I8"}


def detect(shapes: Shapes, dtypes: Mapping[str, str], file: str) -> Family:
    """The family of a file with these tensors. Raises UnsupportedFamily, NotACheckpoint, MissingTensors."""
    asked = f"{file} is to be used"
    instead = "Use a whole checkpoint of " + ", ".join(family.name for family in FAMILIES) + "."
    entrance = shapes.get(UNET + "input_blocks.0.0.weight", ())
    for sign, what in _OTHERS if entrance else (*_ADDITIONS, *_OTHERS):
        if any(sign in name for name in shapes):
            raise UnsupportedFamily(asked, f"it is {what}", instead)
    quantised = next((name for name in shapes if name.startswith(WEIGHT_PREFIXES) and dtypes.get(name) in _UNUSABLE_DTYPES), None)
    if quantised is not None:
        raise UnsupportedFamily(asked, f"it is quantised to {dtypes[quantised]}", "Use the fp16 or fp32 file of it.")
    family = _by_text_encoder(shapes, asked, instead)
    channels = entrance[1] if len(entrance) == 4 else 0
    if channels in _CHANNELS:
        raise UnsupportedFamily(asked, f"it is {_CHANNELS[channels]}", instead)
    if family is SDXL and len({_depth(shapes, block) for block in ("input_blocks.7.1", "input_blocks.8.1", "middle_block.1")}) > 1:
        raise UnsupportedFamily(asked, "it is SDXL made smaller by distillation (SSD-1B, Segmind-Vega, KOALA)", instead)
    if channels not in (4, 9):
        raise MissingTensors(asked, f"{UNET}input_blocks.0.0.weight is missing or has another shape", instead)
    return family


def _depth(shapes: Shapes, block: str) -> int:
    """How many transformer layers a block of the UNet has."""
    depth = 0
    while f"{UNET}{block}.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def _by_text_encoder(shapes: Shapes, asked: str, instead: str) -> Family:
    if not any(name.startswith(UNET) for name in shapes):
        raise _no_unet(shapes, asked, instead)
    if any(name.startswith("conditioner.embedders.1.model.") for name in shapes):
        return SDXL
    refiner = shapes.get("conditioner.embedders.0.model.ln_final.weight")
    if refiner is not None:
        raise UnsupportedFamily(asked, "it is SD-Turbo" if refiner == (1024,) else "it is the refiner of SDXL", instead)
    if any(name.startswith("cond_stage_model.model.transformer.resblocks.") for name in shapes):
        return SD2
    if any(name.startswith("cond_stage_model.transformer.") for name in shapes):
        return SD1
    raise MissingTensors(asked, "its text encoder is missing", "Use a whole checkpoint, not one of the UNet alone.")


def _no_unet(shapes: Shapes, asked: str, instead: str) -> UnsupportedFamily | NotACheckpoint:
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for name in shapes):
        return UnsupportedFamily(asked, "it is one part of a diffusers folder",
                                 "Convert the whole folder first: python -m dreambooth_ext convert FOLDER FILE")
    if any(name.startswith(("encoder.down.", "decoder.up.", VAE)) for name in shapes):
        return UnsupportedFamily(asked, "it is a VAE alone", instead)
    return NotACheckpoint(asked, "there is no UNet of Stable Diffusion in it", instead)
