"""Each kind of error is met through a public entry, and says what was asked, why not, and what to do instead."""

import ast
import dataclasses
import errno
import os
import struct
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ext import errors, files, presets, recipe
from dreambooth_ext.check import check
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.pictures import require_pictures
from dreambooth_ext.errors import Cancelled, DreamboothError
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.options import options_of
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.service import Service

PACKAGE = Path(__file__).resolve().parents[1] / "dreambooth_ext"
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DreamboothError)}

ONLY_PARENTS = {"DreamboothError", "CheckpointError"}  # caught, but never raised themselves


@pytest.fixture
def config(inputs, tmp_path):
    base, pictures = inputs
    concept = Concept(instance_dir=str(pictures), token="rxz", class_noun="dog")
    return TrainConfig(base=str(base), output_name="rex", steps=2, resolution=64, models_dir=str(tmp_path / "models"),
                       runs_dir=str(tmp_path / "runs"), with_prior_preservation=False, preview_steps=0, storage_wait_min=0.0,
                       concepts=(concept,))


@dataclasses.dataclass
class World:
    """What an attempt may need."""

    config: TrainConfig
    folder: Path
    patch: pytest.MonkeyPatch

    @property
    def host(self):
        (self.folder / "models").mkdir(exist_ok=True)
        return StandaloneHost(self.folder / "models", self.folder / "runs")

    def train(self, **changes):
        return recipe.train(dataclasses.replace(self.config, **changes), self.host, Progress())

    def write(self, name, content):
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def tensors(self, tensors):
        from safetensors.torch import save_file

        save_file(tensors, self.folder / "x.safetensors")
        return self.folder / "x.safetensors"

    def system_says(self, number):
        def fail(handle):
            raise OSError(number, os.strerror(number))

        self.patch.setattr(files.os, "fsync", fail)
        files.write_json(self.folder / "x.json", {})

    def out_of_memory(self):
        from dreambooth_ext.training import loop

        def train(*arguments, **more):
            raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")

        self.patch.setattr(loop, "train", train)
        self.train()

    def busy(self):
        run = RunFolder(self.folder / "runs" / "rex")
        with run.lock():
            self.train()

    def lacking(self):
        self.patch.setitem(sys.modules, "diffusers", None)
        check(self.config)

    def unsafe(self):
        import pickle
        import zipfile

        with zipfile.ZipFile(self.folder / "x.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": print}))
            archive.writestr("archive/version", "3\n")
        open_checkpoint(self.folder / "x.ckpt")


NAN = torch.full((4, 4, 3, 3), float("nan"))
ATTEMPTS = {
    "ConfigError": lambda world: world.train(steps=0),
    "PictureError": lambda world: require_pictures(world.folder),
    "NotACheckpoint": lambda world: open_checkpoint(world.write("x.safetensors", b"this is a letter to my aunt")),
    "UnsafeCheckpoint": World.unsafe,
    "MissingTensors": lambda world: load_checkpoint(world.tensors({"model.diffusion_model.x": torch.zeros(2)})),
    "UnsupportedFamily": lambda world: open_checkpoint(world.write("x.safetensors", b"GGUF" + struct.pack("<I", 3) + b"\x00" * 64)),
    "BadNumbers": lambda world: open_checkpoint(world.tensors({"a": NAN})).finite_tensor("a"),
    "StorageError": lambda world: world.system_says(errno.EIO),
    "DiskFull": lambda world: world.system_says(errno.ENOSPC),
    "NotWritable": lambda world: world.system_says(errno.EROFS),
    "UnsafePath": lambda world: presets.load("../x", world.folder),
    "RunBusy": World.busy,
    "ResumeError": lambda world: recipe.resume(_finished(world), world.host, Progress()),
    "HostError": lambda world: world.host.select(world.folder / "gone.ckpt"),
    "MissingPackage": World.lacking,
    "OutOfMemory": World.out_of_memory,
    "Diverged": lambda world: world.train(learning_rate=10.0, max_grad_norm=0.0, steps=50),
}


# What was asked, why not, what instead, as a person has read and approved them: whoever changes a text reads it again here.
APPROVED = {
    "ConfigError": ("1 setting cannot be used", "--steps: 0 is less than 1, the least that makes sense",
                    "Nothing was changed. Put it right, and try again."),
    "PictureError": ("Pictures are to be read from FOLDER", "it holds no pictures",
                     "Put the pictures there as PNG, JPEG or WebP files."),
    "NotACheckpoint": ("x.safetensors is to be used", "it is neither a .safetensors nor a .ckpt file", "Choose a model file."),
    "UnsafeCheckpoint": ("x.ckpt is to be read", "it asks for builtins.print, which is no tensor, container or number",
                         "Such a file can run programs when it is loaded. Get the model as .safetensors from a source that "
                         "you trust."),
    "MissingTensors": ("x.safetensors is to be used", "its text encoder is missing",
                       "Use a whole checkpoint, not one of the UNet alone."),
    "UnsupportedFamily": ("x.safetensors is to be used", "it is a quantised model (GGUF)",
                          "Use the model's .safetensors or .ckpt file in fp32, fp16 or bf16."),
    "BadNumbers": ("x.safetensors is to be used", "a holds NaN or Inf",
                   "The file is damaged, or its training diverged; use another."),
    "StorageError": ("x.json is to be written to FOLDER", "Input/output error",
                     "Check that the drive is there and the path is right."),
    "DiskFull": ("x.json is to be written to FOLDER", "the disk is full",
                 "Make room on that disk, or choose a folder on another one; nothing was lost."),
    "NotWritable": ("x.json is to be written to FOLDER", "the folder may not be written to",
                    "Choose a folder of your own, or change its permissions."),
    "UnsafePath": ("the preset is to be '../x'", "such a name cannot stand in a models folder on every system",
                   "Use the letters A to Z, digits, dots, dashes, underscores and spaces; neither dots nor spaces at the ends."),
    "RunBusy": ("rex is to be worked on", "another process works in its folder",
                "Wait for it, stop it, or choose another name."),
    "ResumeError": ("rex is to be continued", "it is finished, with all its 2 steps",
                    "`publish` writes its model again; `train` under another name starts anew."),
    "HostError": ("gone.ckpt is to be selected", "the file is not there", "Publish the model again."),
    "MissingPackage": ("a run is to be started", "diffusers cannot be imported",
                       "Install it into this Python: pip install diffusers"),
    "OutOfMemory": ("training with memory profile none, batch size 1", "the GPU ran out of memory (tried to allocate 2 GiB)",
                    "Close what else uses the GPU, and resume: what was learnt up to the last snapshot is kept. A leaner memory "
                    "profile (low, then ultra), or a smaller batch size or resolution, is for a new run, under another name."),
    "Diverged": ("training at learning rate 10", "the loss became nan at step 2",
                 "No snapshot was made before. The same settings would lead there again: start anew at a lower learning rate, "
                 "such as 5."),
}


