"""Class images: the base's own idea of the class (prior preservation, Ruiz et al. 2023, section 3.2).

A manifest beside them records which checkpoint made each picture, and how. Only what matches counts; only what is
missing is rendered; a picture of other origin is told, and used only on purpose.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CLASS_IMAGES_AT_MOST, CLASS_IMAGES_PER_PICTURE, Concept
from ..errors import HostError
from ..file_lock import alone
from ..files import append_line, surely_read, sweep, write_atomically
from ..host import Txt2Img
from ..progress import Progress
from ..words import counted, printable
from . import pace
from .manifest import TrainingImage, TrainingSet, sha256_of
from .pictures import list_pictures, open_original, open_picture, reason_against
from .resize import resize

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.jsonl"
LOCK = ".lock"
STRUCK_OUT = "struck-out"  # a folder for pictures that somebody did not like
SAMPLER = "DDIM"
FIRM_ADVICE_ABOVE = 2000
Txt2ImgOf = Callable[[Path, Txt2Img, Progress], "Iterator[Image]"]


@dataclass(frozen=True)
class Request:
    """All that shapes a class image but its seed."""

    base_sha256: str
    prompt: str
    negative_prompt: str
    sampler: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    prediction_type: str = "auto"
    clip_skip: int = 1
    vae_sha256: str = ""  # of the VAE file that a base is used with that has none of its own

    @property
    def values(self) -> dict[str, Any]:
        """As manifests keep it; older ones know neither prediction type, clip skip nor VAE."""
        return {name: value for name, value in vars(self).items()
                if (name, value) not in (("prediction_type", "auto"), ("clip_skip", 1), ("vae_sha256", ""))}

    @property
    def key(self) -> str:
        """Hexadecimal; another for any difference."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PromptPlan:
    """The class images of one prompt: how many are wanted, which there are, where they are kept."""

    request: Request
    folder: Path
    wanted: int
    found: tuple[Path, ...]
    foreign: tuple[Path, ...]


@dataclass(frozen=True)
class ClassImagePlan:
    """The class images of one concept."""

    prompts: tuple[PromptPlan, ...]
    concept_index: int
    seed: int
    use_foreign: bool
    suggested: str
    library: Path
    seconds: float | None = None  # that one missing picture took the host last time, if it is known
    unusable: tuple[tuple[str, str], ...] = ()  # pictures of other origin that cannot be opened, and why
    vae: Path | None = None  # for a base that has none of its own

    @property
    def wanted(self) -> int:
        return sum(plan.wanted for plan in self.prompts)

    @property
    def found(self) -> int:
        return sum(min(len(plan.found), plan.wanted) for plan in self.prompts)

    @property
    def foreign(self) -> tuple[Path, ...]:
        # Prompts that share a folder see the same strangers.
        return tuple(dict.fromkeys(path for plan in self.prompts for path in plan.foreign))

    @property
    def adopted(self) -> int:
        """Pictures of other origin that are used, each in the place of one to render."""
        return len(self.foreign) if self.use_foreign else 0

    @property
    def missing(self) -> int:
        return max(0, self.wanted - self.found - self.adopted)

    @property
    def seconds_left(self) -> float | None:
        """How long the missing pictures take at the host's last pace."""
        return self.seconds * self.missing if self.seconds is not None and self.missing else None

    @property
    def sentence(self) -> str:
        """The plan in one sentence, and more if there are pictures of other origin, or too many wanted."""
        time_left = f", {pace.about(self.seconds_left)}" if self.seconds_left else ""
        text = f"{self.suggested}; {self.found} found that this checkpoint made; {self.missing} to render{time_left}."
        if self.wanted > FIRM_ADVICE_ABOVE:
            text += (f" More than {FIRM_ADVICE_ABOVE} class images never helped: {CLASS_IMAGES_AT_MOST} suffice, "
                     "and the rest is time lost.")
        if self.foreign and self.use_foreign:
            text += f" Used with them, as asked: {counted(len(self.foreign), 'picture')} of other origin."
        elif self.foreign:
            text += (f" Left out: {counted(len(self.foreign), 'picture')} in the folder that this base did not make with these "
                     "settings; it would learn another idea of the class. Training without prior preservation is better than "
                     "with such pictures.")
        if self.unusable:
            named = "; ".join(f"{name}: {why}" for name, why in self.unusable[:10])
            text += f" {len(self.unusable)} more cannot be used ({named})."
        return text


