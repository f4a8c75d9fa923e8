"""The user's settings act on every picture that the WebUI renders. For class images they are set aside."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
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


class _ForOneThread(dict[str, Any]):
    """The host's settings as its user has them, but for one thread, for which some have other values."""

    def __init__(self, data: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        super().__init__(data)
        self._values, self._thread = dict(values), threading.get_ident()

    def _is_other(self, name: object) -> bool:
        return name in self._values and threading.get_ident() == self._thread

    def __contains__(self, name: object) -> bool:
        return self._is_other(name) or super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        return self._values[name] if self._is_other(name) else super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if self._is_other(name):  # the host corrects the title of what it has loaded
            self._values[name] = value
        else:
            super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return self._values[name] if self._is_other(name) else super().get(name, default)


@contextmanager
def in_effect(opts: Any, values: dict[str, Any]) -> Iterator[None]:
    """Put `values` into effect for what this thread does.

    Class images take an hour at times. For all others the user's own stay: for a page that is opened meanwhile and shows them,
    for the file that they are saved in, for whoever changes one. Put into the host's dictionary: `opts.set` refuses under
    --freeze-settings, and takes the queue's lock for some.
    """
    data, mine = opts.data, _ForOneThread(opts.data, values)
    opts.data = mine
    try:
        yield
    finally:
        if opts.data is mine:
            data.update(mine)
            opts.data = data  # to which others may hold on


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
