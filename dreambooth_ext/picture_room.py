"""What the picture room does for whoever asks: command line, tab and API. Originals are never changed.

Whoever lets strangers in (a shared WebUI) judges the folders first: `Service.require_allowed`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from . import recipe
from .check import Checked, with_choices
from .config import STEPS_PER_PICTURE, Concept, TrainConfig, colour_of
from .dataset.captions import Caption, caption_of, captions_in, prompt_for, token_advice, token_pieces_told, write_caption
from .dataset.choices import Choice, choices_file, choose, is_box, orders, orders_of, remembered
from .dataset.class_images import ClassImagePlan
from .dataset.contact_sheet import named_among, strike_out
from .dataset.manifest import sha256_of
from .dataset.pictures import list_pictures, open_picture
from .dataset.prepare import LANCZOS, Prepared, prepare, require_upscaler
from .errors import ConfigError, HostError, NotACheckpoint, PictureError
from .file_lock import alone
from .files import write_atomically
from .host import Host, Txt2Img
from .progress import SILENT, Progress
from .words import counted, printable

if TYPE_CHECKING:
    from .dataset.verdict import Audit

__all__ = [
    "Captioned", "Choice", "Drawn", "PreparedFolder", "caption_told", "caption_with", "captions", "choices_file", "choose",
    "class_image_plans", "is_box", "list_pictures", "named", "plans_as_values", "prepare_folder", "resolution_of", "review",
    "strike_out", "token_pictures", "token_told", "told", "write_caption",
]
CAPTIONED_AT_ONCE = 16  # pictures, for which a host loads its model once
CAPTIONED_PX = 1024  # longer side, at most; captioners look at 384 to 512
TOKEN_FOLDER = "token-check"  # in the runs folder
TOKEN_PICTURES = 4  # of each prompt


@dataclass(frozen=True)
class Captioned:
    """What a captioner did: the .txt files written, pictures that had one, pictures that could not be used and why."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def sentence(self) -> str:
        parts = [f"{counted(len(self.written), 'caption')} written"]
        parts += [f"{counted(len(self.kept), 'picture')} had one already"] if self.kept else []
        parts += [f"{len(self.refused)} could not be used ({'; '.join(map(': '.join, self.refused[:10]))})"] if self.refused else []
        return ", ".join(parts) + "."


@dataclass(frozen=True)
class Drawn:
    """What a base makes of a prompt: one picture for each seed."""

    prompt: str
    pictures: tuple[Path, ...]


def review(folder: Path, runs_dir: Path, *, kind: str = "subject", resolution: int = 512, progress: Progress = SILENT) -> Audit:
    """The audit of a folder (dataset/verdict.py), each picture with what the user chose before: `choose(choices_file(...))`.

    Raises PictureError if there is no such folder, no picture in it, or the remembered choices cannot be read.
    """
    from .dataset.audit import audit

    chosen = remembered(choices_file(runs_dir, folder))
    return audit(folder, kind=kind, resolution=resolution, choices=chosen, progress=progress)


@dataclass(frozen=True)
class PreparedFolder:
    """Where prepared pictures are, which, and what could not be used and why."""

    folder: Path
    pictures: tuple[Prepared, ...]
    refused: Mapping[str, str]


def prepare_folder(folder: Path, host: Host, *, resolution: int, crop: str = "smart", upscaler: str = LANCZOS,
                   flatten_on: str = "white", progress: Progress = SILENT) -> PreparedFolder:
    """Prepare a folder's pictures as a run would, by what was chosen of them, into a folder beside the runs.

    A picture that cannot be used is named, and the rest goes on. Whoever asks while the same pictures are being prepared waits:
    each removes what the other has made otherwise. Raises ConfigError, PictureError if there are no pictures, HostError if the
    host lacks the upscaler.
    """
    if colour_of(flatten_on) is None:
        raise ConfigError([f"--flatten-on: {flatten_on!r} is no colour: white, black, grey, or #rrggbb"])
    require_upscaler(upscaler, host.upscalers())
    file = choices_file(host.runs_dir, folder)
    leave_out, boxes = orders(remembered(file), folder)
    out, refused = host.runs_dir / "prepared" / file.stem, {}  # type: tuple[Path, dict[str, str]]
    # An upscaler is a model on the host's device.
    with alone(out / ".lock", progress, f"the pictures of {folder} are being prepared already."), \
            host.job("prepare", progress) if upscaler != LANCZOS else nullcontext():
        prepared = prepare(folder, out, resolution=resolution, crop=crop, upscaler=upscaler, flatten_on=flatten_on,
                           upscale=host.upscale, overrides=boxes, leave_out=leave_out, refused=refused, progress=progress)
    return PreparedFolder(out, tuple(prepared), refused)


