"""Every option changes something: those of training in tests/training/test_loop.py, all others here, each by its outcome."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth_ext import recipe
from dreambooth_ext.check import Checked
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.host import Checkpoint
from dreambooth_ext.models.diffusers_folder import save_diffusers
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.specimen import Size, specimen
from dreambooth_ext.options import options_of
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training.preview import render_previews, write_previews

SMALLEST = Size((32, 32, 32, 32), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))
SIDE = 64


class PlainHost:
    """Keeps what it is asked for."""

    name = "plain"

    def __init__(self, folder):
        self.models_dir = self.lora_dir = folder / "models"
        self.runs_dir, self.asked, self.selected = folder / "runs", [], []

    def device(self):
        return "auto"

    def checkpoints(self):
        return [Checkpoint(Path("base.safetensors"), "base", True)]

    def txt2img(self, base, request, progress):
        self.asked.append(request)
        for seed in request.seeds:
            yield Image.new("RGB", (request.width, request.height), (seed % 256, 0, 0))

    def batch_size(self, width, height):
        return 4

    def upscalers(self):
        return []

    def upscale(self, image, name, scale):
        raise AssertionError("no upscaler was asked for")

    def provenance(self):
        return {"host": "plain"}

    def job(self, job_id, progress):
        return nullcontext()

    free_gpu = nullcontext

    def select(self, path):
        self.selected.append(path.name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    path = specimen(SD1, size=SMALLEST).write(folder / "base.safetensors", torch.float16)
    tensors = {name: tensor for name, tensor in load_file(path).items() if name.startswith("first_stage_model.")}
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "other.safetensors")
    return path


@pytest.fixture
def room(tmp_path, base):
    """Settings with a picture folder that has a caption, another one, and a class image of other origin."""
    draws = np.random.default_rng(0)
    for folder, size in (("pictures", (96, 80)), ("others", (80, 96)), ("class", (SIDE, SIDE))):
        (tmp_path / folder).mkdir()
        for number in range(2):
            pixels = draws.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder}-{number}.png")
    Image.new("RGBA", (80, 80), (200, 0, 0, 40)).save(tmp_path / "pictures" / "see-through.png")
    (tmp_path / "pictures" / "pictures-0.txt").write_text("on a sofa")
    (tmp_path / "models").mkdir()
    concept = Concept(instance_dir=str(tmp_path / "pictures"), token="rxz", class_noun="dog", num_class_images=6,
                      class_dir=str(tmp_path / "class"))
    return TrainConfig(
        base=str(base), concepts=(concept,), output_name="run", resolution=SIDE, steps=4, preview_steps=2, device="cpu",
        models_dir=str(tmp_path / "models"), runs_dir=str(tmp_path / "runs"), storage_wait_min=0.0)


def changed(config, name, value):
    if name in {field.name for field in dataclasses.fields(TrainConfig)}:
        return dataclasses.replace(config, **{name: value})
    return dataclasses.replace(config, concepts=(dataclasses.replace(config.concepts[0], **{name: value}),))


def prepared(config, folder):
    """Prompts and pictures that are trained on."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    images = recipe.prepare(config, run, config.resolution, Progress())
    return [(image.prompt, image.sha256, image.width, image.height) for image in images]


def rendered(config, folder):
    """What the host is asked for, and which class images are used."""
    host = PlainHost(folder)
    images = recipe.class_images(Checked(config, config.resolution, (2,)), "abc", host, Progress())
    return host.asked, sorted((image.prompt, image.sha256, image.path.parent.name) for image in images)


def previewed(config, folder):
    folder.mkdir()
    draws = torch.get_rng_state()
    paths = write_previews(render_previews(load_checkpoint(Path(config.base)), config), folder, 1)
    assert torch.equal(draws, torch.get_rng_state())
    return [path.read_bytes() for path in paths]


def corridor(config, folder, monkeypatch):
    """A whole run, its training left out: what would be trained on, what is published and selected."""
    given = []

    def train(config, dataset, run, progress, resume):
        given.append((len(dataset.instance), len(dataset.prior)))
        run.diffusers_dir.mkdir()
        save_diffusers(load_checkpoint(Path(config.base)), run.diffusers_dir)
        return config.steps

    monkeypatch.setattr(recipe, "_train_model", train)
    host = PlainHost(folder)
    finished = recipe.train(config, host, Progress())
    files = {path.name: {(name, tensor.dtype) for name, tensor in load_file(path).items()} if path.suffix == ".safetensors"
             else path.stat().st_size for path in finished.published}
    numbers = [load_file(path)["first_stage_model.quant_conv.weight"].float().sum().item() for path in finished.published
               if path.suffix == ".safetensors"]
    return given, files, numbers, host.selected, str(finished.run.path.parent), str(finished.published[0].parent)


