"""The playground's three networks: Stable Diffusion 1.5's own architecture with fewer channels."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from . import world

# Widths change where SD 1.5's do (320, 640, 1280, 1280): there stands a skip convolution, so another pattern would have
# other tensor names. Multiples of 32 because ldm's group norms have 32 groups; the outermost level has 64 because with
# groups of one channel the last norm would erase each channel's mean, and with it the background's colour.
UNET_CHANNELS = (64, 128, 64, 64)
VAE_CHANNELS = (32, 64, 96, 96)
TEXT_WIDTH = 64
HEADS = 8  # SD 1.5's: diffusers calls the number of heads `attention_head_dim`
SCALING_FACTOR = 0.18215  # SD 1.x's; `latents.calibrate` makes it true of this VAE
FACTOR = 8  # pixels per latent pixel, per axis


def build_vae() -> AutoencoderKL:
    """3.2 M parameters; 64 pixels to 4 x 8 x 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=2,
        latent_channels=4,
        sample_size=world.SIDE,
        scaling_factor=SCALING_FACTOR,
    )


def build_unet() -> UNet2DConditionModel:
    """7.3 M parameters, 686 tensors under SD 1.5's names."""
    return UNet2DConditionModel(
        sample_size=world.SIDE // FACTOR,
        block_out_channels=UNET_CHANNELS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,
    )


def build_text_encoder() -> CLIPTextModel:
    """3.4 M parameters, nearly all of them the embeddings of CLIP's 49,408 tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=1,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
