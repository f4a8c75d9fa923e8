"""The commands around the class: its images planned, rendered, looked at and struck out; and what the base makes of a token."""

from __future__ import annotations

import argparse
from dataclasses import replace

from .. import recipe
from ..check import check
from ..config import TrainConfig
from ..dataset.manifest import sha256_of
from ..errors import ConfigError
from ..files import expanded, write_atomically
from ..gpu import require_device
from ..progress import Progress
from ..words import counted
from .command import Command, declare_origin, host_of, say, settings_of
from .flags import add_config_flags, config_from_flags

_OPTIONS = (
    "base", "vae", "instance_dir", "token", "class_noun", "class_prompt", "class_negative_prompt", "class_dir",
    "num_class_images", "resolution", "class_steps", "class_guidance_scale", "class_batch_size",
    "foreign_class_images", "steps", "train_batch_size", "gradient_accumulation_steps", "runs_dir", "models_dir",
    "seed", "device", "prediction_type", "clip_skip", "choices",
)
_TOKEN_OPTIONS = ("base", "vae", "token", "class_noun", "instance_prompt", "class_prompt", "resolution", "prediction_type",
                  "clip_skip", "runs_dir", "models_dir", "device")


def class_images(parsed: argparse.Namespace, progress: Progress) -> None:
    from .. import picture_room
    from ..dataset.contact_sheet import page

    checked = check(_with_what_no_class_image_needs(settings_of(parsed)))
    host = host_of(checked.config)
    base_sha256 = sha256_of(expanded(checked.config.base))
    sheet = expanded(parsed.sheet) if parsed.sheet else None
    if sheet is not None and sheet.suffix.lower() not in (".html", ".htm"):
        raise ConfigError([f"--sheet: the name {sheet.name} is to end in .html"])
    plans = recipe.class_image_plans(checked, base_sha256, host.name)
    if parsed.strike_out:
        gone = picture_room.strike_out(picture_room.named(plans, parsed.strike_out))
        progress.log(f"Struck out: {counted(len(gone), 'class image')}, kept in {gone[0].parent}.")
        plans = recipe.class_image_plans(checked, base_sha256, host.name)
    if not parsed.plan:
        images = recipe.class_images(checked, base_sha256, host, progress)
        plans = recipe.class_image_plans(checked, base_sha256, host.name)
    if sheet is not None:
        with write_atomically(sheet, "w") as stream:
            stream.write("".join(page(plan) for plan in plans))
    wrote = f"\nWrote {sheet}." if sheet else ""
    values = {"plans": picture_room.plans_as_values(plans), "sheet": str(sheet) if sheet else None}
    if parsed.plan:
        say(parsed, picture_room.told(plans) + wrote, **values)
        return
    folders = sorted({str(image.path.parent) for image in images})
    told = f"{counted(len(images), 'class image')} in {', '.join(folders)}{wrote}"
    say(parsed, told, count=len(images), folders=folders, **values)


def _with_what_no_class_image_needs(config: TrainConfig) -> TrainConfig:
    """A run wants a name and a token: with stand-ins for them, all the rest is judged as a run's."""
    concepts = tuple(replace(concept, token=concept.token or concept.class_texts[0]) for concept in config.concepts)
    return replace(config, output_name=config.output_name or "class-images", concepts=concepts)


def token(parsed: argparse.Namespace, progress: Progress) -> None:
    from .. import picture_room

    config = config_from_flags(parsed)
    if parsed.count < 1:
        raise ConfigError([f"--count: {parsed.count} is less than 1"])
    concept = config.concepts[0] if config.concepts else None
    if concept is None or not concept.token.strip():
        raise ConfigError(["--token: the new word is needed"])
    told = picture_room.token_told(concept.token)
    if not config.base:
        say(parsed, told + " With --base FILE you see what that model draws for it.", told=told, drawn=[])
        return
    require_device(config.device)
    base = expanded(config.base)
    side = config.resolution or picture_room.resolution_of(base)
    drawn = picture_room.token_pictures(base, concept, host_of(config), progress, resolution=side,
                                        prediction_type=config.prediction_type, clip_skip=config.clip_skip, count=parsed.count,
                                        vae=config.vae)
    lines = [f'"{each.prompt}": {", ".join(map(str, each.pictures))}' for each in drawn]
    say(parsed, "\n".join([told, "What the base draws before any training:", *lines]), told=told,
        drawn=[{"prompt": each.prompt, "pictures": [str(path) for path in each.pictures]} for each in drawn])


def _declare(parser: argparse.ArgumentParser) -> None:
    declare_origin(parser)
    parser.add_argument("--plan", action="store_true", help="only say what is there, what is missing and how long it takes")
    parser.add_argument("--sheet", metavar="FILE", help="write a page (.html) of all class images, to find bad ones")
    parser.add_argument("--strike-out", nargs="+", metavar="NAME", default=[],
                        help="class images to move aside, by the name on the sheet, or by seed; others are rendered in their place")
    add_config_flags(parser, _OPTIONS)


def _declare_token(parser: argparse.ArgumentParser) -> None:
    add_config_flags(parser, _TOKEN_OPTIONS)
    parser.add_argument("--count", type=int, default=4, metavar="N", help="pictures of each prompt (default: 4)")


COMMANDS: dict[str, Command] = {
    "class-images": (class_images, "Plan, render, show and strike out class images.", _declare),
    "token": (token, "How rare a token is, and what a model draws for it before training.", _declare_token),
}
