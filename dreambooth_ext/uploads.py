"""Pictures that a browser sent: kept in a folder of their own, under harmless names, within bounds."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from .errors import ConfigError
from .files import gib, make_folder, require_space, storage_error

FILES_AT_MOST = 1000
BYTES_AT_MOST = 256 << 20  # of one file: a picture of 100 megapixels without compression
TOTAL_BYTES_AT_MOST = 8 << 30
BESIDE_PICTURES = {".txt", ".caption"}  # their captions


def keep(files: Sequence[str], folder: Path) -> Path:
    """Copy the files into a new `folder`, all of them or none. Raises ConfigError with every fault, StorageError."""
    sizes = _sizes_of(files)
    require_space(folder.parent, sum(sizes.values()), "The upload")
    try:
        make_folder(folder.parent)
        while True:
            try:
                folder.mkdir()  # never one that somebody else's pictures are put into
                break
            except FileExistsError:
                folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}")
        for file, name in _names_for(list(sizes)).items():
            shutil.copyfile(file, folder / name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise storage_error(folder, error) from error
    return folder


def add(files: Sequence[str], folder: Path) -> Path:
    """Copy the files beside the earlier ones of `folder`, all of them or none. Raises ConfigError, StorageError."""
    sizes, copied = _sizes_of(files), []
    require_space(folder, sum(sizes.values()), "The upload")
    try:
        for file, name in _names_for(list(sizes)).items():
            copied.append(_free_name(folder, name))
            shutil.copyfile(file, copied[-1])
    except OSError as error:
        for path in copied:
            path.unlink(missing_ok=True)
        raise storage_error(folder, error) from error
    return folder


def _sizes_of(files: Sequence[str]) -> dict[str, int]:
    """Bytes by file. Raises ConfigError with every fault."""
    sizes = {}
    try:
        for file in files:
            sizes[file] = Path(file).stat().st_size
    except OSError as error:
        raise ConfigError([f"{Path(file).name} did not arrive ({error.strerror})"], "Drop it once more.") from error
    faults = _faults(sizes)
    if faults:
        raise ConfigError(faults, "Nothing was kept. Larger sets: put them into a folder yourself, and name that folder.")
    return sizes


def _names_for(files: Sequence[str]) -> dict[str, str]:
    """A harmless name for each file; a picture and its caption keep a common one, and no two share one."""
    stems: dict[str, str] = {}
    names: dict[str, str] = {}
    for number, file in enumerate(files):
        stem, suffix = os.path.splitext(Path(file).name)
        if stem not in stems:
            wished = harmless(stem)
            taken = {other.lower() for other in stems.values()}
            stems[stem] = wished if wished.lower() not in taken else f"{number}-{wished}"
        name = stems[stem] + suffix.lower()
        names[file] = name if name not in names.values() else f"{number}-{name}"
    return names


def harmless(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._ -]", "_", name).lstrip(". ")[-100:] or "picture"


def _free_name(folder: Path, name: str) -> Path:
    """Pasted pictures are all called image.png."""
    names = (name if not number else f"{number}-{name}" for number in count())
    return next(path for path in (folder / each for each in names) if not path.exists())


def _faults(sizes: dict[str, int]) -> list[str]:
    from .dataset.pictures import SUFFIXES

    if not sizes:
        return ["no picture was uploaded"]
    found = [f"{harmless(Path(file).name)} is neither a picture nor a caption" for file in sizes
             if Path(file).suffix.lower() not in SUFFIXES | BESIDE_PICTURES]
    found += [f"{harmless(Path(file).name)} has {gib(size)}; {gib(BYTES_AT_MOST)} are the most for one picture"
              for file, size in sizes.items() if size > BYTES_AT_MOST]
    if len(sizes) > FILES_AT_MOST:
        found.append(f"{len(sizes)} files were sent; {FILES_AT_MOST} are the most at a time")
    if sum(sizes.values()) > TOTAL_BYTES_AT_MOST:
        found.append(f"{gib(sum(sizes.values()))} were sent; {gib(TOTAL_BYTES_AT_MOST)} are the most at a time")
    return found
