"""The demo: a subject that the playground base has never seen is learnt, rendered, and judged by a program.

Nothing is canned: the same corridor as for real pictures runs, on a base small enough for a CPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import recipe
from .config import TrainConfig
from .errors import ConfigError
from .host import Txt2Img
from .hosts.standalone import StandaloneHost
from .playground import judge, subject, world
from .playground.base import playground_base_path
from .progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

TOKEN = "rxz"
PICTURES = 8
PROMPTS = 40
CLASS_PROMPTS = 40
SEED_OF_EVALUATION = 1000
SEEDS_OF_A_ROUND = 1000
SHEET_COLUMNS = 8
GUIDANCE_SCALE = 3.0  # so small a base burns out at the usual 7
# What suits so small a base, found by trying; a full-size model takes the defaults of config.py.
SETTINGS: dict[str, Any] = {
    "steps": 300, "train_batch_size": 4, "learning_rate": 5e-4, "text_encoder_learning_rate": 2.5e-4,
    "num_class_images": 160, "prior_loss_weight": 1.5, "publish_format": "both", "snapshot_every": 100,
    "lr_scheduler": "cosine", "lr_warmup_steps": 10, "class_guidance_scale": GUIDANCE_SCALE,
    "preview_guidance_scale": GUIDANCE_SCALE,
}


@dataclass(frozen=True)
class Score:
    """How often, of all pictures, each was so. All are shares, 0 to 1."""

    subject: float  # prompts with the token show the subject
    background: float  # prompts with the token: the background is the one named
    class_shows_subject: float  # prompts of the class without the token show the subject
    class_kept: float  # prompts of the class without the token show the class, and not the subject


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `scores` by column of the table."""

    scores: dict[str, Score]
    sheet: Path
    published: tuple[Path, ...]
    seconds: float

    def table(self) -> str:
        rows = [("subject shown when asked for", "subject"), ("background as asked for", "background"),
                ("class prompts that show the subject", "class_shows_subject"),
                ("class prompts that show the class", "class_kept")]
        head = f"{'':38}" + "".join(f"{name:>26}" for name in self.scores)
        lines = [f"{label:38}" + "".join(f"{getattr(score, field):>25.0%} " for score in self.scores.values())
                 for label, field in rows]
        return "\n".join([head, *lines])

    def figures(self) -> dict[str, Any]:
        return {"scores": {name: vars(score) for name, score in self.scores.items()}, "sheet": str(self.sheet),
                "published": [str(path) for path in self.published], "seconds": round(self.seconds, 1)}


def run_demo(out: Path, progress: Progress, *, seed: int = 0, compare: bool = True) -> DemoResult:
    """Draw, train, publish, render and judge, all in `out`; a former demo there is refused, not overwritten."""
    started = time.perf_counter()
    config = demo_config(out, seed)
    if recipe.RunFolder.for_config(config).exists:
        raise ConfigError([f"--out: {out} holds a former demo"], "Delete it, or choose another folder with --out DIR.")
    host = StandaloneHost(Path(config.models_dir), Path(config.runs_dir), batch_size=20)
    draw_pictures(Path(config.concepts[0].instance_dir))
    finished = recipe.train(config, host, progress)
    models = {"base": Path(config.base), "trained": finished.published[0]}
    if compare:
        progress.log("Once more without class images, to see what they are for.")
        without = replace(config, output_name="rxz_square_without_prior", with_prior_preservation=False,
                          auto_select=False)
        models["without class images"] = recipe.train(without, host, progress).published[0]
    scores, rendered = {}, {}
    for name, path in models.items():
        rendered[name] = _renders(host, path, f"rendering: {name}", progress)
        scores[name] = _score(*rendered[name])
    sheet = out / "contact_sheet.png"
    _contact_sheet(rendered["base"], rendered["trained"]).save(sheet)
    return DemoResult(scores, sheet, finished.published, time.perf_counter() - started)