def class_image_count(given: int | None, pictures: int, consumed: int) -> tuple[int, str]:
    """How many class images, and the sum in words. `consumed` is steps x batch x accumulation."""
    if given is not None:
        return given, f"{given} asked for"
    full = CLASS_IMAGES_PER_PICTURE * pictures
    count = min(full, CLASS_IMAGES_AT_MOST, consumed)
    reason = "" if count == full else f", of which the run can use {count}" if count == consumed else f", capped at {count}"
    return count, f"{CLASS_IMAGES_PER_PICTURE} x {counted(pictures, 'picture')} = {full} suggested{reason}"


def plan(concept: Concept, base_sha256: str, *, pictures: int, steps: int, batch: int, accumulation: int, class_steps: int,
         guidance_scale: float, resolution: int, seed: int, library: Path, foreign: str = "skip",
         concept_index: int = 0, host: str = "", prediction_type: str = "auto", clip_skip: int = 1,
         vae: Path | None = None) -> ClassImagePlan:
    """Look at what there is and say what is missing; renders nothing. `host` is whose pace tells how long that takes."""
    count, suggested = class_image_count(concept.num_class_images, pictures, steps * batch * accumulation)
    prompts, vae_sha256 = concept.class_texts, sha256_of(vae) if vae is not None else ""
    plans = []
    unusable: dict[str, str] = {}
    for number, prompt in enumerate(prompts):
        request = Request(base_sha256, prompt, concept.class_negative_prompt, SAMPLER, class_steps, guidance_scale,
                          resolution, resolution, prediction_type, clip_skip, vae_sha256)
        folder = Path(concept.class_dir).expanduser() if concept.class_dir else library_folder(library, request)
        sisters = [{**request.values, "prompt": each} for each in prompts]
        found, strangers = _sorted_out(folder, request, sisters)
        if foreign == "use":
            bad = {path: why for path in strangers if (why := reason_against(path))}
            unusable.update({printable(path.name): why for path, why in bad.items()})
            strangers = [path for path in strangers if path not in bad]
        share = count // len(prompts) + (number < count % len(prompts))
        plans.append(PromptPlan(request, folder, share, tuple(found), tuple(strangers)))
    seconds = pace.seconds_for(library, host, pace.work_of(class_steps, resolution, resolution))
    return ClassImagePlan(tuple(plans), concept_index, seed, foreign == "use", suggested, library, seconds,
                          tuple(unusable.items()), vae)


def library_folder(library: Path, request: Request) -> Path:
    """A folder that all runs with the same base, prompt and settings share; readable, and different for any difference."""
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40] or "class"
    return library / f"{words}-{request.width}px-{request.key[:12]}"


