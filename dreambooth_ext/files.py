"""Writing so that no half file is ever seen under its final name, and names that stay where they belong.

Everything that we write to disk for keeps goes through `write_atomically` or `replace_folder`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from .errors import ConfigError, DiskFull, NotWritable, StorageError, UnsafePath

NAME_AT_MOST = 120  # characters of a run's or model's name
_NAME = re.compile(rf"[A-Za-z0-9._ -]{{1,{NAME_AT_MOST}}}")
_PARTIAL, _FORMER = ".partial", ".former"  # what is being written or removed, and what waits for its successor, are hidden so
# What Pillow may raise for a damaged picture: its plugins check little before they read on.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
           struct.error, zlib.error)
_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NAME_BYTES_KEPT = 150  # a file system takes 255, and a hidden name is longer
T = TypeVar("T")
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}  # of Windows


@contextmanager
def write_atomically(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; when the block ends well, fsync it and rename it onto `path`.

    Whatever goes wrong, `path` keeps its former content. Raises DiskFull, NotWritable, StorageError.
    """
    temporary: Path | None = None
    try:
        make_folder(path.parent)
        new = _beside(path)
        handle = os.open(new, _NEW, 0o666)  # a model is for whoever may read the folder; mkstemp's files are their owner's alone
        temporary = new
        # A file's name that is no text is written as JSON escapes it, and so is read again.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with os.fdopen(handle, mode, encoding=encoding, errors=errors) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # else `sweep` takes it away
                temporary.unlink()


def reserve(stream: IO[Any], count: int) -> None:
    """Have room for `count` bytes set aside for an open file, so that a full disk shows now; Linux writes faster into it.

    Does nothing where the file system cannot do that at once. Raises OSError if there is no room.
    """
    try:
        allocate, handle = ctypes.CDLL(None, use_errno=True).fallocate64, stream.fileno()
    except (OSError, AttributeError, TypeError):  # another platform, or no file; the first two are also io's refusals
        return
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if count and allocate(handle, 0, 0, count) and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def replace(source: Path, destination: Path) -> None:
    """Rename onto `destination` and make the rename itself durable."""
    try:
        _move(source, destination)
    except PermissionError as error:
        if sys.platform != "win32":
            raise
        # Windows keeps a file that is mapped or open elsewhere from being replaced.
        raise NotWritable(
            f"{destination.name} is to be replaced", "another program has the file open",
            "Select another model in the WebUI, or choose another name, and publish again.",
        ) from error
    sync_folder(destination.parent)


def _move(source: Path, destination: Path) -> None:
    once_let_go(lambda: os.replace(source, destination))


def once_let_go(action: Callable[[], Any]) -> None:
    """Do `action`. Windows moves and removes no file that somebody has open, a virus scanner, say, or a page that shows it: there
    it is tried again for three seconds, as most are let go in a moment. Raises what `action` raises."""
    for wait_s in _WAITS_S if sys.platform == "win32" else ():
        try:
            return action()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOTEMPTY):
                raise
            time.sleep(wait_s)
    action()


def surely_read(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file, for whoever would lose something if it took the file for empty. A virus scanner or a network
    drive may keep it for a moment: that is waited for. Raises StorageError."""
    for wait_s in _WAITS_S:
        try:
            return read(path)
        except OSError:
            time.sleep(wait_s)
    try:
        return read(path)
    except OSError as error:
        raise unreadable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it so that a power cut takes none of them away again."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """fsync a directory where the platform has that (Windows has not), and the file system."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # as VirtualBox's shared folders, which have it not
            raise
    finally:
        os.close(handle)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder beside `folder`, fsync its files, and rename it to `folder`.

    A folder of that name is moved aside first and removed last, so that one of the two is always whole.
    """
    try:
        make_folder(folder.parent)
        temporary = _beside(folder)
        temporary.mkdir()
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        fill(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
            else:
                sync_folder(path)
        sync_folder(temporary)
        former = _aside(folder)
        shutil.rmtree(former, ignore_errors=True)
        if folder.exists():
            _move(folder, former)
        replace(temporary, folder)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, which is never seen half removed under its name; what a crash leaves, `sweep` takes away.

    One that cannot be moved stays as it is.
    """
    aside = folder.with_name(f".{folder.name}{_PARTIAL}")  # not as `replace_folder` moves it, else `sweep` would bring it back
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        _move(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _hidden(path: Path) -> str:
    """How the name begins under which `path` is written; letters may have several bytes, and the last one is left out whole."""
    return f".{os.fsencode(path.name)[:_NAME_BYTES_KEPT].decode('utf-8', 'ignore')}."


def _beside(path: Path) -> Path:
    """A name under which nobody else writes; the system gives what is made the permissions that are usual here."""
    return path.parent / f"{_hidden(path)}{uuid.uuid4().hex[:12]}{_PARTIAL}"


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_FORMER}")


def sweep(folder: Path, name: str = "") -> None:
    """Remove what a killed process left in `folder`: of the file `name` alone, else of everything, in folders below too.

    Nobody else may be writing there. A folder that was moved aside, and has no successor yet, gets its name back.
    """
    for place, folders, names in os.walk(folder):
        for each in [*folders, *names]:
            path = Path(place, each)
            if not each.endswith((_PARTIAL, _FORMER)) or not each.startswith(f".{name}." if name else ".") or path.is_symlink():
                continue
            final = Path(place, each[1 : -len(_FORMER)])
            if each.endswith(_FORMER) and not final.exists():
                with suppress(OSError):  # a snapshot, perhaps the last one
                    _move(path, final)
            else:
                _remove(path)
        folders[:] = [] if name else [each for each in folders if not each.startswith(".")]


def _remove(path: Path) -> None:
    """A file or a folder; what cannot be removed stays, and harms nobody under its hidden name."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def is_link(path: Path) -> bool:
    """A symbolic link, or a junction of Windows."""
    return path.is_symlink() or bool(getattr(os.path, "isjunction", lambda _: False)(path))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder that others may be writing in; links count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def write_json(path: Path, value: Any) -> None:
    with write_atomically(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Append one line whole or not at all; a line that a crash cut off stays alone. Raises StorageError."""
    try:
        make_folder(path.parent)
        with path.open("ab+") as stream:
            before = stream.seek(0, os.SEEK_END)
            if before:
                stream.seek(before - 1)
                line = line if stream.read(1) == b"\n" else "\n" + line
            try:
                stream.write(f"{line}\n".encode())
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            except OSError:
                stream.truncate(before)
                raise
        if durable and not before:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """Our own error for what the operating system said about `path`."""
    asked = f"{path.name} is to be written to {path.parent}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(asked, "the disk is full",
                        "Make room on that disk, or choose a folder on another one; nothing was lost.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotWritable(asked, "the folder may not be written to",
                           "Choose a folder of your own, or change its permissions.")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return StorageError(asked, "a file stands where a folder is to be", "Choose another folder.")
    return StorageError(asked, str(error.strerror or error), "Check that the drive is there and the path is right.")


