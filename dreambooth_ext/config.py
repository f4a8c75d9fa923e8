"""All settings of a run. What a flag, a widget or the API can set stands here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, UnsafePath
from .files import expanded, require_safe_name
from .options import Option, faults_of, from_mapping, option, options_of

VERSION = 1  # of the settings file; older ones are brought up to date by `migrated`
# What makes settings of version n into those of n + 1. A setting that is renamed or left out needs a new version.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
BYTES_AT_MOST = 1 << 20  # of a settings file: all of them together have some KiB
CLASS_IMAGES_PER_PICTURE = 200  # Ruiz et al. (2023), section 4
CLASS_IMAGES_AT_MOST = 1000  # by default; more than 2000 never helped
STEPS_PER_PICTURE = 100
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
# Options that are paths, of a run or of a concept.
PATHS = ("base", "vae", "models_dir", "runs_dir", "instance_dir", "class_dir", "choices")


@dataclass(frozen=True)
class Concept:
    """One subject or style: its pictures, its token, its class."""

    instance_dir: str = option("", "Pictures", "Folder with the pictures to learn from. They are never changed.", group="pictures", advanced=False)
    token: str = option("", "Token", "The new word for what the pictures show. A rare one (rxz, sks) is learnt best.", group="class", advanced=False)
    class_noun: str = option("", "Class", "What kind of thing it is: dog, person, illustration style.", group="class", advanced=False)
    kind: str = option("subject", "What is learnt", "A subject (a person, animal, thing) or a style.", choices=("subject", "style"), group="class", advanced=False)
    instance_prompt: str = option("", "Instance prompt", "Prompt for the pictures. Empty: token and class. [filewords] stands for the picture's caption.", group="class")
    class_prompt: str = option("", "Class prompt", "Prompt for class images; several are separated by |. Empty: the class.", group="class")
    class_negative_prompt: str = option("", "Class negative prompt", "What class images must not show.", group="class")
    class_dir: str = option("", "Class images", "Folder of class images. Empty: a library beside the runs, shared by all runs of the same base.", group="class")
    num_class_images: int | None = option(None, "Number of class images", "Empty: 200 for each picture, at most 1000, and no more than the run can use.", minimum=1, maximum=100000, group="class")
    choices: str = option("", "Choices", "File that says which pictures to keep, fix or drop. Empty: what was chosen in Review, if anything was.", group="pictures")
    repeats: int = option(1, "Repeats", "How often its pictures come in each round, against those of other concepts.", minimum=1, maximum=1000, group="pictures")

    @property
    def instance_text(self) -> str:
        return self.instance_prompt or f"{self.token} {self.class_noun}".strip()

    @property
    def template(self) -> str:
        """The instance prompt with token and class in their places; [filewords] stands for the caption still."""
        return self.instance_text.replace("[name]", self.token).replace("[class]", self.class_noun)

    @property
    def uncaptioned_text(self) -> str:
        """The prompt of a picture that has no caption."""
        template = self.template
        return " ".join(template.replace("[filewords]", "").split()).strip(" ,") if "[filewords]" in template else template

    @property
    def shown_text(self) -> str:
        """The prompt that is to show it: that of a picture without a caption, or token and class if that says nothing."""
        return self.uncaptioned_text or f"{self.token} {self.class_noun}".strip()

    @property
    def class_texts(self) -> tuple[str, ...]:
        texts = tuple(text.strip() for text in self.class_prompt.split("|") if text.strip())
        return texts or (self.class_noun,)


@dataclass(frozen=True)
class TrainConfig:
    """One run. `concepts` are the subjects that it learns together."""

    base: str = option("", "Base model", "Checkpoint file (.safetensors or .ckpt) to start from. It is never written to.", group="model", advanced=False)
    output_name: str = option("", "Name", "Name of the new model and of its run.", group="train", advanced=False)
    models_dir: str = option("models", "Models folder", "Where the finished model goes.", group="model")
    runs_dir: str = option("runs", "Runs folder", "Where runs keep their snapshots, previews and logs.", group="model")
    vae: str = option("", "VAE", "Another VAE file, used for training and put into the published model. Empty: the base's own.", group="model")
    prediction_type: str = option("auto", "Prediction type", "What the base predicts. auto: found out from the file.", choices=("auto", "epsilon", "v_prediction"), group="model")
    publish_format: str = option("ckpt", "Save as", "File format of the finished model; a LoRA is always safetensors.", choices=("ckpt", "safetensors", "both"), group="train", advanced=False)
    publish_dtype: str = option("source", "Precision of the file", "source: as the base has it.", choices=("source", "fp32", "fp16", "bf16"), group="train")
    auto_select: bool = option(True, "Select when finished", "Make the new model the WebUI's current one.", group="train")

    resolution: int | None = option(None, "Resolution", "Side of the training pictures. Empty: what the base was made for.", unit="px", minimum=64, maximum=2048, group="pictures", advanced=False)
    crop: str = option("smart", "Crop", "How a picture becomes square. smart: about faces and the subject; buckets: not square, but near its own shape.", choices=("smart", "center", "buckets"), group="pictures")
    upscaler: str = option("Lanczos", "Upscaler", "Enlarges pictures that are smaller than training needs: Lanczos, or the name of one of the WebUI's upscalers.", group="pictures")
    flatten_on: str = option("white", "Background", "Colour that transparent pictures are put on: white, black, grey, or #rrggbb.", group="pictures")
    random_flip: bool = option(False, "Mirror at random", "Show each picture mirrored half of the time. Not for faces or lettering.", group="pictures")
    use_captions: bool = option(True, "Use captions", "Take a picture's prompt from the .txt file beside it, if there is one.", group="pictures")
    caption_dropout: float = option(0.0, "Caption dropout", "Share of pictures shown with an empty prompt.", minimum=0, maximum=1, group="pictures")

    with_prior_preservation: bool = option(True, "Keep the class as it is", "Prior preservation: also train on the base's own pictures of the class.", group="class", advanced=False)
    prior_loss_weight: float = option(1.0, "Prior loss weight", "Weight of the class images' loss.", minimum=0, maximum=100, group="class")
    foreign_class_images: str = option("skip", "Class images of other origin", "Pictures in the class folder that the base did not make.", choices=("skip", "use"), group="class")
    class_steps: int = option(30, "Class image steps", "DDIM steps for each class image.", minimum=1, maximum=150, group="class")
    class_guidance_scale: float = option(7.0, "Class image CFG", "Guidance scale of class images.", minimum=1, maximum=30, group="class")
    class_batch_size: int | None = option(None, "Class image batch", "Class images rendered at a time. Empty: as many as the free memory holds.", minimum=1, maximum=64, group="class")

    steps: int | None = option(None, "Steps", "Optimizer steps in all. Empty: 100 for each picture.", minimum=1, maximum=1000000, group="train", advanced=False)
    train_batch_size: int = option(1, "Batch size", "Pictures in one forward pass; class images come on top.", minimum=1, maximum=256, group="train")
    gradient_accumulation_steps: int = option(1, "Gradient accumulation", "Forward passes for each optimizer step.", minimum=1, maximum=1024, group="train")
    memory_profile: str = option("auto", "Memory", "A proven combination of memory techniques. auto: the first that fits the card; none: only what is set by hand.", choices=("none", "auto", "fast", "balanced", "low", "ultra", "offload"), group="train", advanced=False)
    learning_rate: float = option(5e-6, "Learning rate", "Of the UNet, and of the text encoder unless that has its own.", minimum=1e-12, maximum=10, group="train")
    train_text_encoder: bool = option(True, "Train the text encoder", "Better likeness, more memory.", group="train")
    text_encoder_learning_rate: float | None = option(None, "Text encoder learning rate", "Empty: that of the UNet.", minimum=1e-12, maximum=10, group="train")
    text_encoder_stop_step: int | None = option(None, "Stop the text encoder after", "Optimizer step after which only the UNet is trained. Empty: never.", minimum=1, group="train")
    lr_scheduler: str = option("constant", "Schedule", "How the learning rate moves.", choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"), group="train")
    lr_warmup_steps: int = option(0, "Warm-up", "Steps in which the learning rate rises from 0.", unit="steps", minimum=0, group="train")
    lr_num_cycles: int = option(1, "Cycles", "Rounds of cosine_with_restarts.", minimum=1, maximum=1000, group="train")
    optimizer: str = option("adamw", "Optimizer", "adamw_8bit needs a quarter of adamw's state, lion half, adafactor almost none. prodigy, for LoRA, finds the rate itself: learning rate 1.", choices=("adamw", "adamw_8bit", "adafactor", "lion", "prodigy"), group="train")
    adam_beta1: float = option(0.9, "Beta 1", "Decay of the first moment.", minimum=0, maximum=0.9999, group="train")
    adam_beta2: float | None = option(None, "Beta 2", "Decay of the second moment, or of Lion's momentum. Empty: 0.999; for lion 0.99.", minimum=0, maximum=0.999999, group="train")
    adam_weight_decay: float = option(1e-2, "Weight decay", "Decoupled weight decay.", minimum=0, maximum=10, group="train")
    adam_epsilon: float = option(1e-8, "Epsilon", "Added to the root of the second moment.", minimum=1e-12, maximum=1, group="train")
    max_grad_norm: float = option(1.0, "Clip gradients at", "Norm of all gradients together; 0 does not clip.", minimum=0, maximum=1e6, group="train")
    mixed_precision: str = option("no", "Mixed precision", "no is fp32; bf16 needs an RTX 30 or newer.", choices=("no", "fp16", "bf16"), group="train")
    speed_up: str = option("auto", "Speed-up", "auto: graphs where they can be had. graphs: a step is one launch, on NVIDIA GPUs alone. compile: torch.compile, a minute or more to begin.", choices=("auto", "none", "graphs", "compile"), group="train")
    kernels: str = option("auto", "Kernels", "auto: this trainer's own, which are faster, on GPUs where Triton runs. torch: those of torch alone.", choices=("auto", "torch"), group="train")
    gradient_checkpointing: bool = option(False, "Gradient checkpointing", "Less memory for about a fifth more time.", group="train")
    snr_gamma: float | None = option(None, "min-SNR gamma", "Hang et al. (2023): 5 is usual. Empty: every timestep counts the same.", minimum=0.01, maximum=100, group="train")
    noise_offset: float = option(0.0, "Noise offset", "Helps with very dark and very light pictures: 0.05 to 0.1.", minimum=0, maximum=1, group="train")
    loss_type: str = option("l2", "Loss", "huber forgives outliers.", choices=("l2", "huber"), group="train")
    huber_c: float = option(0.1, "Huber constant", "Below it the Huber loss is quadratic.", minimum=1e-4, maximum=10, group="train")
    zero_terminal_snr: bool = option(False, "Zero terminal SNR", "Lin et al. (2023); needs v_prediction.", group="train")
    clip_skip: int = option(1, "Clip skip", "1: the text encoder's last layer; 2: the one before it.", minimum=1, maximum=12, group="train")
    ema_decay: float = option(0.0, "EMA decay", "0 keeps no average; 0.999 suits 1000 steps and more.", minimum=0, maximum=0.99999, group="train")
    lora_rank: int = option(0, "LoRA rank", "0 trains the whole model; 4 to 128 a small file instead, which wants a learning rate of about 1e-4 (preset LoRA).", minimum=0, maximum=1024, group="train")
    lora_alpha: float = option(1.0, "LoRA alpha", "The LoRA is scaled by alpha / rank: as large as the rank, it learns most.", minimum=0.0001, maximum=1024, group="train")
    lora_conv_rank: int = option(0, "LoRA rank of convolutions", "0 leaves 3x3 convolutions out.", minimum=0, maximum=1024, group="train")
    seed: int = option(0, "Seed", "The same seed gives the same run.", minimum=0, maximum=2**32 - 1, group="train")
    draw_order: str = option("native", "Draw order", "diffusers: the random draws of its train_dreambooth.py; cannot be resumed.", choices=("native", "diffusers"), group="train")
    device: str = option("auto", "Device", "auto: what the WebUI computes on (--device-id, --use-cpu); without a WebUI the first GPU, else the CPU. cpu, cuda or cuda:1: this one, whatever the WebUI uses.", group="train")

    snapshot_every: int = option(0, "Snapshot every", "Steps between snapshots; 0: one in the middle and one at the end.", unit="steps", minimum=0, group="watch")
    keep_snapshots: int = option(5, "Keep snapshots", "Older ones are deleted once a newer one is safe; 0 keeps all.", minimum=0, maximum=1000, group="watch")
    storage_wait_min: float = option(60.0, "Wait for room", "How long a run waits for a disk that is full or gone before it stops; 0: not at all.", unit="min", minimum=0, maximum=10_000, group="watch")
    preview_every: int = option(0, "Preview every", "Steps between previews; 0: with the snapshots.", unit="steps", minimum=0, group="watch")
    validation_every: int = option(0, "Validation loss every", "Steps between measurements of the loss on fixed pictures and noise; 0: 20 in a run.", unit="steps", minimum=0, group="watch")
    preview_prompts: tuple[str, ...] = option((), "Preview prompts", "Empty: the instance prompt and the class prompt.", group="watch")
    preview_seed: int = option(1, "Preview seed", "The same for every preview, so that they compare.", minimum=0, maximum=2**32 - 1, group="watch")
    preview_steps: int = option(20, "Preview steps", "DDIM steps for each preview; 0 renders none.", minimum=0, maximum=150, group="watch")
    preview_guidance_scale: float = option(7.0, "Preview CFG", "Guidance scale of previews.", minimum=1, maximum=30, group="watch")

    concepts: tuple[Concept, ...] = ()

    @property
    def shown_prompts(self) -> tuple[str, ...]:
        """Of the previews: those asked for, else each concept's instance prompt and class prompt."""
        own = [text for concept in self.concepts for text in (concept.shown_text, concept.class_texts[0])]
        return self.preview_prompts or tuple(dict.fromkeys(own))

    @property
    def vae_path(self) -> Path | None:
        """The other VAE's file, if one is named."""
        return Path(self.vae).expanduser() if self.vae else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read a settings object: options of the run, and `concepts` as a list or its options on the top level.

        Raises ConfigError for names that are no settings; the values are judged by `validate`.
        """
        values = migrated(values)
        concept_names = {field.name for field in dataclasses.fields(Concept)}
        single = {name: value for name, value in values.items() if name in concept_names}
        listed = values.get("concepts", ())
        if not isinstance(listed, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in listed):
            raise ConfigError(["concepts: a list of objects is needed"])
        rest = {name: value for name, value in values.items() if name not in concept_names and name != "concepts"}
        taken, faults = from_mapping(cls, rest)
        concepts = []
        for entry in [dict(entry, **single) for entry in listed] or ([single] if single else []):
            arguments, unknown = from_mapping(Concept, entry)
            faults += unknown
            concepts.append(Concept(**arguments))
        config = cls(**taken, concepts=tuple(concepts))
        if faults:
            raise ConfigError([*faults, *config._faults_of_values()])
        return config

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Read a settings file. Raises ConfigError."""
        try:
            if path.stat().st_size > BYTES_AT_MOST:
                raise ConfigError([f"--config: {path} is far too large for settings"], "Choose a file of settings.")
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError([f"--config: {path} cannot be read ({error.strerror})"]) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError([f"--config: {path} is not valid JSON ({error})"]) from error
        if not isinstance(values, dict):
            raise ConfigError([f"--config: {path} holds no JSON object"])
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **dataclasses.asdict(self)}

    def faults(self) -> list[str]:
        """Every fault that the settings alone show, one plain sentence each. Files are judged by check.py."""
        return self._faults_of_values() or self._faults_between_settings()  # the latter rely on types

    def _faults_of_values(self) -> list[str]:
        owners: list[TrainConfig | Concept] = [self, *self.concepts]
        return [fault for owner in owners for fault in (*faults_of(owner), *_faults_of_home(owner))]

    def require_usable(self) -> TrainConfig:
        """Return self if each setting taken by itself can be used (a form half filled in, a file), else raise ConfigError."""
        found = self._faults_of_values()
        if found:
            raise ConfigError(found)
        return self

    def validate(self) -> TrainConfig:
        """Raise ConfigError with all faults, or return self."""
        found = self.faults()
        if found:
            raise ConfigError(found)
        return self

    def _faults_between_settings(self) -> list[str]:
        warms_too_long = self.lr_warmup_steps > (self.steps or self.lr_warmup_steps)
        rules = [
            (not self.base, "--base: a checkpoint file is needed"),
            (not self.concepts, "--instance-dir: a folder of pictures is needed"),
            (bool(self.resolution and self.resolution % 8), "--resolution: must be a multiple of 8"),
            (not self.upscaler.strip(), "--upscaler: a name is needed; Lanczos is always there"),
            (colour_of(self.flatten_on) is None, f"--flatten-on: {self.flatten_on!r} is no colour: white, black, grey, or #rrggbb"),
            (self.zero_terminal_snr and self.prediction_type == "epsilon", "--zero-terminal-snr: epsilon prediction has no signal at the last timestep; it needs v_prediction"),
            (warms_too_long, "--lr-warmup-steps: longer than the whole run"),
            (self.lr_warmup_steps > 0 and not warms_too_long and self.lr_scheduler == "constant", "--lr-warmup-steps: the schedule constant has none; choose constant_with_warmup"),
            (self.text_encoder_stop_step is not None and not self.train_text_encoder, "--text-encoder-stop-step: the text encoder is not trained"),
            (self.lora_rank > 0 and self.ema_decay > 0, "--ema-decay: not available for LoRA runs"),
            (self.lora_conv_rank > 0 and self.lora_rank == 0, "--lora-conv-rank: needs a LoRA rank"),
            (self.draw_order == "diffusers" and self.crop == "buckets", "--draw-order: diffusers' draws know no buckets"),
            (self.draw_order == "diffusers" and self.random_flip, "--random-flip: diffusers' draws mirror nothing; leave it out, or draw natively"),
            (self.draw_order == "diffusers" and self.caption_dropout > 0, "--caption-dropout: diffusers' draws drop no captions; leave it at 0, or draw natively"),
        ]
        found = [text for wrong, text in rules if wrong]
        try:
            require_safe_name(self.output_name, "--output-name")
        except UnsafePath as error:
            found.append("--output-name: a name is needed" if not self.output_name else f"{error.asked}: {error.why}. {error.instead}")
        for number, concept in enumerate(self.concepts, start=1):
            of = f" (concept {number})" if len(self.concepts) > 1 else ""
            found += [f"{text}{of}" for text in _faults_of_concept(concept)]
        return found


