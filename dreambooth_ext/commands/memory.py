"""The command that says beforehand whether a run fits."""

from __future__ import annotations

import argparse
from typing import Any

from .. import recipe
from ..files import gib
from ..flags import add_config_flags, config_from_flags
from ..gpu import require_device
from ..progress import Progress
from .command import Command, say

_OPTIONS = ("base", "vae", "resolution", "train_batch_size", "with_prior_preservation", "train_text_encoder", "memory_profile",
            "optimizer", "mixed_precision", "gradient_checkpointing", "speed_up", "kernels", "ema_decay", "lora_rank",
            "lora_conv_rank", "clip_skip", "device")
_COLUMNS = ("weights", "gradients", "optimizer_state", "averages", "activations", "caches", "context", "total")


def estimate(parsed: argparse.Namespace, progress: Progress) -> None:
    config = config_from_flags(parsed)
    require_device(config.device)
    values = [row.to_dict() for row in recipe.estimate(config)]
    if not parsed.dry_run:
        say(parsed, _table(values), estimates=values)
        return
    trial = recipe.dry_run(config, progress)
    told = (f"{trial.profile}: two steps, a snapshot and a preview took {gib(trial.peak)} at the most; "
            f"{gib(trial.estimated)} were estimated. {trial.seconds_a_step:.2f} s a step.")
    say(parsed, f"{_table(values)}\n{told}", estimates=values, dry_run=trial.to_dict())


def _table(values: list[dict[str, Any]]) -> str:
    head = f"{'profile':<10}" + "".join(f"{name.replace('_', ' '):>17}" for name in _COLUMNS) + "  verdict"
    lines = [f"{row['profile']:<10}" + "".join(f"{gib(row[name]):>17}" for name in _COLUMNS) + f"  {row['verdict']}"
             for row in values]
    return "\n".join([head, *lines, f"free: {gib(values[0]['free'])}"])


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="settings as JSON; flags override them")
    parser.add_argument("--dry-run", action="store_true",
                        help="try it: two steps, a snapshot and a preview on noise, which are thrown away (needs --base)")
    add_config_flags(parser, _OPTIONS)


COMMANDS: dict[str, Command] = {
    "estimate": (estimate, "Say what each memory profile needs, and whether it fits.", _declare),
}