def unreadable(path: Path, error: OSError) -> StorageError:
    """Our own error for a file that the operating system does not let us read."""
    return StorageError(f"{path.name} is to be read from {path.parent}", str(error.strerror or error),
                        "Check that the drive is there and that the file may be read.")


def unforeseen(error: OSError) -> StorageError:
    """Our own error for what the operating system said of a path that nobody judged before: no permission, too long a name."""
    name = error.filename if isinstance(error.filename, str) else "a file"
    return StorageError(f"{name} is to be used", str(error.strerror or error), "Check the path, and that you may use it.")


def require_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Raise DiskFull if the disk of `folder` has less room than `bytes_needed` plus a tenth."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free, wanted = shutil.disk_usage(existing).free, int(bytes_needed * 1.1)
    if free < wanted:
        raise DiskFull(f"{what} is to be written to {folder}", f"it needs {gib(wanted)}, and only {gib(free)} are free",
                       "Make room on that disk, or choose a folder on another one.")


def require_writable(folder: Path) -> None:
    """Create `folder` if need be and prove that a file can be written there. Raises NotWritable, StorageError."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise storage_error(folder / "a file", error) from error


def require_safe_name(name: str, what: str) -> str:
    """Return `name` if it can name a file on every platform and in the WebUI's lists; else raise UnsafePath."""
    if len(name) > NAME_AT_MOST:
        raise UnsafePath(f"{what} is to be {name[:20]}...", f"it has {len(name)} characters, and {NAME_AT_MOST} are the most",
                         "Use a shorter name.")
    stem = name.split(".")[0].strip().lower()
    if not _NAME.fullmatch(name) or stem in RESERVED or name[0] in ". " or name[-1] in ". ":
        raise UnsafePath(
            f"{what} is to be {name!r}", "such a name cannot stand in a models folder on every system",
            "Use the letters A to Z, digits, dots, dashes, underscores and spaces; neither dots nor spaces at the ends.",
        )
    return name


def require_inside(path: Path, roots: list[Path]) -> Path:
    """Return the resolved path if it lies in one of `roots`, symlinks followed; else raise UnsafePath."""
    resolved = path.resolve()
    if any(resolved == root.resolve() or root.resolve() in resolved.parents for root in roots):
        return resolved
    raise UnsafePath(
        f"{path} is to be used", "this WebUI is shared, and the path lies outside the folders open to its users",
        "Put the files into one of: " + ", ".join(str(root) for root in roots),
    )


def expanded(text: str) -> Path:
    """A path as people write it, with ~ for a home. Raises ConfigError for ~somebody, where there is no somebody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError([f"{text!r} is in the home of a user whom this computer does not know"]) from error


def gib(count_bytes: float) -> str:
    """3221225472 -> "3.0 GiB"; small amounts in MiB, and what would be 0 of those in KiB."""
    if count_bytes >= 2**30:
        return f"{count_bytes / 2**30:.1f} GiB"
    return f"{count_bytes / 2**20:.0f} MiB" if count_bytes >= 2**19 or count_bytes <= 0 else f"{count_bytes / 2**10:.0f} KiB"
