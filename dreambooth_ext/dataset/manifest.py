"""What training is given: pictures, each with its prompt and the hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import write_json


@dataclass(frozen=True)
class TrainingImage:
    """One prepared picture: an upright sRGB PNG of exactly `width` x `height` pixels."""

    path: Path
    prompt: str
    sha256: str  # of the PNG file
    width: int
    height: int
    concept: int = 0  # index into TrainConfig.concepts


@dataclass(frozen=True)
class TrainingSet:
    """Instance images and, with prior preservation, class images. Both in a stable order."""

    instance: tuple[TrainingImage, ...]
    prior: tuple[TrainingImage, ...] = ()

    def write(self, path: Path) -> None:
        def plain(image: TrainingImage) -> dict[str, object]:
            return dict(asdict(image), path=str(image.path))

        instance, prior = ([plain(image) for image in images] for images in (self.instance, self.prior))
        write_json(path, {"version": 1, "instance": instance, "prior": prior})

    @classmethod
    def read(cls, path: Path) -> TrainingSet:
        values = json.loads(path.read_text(encoding="utf-8"))

        def images(entries: list[dict]) -> tuple[TrainingImage, ...]:
            return tuple(TrainingImage(**dict(entry, path=Path(entry["path"]))) for entry in entries)

        return cls(images(values["instance"]), images(values["prior"]))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
