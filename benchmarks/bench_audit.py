"""How often each check of pictures is right, on pictures whose faults were made on purpose; how often a crop keeps the subject.

    python -m benchmarks.bench_audit [--photos DIR] [--scenes 8]

Half 0 is what thresholds were set on, half 1 what they are judged on; the halves have no source in common. `separates` is
where a threshold may lie on half 0 so that nothing is wrong there, or - where none does. `unseen` are photographs of other
things (scikit-image's own), which no threshold was ever set on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

import known_boxes  # noqa: E402
import labelled  # noqa: E402

from dreambooth_ext.dataset.duplicates import ALIKE_FROM  # noqa: E402
from dreambooth_ext.dataset.fringe import HALO_AT_MOST  # noqa: E402

Values = list[tuple[bool, float]]


def separating(values: Values) -> str:
    good = max(value for faulty, value in values if not faulty)
    bad = min(value for faulty, value in values if faulty)
    return f"{good:.3g} to {bad:.3g}" if good < bad else "-"


def row(check: str, threshold: float, halves: list[Values], pictures: int, seconds: float) -> str:
    scores = [labelled.Score.of((faulty, value > threshold) for faulty, value in half) for half in halves]
    figures = "".join(f"{score.precision:>10.2f}{score.recall:>8.2f}{score.faulty:>8}" for score in scores)
    return f"{check:<12}{threshold:>10.3g}{separating(halves[0]):>18}{figures}{1000 * seconds / pictures:>12.0f}"


def unseen() -> list[Image.Image]:
    """Photographs that scikit-image's package brings along, as squares; none without it."""
    try:
        import skimage.data
    except ImportError:
        return []
    found = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png"):
        path = Path(skimage.data.__file__).parent / name
        if path.is_file():
            with Image.open(path) as image:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                square = image.convert("RGB").crop((left, top, left + side, top + side))
            found.append(square.resize((labelled.SIDE, labelled.SIDE), Image.Resampling.LANCZOS))
    return found


def tell_unseen() -> None:
    images = unseen()
    for check, (measure, threshold, _) in labelled.MEASURED.items() if images else ():
        score = labelled.Score.of((each.faulty, measure(each.image) > threshold) for each in labelled.labelled(check, images, 7))
        print(f"{check:<12}unseen, {len(images)} photographs: P {score.precision:.2f}, R {score.recall:.2f}", flush=True)


def tell_crops(folder: Path | None) -> None:
    sets = {"drawn scenes": list(known_boxes.drawn(100))}
    if folder is not None:
        sets["photographs"] = list(known_boxes.photographed(folder))
    for name, pictures in sets.items():
        rates = known_boxes.rates(pictures)
        print(f"subject kept: smart crop {rates['smart']:.1%}, centre crop {rates['center']:.1%} of {len(pictures)} {name}",
              flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=REPOSITORY.parent / "shared" / "data" / "photos",
                        help="a folder with one folder of JPEGs for each of two subjects")
    parser.add_argument("--scenes", type=int, default=8, help="drawn scenes in each half")
    parsed = parser.parse_args()
    folder = parsed.photos if parsed.photos.is_dir() else None
    if folder is None:
        print(f"no photographs at {parsed.photos}: drawn pictures only")
    sources = [labelled.sources(folder, half, parsed.scenes) for half in range(labelled.HALVES)]
    print(f"{len(sources[0])} and {len(sources[1])} faultless pictures of {labelled.SIDE} x {labelled.SIDE}")
    print(f"{'':<12}{'threshold':>10}{'separates':>18}{'half 0: P':>10}{'R':>8}{'faulty':>8}{'half 1: P':>10}{'R':>8}{'faulty':>8}"
          f"{'ms each':>12}")
    for check, (measure, threshold, _) in labelled.MEASURED.items():
        pictures = [list(labelled.labelled(check, half, number)) for number, half in enumerate(sources)]
        started = time.perf_counter()
        halves = [[(each.faulty, measure(each.image)) for each in half] for half in pictures]
        print(row(check, threshold, halves, sum(map(len, pictures)), time.perf_counter() - started), flush=True)
    started = time.perf_counter()
    fringes = [[(fringed, value) for fringed, value, _ in labelled.fringe_values(half, number)]
               for number, half in enumerate(sources)]
    print(row("fringe", HALO_AT_MOST, fringes, sum(map(len, fringes)), time.perf_counter() - started), flush=True)
    started = time.perf_counter()
    pairs = [[(same, float(found)) for same, found in labelled.duplicate_pairs(half, number)]
             for number, half in enumerate(sources)]
    print(row("duplicates", 0.5, pairs, sum(map(len, pairs)), time.perf_counter() - started))
    print(f"(duplicates: of pairs; alike from a correlation of {ALIKE_FROM})")
    tell_unseen()
    tell_crops(folder)


if __name__ == "__main__":
    main()
