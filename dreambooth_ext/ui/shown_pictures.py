"""Pictures as Review shows them: small, whole, and as they will be trained; made in the background, each version once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import PictureError
from ..lookups import Answer, Lookups
from ..progress import Progress

if TYPE_CHECKING:
    from ..dataset.crop import Box

THUMBNAIL_PX, WHOLE_PX = 176, 480
KEPT = 600  # some 60 KB each


@dataclass(frozen=True)
class Shown:
    """Three data URIs; the upright original's size, the part of it that is used, and the size that is trained."""

    thumbnail: str
    whole: str
    trained: str
    width: int
    height: int
    part: Box
    side: tuple[int, int]


class ShownPictures:
    """`of` asks for all pictures of a folder at once; one whose part has changed is the only one that is made anew."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    def of(self, folder: Path, names: Sequence[str], boxes: Mapping[str, Box], *, resolution: int, crop: str) -> Answer:
        """The answer's value: what is shown, by name; pictures that cannot be opened are not in it."""
        versions = []
        for name in names:
            path = folder / name
            try:
                status = path.stat()
            except OSError:
                continue
            versions.append((path, status.st_mtime_ns, status.st_size, resolution, crop, boxes.get(name)))

        def find(progress: Progress) -> dict[str, Shown]:
            found = {}
            for number, version in enumerate(versions, start=1):
                progress.check()
                try:
                    found[version[0].name] = _shown(*version)
                except (PictureError, OSError, ValueError, MemoryError):
                    continue
                finally:
                    progress.report(number, len(versions))
            return found

        return self._lookups.ask("shown pictures", tuple(versions), find)


@lru_cache(maxsize=KEPT)
def _shown(path: Path, mtime_ns: int, length: int, resolution: int, crop: str, box: Box | None) -> Shown:
    from ..dataset.pictures import open_with_size
    from ..dataset.prepare import as_trained

    trained, part = as_trained(path, resolution=resolution, crop=crop, box=box)
    whole, (width, height) = open_with_size(path, at_least=(WHOLE_PX, WHOLE_PX))
    return Shown(_uri(trained, THUMBNAIL_PX), _uri(whole, WHOLE_PX), _uri(trained, max(trained.size)), width, height, part,
                 trained.size)


def _uri(image: Image.Image, longest: int) -> str:
    from ..dataset.pictures import jpeg_uri

    small = image.copy()
    small.thumbnail((longest, longest), reducing_gap=2.0)
    return jpeg_uri(small, 90)
