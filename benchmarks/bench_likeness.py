"""Does the measure of Choose agree with a judge? `python -m benchmarks.bench_likeness --out DIR`

Trains the demo's subject with class images and without, keeps a snapshot every 40 steps, compares them as Choose does, and
lets the playground's judge, which knows how the subject is drawn, read the same pictures. Prints both, and Spearman's rank
correlation: nearness with how well the judge knows the subject, drift with how seldom it knows the class. A second call with
the same DIR goes on where the first one was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ext import recipe
from dreambooth_ext.compare import compare
from dreambooth_ext.comparison import Column, Comparison, Wishes
from dreambooth_ext.demo import GUIDANCE_SCALE, TOKEN, demo_config, draw_pictures
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.playground import judge, subject
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder

STEPS, EVERY = 320, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="build/likeness", help="folder for everything (default: build/likeness)")
    parser.add_argument("--count", type=int, default=16, help="pictures of each prompt (default: 16)")
    parsed = parser.parse_args()
    out = Path(parsed.out).absolute()
    config = replace(demo_config(out), steps=STEPS, snapshot_every=EVERY, keep_snapshots=0, preview_every=STEPS)
    draw_pictures(Path(config.concepts[0].instance_dir))
    host = StandaloneHost(Path(config.models_dir), Path(config.runs_dir), batch_size=20)
    wishes = Wishes((subject.instance_prompt(TOKEN), subject.class_prompt()), count=parsed.count, guidance_scale=GUIDANCE_SCALE)
    rows = []
    print(f"{'':22}{'nearness':>9}{'judge':>7}{'hits':>6}{'drift':>8}{'class kept':>12}")
    for name, prior in (("prior", True), ("noprior", False)):
        run = RunFolder(Path(config.runs_dir) / name)
        if not run.exists:
            recipe.train(replace(config, output_name=name, with_prior_preservation=prior), host, Progress())
        elif run.state().state != "finished":
            recipe.resume(run, host, Progress())
        found = compare(run, host, Progress(), wishes)
        for column in found.columns:
            rows.append((column, *_judged(run, found, column)))
            print(_line(f"{name} {column.name}", *rows[-1]) + (" best" if column == found.best else ""), flush=True)
    near, drift, known, kept = (np.array(values) for values in zip(
        *((column.nearness, column.drift, score, share) for column, score, _, share in rows), strict=True))
    print(f"rank correlation of nearness with the judge's score {_rank(near, known):.2f}, of drift with the class kept "
          f"{_rank(drift, -kept):.2f}, over {len(rows)} columns of {parsed.count} pictures")


def _judged(run: RunFolder, found: Comparison, column: Column) -> tuple[float, float, float]:
    """(mean score of the subject, share of hits, share of class pictures that show the class and not the subject)."""
    shown, of_class = ([Image.open(found.path(run, column.name, number, seed)).convert("RGB") for seed in found.seeds]
                       for number in (0, 1))
    kept = [judge.judge(picture).shape == subject.CLASS_NOUN and not subject.recognises(picture) for picture in of_class]
    return (float(np.mean([subject.score(picture) for picture in shown])),
            float(np.mean([subject.recognises(picture) for picture in shown])), float(np.mean(kept)))


def _line(title: str, column: Column, score: float, hits: float, kept: float) -> str:
    return f"{title:22}{column.nearness or 0:>9.2f}{score:>7.2f}{hits:>6.0%}{column.drift or 0:>8.2f}{kept:>12.0%}"


def _rank(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties."""
    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


if __name__ == "__main__":
    main()
