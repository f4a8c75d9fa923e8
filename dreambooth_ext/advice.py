"""What can be said of settings that are still being filled in: one plain sentence for each step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

WHAT_MAKES_A_GOOD_SET = (
    "Name a folder of 5 to 75 pictures. Sharp ones, of one subject or style, with varied backgrounds; close-ups and "
    "half-body rather than full-body. No watermarks, no cut-off limbs, no motion blur.")


@dataclass(frozen=True)
class Verdict:
    """One picture as the audit sees it; without problems it is good."""

    path: Path
    problems: tuple[str, ...]


def about_base(path: Path) -> str:
    """Family, picture size, what it predicts, and the file's size; by names and shapes alone, so that it is quick.

    Raises CheckpointError.
    """
    status = path.stat() if path.is_file() else None
    return _about_base(path, status.st_mtime_ns if status else 0)


@lru_cache(maxsize=64)
def _about_base(path: Path, mtime_ns: int) -> str:
    from .files import gib
    from .models.checkpoint_file import CheckpointFile
    from .models.family import detect
    from .models.layout import layout_of

    with CheckpointFile(path) as file:
        family = detect(file.tensors, path)
        layout = layout_of(file.tensors, family, path)
    return f"{family.name}, {layout.resolution} px, {layout.prediction_type} prediction, {gib(path.stat().st_size)}."


def count_pictures(folder: Path) -> int:
    """Raises PictureError."""
    from .dataset.pictures import list_pictures

    return len(list_pictures(folder))


def about_pictures(folder: Path, kind: str) -> str:
    count = count_pictures(folder)
    return f"{count} pictures."


def review(folder: Path, kind: str) -> list[Verdict]:
    return []


def about_token(token: str) -> str:
    """Why another token may be better; empty if this one is fine."""
    from .dataset.captions import token_advice
    from .models.text_encoder import token_pieces

    return token_advice(token, token_pieces) or ""
