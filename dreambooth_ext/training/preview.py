"""Pictures of fixed prompts at fixed seeds, as txt2img would render them."""

from __future__ import annotations

from pathlib import Path

from ..config import TrainConfig
from ..files import write_atomically
from ..host import Txt2Img
from ..models.load import StableDiffusion
from ..models.sampling import render
from ..progress import Progress


def preview_prompts(config: TrainConfig) -> tuple[str, ...]:
    """Those asked for, else each concept's instance prompt and class prompt."""
    own = [text for concept in config.concepts for text in (concept.instance_text, concept.class_texts[0])]
    return config.preview_prompts or tuple(dict.fromkeys(own))


def write_previews(model: StableDiffusion, config: TrainConfig, folder: Path, step: int, progress: Progress) -> list[Path]:
    """Render one picture a prompt into step-000100-0.png and so on, and report the first one."""
    paths = []
    for number, prompt in enumerate(preview_prompts(config)):
        side = config.resolution or model.resolution
        request = Txt2Img(prompt, (config.preview_seed,), steps=config.preview_steps,
                          guidance_scale=config.preview_guidance_scale, width=side, height=side)
        (image,) = render(model, request, clip_skip=config.clip_skip)
        path = folder / f"step-{step:06d}-{number}.png"
        with write_atomically(path) as stream:
            image.save(stream, "PNG")
        paths.append(path)
        if number == 0:
            progress.report(step, config.steps or step, "preview", image=image)
    return paths
