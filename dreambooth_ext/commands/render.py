"""The command that renders pictures with any checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import expanded, require_writable, write_atomically
from ..host import Txt2Img
from ..hosts.standalone import StandaloneHost
from ..options import faults_of, option
from ..progress import Progress
from ..words import counted
from .command import Command, say
from .flags import add_flags_of, given_of


@dataclass(frozen=True)
class Wishes:
    """How the pictures are to be rendered."""

    negative_prompt: str = option("", "Negative prompt", "What they must not show.")
    count: int = option(1, "Count", "Pictures of each prompt.", minimum=1, maximum=10_000)
    seed: int = option(0, "Seed", "Of the first picture of each prompt; the others follow it.", minimum=0, maximum=2**32 - 10_000)
    size: int | None = option(None, "Size", "Side of the pictures in px, a multiple of 8. Empty: what the base was made for.",
                              minimum=64, maximum=2048)
    render_steps: int = option(30, "Steps", "DDIM steps of each picture.", minimum=1, maximum=1000)
    guidance_scale: float = option(7.0, "CFG", "Guidance scale.", minimum=0, maximum=100)
    prediction_type: str = option("auto", "Prediction type", "What the base predicts, where the file does not tell.",
                                  choices=("auto", "epsilon", "v_prediction"))

    def require_possible(self) -> None:
        """Raise ConfigError with every fault."""
        faults = faults_of(self)
        if not faults and self.size and self.size % 8:
            faults = ["--size: must be a multiple of 8"]
        if faults:
            raise ConfigError(faults, "Nothing was rendered. Put it right, and try again.")


def render(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..models.load import inspect
    from ..models.vae_file import borrowed_vae

    base, out, wishes = expanded(parsed.base), expanded(parsed.out), Wishes(**given_of(parsed, Wishes))
    wishes.require_possible()
    vae = borrowed_vae(base, str(expanded(parsed.vae)) if parsed.vae else "")
    side = inspect(base, prediction_type=wishes.prediction_type, check_numbers=False, vae=vae).resolution
    side = wishes.size or side
    require_writable(out)
    host = StandaloneHost(base.parent, base.parent, device=parsed.device)
    seeds = tuple(range(wishes.seed, wishes.seed + wishes.count))
    paths: list[str] = []
    for number, prompt in enumerate(parsed.prompt):
        request = Txt2Img(prompt, seeds, wishes.negative_prompt, wishes.render_steps, wishes.guidance_scale, side, side,
                          prediction_type=wishes.prediction_type, vae=vae)
        for seed, image in zip(seeds, host.txt2img(base, request, progress), strict=True):
            if not paths:
                progress.start("rendering", len(parsed.prompt) * wishes.count)
            paths.append(str(out / f"{number:02d}-{seed}.png"))
            with write_atomically(Path(paths[-1])) as stream:
                image.save(stream, "PNG")
            progress.report(len(paths), len(parsed.prompt) * wishes.count)
    say(parsed, f"{counted(len(paths), 'picture')} in {out}", pictures=paths)


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, metavar="FILE", help="checkpoint to render with")
    parser.add_argument("--vae", metavar="FILE", help="a VAE for a checkpoint that has none of its own")
    parser.add_argument("--prompt", required=True, nargs="+", metavar="TEXT", help="one or more prompts")
    parser.add_argument("--out", default="renders", metavar="DIR", help="folder for the pictures (default: renders)")
    parser.add_argument("--device", default="auto", help="auto: the first GPU, else the CPU (default: auto)")
    add_flags_of(parser, Wishes)


COMMANDS: dict[str, Command] = {"render": (render, "Render pictures with a checkpoint.", _declare)}