def _finished(world):
    run = RunFolder.for_config(world.config)
    run.create(world.config)
    run.write_state(dataclasses.replace(run.state(), state="finished", steps=2))
    return run


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - ONLY_PARENTS))
def test_each_kind_is_met_and_says_what_why_and_what_instead(name, config, tmp_path, monkeypatch):
    with pytest.raises(CLASSES[name]) as caught:
        ATTEMPTS[name](World(config, tmp_path, monkeypatch))
    error = caught.value
    assert type(error) is CLASSES[name]
    parts = [error.asked, error.why, error.instead]
    assert all(len(part.strip()) > 3 for part in parts), parts
    assert all(part in str(error) for part in (error.why, error.instead)) or name == "ConfigError"
    assert "Traceback" not in str(error) and "None" not in str(error)
    assert tuple(part.replace(str(tmp_path), "FOLDER") for part in parts) == APPROVED[name]


def test_the_drawing_shows_every_class():
    for name in CLASSES:
        assert name in (errors.__doc__ or "")


def test_no_error_is_made_without_its_three_parts():
    """Read from the code: all of them, also those that no test meets."""
    lacking = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES):
                continue
            parts = [*node.args, *(keyword.value for keyword in node.keywords)]
            empty = any(isinstance(part, ast.Constant) and not part.value for part in parts)
            wanted = 1 if node.func.id == "ConfigError" else 3  # which has an advice of its own
            if empty or len(parts) < wanted or node.func.id in ONLY_PARENTS:
                lacking.append(f"{path.name}:{node.lineno}")
    assert not lacking


# ---- whatever is asked, the refusal is one of ours

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["~nobody-here", "~", "\x00", "/", "..", "\ud800", "a/../b", "C:\\x", "con", "é" * 200])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, -(10**400), 1e308, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6)
NAMES = [option.name for kind in (TrainConfig, Concept) for option in options_of(kind)]
ANYTHING = st.dictionaries(st.sampled_from([*NAMES, "concepts", "version"]) | TEXTS, JSON, max_size=6)


@given(ANYTHING)
@settings(max_examples=300)
def test_any_json_object_is_a_config_or_our_own_error(values):
    try:
        config = TrainConfig.from_dict(values).validate()
    except DreamboothError as error:
        assert str(error).strip()
    else:
        assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """One of a private WebUI, one of a shared one; their jobs go no further than `check`."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "models").mkdir()
    (folder / "models" / "base.ckpt").write_bytes(b"x")
    host = StandaloneHost(folder / "models", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "train", lambda config, host, progress: check(config))
        patch.chdir(folder)
        yield Service(host, jobs=Jobs()), Service(host, roots=[folder / "runs"], jobs=Jobs())


def outcome(act):
    try:
        return act()
    except DreamboothError as error:
        assert str(error).strip()
        return None


@given(ANYTHING, TEXTS, st.booleans())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_is_started_runs_or_is_refused_in_our_words(services, values, name, usual):
    rest = {"base": "base.ckpt", "instance_dir": "pictures", "token": "rxz", "class_noun": "dog", "models_dir": "models",
            "runs_dir": "runs"} if usual else {}
    for service in services:
        job = outcome(lambda service=service: service.start({"output_name": name, **values, **rest}))
        if job is not None:
            assert job.done.wait(120)
            assert "Traceback" not in "\n".join(job.log), job.log


@given(TEXTS, TEXTS)
@settings(max_examples=150, deadline=None)
def test_names_of_runs_and_outputs(services, name, other):
    for service in services:
        for act in (service.run, service.delete, service.resume, service.publish):
            assert outcome(partial(act, name)) is None
        assert outcome(partial(service.publish, "rex", as_name=other)) is None
        assert outcome(partial(presets.load, name, service.host.runs_dir)) is None or name in presets.PRESETS
    assert (services[0].host.models_dir / "base.ckpt").exists()


@given(name=st.text(st.characters(blacklist_characters="/\x00", blacklist_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_pictures_of_any_name_are_listed_or_refused(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("named")
    try:
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png", "PNG")
    except OSError:  # longer than the file system has names
        return
    try:
        assert len(require_pictures(folder)) == 1
    except errors.PictureError as error:
        assert name.startswith(".") and str(error)


def test_cancelled_is_no_error():
    assert not issubclass(Cancelled, DreamboothError)
