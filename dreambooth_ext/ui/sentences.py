"""The sentence under each step of the Train tab, made from what is filled in so far.

What takes longer than a page may wait (looking at pictures, hashing a base) is found in the background; until then the
sentence says how far it is, and the page asks again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import advice
from ..check import lora_advice, prompt_advice
from ..config import STEPS_PER_PICTURE, Concept, TrainConfig
from ..errors import DreamboothError, PictureError
from ..files import gib
from ..host import on_device_of
from ..lookups import Answer, Lookups
from ..progress import Progress
from ..service import Service
from ..words import counted, duration
from . import html

if TYPE_CHECKING:
    from ..dataset.choices import Choice
    from ..dataset.verdict import Audit

# What the memory estimate depends on, beside the base.
OF_MEMORY = ("resolution", "train_batch_size", "with_prior_preservation", "train_text_encoder", "memory_profile", "optimizer",
             "mixed_precision", "gradient_checkpointing", "ema_decay", "lora_rank", "lora_conv_rank", "clip_skip", "device",
             "prediction_type")
OF_CLASS_IMAGES = ("resolution", "prediction_type", "clip_skip", "train_batch_size", "gradient_accumulation_steps", "class_steps",
                   "class_guidance_scale", "foreign_class_images", "seed", "runs_dir", "vae")
LEANER_THAN = {"none": ("balanced", "low", "ultra"), "fast": ("balanced", "low", "ultra"), "balanced": ("low", "ultra"),
               "low": ("ultra",)}
USUAL_RESOLUTION = 512
COUNTED_AGAIN_S = 5  # class images that are being rendered


class Sentences:
    """Each method takes the tab's values and returns HTML; a fault becomes a red line, never an exception."""

    def __init__(self, service: Service, lookups: Lookups | None = None) -> None:
        self._service, self.lookups = service, lookups or Lookups()
        self._plans_made = 0  # an older plan is not asked for again

    def model(self, values: Mapping[str, Any]) -> str:
        base = values.get("base") or ""
        if not base:
            return self._without_base()
        former = advice.base_of(self._service.host.runs_dir, Path(self._service.file_of(base)))
        told = f"It was trained here from {former.name}: whatever it has learnt is trained on." if former else ""

        def say(facts: advice.BaseFacts) -> str:
            hashed = self._hash(base) if values.get("instance_dir") else ""  # gigabytes are read only for who is to train
            return html.note(f"{facts}{hashed}.") + ("" if facts.has_vae else self._without_vae(values))

        return _looked_at(lambda: self._of_base(base), say, "Looking at the checkpoint") + self._of_loaded(base, values) + \
            html.note(told, "warning") + self._of_own_pictures(base, values)

    @staticmethod
    def _without_vae(values: Mapping[str, Any]) -> str:
        if values.get("vae"):
            return html.note("It has no VAE of its own: the one named in Advanced is used, and put into the new model.")
        return html.fault_of("vae", "VAE", "the base has none of its own; name a VAE file in this field")

    def _without_base(self) -> str:
        host = self._service.host
        with suppress(DreamboothError):
            if host.name == "standalone" and not host.checkpoints():
                folder = host.models_dir.name
                return html.note(f"The folder {folder} has no checkpoint yet. Put one there, or a small one to try things out "
                                 f"(python -m dreambooth_ext playground --into {folder}), and press Refresh the list.", "warning")
        return html.note("Choose the checkpoint to start from.")

    def _of_loaded(self, base: str, values: Mapping[str, Any]) -> str:
        """Which checkpoint renders and is trained, where the WebUI has another one loaded by now."""
        if self._service.host.name == "standalone":
            return ""
        listed = self._service.host.checkpoints()
        loaded = next((checkpoint for checkpoint in listed if checkpoint.loaded), None)
        if loaded is None or base in (loaded.title, loaded.path.name, str(loaded.path)):
            return html.note("Loaded now." if loaded else "")
        afterwards = "the new model is selected" if values.get("auto_select") and not values.get("lora_rank") else (
            "the loaded one is back")
        return html.note(f"The WebUI has {loaded.path.name} loaded. The one chosen here is trained, and renders the class images; "
                         f"afterwards {afterwards}.")

    def _of_own_pictures(self, base: str, values: Mapping[str, Any]) -> str:
        """Of settings of the WebUI by which the finished model will look unlike its previews."""
        own, skip, text = self._service.host.own_pictures(), values.get("clip_skip") or 1, ""
        if own.vae and own.vae != Path(str(values.get("vae") or "")).name:
            text = f"The WebUI's settings name the VAE {own.vae}: in txt2img the new model will look unlike its previews, " \
                "which use its own VAE. Name that file here too (VAE in Advanced), or choose none there. "
        if own.text_encoder:
            text += f"The WebUI's settings name the text encoder {own.text_encoder}: in txt2img it replaces the new model's. "
        facts: advice.BaseFacts | None = self._of_base(base).value
        if own.clip_skip != skip and facts and facts.heeds_clip_skip:
            text += f"The WebUI's CLIP skip is {own.clip_skip}, this trains with {skip}: set both alike (here in Advanced)."
        return html.note(text.strip())

    def _of_base(self, base: str) -> Answer:
        """advice.about_base; the first time it loads libraries, which takes seconds. Raises UnsafePath."""
        path = self._file(base)
        key = self._version_of(path) if path.is_file() else base
        return self.lookups.ask("base", key, lambda progress: advice.about_base(path), lane="base", patient=False)

    def pictures(self, values: Mapping[str, Any]) -> str:
        if not values.get("instance_dir"):
            return html.note(advice.WHAT_MAKES_A_GOOD_SET)
        def say(found: Audit) -> str:
            dropped = self._dropped(values)
            first, _, rest = advice.about_pictures(found, dropped).partition("\n")
            return (html.note(first, "good" if _is_good(found) else "warning")
                    + html.note(advice.about_unreadable(found, dropped), "fault") + html.note(rest))

        return _looked_at(lambda: self.audit(values), say, "Looking at the pictures")

    def concept(self, values: Mapping[str, Any]) -> str:
        from ..picture_room import token_told

        token, noun = str(values.get("token") or ""), str(values.get("class_noun") or "")
        if not token or not noun:
            return html.note("The token is a new word, the class says what kind of thing it names: "
                             "rxz and dog for a certain dog, rxz and illustration style for a hand.")
        text = f'Trains "{values.get("instance_prompt") or f"{token} {noun}"}"'
        if values.get("with_prior_preservation"):
            text += f' against "{values.get("class_prompt") or noun}", so that others of its kind stay as they are.'
        else:
            text += ". The class itself will drift towards it."
        planned = self._class_images(values) if values.get("with_prior_preservation") else ""
        pieces = _looked_at(lambda: self.lookups.ask("token", token, lambda progress: token_told(token)), html.note,
                            "Looking at the token")
        own = prompt_advice(Concept(instance_prompt=str(values.get("instance_prompt") or ""),
                                    class_prompt=str(values.get("class_prompt") or "")))
        return html.note(text) + html.note("\n".join(own), "warning") + pieces + planned

    def steps(self, values: Mapping[str, Any]) -> str:
        rank, lora = values.get("lora_rank"), ""
        if isinstance(rank, int) and rank > 0:
            lora = html.note(f"A LoRA of rank {rank}: a small .safetensors file for the Lora tab, to be used with the base.")
        count = self.count(values)
        if not count:
            return lora
        steps = values.get("steps")
        if isinstance(steps, int) and steps > 0:
            text = f"{counted(steps, 'step')}: {steps / count:.3g} for each of {counted(count, 'picture')}"
        else:
            steps = count * STEPS_PER_PICTURE
            text = f"{counted(count, 'picture')} x {STEPS_PER_PICTURE} = {steps} steps"
        return html.note(text + self._duration(values, steps) + ".") + lora

    def lora(self, values: Mapping[str, Any]) -> str:
        """Under the learning rate: of a LoRA that would learn next to nothing."""
        try:
            return html.warning_of("learning_rate", "Learning rate", lora_advice(self._service.settings(values).require_usable()))
        except DreamboothError:
            return ""  # the fields themselves say why

    def memory(self, values: Mapping[str, Any]) -> str:
        """What the memory profile needs of the card, against what is free at this moment."""
        from ..recipe import estimate

        if not values.get("base") or not values.get("instance_dir"):
            return ""  # nobody is about to train yet
        try:
            config = on_device_of(self._service.host, self._service.settings({**values, "steps": values.get("steps") or 1}))
            key = self._version_of(Path(config.base)), tuple(getattr(config, name) for name in OF_MEMORY)
        except (DreamboothError, OSError):
            return ""  # the fields themselves say why

        profiles = None if config.memory_profile == "auto" else [config.memory_profile]
        answer = self.lookups.ask("memory", key, lambda progress: estimate(config, profiles), lane="memory", patient=False)
        if answer.error is not None:
            return ""  # the step of the model says what is wrong with it
        is_busy = self._service.jobs.running is not None
        return _looked_at(lambda: answer, lambda rows: memory_sentence(config, rows, self._service.host.name, is_busy),
                          "Working out what memory this takes")

    def unusable(self, values: Mapping[str, Any]) -> list[str]:
        """Labels of the fields of which `model` and `pictures` say that no run can start from what they name."""
        found = []
        for label, name, ask in (("Base model", "base", lambda: self._of_base(values["base"])),
                                 ("Pictures", "instance_dir", lambda: self.audit(values))):
            try:
                answer = ask() if values.get(name) else None
            except (DreamboothError, OSError):
                found.append(label)
                continue
            if answer is not None and (isinstance(answer.error, DreamboothError) or self._unreadable(answer, values)):
                found.append(label)
        if not values.get("vae") and values.get("base") and "Base model" not in found and self._lacks_vae(values["base"]):
            found.append("VAE")
        return found

    def _lacks_vae(self, base: str) -> bool:
        facts: advice.BaseFacts | None = self._of_base(base).value
        return facts is not None and not facts.has_vae

    def _unreadable(self, answer: Answer, values: Mapping[str, Any]) -> set[str]:
        names = {name for name, _ in getattr(answer.value, "unreadable", ())}
        return names - self._dropped(values) if names else names

    # ---- what the sentences are made of; Review shows it too

    def audit(self, values: Mapping[str, Any]) -> Answer:
        """Every picture looked at (dataset/audit.py). Raises PictureError if there is no such folder, UnsafePath."""
        from ..dataset.audit import audit

        base = str(values.get("base") or "")
        if base and not self._of_base(base).ready:
            return Answer("pictures", _nothing)  # the base says what size they will have
        folder, side = self.folder(values), self.resolution(values)
        kind = "style" if values.get("kind") == "style" else "subject"
        return self.lookups.ask("pictures", (advice.folder_key(folder), kind, side), lambda progress: audit(
            folder, kind=kind, resolution=side, progress=progress), patient=False)

    def folder(self, values: Mapping[str, Any]) -> Path:
        """The folder of pictures. Raises PictureError if none is named, UnsafePath."""
        if not values.get("instance_dir"):  # which would be the one that the process was started in
            raise PictureError("Pictures are to be looked at", "no folder is named", "Name it in step 2.")
        return self._service.require_allowed(Path(str(values["instance_dir"])).expanduser())

    def resolution(self, values: Mapping[str, Any]) -> int:
        """The side in pixels that training will see."""
        given = values.get("resolution")
        if isinstance(given, int) and 64 <= given <= 2048:
            return given
        try:
            facts: advice.BaseFacts | None = self._of_base(str(values.get("base") or "")).value
        except (DreamboothError, OSError):
            return USUAL_RESOLUTION
        return facts.resolution if facts else USUAL_RESOLUTION

    def choices_of(self, values: Mapping[str, Any]) -> dict[str, Choice]:
        """What was chosen of these pictures. Raises PictureError, UnsafePath."""
        from ..dataset.choices import remembered

        return remembered(self.choices_path(values))

    def choices_path(self, values: Mapping[str, Any]) -> Path:
        """Where that is kept: the file that is named in Advanced, else the folder's own. Raises PictureError, UnsafePath."""
        from ..dataset.choices import choices_file

        if values.get("choices"):
            return self._service.require_allowed(Path(str(values["choices"])).expanduser())
        return choices_file(self._service.host.runs_dir, self.folder(values))

    def count(self, values: Mapping[str, Any]) -> int:
        """How many pictures will be trained on; 0 if that cannot be told, and then `pictures` says why."""
        from ..dataset.pictures import list_pictures

        if not values.get("instance_dir"):
            return 0
        try:
            return max(0, len(list_pictures(self.folder(values))) - len(self._dropped(values)))
        except DreamboothError:
            return 0

    def _dropped(self, values: Mapping[str, Any]) -> set[str]:
        try:
            return {name for name, chosen in self.choices_of(values).items() if chosen.choice == "drop"}
        except DreamboothError:
            return set()

    def _hash(self, base: str) -> str:
        """As the WebUI writes it, found in the background; a title that shows it needs no other."""
        from ..dataset.manifest import sha256_of

        path = self._file(base)
        if re.search(r"\[[0-9a-f]{8,}\]", base):
            return ""
        answer = self.lookups.ask("hash", self._version_of(path), lambda progress: sha256_of(path), lane="hash",
                                  patient=False)
        return f", sha256 {answer.value[:10]}" if answer.value else ""

    def _duration(self, values: Mapping[str, Any], steps: int) -> str:
        resolution = values.get("resolution")
        pace = advice.seconds_a_step(self._service.host.runs_dir, Path(self._service.file_of(values.get("base") or "")),
                                     resolution if isinstance(resolution, int) else None)
        return f", about {duration(pace * steps)} at the pace of your last run" if pace else ""

    def class_image_plans(self, values: Mapping[str, Any]) -> Answer | None:
        """One plan for each concept (dataset/class_images.py); None if base, pictures or class are not named yet.

        Raises ConfigError, PictureError, UnsafePath.
        """
        from ..picture_room import class_image_plans

        if not all(values.get(name) for name in ("base", "instance_dir", "class_noun")):
            return None
        config = self._service.settings(values)
        job = self._service.shown_job()  # class images come while one renders them, and may have come when it has gone on
        is_rendering = job is not None and job.state == "running" and job.last.phase == "class images"
        came = job and (job.id, job.state, job.last.phase, is_rendering and time.monotonic() // COUNTED_AGAIN_S)
        key = (self._version_of(Path(config.base)), advice.folder_key(self.folder(values)), repr(config.concepts), config.steps,
               self.count(values), *(getattr(config, name) for name in OF_CLASS_IMAGES), self._plans_made, came)
        return self.lookups.ask("class images", key, lambda progress: class_image_plans(config, self._service.host), lane="hash",
                                patient=is_rendering)

    def forget_class_images(self) -> None:
        """To be called when class images came or went."""
        self._plans_made += 1

    def _class_images(self, values: Mapping[str, Any]) -> str:
        """How many are wanted and found, and how long those that are missing take; empty while a field is wrong."""
        from ..picture_room import told

        try:
            answer = self.class_image_plans(values)
        except (DreamboothError, OSError):
            return ""
        if answer is None or answer.error is not None:
            return ""
        if not answer.ready:
            return html.pending("Counting the class images")
        return html.note(f"Class images: {told(answer.value)}", "warning" if any(plan.foreign for plan in answer.value) else "note")

    def _file(self, base: str) -> Path:
        return self._service.require_allowed(Path(self._service.file_of(base)).expanduser())

    @staticmethod
    def _version_of(path: Path) -> tuple[str, int, int]:
        status = path.expanduser().stat()
        return str(path), status.st_mtime_ns, status.st_size


def _nothing(progress: Progress) -> None:
    """Of an answer that waits for another one."""


def memory_sentence(config: TrainConfig, rows: Sequence[Any], host: str, is_busy: bool) -> str:
    """What the settings' memory profile will need, as HTML. While something `is_busy`, what is free tells nothing of later."""
    from ..recipe import memory_needed

    row = memory_needed(config, rows)
    if is_busy and config.memory_profile == "auto" and row.profile != "none":
        return html.note("Memory: the first profile that fits is taken when the run starts.")
    name = "these settings need" if row.profile == "none" else f"{row.profile} needs"
    if is_busy:
        return html.note(f"Memory: {name} about {gib(row.total)}.")
    text = f"Memory: {name} about {gib(row.total)}, {gib(row.free)} are free."
    if row.fits:
        return html.note(text)
    if row.why_not:
        return html.note(f"{text} {row.why_not}.", "warning")
    leaner = LEANER_THAN.get(row.profile, ())
    instead = f"choose a leaner profile: {', then '.join(leaner)}" if leaner else (
        "close what else uses the card, or choose a smaller resolution or a LoRA")
    if host == "standalone":
        return html.note(f"{text} {instead[:1].upper()}{instead[1:]}.", "warning")
    return html.note(f"{text} The WebUI's own model makes room when training starts; if that is not enough, {instead}.", "warning")


def _is_good(found: Audit) -> bool:
    return not found.unreadable and all(picture.advice == "keep" for picture in found.pictures)


def _looked_at(ask: Callable[[], Answer], say: Callable[[Any], str], doing: str) -> str:
    """What was found in the background, or how far it is."""
    try:
        answer = ask()
        if answer.error is not None:
            raise answer.error
    except ImportError as error:
        return html.faults([_missing(error)])
    except DreamboothError as error:
        return html.faults([_in_a_sentence(error)])
    except Exception as error:  # noqa: BLE001  a sentence less
        return html.faults([f"{doing}: {type(error).__name__}: {error}"])
    return say(answer.value) if answer.ready else html.pending(doing, answer.done, answer.total)


def _missing(error: ImportError) -> str:
    return f"This needs a library that is missing: {error.name}."  # the top of the tab says how to get it


def _in_a_sentence(error: DreamboothError) -> str:
    return f"{error.why[:1].upper()}{error.why[1:]}. {error.instead}".strip()