def captions(folder: Path, concept: Concept) -> list[Caption]:
    """Every picture with its caption, the prompt it makes, and its count of CLIP's 77 tokens. Raises PictureError."""
    from .models.tokenizer import token_pieces

    return captions_in(folder, concept, token_pieces)


def caption_told(concept: Concept, text: str) -> tuple[str, str]:
    """For an editor, while a caption is typed: the prompt that it makes, and its count of CLIP's tokens in a sentence."""
    from .dataset.captions import TOKENS_AT_MOST, count_tokens
    from .models.tokenizer import token_pieces

    prompt = prompt_for(concept, " ".join(text.split()) or None)
    tokens, cut = count_tokens(prompt, token_pieces)
    beyond = f'; beyond them, and unread: "{cut}"' if cut else ""
    return prompt, f"{tokens} of CLIP's {TOKENS_AT_MOST} tokens{beyond}"


def caption_with(folder: Path, host: Host, captioner: str, *, overwrite: bool = False, progress: Progress = SILENT) -> Captioned:
    """Have the host describe each picture, into a .txt file beside it; one that is there is kept unless `overwrite`.

    A picture that cannot be used is named, and the rest goes on. Raises PictureError if there is no such folder, HostError.
    """
    if captioner not in host.captioners():
        there = ", ".join(host.captioners())
        raise HostError(f"pictures are to be captioned with {captioner}", f"{host.name} has no such captioner",
                        f"Choose one of: {there}" if there else "Write a .txt file beside each picture.")
    paths = list_pictures(folder)
    kept = [] if overwrite else [path for path in paths if _has_caption(path)]
    wanted = [path for path in paths if path not in set(kept)]
    written: list[Path] = []
    refused: list[tuple[str, str]] = []
    progress.start("captions", len(wanted))
    with host.job("captions", progress):
        for start in range(0, len(wanted), CAPTIONED_AT_ONCE):
            progress.check()
            images = []
            for path in wanted[start : start + CAPTIONED_AT_ONCE]:
                if not overwrite and _has_caption(path):  # since: typed meanwhile, or by another who asked for the same
                    kept.append(path)
                    continue
                try:
                    image = open_picture(path, at_least=(CAPTIONED_PX // 2, CAPTIONED_PX // 2))
                    image.thumbnail((CAPTIONED_PX, CAPTIONED_PX), reducing_gap=2.0)
                    images.append((path, image))
                except PictureError as error:
                    refused.append((printable(path.name), error.why))
            texts = host.caption([image for _, image in images], captioner) if images else []
            for (path, _), text in zip(images, texts, strict=True):
                if not overwrite and _has_caption(path):
                    kept.append(path)
                    continue
                written.append(write_caption(path, text))
                progress.report(len(written) + len(refused), len(wanted), path.name)
    return Captioned(tuple(written), tuple(kept), tuple(refused))


def _has_caption(picture: Path) -> bool:
    try:
        return caption_of(picture) is not None
    except PictureError:
        return True  # not ours to write over


def token_told(token: str) -> str:
    """How many pieces a token is to CLIP, which and how rare, and what follows from that."""
    from .models.tokenizer import token_pieces

    return " ".join(filter(None, [token_pieces_told(token, token_pieces), token_advice(token, token_pieces)]))


def token_pictures(base: Path, concept: Concept, host: Host, progress: Progress, *, resolution: int,
                   prediction_type: str = "auto", clip_skip: int = 1, steps: int = 20,
                   count: int = TOKEN_PICTURES, vae: str = "") -> list[Drawn]:
    """What the base draws for the token, for the instance prompt and for the class, before anything is trained.

    Kept beside the runs under a key of all that shapes them, and rendered once. `vae` is the file of one for a base that has
    none. Raises HostError, CheckpointError.
    """
    from .models.vae_file import borrowed_vae

    borrowed = borrowed_vae(base, vae)
    own = {"vae": _hash_of(borrowed)} if borrowed else {}
    prompts, base_sha256 = dict.fromkeys(filter(None, [concept.token, concept.instance_text, *concept.class_texts])), _hash_of(base)
    seeds = tuple(range(count))
    progress.start("rendering", len(prompts) * count)
    drawn, done = [], 0
    for prompt in prompts:
        request = Txt2Img(prompt, seeds, steps=steps, width=resolution, height=resolution, clip_skip=clip_skip,
                          prediction_type=prediction_type)
        shaped = [base_sha256, {**vars(request), **own}, host.provenance()]
        key = sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()[:16]
        paths = [host.runs_dir / TOKEN_FOLDER / f"{key}-{seed}.png" for seed in seeds]
        if not all(path.is_file() for path in paths):
            for path, image in zip(paths, host.txt2img(base, replace(request, vae=borrowed), progress), strict=False):
                with write_atomically(path) as stream:
                    image.save(stream, "PNG")
            progress.check()
        done += count
        progress.report(done, len(prompts) * count, prompt)
        drawn.append(Drawn(prompt, tuple(path for path in paths if path.is_file())))
    return drawn


def class_image_plans(config: TrainConfig, host: Host) -> list[ClassImagePlan]:
    """For each concept: how many class images are wanted, found and missing, and how long those take; renders nothing.

    Settings may be half filled in: base, pictures and class are enough. Raises ConfigError, PictureError, CheckpointError.
    """
    config = with_choices(config)
    if not config.base or not config.concepts or not all(each.instance_dir and each.class_texts[0] for each in config.concepts):
        raise ConfigError(["--base, --instance-dir and --class-noun: all three are needed to plan class images"])
    base = Path(config.base).expanduser()
    pictures = tuple(_count_kept(concept) for concept in config.concepts)
    steps = config.steps or STEPS_PER_PICTURE * sum(pictures)
    checked = Checked(replace(config, steps=steps), config.resolution or resolution_of(base), pictures)
    return recipe.class_image_plans(checked, _hash_of(base), host.name)


def _count_kept(concept: Concept) -> int:
    """A concept's pictures but those that are left out. Raises PictureError."""
    folder = Path(concept.instance_dir).expanduser()
    leave_out = orders_of(concept.choices, folder)[0]
    return sum(path.name not in leave_out for path in list_pictures(folder))


def resolution_of(base: Path) -> int:
    """The side in pixels that a checkpoint was made for; by names and shapes alone. Raises CheckpointError."""
    from .models.checkpoint_file import open_checkpoint
    from .models.load import recognise
    from .models.load import resolution_of as side_of

    with open_checkpoint(base) as file:
        family, sidecar, _ = recognise(file, vae=False)
    return side_of(family, sidecar)


def _hash_of(base: Path) -> str:
    """Raises NotACheckpoint if it is not there."""
    try:
        status = base.stat()
    except OSError as error:
        raise NotACheckpoint(f"{base.name} is to be used", str(error.strerror or error), "Check the path.") from error
    return _hash_of_version(base.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _hash_of_version(base: Path, mtime_ns: int, size: int) -> str:
    """Gigabytes take seconds, so each version of a file is read once."""
    return sha256_of(base)


def named(plans: Sequence[ClassImagePlan], names: Sequence[str]) -> list[Path]:
    """Class images by their file names or seeds, of whichever concept. Raises PictureError for names that are none."""
    return named_among([prompt for plan in plans for prompt in plan.prompts], names)


def told(plans: Sequence[ClassImagePlan]) -> str:
    """All plans, one line for each concept."""
    return "\n".join(plan.sentence for plan in plans)


def plans_as_values(plans: Sequence[ClassImagePlan]) -> list[Mapping[str, object]]:
    """Plans as plain values, for a program."""
    return [{"sentence": plan.sentence, "wanted": plan.wanted, "found": plan.found, "missing": plan.missing,
             "seconds_left": plan.seconds_left, "foreign": [path.name for path in plan.foreign],
             "prompts": [{"prompt": each.request.prompt, "folder": str(each.folder), "wanted": each.wanted,
                          "found": [path.name for path in each.found]} for each in plan.prompts]} for plan in plans]