def ensure(plan: ClassImagePlan, base: Path, txt2img: Txt2ImgOf, provenance: Mapping[str, str], progress: Progress, *,
           batch: int = 8, began: Path | None = None) -> list[TrainingImage]:
    """Render what the plan says is missing, and return all class images, in a stable order.

    `began` is the manifest of a run that goes on: it keeps those that it began with, whatever other runs have put beside them.
    Each picture is recorded and written before the next one is kept: stopped anywhere, no picture is lost, and those
    that are rendered afterwards are the same as if nothing had happened. One process at a time renders into a folder:
    whoever waited looks again at what is there, so that no picture is rendered twice.
    """
    before_it_stopped = _recorded(began, plan) if began else []
    if before_it_stopped:
        if _still_hold(before_it_stopped, plan):
            return before_it_stopped
        progress.log("Class images of the run are gone or changed, or another number is wanted: it goes on with others.")
    images: list[TrainingImage] = []
    total, watch = plan.missing, pace.Watch(batch)
    adopted = plan.adopted  # that still stand in for a missing one, of whichever prompt
    for prompt_plan in plan.prompts:
        request, paths = prompt_plan.request, list(prompt_plan.found[: prompt_plan.wanted])
        replaced = min(prompt_plan.wanted - len(paths), adopted)
        adopted -= replaced
        lacking = prompt_plan.wanted - len(paths) - replaced
        with ExitStack() as held:
            if lacking:
                watch.leave_out(held.enter_context(alone(prompt_plan.folder / LOCK, progress,
                                                         f"another process renders class images into {prompt_plan.folder}.")))
                paths = _found_now(prompt_plan, plan)[: prompt_plan.wanted - replaced]
                total -= lacking
                lacking = prompt_plan.wanted - replaced - len(paths)
                total += lacking
            for path in _render(prompt_plan, lacking, plan, base, txt2img, provenance, progress, batch):
                paths.append(path)
                watch.count(pace.work_of(request.steps, request.width, request.height))
                seconds = watch.seconds / watch.pictures
                progress.report(watch.pictures, total, request.prompt, images_per_s=1 / max(seconds, 1e-9),
                                seconds_left=seconds * (total - watch.pictures))
        images += [_as_training_image(path, request, plan.concept_index) for path in paths]
    watch.note(plan.library, provenance.get("host", ""), known=plan.seconds is not None)
    if plan.use_foreign:
        request = plan.prompts[0].request
        images += [_adopted(path, request, plan.concept_index) for path in plan.foreign]
    return images


def _found_now(plan: PromptPlan, whole: ClassImagePlan) -> list[Path]:
    """With what other processes have rendered since it was planned."""
    return _sorted_out(plan.folder, plan.request, [each.request.values for each in whole.prompts])[0]


def _recorded(manifest: Path, plan: ClassImagePlan) -> list[TrainingImage]:
    """The class images of a concept that a run's manifest names; none if there is none yet, or it makes no sense.

    Those of a library that was moved are looked for where it is now. Raises StorageError.
    """
    def here(image: TrainingImage) -> TrainingImage:
        moved = plan.library / image.path.parent.name / image.path.name
        return replace(image, path=moved) if not image.path.is_file() and moved.is_file() else image

    try:
        prior = surely_read(manifest, lambda path: TrainingSet.read(path).prior if path.exists() else ())
        return [here(image) for image in prior if image.concept == plan.concept_index]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _still_hold(images: Sequence[TrainingImage], plan: ClassImagePlan) -> bool:
    """Whether they are as many as the plan wants, of its prompts and size, and unchanged."""
    count = plan.found + plan.missing + plan.adopted
    kinds = {(each.request.prompt, each.request.width, each.request.height) for each in plan.prompts}
    return len(images) == count and all(
        (image.prompt, image.width, image.height) in kinds and image.path.is_file() and sha256_of(image.path) == image.sha256
        for image in images)


def _render(plan: PromptPlan, lacking: int, whole: ClassImagePlan, base: Path, txt2img: Txt2ImgOf,
            provenance: Mapping[str, str], progress: Progress, batch: int) -> Iterator[Path]:
    request, seed = plan.request, whole.seed
    missing = _unused_seeds(seed, _used_seeds(plan), lacking)
    for chunk in _batches(seed, missing, batch):
        wish = Txt2Img(request.prompt, chunk, request.negative_prompt, request.steps, request.guidance_scale,
                       request.width, request.height, request.sampler, request.clip_skip, request.prediction_type, whole.vae)
        count = 0
        for image_seed, image in zip(chunk, txt2img(base, wish, progress), strict=False):
            count += 1
            if image_seed in missing:
                yield _keep(image, image_seed, plan, provenance)
        progress.check()
        if count < len(chunk):
            raise HostError(f"{len(chunk)} class images are to be rendered", f"the host returned only {count}",
                            "Look into the host's log; those that came are kept.")


