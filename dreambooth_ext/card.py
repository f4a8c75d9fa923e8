"""What a WebUI's cards show beside a model file: NAME.preview.png, and NAME.json with a description and notes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import __version__
from .config import TrainConfig
from .files import once_let_go, storage_error, surely_read, write_atomically, write_json
from .run_folder import RunFolder, step_in
from .words import as_webui_reads

OURS = "Dreambooth: "  # how texts of ours begin: a text that somebody else wrote is left alone
MADE_BY = "Version: dreambooth_ext"


def write_cards(paths: Sequence[Path], config: TrainConfig, run: RunFolder, provenance: Mapping[str, Any]) -> list[Path]:
    """Write the files beside each of `paths` (of one name, so once a name); returns what was written.

    A preview or a text that did not come from us stays. Raises StorageError.
    """
    written = []
    for stem in dict.fromkeys(path.with_suffix("") for path in paths):
        notes = Path(f"{stem}.json")
        write_json(notes, _merged(_read(notes), _texts(config, provenance, _told_apart(stem, paths))))
        written.append(notes)
        picture = Path(f"{stem}.preview.png")
        if _write_preview(picture, config, run, int(provenance.get("steps", 0))):
            written.append(picture)
    return written


def model_named(config: TrainConfig, name: str) -> Path | None:
    """A file of the models folder that a model of that name would replace, or be read with."""
    stem = str(Path(config.models_dir).expanduser() / name)
    return next((path for suffix in ("ckpt", "safetensors", "yaml") if os.path.exists(path := Path(f"{stem}.{suffix}"))), None)


def is_ours(config: TrainConfig, name: str) -> bool:
    """Whether a run here has made the model of that name."""
    texts = _read(Path(config.models_dir).expanduser() / f"{name}.json")
    return any(str(texts.get(each, "")).startswith(OURS) for each in ("description", "notes"))


def _told_apart(stem: Path, paths: Sequence[Path]) -> str:
    """The name of the file that was written, where one of the same name in another format is beside it, of another step perhaps:
    hosts have one card for both."""
    formats = [Path(f"{stem}.{suffix}") for suffix in ("ckpt", "safetensors")]
    own = [path for path in formats if path in paths]
    return f"{own[0].name}: " if len(own) == 1 and all(map(os.path.exists, formats)) else ""


def _texts(config: TrainConfig, provenance: Mapping[str, Any], file: str) -> dict[str, Any]:
    instance = ", ".join(concept.instance_text for concept in config.concepts)
    classes = ", ".join(text for concept in config.concepts for text in concept.class_texts)
    base = f"{Path(config.base).name} ({str(provenance.get('base_sha256', ''))[:10]})"
    steps = provenance.get("steps", 0)
    rate = provenance.get("learning_rate", config.learning_rate)
    notes = [f"{OURS}{file}{steps} steps on {base}", f"Instance prompt: {instance}",
             f"Class prompt: {classes}" if config.with_prior_preservation else "Without class images",
             f"Learning rate {rate:g}, seed {config.seed}, {provenance.get('trainer', '')}"]
    texts: dict[str, Any] = {"description": f"{OURS}{instance}", "notes": "\n".join(notes)}
    if config.lora_rank:
        activation = ", ".join(as_webui_reads(concept.shown_text) for concept in config.concepts)
        # What the Lora tab puts into the prompt on a click.
        texts |= {"activation text": activation, "preferred weight": 1.0}
    return texts


def _merged(found: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(found)
    for name, value in ours.items():
        before = merged.get(name)
        if not before or (isinstance(before, str) and before.startswith(OURS)):
            merged[name] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that may have been written by the WebUI or by hand; empty if it is none. Raises StorageError."""
    try:
        value = json.loads(surely_read(path, lambda path: path.read_text(encoding="utf-8") if path.exists() else ""))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_preview(path: Path, config: TrainConfig, run: RunFolder, step: int) -> bool:
    """The run's last preview of its first prompt up to `step`, with its settings as the WebUI's PNG Info reads them."""
    from PIL import Image, PngImagePlugin

    source = preview_of(run, step)
    if not _is_ours(path):
        return False
    if source is None:  # a former one would show another step's model
        try:
            once_let_go(partial(path.unlink, missing_ok=True))
        except OSError as error:
            raise storage_error(path, error) from error
        return False
    try:
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # a run's folder may hold anything: a model needs no picture
    prompt = config.shown_prompts[0]
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{as_webui_reads(prompt)}\nSteps: {config.preview_steps}, Sampler: DDIM, CFG scale: "
                  f"{config.preview_guidance_scale:g}, Seed: {config.preview_seed}, Size: {picture.width}x{picture.height}, "
                  f"Model: {path.name.removesuffix('.preview.png')}, {MADE_BY} {__version__}")
    with write_atomically(path) as stream:
        picture.save(stream, "PNG", pnginfo=info)
    return True


def preview_of(run: RunFolder, step: int) -> Path | None:
    """The last picture of the first prompt that was rendered at `step` or before; None if there is none."""
    steps = {path: step_in(path.name) or 0 for path in run.previews() if path.stem.endswith("-0")}
    return max((path for path, its in steps.items() if 0 < its <= step), key=lambda path: steps[path], default=None)


def _is_ours(path: Path) -> bool:
    """True if nothing is lost by writing `path`."""
    from PIL import Image

    if not path.exists():
        return True
    try:
        with Image.open(path) as picture:
            return MADE_BY in str(picture.info.get("parameters", ""))
    except (OSError, ValueError, Image.DecompressionBombError):
        return False

