"""What is to be said of pictures together. Of each picture a few kilobytes are kept, so that sets may be large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..progress import Progress
from .background import BACKGROUNDS, FRAMINGS, layout
from .buckets import bucket_for
from .duplicates import Pair, groups, near_duplicates, thumbnail
from .overlay import Mark, directions, shared_mark

MARKS_AMONG = 400  # pictures: so many are laid over each other, 16 KB each
OUTLIER_FROM = 4.0  # robust standard deviations, root mean square over the features
OUTLIERS_AMONG = 8  # pictures: of fewer, none can be called unusual


@dataclass(frozen=True)
class Trace:
    """What is kept of one picture."""

    sha256: str
    sharpness: float  # to tell which of two duplicates is the better one
    pixels: int
    thumbnail: np.ndarray
    directions: np.ndarray | None
    background: str
    framing: str
    aspect: str
    style: np.ndarray


def trace(image: Image.Image, sha256: str, sharpness: float, *, resolution: int, with_directions: bool) -> Trace:
    """Of an RGB picture without letterbox."""
    ground = layout(image)
    width, height = bucket_for(image.width, image.height, max(resolution, 64))
    return Trace(sha256, sharpness, image.width * image.height, thumbnail(image), directions(image) if with_directions else None,
                 ground.background, ground.framing, f"{width} x {height}", _style(image))


def _style(image: Image.Image) -> np.ndarray:
    """How a picture is made, not what it shows: light, contrast, colourfulness, hue, and how much fine detail there is."""
    small = image.resize((64, 64), Image.Resampling.BOX, reducing_gap=3.0)
    hue, saturation, value = (np.asarray(plane, np.float32) for plane in small.convert("HSV").split())
    grey = np.asarray(small.convert("L"), np.float32)
    steps = np.hypot(*np.gradient(grey))
    angle, weight = hue / 255 * 2 * np.pi, saturation / 255
    return np.array([value.mean(), grey.std(), saturation.mean(), saturation.std(), 64 * (np.cos(angle) * weight).mean(),
                     64 * (np.sin(angle) * weight).mean(), 8 * steps.mean(), 8 * np.median(steps)])


def outliers(traces: Sequence[Trace]) -> list[int]:
    """Pictures that are made unlike the others: the style's distance from the median, in median absolute deviations."""
    if len(traces) < OUTLIERS_AMONG:
        return []
    styles = np.stack([each.style for each in traces])
    away = np.abs(styles - np.median(styles, axis=0))
    usual = np.maximum(1.4826 * np.median(away, axis=0), 6.0)  # levels: below that, differences are not seen
    return [int(index) for index in np.nonzero(np.sqrt(((away / usual) ** 2).mean(axis=1)) > OUTLIER_FROM)[0]]


def duplicates(traces: Sequence[Trace], progress: Progress) -> tuple[list[list[int]], list[Pair], str]:
    """Groups of pictures that are the same, the best of each first; the pairs they are made of; and what was compared.

    Equal files are equal without looking at them, so that a folder of copies takes no longer than one of each.
    """
    first: dict[str, int] = {}
    equal = [(first.setdefault(each.sha256, index), index) for index, each in enumerate(traces)]
    unlike = sorted(first.values())
    near, compared = near_duplicates([traces[index].thumbnail for index in unlike], progress)
    pairs = [Pair(one, other, 1.0, False) for one, other in equal if one != other]
    pairs += [replace(pair, first=unlike[pair.first], second=unlike[pair.second]) for pair in near]
    found = groups(pairs, len(traces))
    return [sorted(group, key=lambda index: (-_worth(traces[index]), index)) for group in sorted(found)], pairs, compared


def _worth(each: Trace) -> float:
    return each.sharpness * each.pixels**0.5


def mark_of(traces: Sequence[Trace], same: Sequence[Sequence[int]]) -> Mark | None:
    """The mark that several pictures share, by their index; of each group of duplicates one is looked at."""
    copies = {index for group in same for index in group[1:]}
    looked_at = [(index, each.directions) for index, each in enumerate(traces)
                 if index not in copies and each.directions is not None]
    mark = shared_mark([field for _, field in looked_at if field is not None])
    return Mark(tuple(looked_at[index][0] for index in mark.pictures), mark.place) if mark else None


def counts(traces: Sequence[Trace]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Pictures by background, by framing, and by the bucket that suits their shape."""
    grounds, framings = Counter(each.background for each in traces), Counter(each.framing for each in traces)
    aspects = Counter(each.aspect for each in traces)
    return ({name: grounds[name] for name in BACKGROUNDS}, {name: framings[name] for name in FRAMINGS},
            dict(sorted(aspects.items(), key=lambda item: (-item[1], item[0]))))


def guidance(kind: str, traces: Sequence[Trace], copies: int, strange: int) -> tuple[str, ...]:
    """What an experienced trainer would add or drop, in sentences. `copies` and `strange` are numbers of pictures."""
    if not traces:
        return ()
    grounds, framings, aspects = counts(traces)
    count = len(traces) - copies
    plain = (len(traces) - grounds["scene"]) / len(traces)
    sentences = _for_style(count, plain) if kind == "style" else _for_subject(count, plain, grounds)
    if framings["far"] > len(traces) / 2:
        sentences.append(f"In {framings['far']} of {len(traces)} pictures the subject is small: add close-ups and half-bodies, "
                         "which teach more than full bodies.")
    if copies:
        sentences.append(f"{_pictures(copies)} there more than once: whatever is in copies is learnt too strongly.")
    if strange and kind == "style":
        sentences.append(f"{_pictures(strange)} made unlike the others: mixed styles are learnt as a mixture.")
    if len(aspects) > 3 and len(traces) > 4:
        sentences.append(f"The pictures have {len(aspects)} different shapes: buckets (--crop buckets) keep more of them "
                         "than squares.")
    return tuple(sentences)


def _pictures(count: int) -> str:
    return "1 picture is" if count == 1 else f"{count} pictures are"


def _for_subject(count: int, plain: float, grounds: dict[str, int]) -> list[str]:
    sentences = []
    if count < 5:
        sentences.append(f"{_pictures(count)} all there is: 10 to 75 are usual, and 5 are the least that teach a subject.")
    if plain > 0.7:
        sentences.append(f"{round(100 * plain)} % of the backgrounds are plain: add pictures in surroundings, or the model will "
                         "know the subject on plain ground only.")
    elif count >= 5 and not grounds["plain black"] + grounds["plain white"]:
        sentences.append("No background is plain black or white: one or two such pictures help to tell a subject from its "
                         "surroundings.")
    return sentences


def _for_style(count: int, plain: float) -> list[str]:
    sentences = []
    if count < 10:
        sentences.append(f"{_pictures(count)} all there is: a style wants 10 to 75, of as many things as possible.")
    if plain > 0.3:
        sentences.append(f"{round(100 * plain)} % of the backgrounds are plain: a style is learnt from characters on varied "
                         "backgrounds.")
    if count >= 10:
        sentences.append(f"See that about {max(1, round(count / 10))} of the pictures are landscapes or scenes without a "
                         "character; pixels do not tell that.")
    return sentences
