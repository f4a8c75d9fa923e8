"""The command that says beforehand whether a run fits."""

from __future__ import annotations

import argparse
from typing import Any

from .. import recipe
from ..config import TrainConfig
from ..errors import ConfigError
from ..files import gib
from ..gpu import ImaginedGpu, imagined, require_device
from ..models.family import FAMILIES, SD1
from ..progress import Progress
from .command import Command, declare_origin, say, settings_of
from .flags import add_config_flags

_OPTIONS = ("base", "vae", "resolution", "train_batch_size", "with_prior_preservation", "train_text_encoder", "memory_profile",
            "optimizer", "mixed_precision", "gradient_checkpointing", "speed_up", "kernels", "ema_decay", "lora_rank",
            "lora_conv_rank", "clip_skip", "runs_dir", "device")
_COLUMNS = ("weights", "gradients", "optimizer_state", "averages", "activations", "caches", "context", "total")


def estimate(parsed: argparse.Namespace, progress: Progress) -> None:
    config = settings_of(parsed)
    if config.base and parsed.family:
        raise ConfigError(["--family: --base is given as well, and is of a family of its own"])
    if parsed.gpu_gib is not None:
        _estimate_elsewhere(parsed, config)
        return
    require_device(config.device)
    values = _rows(parsed, config)
    if not parsed.dry_run:
        say(parsed, _table(values), estimates=values)
        return
    trial = recipe.dry_run(config, progress)
    told = (f"{trial.profile}: two steps, a snapshot and a preview took {gib(trial.peak)} at the most; "
            f"{gib(trial.estimated)} were estimated. {trial.seconds_a_step:.2f} s a step.")
    say(parsed, f"{_table(values)}\n{told}", estimates=values, dry_run=trial.to_dict())


def _estimate_elsewhere(parsed: argparse.Namespace, config: TrainConfig) -> None:
    """On a card that is not here."""
    found = [f"--gpu-gib: a card with {parsed.gpu_gib:g} GiB is no card"] if not 0 < parsed.gpu_gib < 1e6 else []
    found += ["--gpu-gib: on a card that is not here nothing can be tried; leave out --dry-run"] if parsed.dry_run else []
    found += [f"--gpu-gib: --device {config.device} is given as well"] if config.device not in ("auto", "cuda") else []
    if found:
        raise ConfigError(found)
    with imagined(ImaginedGpu(int(parsed.gpu_gib * 2**30), not parsed.gpu_without_bf16)):
        values = _rows(parsed, config)
    say(parsed, f"{_table(values)} (of a card that is imagined)", estimates=values, imagined=True)


def _rows(parsed: argparse.Namespace, config: TrainConfig) -> list[dict[str, Any]]:
    return [row.to_dict() for row in recipe.estimate(config, family=parsed.family or SD1.key)]


def _table(values: list[dict[str, Any]]) -> str:
    head = f"{'profile':<10}" + "".join(f"{name.replace('_', ' '):>17}" for name in _COLUMNS) + "  verdict"
    lines = [f"{row['profile']:<10}" + "".join(f"{gib(row[name]):>17}" for name in _COLUMNS) + f"  {row['verdict']}"
             for row in values]
    return "\n".join([head, *lines, f"free: {gib(values[0]['free'])}"])


def _declare(parser: argparse.ArgumentParser) -> None:
    declare_origin(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="try it: two steps, a snapshot and a preview on noise, which are thrown away (needs --base)")
    parser.add_argument("--family", choices=[family.key for family in FAMILIES],
                        help="without --base: for a model of this family (default: sd1)")
    parser.add_argument("--gpu-gib", type=float, metavar="N",
                        help="answer for a GPU with N GiB free that is not here: which card to rent or buy "
                             "(on Windows with --kernels torch)")
    parser.add_argument("--gpu-without-bf16", action="store_true", help="that card is older than NVIDIA's RTX 30 series")
    add_config_flags(parser, _OPTIONS)


COMMANDS: dict[str, Command] = {
    "estimate": (estimate, "Say what each memory profile needs, and whether it fits.", _declare),
}
