"""How often a base draws what it is asked for: `python -m dreambooth_ext.playground.evaluate --base FILE`.

Every prompt names a shape, a colour and a background whose combination training never saw; the judge reads the
pictures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import judge, world
from .base import playground_base_path

Render = Callable[[Sequence[str], int], Sequence[Image.Image]]  # (prompts, seed) -> one picture per prompt
PARTS = ("background", "colour", "shape")
BATCH = 16


@dataclass(frozen=True)
class Asked:
    """A prompt and what its picture must show."""

    prompt: str
    shape: str
    colour: str
    background: str
    size: str


@dataclass(frozen=True)
class Rates:
    """Shares of right pictures, 0..1."""

    count: int
    background: float
    colour: float
    shape: float
    everything: float

    def __str__(self) -> str:
        shares = ", ".join(f"{part} {getattr(self, part):.1%}" for part in (*PARTS, "everything"))
        return f"{self.count} held-out prompts: {shares}"


def held_out_prompts(count: int = 204, seed: int = 0) -> list[Asked]:
    """All held-out combinations in all sizes are 204 prompts; a smaller count is a random choice of them."""
    asked = [
        Asked(world.caption_of(shape, colour, background, size), shape, colour, background, size)
        for shape, colour, background in world.combinations(holdout=True)
        for size in world.SIZES
    ]
    order = np.random.default_rng(seed).permutation(len(asked))
    return [asked[order[index % len(order)]] for index in range(count)]


def rates(asked: Sequence[Asked], pictures: Sequence[Image.Image]) -> Rates:
    """Compare what was asked with what the judge reads."""
    verdicts = [judge.judge(picture) for picture in pictures]
    right = np.array(
        [[getattr(v, part) == getattr(a, part) for part in PARTS] for a, v in zip(asked, verdicts, strict=True)]
    )
    background, colour, shape = (float(share) for share in right.mean(axis=0))
    return Rates(len(asked), background, colour, shape, float(right.all(axis=1).mean()))


def evaluate(render: Render, count: int = 204, seed: int = 0) -> tuple[Rates, list[Image.Image]]:
    """Render `count` held-out prompts in batches and judge them. The seed chooses prompts and noise."""
    asked = held_out_prompts(count, seed)
    pictures: list[Image.Image] = []
    for start in range(0, count, BATCH):
        pictures += render([item.prompt for item in asked[start : start + BATCH]], seed + start)
    return rates(asked, pictures), pictures


def base_renderer(path: Path, steps: int = 30, guidance_scale: float = 6.0) -> Render:
    """Render with a checkpoint file as the demo does: the WebUI's DDIM at the base's own resolution."""
    from ..models import load, sampling, text_encoder, vae

    model = load.load_checkpoint(path)

    def render(prompts: Sequence[str], seed: int) -> list[Image.Image]:
        with sampling.inference(*model.modules):
            prompt = text_encoder.encode_prompts(model, prompts)
            negative = text_encoder.encode_prompts(model, [""]).repeat(len(prompts))
            noise = sampling.initial_noise(range(seed, seed + len(prompts)), model.resolution, model.resolution)
            latents = sampling.ddim_sample(model, noise, prompt, negative, steps=steps, guidance_scale=guidance_scale)
            return sampling.to_images(vae.decode_latents(model.vae, latents))

    return render


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 17) -> Image.Image:
    """All pictures in one."""
    side = world.SIDE
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side)), (index % columns * side, index // columns * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=playground_base_path(), help="checkpoint (the packaged one)")
    parser.add_argument("--count", type=int, default=204, help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=6.0)
    parser.add_argument("--sheet", type=Path, help="where to write all pictures as one PNG")
    args = parser.parse_args()
    # Before torch is imported: so small a net is slower on several threads than on one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found, pictures = evaluate(base_renderer(args.base, args.steps, args.guidance_scale), args.count, args.seed)
    print(found)
    if args.sheet:
        contact_sheet(pictures).save(args.sheet)


if __name__ == "__main__":
    main()