def _batches(first: int, missing: list[int], size: int) -> Iterator[tuple[int, ...]]:
    """Seeds to render together, up to `size`: for each missing one those that it would have been rendered with at first.

    A picture's last bit depends on the batch that it is rendered in, so a batch that was cut is rendered whole again.
    """
    groups: dict[int, int] = {}  # the last missing seed of each batch, counted from `first`
    for seed in missing:
        place = (seed - first) % 2**32
        groups[place // size] = max(place, groups.get(place // size, 0))
    for group, last in groups.items():
        yield tuple((first + place) % 2**32 for place in range(group * size, last + 1))


def _keep(image: Image, seed: int, plan: PromptPlan, provenance: Mapping[str, str]) -> Path:
    """Record the picture, then write it, both durably: one that is there is never of unknown origin."""
    path = plan.folder / f"{plan.request.key[:8]}-{seed:010d}.png"
    data = io.BytesIO()
    image.save(data, "PNG")
    sha256 = hashlib.sha256(data.getbuffer()).hexdigest()
    row = {"file": path.name, "sha256": sha256, "seed": seed, "request": plan.request.values, "host": dict(provenance)}
    sweep(plan.folder, path.name)
    append_line(plan.folder / MANIFEST, json.dumps(row), durable=True)
    with write_atomically(path) as stream:
        stream.write(data.getbuffer())
    return path


def _used_seeds(plan: PromptPlan) -> set[int]:
    """Seeds that were rendered before, those of pictures that somebody struck out among them.

    The last picture recorded may be missing because of a crash: its seed is free.
    """
    rows = _rows(plan.folder)
    if rows and not any((folder / rows[-1]["file"]).is_file() for folder in (plan.folder, plan.folder / STRUCK_OUT)):
        rows.pop()
    return {row["seed"] for row in rows if row.get("request") == plan.request.values}


def _unused_seeds(seed: int, used: set[int], count: int) -> list[int]:
    """`count` consecutive seeds from `seed` on, without those that are used."""
    found: list[int] = []
    candidate = seed
    while len(found) < count:
        if candidate not in used:
            found.append(candidate)
        candidate = (candidate + 1) % 2**32
    return found


def _sorted_out(folder: Path, request: Request, sisters: list[dict[str, Any]]) -> tuple[list[Path], list[Path]]:
    """(pictures that this request made and no one changed, pictures that no request of this concept made)."""
    if not os.path.isdir(folder):
        return [], []
    rows = {row["file"]: row for row in _rows(folder)}
    found, foreign = [], []
    for path in list_pictures(folder):
        row = rows.get(path.name)
        made_by = row.get("request") if row is not None and row.get("sha256") == sha256_of(path) else None
        if made_by == request.values:
            found.append(path)
        elif made_by not in sisters:
            foreign.append(path)
    return found, foreign


def is_recorded(path: Path) -> bool:
    """True for a picture that the manifest beside it says was rendered."""
    return any(row["file"] == path.name for row in _rows(path.parent))


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a manifest; a line cut off by a crash leaves its picture to be rendered again. Raises StorageError."""
    def lines(path: Path) -> list[str]:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    rows = []
    for line in surely_read(folder / MANIFEST, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("file"), str) and type(row.get("seed")) is int and "/" not in row["file"]:
            rows.append(row)
    return rows


def _as_training_image(path: Path, request: Request, concept_index: int) -> TrainingImage:
    return TrainingImage(path, request.prompt, sha256_of(path), request.width, request.height, concept_index)


def _adopted(path: Path, request: Request, concept_index: int) -> TrainingImage:
    """A picture of other origin, brought to the training size in a folder of its own."""
    from .crop import crop_box

    if _is_plain(path, (request.width, request.height)):
        return _as_training_image(path, request, concept_index)
    copy = path.parent / "resized" / f"{sha256_of(path)[:20]}-{request.width}x{request.height}.png"
    if not copy.is_file():
        image = open_picture(path)
        resized = resize(image.crop(crop_box(image, request.width, request.height)), request.width, request.height)
        with write_atomically(copy) as stream:
            resized.save(stream, "PNG")
    return _as_training_image(copy, request, concept_index)


def _is_plain(path: Path, size: tuple[int, int]) -> bool:
    """Whether a picture is as training reads it, which takes the pixels as they stand: neither turned nor cut out, in sRGB."""
    original = open_original(path)
    return (original.size == size and original.mode in ("RGB", "L") and not original.rotated and not original.has_alpha
            and not original.profile)
