"""Every file that is read beside checkpoints, damaged or hostile: it is read, or refused with an error of our own."""

import dataclasses
import io
import json
import random
import shutil
import time

import pytest
import torch
from mutations import mutated
from PIL import Image

from dreambooth_ext import other_trainers, presets
from dreambooth_ext.comparison import read_comparison
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.captions import caption_of
from dreambooth_ext.dataset.choices import read_choices
from dreambooth_ext.dataset.class_images import plan
from dreambooth_ext.dataset.pictures import open_picture
from dreambooth_ext.dataset.prepare import prepare
from dreambooth_ext.errors import DreamboothError, PictureError
from dreambooth_ext.ledger import read_ledger
from dreambooth_ext.report import report_html
from dreambooth_ext.run_folder import RunFolder, RunState
from dreambooth_ext.training import checkpoint

SECONDS_AT_MOST = 120  # a hang, not a pace
CONCEPT = Concept(instance_dir="pictures", token="rxz", class_noun="dog", num_class_images=2)
CONFIG = TrainConfig(base="base.ckpt", output_name="rex", steps=4, resolution=64, concepts=(CONCEPT,))


def encoded(kind, **more):
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(buffer, kind, **more)
    return buffer.getvalue()


def animated(**options):
    frames = [Image.new("RGB", (12, 12), (80 * number, 10, 200)) for number in range(3)]  # frames that look alike become one
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def saved_state():
    buffer = io.BytesIO()
    torch.save({"step": 3, "profile": "none", "skipped": 0, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, buffer)
    return buffer.getvalue()


def as_json(value):
    return json.dumps(value).encode()


def valid_files(pictures):
    """{where it stands: (content, how it is read)}; `run` is a run's folder, `there` the file itself."""
    settings = as_json(CONFIG.to_dict())
    metrics = b"".join(as_json({"step": step, "loss": 0.5 / step, "seconds": 0.1}) + b"\n" for step in range(1, 5))
    row = as_json({"file": "a.png", "seed": 3, "sha256": "0" * 64, "request": {"prompt": "dog"}, "host": {}}) + b"\n"
    index = as_json({"version": 1, "pictures": {"0.png": {"key": "0" * 64, "file": "0" * 20 + ".png", "sha256": "0" * 64,
                                                          "width": 64, "height": 64, "box": [0, 0, 64, 64]}}})

    def class_images(run, there):
        plan(dataclasses.replace(CONCEPT, class_dir=str(there.parent)), "0" * 64, pictures=1, steps=9, batch=1, accumulation=1,
             class_steps=1, guidance_scale=7.0, resolution=64, seed=0, library=there.parent)

    def whole_run(run, there):
        run.state(), run.inputs(), run.metrics(), report_html(run)

    def picture(run, there):
        open_picture(there)

    return {
        "rex/config.json": (settings, whole_run),
        "rex/state.json": (as_json(dataclasses.asdict(RunState("training", 2, 4))), whole_run),
        "rex/metrics.jsonl": (metrics, whole_run), "rex/inputs.json": (as_json({"base": "0" * 64}), whole_run),
        "rex/took.json": (as_json({"seconds": {"training": 1.0}, "memory_gib": 2.0}), lambda run, there: read_ledger(run)),
        "rex/comparison/comparison.json": (as_json({"version": 1, "prompts": ["a"], "columns": []}),
                                           lambda run, there: read_comparison(run)),
        "rex/checkpoints/step-000002/state.pt": (saved_state(), lambda run, there: checkpoint.read(there.parent)),
        "rex/dataset/prepared.json": (index, lambda run, there: prepare(pictures, there.parent, resolution=64)),
        "class/manifest.jsonl": (row * 3, class_images),
        "presets/mine.json": (as_json({"version": 1, "learning_rate": 1e-6}),
                              lambda run, there: presets.load("mine", there.parent)),
        "db_config.json": (as_json({"model_name": "x", "seed": 3, "concepts_list": [{"instance_prompt": "a"}]}),
                           lambda run, there: other_trainers.import_settings(there)),
        "arguments.toml": (b'pretrained_model_name_or_path = "x"\nmax_train_steps = 80\nlearning_rate = 1e-5\n',
                           lambda run, there: other_trainers.import_settings(there)),
        "choices.json": (as_json({"version": 1, "pictures": {"a.png": {"choice": "fix", "sha256": "0", "box": [0, 0, 5, 5]}}}),
                         lambda run, there: read_choices(there)),
        "a.txt": ("\ufeffa photo of rxz dög".encode(), lambda run, there: caption_of(there.with_suffix(".png"))),
        "p.png": (encoded("PNG"), picture), "p.jpg": (encoded("JPEG", exif=b"Exif\x00\x00MM\x00*"), picture),
        "p.webp": (encoded("WEBP"), picture), "p.bmp": (encoded("BMP"), picture), "p.tif": (encoded("TIFF"), picture),
        "p.gif": (animated(), picture),
    }


def campaign(folder, count, seed, score):
    """{where: (read, refused)}. Fails on anything but our own errors, and on a hang."""
    dice, outcomes = random.Random(seed), {}
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "0.png").write_bytes(encoded("PNG"))
    files = valid_files(pictures)
    run = RunFolder(folder / "rex")
    run.create(CONFIG, {"base": "0" * 64})
    score.start("fuzzing: all other files", f"{len(files)} kinds, seed {seed}")
    for number in range(count):
        where = list(files)[number % len(files)]
        content, read = files[where]
        there = folder / where
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(mutated(content, there.suffix.lstrip("."), dice))
        started, refused = time.monotonic(), 0
        with score.trial():
            try:
                read(run, there)
            except DreamboothError as error:
                refused = 1
                assert str(error).strip() and "Traceback" not in str(error), (seed, number, where)
            assert time.monotonic() - started < SECONDS_AT_MOST, (seed, number, where)
        before = outcomes.get(where, (0, 0))
        outcomes[where] = (before[0] + 1 - refused, before[1] + refused)
        there.write_bytes(content)
        if "checkpoints" in where:
            shutil.rmtree(there.parent)
    return outcomes


def test_other_files_are_read_or_refused(tmp_path, score):
    outcomes = campaign(tmp_path, 200, 1, score)
    assert len(outcomes) == 20 and sum(refused for _, refused in outcomes.values()) > 40


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_thousand_other_files(tmp_path, score):
    print(campaign(tmp_path, 5000, 2, score))


def test_an_animation_that_is_cut_off_inside_a_frame_is_refused(tmp_path):
    """Its frames are counted by walking over them, and Pillow takes what it finds there at its word."""
    content = bytearray(animated(duration=100))
    control = b"\x21\xf9\x04"  # a graphic control extension, of eight bytes, stands before a frame's place and size
    second = content.index(control, content.index(control) + 1) + 8
    assert content[second : second + 1] == b","
    path = tmp_path / "a.gif"
    path.write_bytes(content[: second + 4])
    with pytest.raises(PictureError, match="damaged"):
        open_picture(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            open_picture(path)
        except PictureError as error:
            assert error.instead
