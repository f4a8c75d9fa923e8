"""What an audit says: a number, a threshold, a reason in plain words, a place that shows it, and what could be done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..words import counted

if TYPE_CHECKING:
    from .crop import Box

ADVICE = ("keep", "fix", "drop")  # from good to bad; the choice is the user's


@dataclass(frozen=True)
class Fix:
    """What would help: "crop" to a box, "flatten" the transparency, "upscale" by a factor, "sharper copy"."""

    kind: str
    box: Box | None = None  # in pixels of the upright original: what is to be kept
    factor: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """One thing that one check found in one picture. `box` shows it, in pixels of the upright original; None: the whole does.

    `other` is the name of the picture that this one is a copy of.
    """

    check: str
    value: float
    threshold: float
    reason: str
    advice: str
    box: Box | None = None
    fix: Fix | None = None
    other: str = ""


@dataclass(frozen=True)
class PictureAudit:
    """All verdicts on one picture; none if nothing is to be said. `choice` is the user's, or None."""

    name: str
    sha256: str
    width: int
    height: int
    verdicts: tuple[Verdict, ...] = ()
    choice: str | None = None

    @property
    def advice(self) -> str:
        """The worst of the verdicts' advice."""
        return max((verdict.advice for verdict in self.verdicts), key=ADVICE.index, default="keep")

    @property
    def kept_box(self) -> Box | None:
        """What all suggested crops leave, or None if there are none or they leave nothing."""
        boxes = [verdict.fix.box for verdict in self.verdicts if verdict.fix and verdict.fix.box]
        if not boxes:
            return None
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        box = max(lefts), max(tops), min(rights), min(bottoms)
        return box if box[0] < box[2] and box[1] < box[3] else None


@dataclass(frozen=True)
class SetAudit:
    """What is to be said of the pictures together. Counts by kind; groups of names."""

    count: int
    backgrounds: dict[str, int]
    framings: dict[str, int]
    aspects: dict[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    marked: tuple[str, ...]  # that share a mark at one place
    outliers: tuple[str, ...]
    compared: str  # what duplicates were looked for among
    advice: tuple[str, ...]  # sentences


@dataclass(frozen=True)
class Audit:
    """The report on a folder: its pictures, what could not be opened and why, and the set as a whole."""

    folder: str
    kind: str
    resolution: int
    pictures: tuple[PictureAudit, ...]
    unreadable: tuple[tuple[str, str], ...]
    together: SetAudit

    @property
    def summary(self) -> str:
        """The whole in one sentence."""
        found = {advice: sum(picture.advice == advice for picture in self.pictures) for advice in ADVICE}
        bad = f", {len(self.unreadable)} cannot be opened" if self.unreadable else ""
        return (f"{counted(len(self.pictures), 'picture')} looked at: {found['keep']} good as they are, {found['fix']} to be "
                f"fixed, {found['drop']} better left out{bad}.")

    def lines(self) -> list[str]:
        """One line for each finding, the worst first; without control characters, which a file's name may hold."""
        lines = [f"{name}: cannot be used, {reason}." for name, reason in self.unreadable]
        for advice in ("drop", "fix"):
            lines += [f"{picture.name}: {verdict.reason}" for picture in self.pictures for verdict in picture.verdicts
                      if verdict.advice == advice]
        return [plain(line) for line in (*lines, *self.together.advice)]

    def to_dict(self) -> dict[str, Any]:
        values = {"version": 1, **asdict(self), "summary": self.summary}
        for plain, picture in zip(values["pictures"], self.pictures, strict=True):
            plain["advice"] = picture.advice
        return values


def plain(line: str) -> str:
    """Without control characters, which a file's name may hold, and which would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)
