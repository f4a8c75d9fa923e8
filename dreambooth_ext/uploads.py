"""Pictures that a browser sent: kept in a folder of their own, under harmless names, within bounds."""

from __future__ import annotations

import os
import re
import shutil
import threading
import uuid
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from .errors import ConfigError
from .files import RESERVED, gib, make_folder, require_space, storage_error

FILES_AT_MOST = 1000
BYTES_AT_MOST = 256 << 20  # of one file: a picture of 100 megapixels without compression
TOTAL_BYTES_AT_MOST = 8 << 30
CAPTIONS = {".txt", ".caption"}  # kept as .txt, which is what training reads
_ADDING = threading.Lock()


def keep(files: Sequence[str], folder: Path, former: Path | None = None) -> Path:
    """Copy the files into a new `folder`, all of them or none; with them those of an upload before. Returns where they are.

    Raises ConfigError with every fault, StorageError.
    """
    earlier = [] if former is None else sorted(path for path in former.iterdir() if path.is_file())
    sizes = _sizes_of([*map(str, earlier), *files])
    names = {str(path): path.name for path in earlier} | _names_for(files, [path.name for path in earlier])
    require_space(folder.parent, sum(sizes.values()), "The upload")
    try:
        make_folder(folder.parent)
        while True:
            try:
                folder.mkdir()  # never one that somebody else's pictures are put into
                break
            except FileExistsError:
                folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}")
        for file, name in names.items():
            shutil.copyfile(file, folder / name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise storage_error(folder, error) from error
    return folder


def add(files: Sequence[str], folder: Path) -> Path:
    """Copy the files beside the earlier ones of `folder`, all of them or none. Raises ConfigError, StorageError."""
    sizes, copied = _sizes_of(files), []
    require_space(folder, sum(sizes.values()), "The upload")
    with _ADDING:  # two drops at once would choose the same names, and one would be written over the other
        try:
            for file, name in _names_for(files, [path.name for path in folder.iterdir()]).items():
                copied.append(folder / name)
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


def _names_for(files: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    """A harmless name for each file, which none of those that are `there` has.

    A picture and the caption that comes with it keep a common one, which no earlier picture has: it would get the caption.
    """
    taken = {name.lower() for name in there}
    pictures = {os.path.splitext(name)[0] for name in taken if not name.endswith(".txt")}
    names: dict[str, str] = {}
    for wished, group in _groups(files):
        has_picture = set(group) != {".txt"}
        stems = (f"{number}-{wished}" if number else wished for number in count())
        own = next(stem for stem in stems if not (has_picture and stem.lower() in pictures)
                   and not any((stem + suffix).lower() in taken for suffix in group))
        names |= {file: own + suffix for suffix, file in group.items()}
        taken |= {(own + suffix).lower() for suffix in group}
        if has_picture:
            pictures.add(own.lower())
    return names


def _groups(files: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(harmless stem, {suffix: file}) of what belongs together. Several may have one stem: pasted pictures are all image.png."""
    groups: dict[str, list[dict[str, str]]] = {}
    for file in files:
        stem, suffix = os.path.splitext(Path(file).name)
        suffix = ".txt" if suffix.lower() in CAPTIONS else suffix.lower()
        same = groups.setdefault(stem, [{}])
        if suffix in same[-1]:
            same.append({})
        same[-1][suffix] = file
    return [(harmless(stem), group) for stem, same in groups.items() for group in same]


def harmless(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._ -]", "_", name)[-100:].lstrip(". ") or "picture"  # a dot in front would hide it
    return f"_{kept}" if kept.partition(".")[0].strip().lower() in RESERVED else kept


def _faults(sizes: dict[str, int]) -> list[str]:
    from .dataset.pictures import SUFFIXES

    if not sizes:
        return ["no picture was uploaded"]
    found = [f"{harmless(Path(file).name)} is neither a picture nor a caption" for file in sizes
             if Path(file).suffix.lower() not in SUFFIXES | CAPTIONS]
    found += [f"{harmless(Path(file).name)} has {gib(size)}; {gib(BYTES_AT_MOST)} are the most for one picture"
              for file, size in sizes.items() if size > BYTES_AT_MOST]
    if len(sizes) > FILES_AT_MOST:
        found.append(f"{len(sizes)} files were sent; {FILES_AT_MOST} are the most at a time")
    if sum(sizes.values()) > TOTAL_BYTES_AT_MOST:
        found.append(f"{gib(sum(sizes.values()))} were sent; {gib(TOTAL_BYTES_AT_MOST)} are the most at a time")
    return found