def demo_config(out: Path, seed: int = 0) -> TrainConfig:
    """The demo's settings: those of any run, with the playground's base and subject."""
    return TrainConfig.from_dict({
        "base": str(playground_base_path()), "output_name": "rxz_square", "models_dir": str(out / "models"),
        "runs_dir": str(out / "runs"), "seed": seed, "instance_dir": str(out / "pictures"), "token": TOKEN,
        "class_noun": subject.CLASS_NOUN, "instance_prompt": subject.instance_prompt(TOKEN), "class_prompt": subject.class_prompt(),
        **SETTINGS})


def score_of(host: StandaloneHost, model: Path, progress: Progress, rounds: int = 1) -> Score:
    """What the program that judges the demo says of a model file: by the demo's pictures, and by `rounds` - 1 times as many
    of other seeds."""
    with_token, of_class = [], []
    for number in range(rounds):
        shown, plain = _renders(host, model, f"rendering: {model.stem}", progress, SEED_OF_EVALUATION + number * SEEDS_OF_A_ROUND)
        with_token += shown
        of_class += plain
    return _score(with_token, of_class)


def draw_pictures(folder: Path) -> None:
    """The subject on different backgrounds, as a person would take photographs."""
    subject.draw_pictures(folder, PICTURES)


Renders = tuple[list[tuple[str, "Image"]], list["Image"]]


def _renders(host: StandaloneHost, model: Path, phase: str, progress: Progress, first_seed: int = SEED_OF_EVALUATION) -> Renders:
    """([(background asked for, picture)] of prompts with the token, [picture] of prompts of the class)."""
    asked = [(prompt, background, True) for prompt, background in subject.unseen_prompts(TOKEN, PROMPTS)]
    backgrounds = [background for _, background, _ in asked[:CLASS_PROMPTS]]
    for number, background in enumerate(backgrounds):
        prompt = world.caption_of(subject.CLASS_NOUN, background=background if number % 2 else None)
        asked.append((prompt, background, False))
    seeds_of: dict[str, list[int]] = {}
    for number, (prompt, _, _) in enumerate(asked):
        seeds_of.setdefault(prompt, []).append(first_seed + number)
    progress.start(phase, len(asked))
    pictures: dict[int, Image] = {}
    for prompt, seeds in seeds_of.items():
        request = Txt2Img(prompt, tuple(seeds), guidance_scale=GUIDANCE_SCALE, width=world.SIDE,
                          height=world.SIDE)
        pictures.update(zip(seeds, host.txt2img(model, request, Progress()), strict=True))
        progress.report(len(pictures), len(asked))
        progress.check()
    ordered = [pictures[first_seed + number] for number in range(len(asked))]
    shown = [(background, picture) for (_, background, token), picture in zip(asked, ordered, strict=True) if token]
    return shown, ordered[len(shown):]


def _score(with_token: list[tuple[str, Image]], of_class: list[Image]) -> Score:
    shown = [subject.recognises(picture) for picture in of_class]
    kept = [judge.judge(picture).shape == subject.CLASS_NOUN for picture in of_class]
    return Score(
        subject=_share(subject.recognises(picture) for _, picture in with_token),
        background=_share(judge.judge(picture).background == asked for asked, picture in with_token),
        class_shows_subject=_share(shown),
        class_kept=_share(is_class and not is_subject for is_class, is_subject in zip(kept, shown, strict=True)),
    )


def _share(values: Any) -> float:
    found = [bool(value) for value in values]
    return sum(found) / len(found)


def _contact_sheet(base: Renders, trained: Renders) -> Image:
    """Base above, trained below, same prompts, same seeds; then the same for prompts of the class."""
    from PIL import Image, ImageDraw

    side, gap, label = 2 * world.SIDE, 6, 20
    rows = [("base, with the token", [picture for _, picture in base[0]]),
            ("trained, with the token", [picture for _, picture in trained[0]]),
            ("base, class only", base[1]), ("trained, class only", trained[1])]
    sheet = Image.new("RGB", (SHEET_COLUMNS * (side + gap) + gap, len(rows) * (side + label + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (text, pictures) in enumerate(rows):
        top = gap + row * (side + label + gap)
        pen.text((gap, top + 3), text, fill="black")
        for column, picture in enumerate(pictures[:SHEET_COLUMNS]):
            enlarged = picture.resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (gap + column * (side + gap), top + label))
    return sheet
