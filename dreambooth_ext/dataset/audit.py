"""The picture doctor: every picture of a folder looked at, with reasons in plain words. Nothing is written or changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import PictureError
from ..progress import SILENT, Progress
from ..words import printable
from . import collection, quality
from .checks import Subject, verdicts_on
from .choices import Choice, choice_for
from .collection import MARKS_AMONG, Trace
from .crop import largest_beside
from .duplicates import ALIKE_FROM, Pair
from .manifest import sha256_of
from .overlay import Mark
from .pictures import list_pictures, open_original, why_none
from .verdict import Audit, Fix, PictureAudit, SetAudit, Verdict


def audit(folder: Path, *, kind: str = "subject", resolution: int = 512, choices: Mapping[str, Choice] | None = None,
          progress: Progress = SILENT) -> Audit:
    """Look at every picture of `folder` as training at `resolution` px will see it, and at all of them together.

    A picture that cannot be opened is named in the report, and the rest goes on. `choices` are the user's own, which the
    report shows. Raises PictureError if there is no such folder, or nothing in it that is named like a picture.
    """
    paths = list_pictures(folder)
    if not paths:
        why, instead = why_none(folder)
        raise PictureError(f"Pictures are to be looked at in {folder}", why, instead)
    pictures: list[PictureAudit] = []
    traces: list[Trace] = []
    unreadable: list[tuple[str, str]] = []
    for number, path in enumerate(paths, start=1):
        progress.check()
        try:
            picture, trace = _audit_one(path, resolution, len(traces) < MARKS_AMONG)
            pictures.append(replace(picture, choice=choice_for(picture.name, picture.sha256, choices or {})))
            traces.append(trace)
        except PictureError as error:
            unreadable.append((printable(path.name), error.why))
        progress.report(number, len(paths), printable(path.name))
    judged, together = _together(kind, pictures, traces, progress)
    return Audit(folder.name, kind, resolution, judged, tuple(unreadable), together)


def _audit_one(path: Path, resolution: int, with_directions: bool) -> tuple[PictureAudit, Trace]:
    original = open_original(path)
    try:
        subject = Subject(original, original.srgb(), resolution)
        verdicts = verdicts_on(subject)
        sha256 = sha256_of(path)
    except (OSError, ValueError, MemoryError) as error:
        raise PictureError(f"{path.name} is to be looked at", "it is damaged, or larger than the memory there is",
                           "Remove it, or save it anew.") from error
    trace = collection.trace(subject.cut, sha256, 1 - quality.blur(subject.luma), resolution=resolution,
                             with_directions=with_directions)
    return PictureAudit(path.name, sha256, subject.image.width, subject.image.height, verdicts), trace


def _together(kind: str, pictures: Sequence[PictureAudit], traces: Sequence[Trace],
              progress: Progress) -> tuple[tuple[PictureAudit, ...], SetAudit]:
    """The pictures, each with what is to be said of it beside the others; and what is to be said of the set."""
    names = [picture.name for picture in pictures]
    same, pairs, compared = collection.duplicates(traces, progress)
    mark = collection.mark_of(traces, same)
    strange = collection.outliers(traces)
    extra: dict[int, list[Verdict]] = defaultdict(list)
    for best, *copies in same:
        for index in copies:
            extra[index].append(_copy_of(names[best], traces[best].sha256 == traces[index].sha256, index, pairs))
    if mark is not None:
        for index in mark.pictures:
            extra[index].append(_marked(mark, pictures[index]))
    if kind == "style":
        for index in strange:
            extra[index].append(Verdict("style", 1, 0, "it is made unlike the others, in its light, colours or detail; "
                                        "a style is learnt from pictures of one hand", "keep"))
    judged = tuple(replace(picture, verdicts=(*picture.verdicts, *extra[index])) for index, picture in enumerate(pictures))
    grounds, framings, aspects = collection.counts(traces)
    count_of_copies = sum(len(group) - 1 for group in same)
    return judged, SetAudit(
        len(traces), grounds, framings, aspects, tuple(tuple(names[index] for index in group) for group in same),
        tuple(names[index] for index in mark.pictures) if mark else (), tuple(names[index] for index in strange),
        compared, collection.guidance(kind, traces, count_of_copies, len(strange)))


def _copy_of(name: str, exact: bool, index: int, pairs: Sequence[Pair]) -> Verdict:
    if exact:
        return Verdict("duplicate", 1.0, 1.0, f"it is the same file as {name}", "drop", other=name)
    likeness = max((pair.likeness for pair in pairs if index in (pair.first, pair.second)), default=1.0)
    return Verdict("near duplicate", likeness, ALIKE_FROM, f"it is the same picture as {name}, which is larger or sharper: "
                   "shifted, mirrored, resized or saved again", "drop", other=name)


def _marked(mark: Mark, picture: PictureAudit) -> Verdict:
    (left, top, right, bottom), (width, height) = mark.place, (picture.width, picture.height)
    box = int(left * width), int(top * height), round(right * width), round(bottom * height)
    part = largest_beside(box, (0, 0, width, height))
    return Verdict("mark", len(mark.pictures), 3, f"{len(mark.pictures)} pictures have the same thing at the same place: a logo, "
                   "a watermark or a frame, which the model would learn", "fix" if part else "drop", box,
                   Fix("crop", part) if part else None)