def audited(config, folder):
    """What the run's audit of its pictures says."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    recipe.audit_pictures(config, run, config.resolution, Progress())
    return run.audit_path.read_text()


OF_PICTURES = {"resolution": 128, "crop": "buckets", "use_captions": False, "instance_prompt": "a photo of rxz", "token": "ohwx",
               "class_noun": "cat", "repeats": 3, "instance_dir": "others", "flatten_on": "black"}
OF_CLASS = {"class_prompt": "a dog|two dogs", "class_negative_prompt": "blurred", "class_steps": 5, "class_guidance_scale": 3.0,
            "class_batch_size": 2, "num_class_images": 3, "class_dir": "elsewhere", "foreign_class_images": "use", "seed": 9,
            "clip_skip": 2}
OF_PREVIEWS = {"preview_prompts": ("a cat",), "preview_seed": 5, "preview_steps": 4, "preview_guidance_scale": 2.0}
OF_RUNS = {"with_prior_preservation": False, "auto_select": False, "publish_format": "both", "publish_dtype": "fp32",
           "output_name": "another", "models_dir": "shelf", "runs_dir": "work", "vae": "other.safetensors"}
FOLDERS = {"instance_dir", "class_dir", "models_dir", "runs_dir"}


def value_of(name, value, tmp_path, base):
    if name == "vae":
        return str(base.parent / value)
    return str(tmp_path / value) if name in FOLDERS else value


@pytest.mark.parametrize("name", OF_PICTURES)
def test_options_of_pictures(name, room, base, tmp_path):
    after = changed(room, name, value_of(name, OF_PICTURES[name], tmp_path, base))
    assert prepared(room, tmp_path / "before") != prepared(after, tmp_path / "after")


def test_a_style_is_looked_at_with_other_eyes(room, tmp_path):
    assert audited(room, tmp_path / "before") != audited(changed(room, "kind", "style"), tmp_path / "after")


@pytest.mark.parametrize("name", OF_CLASS)
def test_options_of_class_images(name, room, base, tmp_path):
    after = changed(room, name, value_of(name, OF_CLASS[name], tmp_path, base))
    asked = rendered(after, tmp_path)  # first: what is there already is not asked for again
    for path in (tmp_path / "class").glob("*"):
        if not path.name.startswith("class-"):
            path.unlink() if path.is_file() else None
    before = rendered(room, tmp_path)
    assert before != asked


@pytest.mark.parametrize("name", OF_PREVIEWS)
def test_options_of_previews(name, room, tmp_path):
    assert previewed(room, tmp_path / "before") != previewed(changed(room, name, OF_PREVIEWS[name]), tmp_path / "after")


@pytest.fixture(scope="module")
def plain_run():
    return {}


@pytest.mark.parametrize("name", OF_RUNS)
def test_options_of_the_whole_run(name, room, base, tmp_path, monkeypatch):
    room = dataclasses.replace(room, publish_format="safetensors")
    after = changed(room, name, value_of(name, OF_RUNS[name], tmp_path, base))
    for folder in ("shelf", "work"):
        (tmp_path / folder).mkdir()
    first = corridor(after, tmp_path, monkeypatch)
    second = corridor(changed(room, "output_name", "run2") if name != "output_name" else room, tmp_path, monkeypatch)
    if name != "output_name":  # a run of that name is there already
        renamed = [repr(part).replace("run2", "run") for part in second]
        assert renamed != [repr(part) for part in first]
    else:
        assert first != second


# Turned elsewhere: the file whose test turns it.
ELSEWHERE = {
    "base": "tests/test_families.py", "prediction_type": "tests/models/test_load.py", "kind": "tests/test_options_matter.py",
    "choices": "tests/dataset/test_choices_in_a_run.py", "device": "tests/training/test_memory.py",
    "snapshot_every": "tests/training/test_loop.py", "keep_snapshots": "tests/training/test_loop.py",
    "preview_every": "tests/training/test_loop.py", "validation_every": "tests/training/test_validation.py",
    "storage_wait_min": "tests/test_errors.py", "gradient_checkpointing": "tests/training/test_loop.py",
    "speed_up": "tests/training/test_passes.py", "kernels": "tests/training/kernels/test_probe.py",
    "upscaler": "tests/dataset/test_preparation_golden.py",
}


@pytest.mark.parametrize("config_class", [TrainConfig, Concept])
def test_no_option_is_left_out(config_class):
    here = OF_PICTURES | OF_CLASS | OF_PREVIEWS | OF_RUNS
    of_training = (Path(__file__).parent / "training" / "test_loop.py").read_text(encoding="utf-8")
    for option in options_of(config_class):
        if option.name in here:
            continue
        if option.name in ELSEWHERE:
            text = (Path(__file__).parents[1] / ELSEWHERE[option.name]).read_text(encoding="utf-8")
            assert option.name in text or option.flag in text, option.name
            continue
        assert f'"{option.name}"' in of_training, option.name
