"""Pictures as a careful person would prepare them by hand: upright, cropped, resized, as PNG. Originals stay untouched.

The same input gives the same bytes; what has not changed is not done again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..config import Concept, colour_of
from ..errors import HostError, PictureError, StorageError
from ..files import once_let_go, storage_error, write_atomically, write_json
from ..progress import SILENT, Progress
from ..words import printable
from .buckets import bucket_for
from .captions import caption_of, prompt_for
from .choices import orders_of
from .crop import Box, crop_box, without_letterbox
from .faces import detector
from .manifest import TrainingImage, sha256_of
from .pictures import FLATTEN_ON, open_with_size, pictures_of, require_none_bad, require_own_file
from .resize import resize

_FILE = re.compile(r"[0-9a-f]{20}\.png")
RECIPE = 4  # changes whenever the same input would give other bytes
LANCZOS = "Lanczos"  # in linear light; every other upscaler is a host's
Upscale = Callable[[Image.Image, str, float], Image.Image]  # Host.upscale


@dataclass(frozen=True)
class Prepared:
    """One prepared picture; `box` is the part of the upright original that was kept, in its pixels."""

    path: Path
    source: Path
    sha256: str
    width: int
    height: int
    box: Box


@dataclass(frozen=True)
class Manner:
    """How pictures are prepared: all that shapes the result but the picture itself. `upscale` is the host's, if it has any."""

    resolution: int
    crop: str = "smart"
    flatten_on: str = "white"  # as config.colour_of reads it
    upscaler: str = LANCZOS
    upscale: Upscale | None = None

    def key(self, source: Path, source_sha256: str, box: Box | None) -> str:
        """Names the result: by the picture's content and name (which is in the PNG), and by all that shapes it."""
        finder = "" if self.crop == "center" else detector()
        return _hash([RECIPE, *self._asked(source, source_sha256, box), finder])

    def wish(self, source: Path, source_sha256: str, box: Box | None) -> str:
        """The same without what this program and this Python make of it: which version prepares, and what finds faces."""
        return _hash(self._asked(source, source_sha256, box))

    def _asked(self, source: Path, source_sha256: str, box: Box | None) -> list[Any]:
        return [source_sha256, source.name, self.resolution, self.crop, self.flatten_on, self.upscaler, box]


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def require_upscaler(name: str, of_host: Sequence[str]) -> None:
    """Raises HostError if neither we nor the host have an upscaler of that name."""
    there = list(dict.fromkeys([LANCZOS, *of_host]))
    if name not in there:
        raise HostError(f"small pictures are to be enlarged with {name}", "there is no such upscaler here",
                        f"Choose one of: {', '.join(there)}.")


def prepare(pictures_dir: Path, out_dir: Path, *, resolution: int, crop: str = "smart", flatten_on: str = "white",
            upscaler: str = LANCZOS, upscale: Upscale | None = None, progress: Progress = SILENT,
            overrides: Mapping[str, Box] | None = None, leave_out: Collection[str] = (),
            refused: MutableMapping[str, str] | None = None, goes_on: bool = False) -> list[Prepared]:
    """Prepare the pictures of a folder into `out_dir`, but those whose names are in `leave_out`.

    `overrides` gives, by file name, the part of the upright picture to crop within; all of it, if it has the right shape.
    `upscaler` is for pictures smaller than the target. A run that `goes_on` keeps what it has prepared, though it would be cut
    otherwise today, with another OpenCV or by another version of ours. With `refused`, pictures that cannot be used are put
    there, name to reason, and the rest is all there is; else they raise PictureError, as a folder without pictures does. Raises
    HostError of the upscaler, StorageError.
    """
    sources = pictures_of(pictures_dir, leave_out)
    manner = Manner(resolution, crop, flatten_on, upscaler, upscale)
    index_path = out_dir / "prepared.json"
    former = _read_index(index_path)
    if not index_path.exists():
        write_json(index_path, {"version": 1, "pictures": {}})  # says whose folder this is, should the work be cut off
    index: dict[str, dict] = {}
    bad: MutableMapping[str, str] = {} if refused is None else refused
    try:
        for number, source in enumerate(sources, start=1):
            progress.check()
            try:  # the others are looked at as well, so that all that are bad are named at once
                index[source.name] = _entry(source, out_dir, manner, (overrides or {}).get(source.name), former, goes_on)
            except PictureError as error:
                bad[printable(source.name)] = error.why
            progress.report(number, len(sources), printable(source.name))
    except BaseException:
        with suppress(StorageError):  # stopped in the middle: what is done is not done again
            write_json(index_path, {"version": 1, "pictures": {**former, **index}})
        raise
    write_json(index_path, {"version": 1, "pictures": index})
    if refused is None:
        require_none_bad(pictures_dir, len(sources), bad)
    wanted = {entry["file"] for entry in index.values()}
    for path in out_dir.glob("*.png"):
        if path.name not in wanted:
            try:
                once_let_go(path.unlink)
            except OSError as error:
                raise storage_error(path, error) from error
    return [Prepared(out_dir / entry["file"], source, entry["sha256"], entry["width"], entry["height"], tuple(entry["box"]))
            for source in sources if (entry := index.get(source.name))]


