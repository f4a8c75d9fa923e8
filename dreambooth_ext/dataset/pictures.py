"""Opening people's pictures: upright, sRGB, eight bits, without alpha; whatever cannot be used is named."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import PictureError
from ..files import DAMAGED
from ..words import printable
from .fringe import HALO_AT_MOST, cleaned, halo

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jfif"}
ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
NEED_A_DECODER = {".avif", ".heic", ".heif"}  # that not every Pillow has
LARGEST_PIXELS = 200_000_000  # a decompression bomb, or a picture that no one meant to train on
BAD_NAMED = 10  # so many bad pictures are named in one message
FLATTEN_ON = (255, 255, 255)


def list_pictures(folder: Path) -> list[Path]:
    """All files in `folder` that are named like pictures, in natural order; hidden files are none.

    Raises PictureError if there is no such folder.
    """
    if not os.path.isdir(folder):  # which, unlike Path's, answers whatever keeps the path from being looked at
        why = "it is a file, not a folder" if os.path.isfile(folder) else _why_not(folder)
        raise PictureError(f"Pictures are to be read from {folder}", why, "Give the folder that holds the pictures.")
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    except OSError as error:
        raise PictureError(f"Pictures are to be read from {folder}", str(error.strerror), "Check its permissions.") from error
    return sorted(found, key=_natural)


def _why_not(folder: Path) -> str:
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:  # no permission for a folder above it; too long a name
        return f"it cannot be looked at ({error.strerror})"
    return "there is no such folder"


@dataclass(frozen=True)
class Original:
    """A picture upright and in eight bits, with the alpha that it has, and what is to be known about its file."""

    image: Image.Image
    mode: str  # Pillow's, as it is in the file
    rotated: bool  # by EXIF
    frames: int
    profile: bytes  # ICC, empty if none is embedded
    size: tuple[int, int]  # upright, in the file; `image` is smaller if it was decoded at a fraction of its size

    @property
    def has_alpha(self) -> bool:
        return self.image.mode in ("RGBA", "LA", "PA") or "transparency" in self.image.info

    def srgb(self, flatten_on: tuple[int, int, int] = FLATTEN_ON) -> Image.Image:
        """As `open_picture` gives it."""
        return _to_srgb(_flattened(self.image, flatten_on), self.profile)


def require_pictures(folder: Path, leave_out: Collection[str] = ()) -> list[Path]:
    """The pictures of a folder, each of which was opened whole. Raises PictureError naming all that cannot be used."""
    paths = pictures_of(folder, leave_out)
    require_none_bad(folder, len(paths), {printable(path.name): reason for path in paths if (reason := reason_against(path))})
    return paths


def pictures_of(folder: Path, leave_out: Collection[str] = ()) -> list[Path]:
    """The pictures of a folder but those named in `leave_out`, unopened. Raises PictureError if there are none."""
    found = list_pictures(folder)
    paths = [path for path in found if path.name not in leave_out]
    if found and not paths:
        raise PictureError(f"Pictures are to be read from {folder}", "all its pictures are left out",
                           "Keep some of them, or put others there.")
    if not found:
        why, instead = why_none(folder)
        raise PictureError(f"Pictures are to be read from {folder}", why, instead)
    return paths


def why_none(folder: Path) -> tuple[str, str]:
    """Of a folder without pictures: what it holds instead of them, and what to do."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in visible:
        if path.suffix.lower() in ARCHIVES:
            return (f"it holds no pictures, but {printable(path.name)}, which is packed",
                    "Unpack it (Windows calls that Extract All), and give the folder that has the pictures then.")
    for path in visible:
        if path.is_dir() and not path.is_symlink() and _has_pictures(path):
            return (f"it holds no pictures, but the folder {printable(path.name)} in it does",
                    "Give that folder; folders within folders are not looked into.")
    return "it holds no pictures", "Put the pictures there as PNG, JPEG or WebP files."


def _has_pictures(folder: Path) -> bool:
    try:
        return bool(list_pictures(folder))
    except PictureError:
        return False


def require_none_bad(folder: Path, count: int, bad: Mapping[str, str]) -> None:
    """Raises PictureError if any of `count` pictures is `bad` (name to reason), naming the first ones."""
    if bad:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:BAD_NAMED])
        more = f"; and {len(bad) - BAD_NAMED} more" if len(bad) > BAD_NAMED else ""
        raise PictureError(f"{count} pictures of {folder} are to be used", f"{named}{more}",
                           "Remove these files, or save them anew.")


def reason_against(path: Path) -> str | None:
    """Why a picture cannot be used, in a few words, or None."""
    try:
        open_picture(path)
    except PictureError as error:
        return error.why
    return None


