"""Pictures as a careful person would prepare them by hand: upright, cropped, resized, as PNG. Originals stay untouched.

The same input gives the same bytes; what has not changed is not done again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..config import Concept
from ..errors import PictureError
from ..files import write_atomically, write_json
from ..progress import SILENT, Progress
from .buckets import bucket_for
from .captions import caption_of, prompt_for
from .choices import orders_of
from .crop import Box, crop_box, without_letterbox
from .manifest import TrainingImage, sha256_of
from .pictures import ORIENTATION, open_picture, pictures_of, require_none_bad
from .resize import resize

RECIPE = 2  # changes whenever the same input would give other bytes


@dataclass(frozen=True)
class Prepared:
    """One prepared picture; `box` is the part of the upright original that was kept, in its pixels."""

    path: Path
    source: Path
    sha256: str
    width: int
    height: int
    box: Box


def prepare(pictures_dir: Path, out_dir: Path, *, resolution: int, crop: str = "smart", progress: Progress = SILENT,
            overrides: Mapping[str, Box] | None = None, leave_out: Collection[str] = ()) -> list[Prepared]:
    """Prepare the pictures of a folder into `out_dir`, but those whose names are in `leave_out`.

    `overrides` gives, by file name, the part of the upright picture to crop within; all of it, if it has the right shape.
    Raises PictureError if the folder has no pictures or any of them cannot be used.
    """
    sources = pictures_of(pictures_dir, leave_out)
    index_path = out_dir / "prepared.json"
    former = _read_index(index_path)
    if not index_path.exists():
        write_json(index_path, {"version": 1, "pictures": {}})  # says whose folder this is, should the work be cut off
    index: dict[str, dict] = {}
    prepared = []
    bad: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        progress.check()
        box = (overrides or {}).get(source.name)
        try:
            key = _key(_content_of(source), resolution, crop, box)
            entry = former.get(source.name)
            if entry is None or entry["key"] != key or not _is_there(out_dir / entry["file"], entry["sha256"]):
                entry = {"key": key, **_prepare_one(source, out_dir, resolution, crop, box, key)}
        except PictureError as error:  # the others are looked at as well, so that all that are bad are named at once
            bad[source.name] = error.why
            continue
        index[source.name] = entry
        prepared.append(Prepared(out_dir / entry["file"], source, entry["sha256"], entry["width"], entry["height"],
                                 tuple(entry["box"])))
        progress.report(number, len(sources), source.name)
    write_json(index_path, {"version": 1, "pictures": index})
    require_none_bad(pictures_dir, len(sources), bad)
    wanted = {entry["file"] for entry in index.values()}
    for path in out_dir.glob("*.png"):
        if path.name not in wanted:
            path.unlink()
    return prepared


def prepare_concept(concept: Concept, index: int, out_dir: Path, *, resolution: int, crop: str, use_captions: bool,
                    progress: Progress = SILENT) -> list[TrainingImage]:
    """The training images of one concept, each with its prompt."""
    leave_out, boxes = orders_of(concept.choices)
    prepared = prepare(Path(concept.instance_dir).expanduser(), out_dir, resolution=resolution, crop=crop, progress=progress,
                       overrides=boxes, leave_out=leave_out)
    return [
        TrainingImage(picture.path, prompt_for(concept, caption_of(picture.source) if use_captions else None),
                      picture.sha256, picture.width, picture.height, index)
        for picture in prepared
    ]


def as_trained(source: Path, *, resolution: int, crop: str = "smart", box: Box | None = None) -> tuple[Image.Image, Box]:
    """A picture as training will see it, and the part of the upright original that was kept. Raises PictureError."""
    image = open_picture(source, at_least=None if box else (2 * resolution, 2 * resolution))
    kept = _inside(box, image, source) if box else without_letterbox(image)
    inner = image.crop(kept)
    width, height = bucket_for(inner.width, inner.height, resolution) if crop == "buckets" else (resolution, resolution)
    left, top, right, bottom = crop_box(inner, width, height, "center" if crop == "buckets" else crop)
    part = (left + kept[0], top + kept[1], right + kept[0], bottom + kept[1])
    return resize(image.crop(part), width, height), _in_original(part, image.width, source)


def _in_original(part: Box, width: int, source: Path) -> Box:
    """A part of a picture that may have been read at a fraction of its size, in pixels of the upright original."""
    with Image.open(source) as header:
        upright = header.size if header.getexif().get(ORIENTATION, 1) < 5 else header.size[::-1]
    scale = upright[0] / width
    left, top, right, bottom = (round(edge * scale) for edge in part)
    return left, top, min(right, upright[0]), min(bottom, upright[1])


def _prepare_one(source: Path, out_dir: Path, resolution: int, crop: str, box: Box | None, key: str) -> dict:
    image, part = as_trained(source, resolution=resolution, crop=crop, box=box)
    data = _png(image, {"source": source.name, "recipe": key})
    path = out_dir / f"{key[:20]}.png"
    with write_atomically(path) as stream:
        stream.write(data)
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "sha256": digest, "width": image.width, "height": image.height, "box": list(part)}


def _content_of(source: Path) -> str:
    try:
        return sha256_of(source)
    except OSError as error:
        raise PictureError(f"{source.name} is to be read", "it may not be read, or is no file", "Remove it.") from error


def _inside(box: Box, image: Image.Image, source: Path) -> Box:
    """The box as far as it lies in the picture. Raises PictureError if that is nothing."""
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3])
    if right - left < 1 or bottom - top < 1:
        raise PictureError(f"{source.name} is to be cut to the box {list(box)}",
                           f"the picture is {image.width} x {image.height} pixels and has nothing there",
                           "Give left, top, right and bottom in pixels of the upright picture.")
    return left, top, right, bottom


def _png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text.encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _key(source_sha256: str, resolution: int, crop: str, box: Box | None) -> str:
    """Names all that shapes the result."""
    return hashlib.sha256(json.dumps([RECIPE, source_sha256, resolution, crop, box]).encode()).hexdigest()


def _read_index(path: Path) -> dict[str, dict]:
    """What was prepared before; nothing, if the index is missing, damaged or of another version."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        pictures = value["pictures"] if value["version"] == 1 else {}
        fields = {"key", "file", "sha256", "width", "height", "box"}
        return {name: entry for name, entry in pictures.items()
                if fields <= entry.keys() and Path(entry["file"]).name == entry["file"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_there(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256