# Every option of a run with one concept, by name: what a form, a command or a request may set.
OPTIONS: dict[str, Option] = {each.name: each for config_class in (TrainConfig, Concept) for each in options_of(config_class)}


def colour_of(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue (0 to 255) of white, black, grey or #rrggbb; None if it is none of these."""
    if text in COLOURS:
        return COLOURS[text]
    if len(text) != 7 or text[0] != "#" or set(text[1:].lower()) - set("0123456789abcdef"):
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _faults_of_home(owner: TrainConfig | Concept) -> list[str]:
    """~somebody/pictures, where there is no somebody."""
    found = []
    for name in PATHS:
        path = getattr(owner, name, "")
        if isinstance(path, str) and path.startswith("~"):
            try:
                expanded(path)
            except ConfigError as error:
                found += [f"--{name.replace('_', '-')}: {fault}" for fault in error.faults]
    return found


def _faults_of_concept(concept: Concept) -> list[str]:
    rules = [
        (not concept.instance_dir, "--instance-dir: a folder of pictures is needed"),
        (not concept.token.strip() and not concept.instance_prompt, "--token: the new word must not be empty"),
        (not concept.class_noun.strip() and not concept.class_prompt, "--class-noun: say what kind of thing it is, such as dog or person"),
    ]
    return [text for wrong, text in rules if wrong]


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring settings of an older version up to date, a version at a time. Raises ConfigError for those of a newer one."""
    values = dict(values)
    version = values.pop("version", VERSION)
    if type(version) is not int or version > VERSION:
        raise ConfigError([f"version: these settings are of version {version}, and this program knows only up to {VERSION}"],
                          "Update the extension.")
    for step in range(max(version, 1), VERSION):
        values = MIGRATIONS[step](values)
    return values