def open_picture(path: Path, *, flatten_on: tuple[int, int, int] = FLATTEN_ON,
                 at_least: tuple[int, int] | None = None) -> Image.Image:
    """An upright sRGB picture of mode RGB. Raises PictureError.

    With `at_least` (width, height) a JPEG may be decoded at a fraction of its size, never below these.
    """
    return open_with_size(path, flatten_on=flatten_on, at_least=at_least)[0]


def open_with_size(path: Path, *, flatten_on: tuple[int, int, int] = FLATTEN_ON,
                   at_least: tuple[int, int] | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """As `open_picture`, and the (width, height) that the upright original has. Raises PictureError."""
    with _refusals(path):
        original = _opened(path, at_least)
        return original.srgb(flatten_on), original.size


def open_original(path: Path) -> Original:
    """A picture at its full size and with its alpha, and the facts about its file. Raises PictureError as `open_picture`."""
    return _opened(path, None)


def _opened(path: Path, at_least: tuple[int, int] | None) -> Original:
    with _refusals(path), Image.open(path) as image:
        if image.width * image.height > LARGEST_PIXELS:
            raise Image.DecompressionBombError
        mode, (width, height) = image.mode, image.size
        # A photograph with a preview or a depth map (MPO) counts those as frames, too, and is no animation.
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        if at_least is not None:
            # EXIF may turn the picture by a quarter, so the larger bound holds for both sides.
            side = max(at_least)
            image.draft("RGB", (side, side))
        # Read before the picture is turned, which takes the tag away, and before Pillow 9.5 closes a TIFF of several pages.
        orientation = image.getexif().get(ORIENTATION, 1)
        image.load()
        rotated = orientation not in (0, 1)
        if image.format == "TIFF":  # which every Pillow turns as it loads it; older ones leave the tag, newer ones know the size
            return Original(_eight_bit(image), mode, rotated, frames, image.info.get("icc_profile") or b"", image.size)
        # Both copy a picture that needs nothing done; at 12 megapixels that is a tenth of the work.
        upright = (ImageOps.exif_transpose(image) or image) if rotated else image
        size = (height, width) if orientation in _ON_ITS_SIDE else (width, height)
        return Original(_eight_bit(upright), mode, rotated, frames, image.info.get("icc_profile") or b"", size)


ORIENTATION = 0x0112  # EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)


def is_link_elsewhere(path: Path) -> bool:
    """True for a link to something outside the folder that it is in."""
    return path.is_symlink() and path.resolve().parent != path.parent.resolve()


def require_own_file(path: Path) -> None:
    """Raises PictureError unless this is a file of its folder with something in it: nothing else is ever opened.

    Links lead elsewhere, and a pipe or a device would be read without end.
    """
    if printable(path.name) != path.name:
        raise _refused(path, "its name is no text in UTF-8, as of a file that came from another system; give it another one")
    try:
        if is_link_elsewhere(path):
            raise _refused(path, "it is a link to a file elsewhere")
        if not path.is_file():
            raise _refused(path, "it is a folder, or no file at all")
        if path.stat().st_size == 0:
            raise _refused(path, "the file is empty")
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError
        raise _refused(path, "it may not be read") from error


def _refused(path: Path, why: str) -> PictureError:
    return PictureError(f"{printable(path.name)} is to be opened", why, "Remove it, or save it anew.")


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file is a PictureError that says it in plain words."""
    try:
        require_own_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns below our own limit, and about odd metadata
            yield
    except UnidentifiedImageError as error:
        kind = path.suffix.lower()
        why = f"this Pillow has no decoder for {kind[1:].upper()}; save it as JPEG or PNG" if kind in NEED_A_DECODER else \
            "it is no picture, or of a kind that cannot be read here"
        raise _refused(path, why) from error
    except Image.DecompressionBombError as error:
        raise _refused(path, "it has far too many pixels") from error
    except MemoryError as error:
        raise _refused(path, "it needs more memory than there is") from error
    except PermissionError as error:
        raise _refused(path, "it may not be read") from error
    except DAMAGED as error:
        raise _refused(path, "it is damaged or cut off") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        import numpy as np

        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("NaN or Inf among its pixels")
        top = max(float(values.max()), 65535.0 if image.mode.startswith("I") and values.max() > 255 else 1.0)
        return Image.fromarray((values.clip(0, top) / top * 255 + 0.5).astype(np.uint8), "L")
    return image


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """An RGB picture as an <img> carries it by itself. `quality`: JPEG's, 1 to 95."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _flattened(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if halo(rgba) > HALO_AT_MOST:
            rgba = cleaned(rgba)
        flat = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(flat, rgba).convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """RGB by the embedded ICC profile, so that wide-gamut and CMYK pictures keep their colours."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile says nothing; the plain values are the best there is
    return image if image.mode == "RGB" else image.convert("RGB")


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """img2 before img10; ties are broken by the exact name, so that the order is the same everywhere."""
    parts = re.split(r"(\d+)", path.name.lower())
    key: list[tuple[int, int | str]] = [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
    return [*key, (2, path.name)]