def prepare_concept(concept: Concept, index: int, out_dir: Path, *, resolution: int, crop: str, use_captions: bool,
                    flatten_on: str = "white", upscaler: str = LANCZOS, upscale: Upscale | None = None,
                    progress: Progress = SILENT, goes_on: bool = False) -> list[TrainingImage]:
    """The training images of one concept, each with its prompt; `goes_on` as in `prepare`."""
    leave_out, boxes = orders_of(concept.choices, Path(concept.instance_dir).expanduser())
    prepared = prepare(Path(concept.instance_dir).expanduser(), out_dir, resolution=resolution, crop=crop, progress=progress,
                       flatten_on=flatten_on, upscaler=upscaler, upscale=upscale, overrides=boxes, leave_out=leave_out,
                       goes_on=goes_on)
    return [
        TrainingImage(picture.path, prompt_for(concept, caption_of(picture.source) if use_captions else None),
                      picture.sha256, picture.width, picture.height, index)
        for picture in prepared
    ]


def as_trained(source: Path, *, resolution: int, crop: str = "smart", box: Box | None = None, flatten_on: str = "white",
               upscaler: str = LANCZOS, upscale: Upscale | None = None) -> tuple[Image.Image, Box]:
    """A picture as training will see it, and the part of the upright original that was kept. Raises PictureError."""
    return _as_trained(source, Manner(resolution, crop, flatten_on, upscaler, upscale), box)


def _as_trained(source: Path, manner: Manner, box: Box | None) -> tuple[Image.Image, Box]:
    colour = colour_of(manner.flatten_on) or FLATTEN_ON
    least = 2 * manner.resolution
    image, full = open_with_size(source, flatten_on=colour, at_least=None if box else (least, least))
    part, (width, height) = _part(image, manner, _inside(box, image, source) if box else None)
    if image.size != full and (part[2] - part[0] < 2 * width or part[3] - part[1] < 2 * height):
        # Bars took more than was allowed for: never is less than twice the target read where there is more.
        image, full = open_with_size(source, flatten_on=colour)
        part, (width, height) = _part(image, manner, None)
    kept = image.crop(part)
    factor = max(width / kept.width, height / kept.height)
    if factor > 1 and manner.upscaler != LANCZOS and manner.upscale is not None:
        kept = manner.upscale(kept, manner.upscaler, factor).convert("RGB")
    return resize(kept, width, height), _in_original(part, full[0] / image.width, full)


def _part(image: Image.Image, manner: Manner, within: Box | None) -> tuple[Box, tuple[int, int]]:
    """What of a picture is kept, and the size that it is to have."""
    outer = within or without_letterbox(image)
    inner = image.crop(outer)
    size = manner.resolution, manner.resolution
    if manner.crop == "buckets":
        size = bucket_for(inner.width, inner.height, manner.resolution)
    left, top, right, bottom = crop_box(inner, *size, "center" if manner.crop == "center" else "smart")
    return (left + outer[0], top + outer[1], right + outer[0], bottom + outer[1]), size


def _in_original(part: Box, scale: float, full: tuple[int, int]) -> Box:
    """A part of a picture that may have been read at a fraction of its size, in pixels of the upright original."""
    left, top, right, bottom = (round(edge * scale) for edge in part)
    return left, top, min(right, full[0]), min(bottom, full[1])


def _entry(source: Path, out_dir: Path, manner: Manner, box: Box | None, former: Mapping[str, dict], goes_on: bool) -> dict:
    """The index's entry of one picture, made anew unless all that shapes it is as before. Raises PictureError."""
    content = _content_of(source)
    key, wish = manner.key(source, content, box), manner.wish(source, content, box)
    entry = former.get(source.name)
    is_same = entry is not None and (entry["key"] == key or (goes_on and entry.get("wish", wish) == wish))
    if entry is not None and is_same and _is_there(out_dir / entry["file"], entry["sha256"]):
        return entry
    image, part = _as_trained(source, manner, box)
    data = _png(image, {"source": source.name, "source_sha256": content, "recipe": key})
    path = out_dir / f"{key[:20]}.png"
    with write_atomically(path) as stream:
        stream.write(data)
    return {"key": key, "wish": wish, "file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "width": image.width,
            "height": image.height, "box": list(part)}


def _content_of(source: Path) -> str:
    require_own_file(source)
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
    # Of a photograph after PNG's filters, little repeats itself: to look for it takes thrice the time, and saves 4 %.
    image.save(buffer, "PNG", pnginfo=info, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _read_index(path: Path) -> dict[str, dict]:
    """What was prepared before; nothing, if the index is missing, damaged or of another version."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        pictures = value["pictures"] if value["version"] == 1 else {}
        return {name: entry for name, entry in pictures.items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: Any) -> bool:
    """Whether an entry of an index, which may come from anywhere, is one of ours."""
    texts, numbers = [entry[name] for name in ("key", "file", "sha256")], [entry["width"], entry["height"], *entry["box"]]
    return (len(numbers) == 6 and all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
            and bool(_FILE.fullmatch(entry["file"])))


def _is_there(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256
