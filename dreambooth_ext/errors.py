"""Every error that a user can meet.

    DreamboothError                asked, why not, what instead
    +-- ConfigError                settings that cannot work; lists every fault at once
    +-- PictureError               a picture, or a folder of them, that cannot be used
    +-- CheckpointError            a model file that cannot be used
    |   +-- NotACheckpoint         not a model file at all, or cut off
    |   +-- UnsafeCheckpoint       a .ckpt that asks for code to be executed
    |   +-- MissingTensors         tensors that the family needs are not there, or have another shape
    |   +-- UnsupportedFamily      a model, but none that can be trained here
    |   +-- BadNumbers             NaN or Inf among the weights
    +-- StorageError               a folder or disk that cannot take what must be written
    |   +-- DiskFull
    |   +-- NotWritable
    |   +-- UnsafePath             a name or path that leaves the folders that we own
    |   +-- RunBusy                another process works in this run folder
    +-- ResumeError                what the run was started with has changed, or there is nothing to resume
    +-- HostError                  the WebUI refused, failed, or has no model loaded
    +-- MissingPackage             a library is not installed, or not usable
    +-- OutOfMemory                the device had less memory than was asked for
    +-- Diverged                   the loss became NaN or exploded
    Cancelled                      not an error: the user stopped the work
"""

from __future__ import annotations

from collections.abc import Sequence


class DreamboothError(Exception):
    """An error with a plain text: what was asked, why it cannot be done, what to do instead. `faults`: each reason why."""

    def __init__(self, asked: str, why: str, instead: str = "") -> None:
        self.asked, self.why, self.instead = asked, why, instead
        self.faults: tuple[str, ...] = (why,)
        super().__init__(asked, why, instead)

    def __str__(self) -> str:
        return "\n".join(line for line in (f"{self.asked}: {self.why}", self.instead) if line)


class ConfigError(DreamboothError):
    """Settings that cannot work. `faults` holds one plain sentence for each."""

    def __init__(self, faults: Sequence[str], instead: str = "Nothing was changed. Put it right, and try again.") -> None:
        count = "1 setting" if len(faults) == 1 else f"{len(faults)} settings"
        super().__init__(f"{count} cannot be used", "; ".join(faults), instead)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        head = "This cannot be done:" if len(self.faults) == 1 else f"This cannot be done, for {len(self.faults)} reasons:"
        return "\n".join([head, *(f"  - {fault}" for fault in self.faults), *([self.instead] if self.instead else [])])


class PictureError(DreamboothError):
    """A picture, or a folder of pictures, that cannot be used."""


class CheckpointError(DreamboothError):
    """A model file that cannot be used."""


class NotACheckpoint(CheckpointError):
    """Not a model file at all, or cut off."""


class UnsafeCheckpoint(CheckpointError):
    """A .ckpt whose pickle asks for something other than tensors, containers and numbers."""


class MissingTensors(CheckpointError):
    """Tensors that the family needs are not in the file, or have another shape."""


class UnsupportedFamily(CheckpointError):
    """A model, but none of a family that can be trained here."""


class BadNumbers(CheckpointError):
    """NaN or Inf among the weights."""


class StorageError(DreamboothError):
    """A folder or disk that cannot take what must be written."""


class DiskFull(StorageError):
    """Less room on the disk than the next file needs."""


class NotWritable(StorageError):
    """A folder that may not be written to."""


class UnsafePath(StorageError):
    """A name or path that leaves the folders that we own."""


class RunBusy(StorageError):
    """Another process works in this run folder."""


class ResumeError(DreamboothError):
    """What the run was started with has changed, or there is nothing to resume."""


class HostError(DreamboothError):
    """The WebUI refused, failed, or has no usable model loaded."""


class MissingPackage(DreamboothError):
    """A library is not installed, or the installed version is not usable."""


class OutOfMemory(DreamboothError):
    """The device had less memory than was asked for."""


class Diverged(DreamboothError):
    """The loss became NaN or exploded; the last good snapshot is kept."""


class Cancelled(Exception):
    """The user stopped the work. What was finished is kept."""
