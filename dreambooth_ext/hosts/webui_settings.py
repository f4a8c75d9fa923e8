"""The user's settings act on every picture that the WebUI renders. For class images they are set aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..host import OwnPictures

# What a class image must not depend on. A name that a host does not have is left out.
NEUTRAL: dict[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "sd_vae": "None",  # the checkpoint's own
    "sd_vae_overrides_per_model_preferences": True,
    "sd_vae_as_default": False,  # before 1.6
    "sd_vae_decode_method": "Full",
    "forge_additional_modules": [],
    "forge_unet_storage_dtype": "Automatic",  # as the file has it, not in 4 or 8 bits
    "sd_unet": "None",
    "sd_text_encoder": "None",  # reForge's: the checkpoint's own
    "token_merging_ratio": 0.0,
    "tiling": False,
    "face_restoration": False,
    "randn_source": "CPU",
    "eta_noise_seed_delta": 0,
    "eta_ddim": 0.0,
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "skip_early_cond": 0.0,
    "sd_noise_schedule": "Default",
    "use_downcasted_alpha_bar": False,
    "always_discard_next_to_last_sigma": False,
    "emphasis": "None",  # a prompt means what it says, as in training
    "enable_emphasis": False,  # before 1.9
    "sd_lora": "None",
    "sd_hypernetwork": "None",
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
    "sdxl_clip_l_skip": False,
    "dynamic_clip_skip_enabled": False,  # reForge's
    "epsilon_scaling_enabled": False,
    "save_incomplete_images": False,
    "samples_log_stdout": False,
    "profiling_enable": False,
}

CHECKPOINTS_OWN = ("Automatic", "None", "auto")  # values of sd_vae: a new model has no VAE file of its name beside it


def neutral_values(opts: Any) -> dict[str, Any]:
    """Those of NEUTRAL that this host knows."""
    return {name: value for name, value in NEUTRAL.items() if name in opts.data_labels}


def own_pictures(opts: Any, cmd_opts: Any) -> OwnPictures:
    """What acts on txt2img, and is neutral above."""
    if "forge_additional_modules" in opts.data_labels:
        named = opts.forge_additional_modules or []
    else:
        chosen = getattr(opts, "sd_vae", "None")
        named = [cmd_opts.vae_path or ("" if chosen in CHECKPOINTS_OWN else chosen)]
    return OwnPictures(", ".join(Path(name).name for name in named if name), int(getattr(opts, "CLIP_stop_at_last_layers", 1)))


@contextmanager
def in_effect(opts: Any, values: dict[str, Any]) -> Iterator[None]:
    """Put `values` into effect, and the former ones back at the end.

    Written into the host's dictionary: `opts.set` refuses under --freeze-settings, and takes the queue's lock for some.
    """
    former = {name: opts.data[name] for name in values if name in opts.data}
    opts.data.update(values)
    try:
        yield
    finally:
        for name in values:
            if name in former:
                opts.data[name] = former[name]
            else:
                opts.data.pop(name, None)


def keep(opts: Any) -> None:
    """Write the host's settings into its file, as its own page does after each choice."""
    from modules import shared

    try:
        opts.save(shared.config_filename)
    except (AssertionError, RuntimeError):
        return  # frozen: the choice holds until the WebUI is restarted


def as_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items()))


@contextmanager
def params_txt_kept() -> Iterator[None]:
    """Rendering overwrites what txt2img's "paste last" button reads."""
    from modules import paths

    path = Path(paths.data_path) / "params.txt"
    former = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if former is not None:
            path.write_bytes(former)
        else:
            path.unlink(missing_ok=True)
