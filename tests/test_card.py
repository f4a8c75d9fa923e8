"""What the WebUI's cards show beside a published model."""

import errno
import json
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ext import files
from dreambooth_ext.card import preview_of, write_cards
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import StorageError
from dreambooth_ext.run_folder import RunFolder, step_in

MADE = {"steps": 40, "base_sha256": "ab" * 32, "trainer": "dreambooth_ext 9"}


@pytest.fixture
def config(tmp_path):
    concept = Concept(instance_dir="pics", token="rxz", class_noun="dog")
    return TrainConfig(base=str(tmp_path / "secret folder" / "base.safetensors"), output_name="dog", learning_rate=2e-6,
                       runs_dir=str(tmp_path / "runs"), concepts=(concept,))


@pytest.fixture
def run(config):
    run = RunFolder.for_config(config)
    run.create(config)
    run.previews_dir.mkdir()
    for step in (0, 20, 40, 60):
        for prompt in (0, 1):
            Image.new("RGB", (8, 8), (step, prompt, 0)).save(run.previews_dir / f"step-{step:06d}-{prompt}.png")
    return run


def notes_of(tmp_path):
    return json.loads((tmp_path / "dog.json").read_text(encoding="utf-8"))


def test_a_card_shows_the_preview_of_its_step_and_how_it_was_made(tmp_path, config, run):
    paths = [tmp_path / "dog.ckpt", tmp_path / "dog.safetensors"]
    assert write_cards(paths, config, run, MADE) == [tmp_path / "dog.json", tmp_path / "dog.preview.png"]
    with Image.open(tmp_path / "dog.preview.png") as preview:
        assert preview.getpixel((0, 0)) == (40, 0, 0)
        prompt, settings = preview.info["parameters"].splitlines()
    assert prompt == "rxz dog" and settings.startswith("Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 8x8, Model: dog,")
    notes = notes_of(tmp_path)
    assert "rxz dog" in notes["description"] and "40 steps on base.safetensors (ababababab)" in notes["notes"]
    assert "secret folder" not in json.dumps(notes)


@pytest.mark.parametrize("for_how_long", [3, 10**6])
def test_notes_that_cannot_be_read_for_the_moment_are_not_lost(tmp_path, config, run, monkeypatch, for_how_long):
    (tmp_path / "dog.json").write_text('{"notes": "my own words"}')
    read, refused = Path.read_text, []

    def read_text(path, *args, **kwargs):
        if path.name == "dog.json" and len(refused) < for_how_long:
            refused.append(path)
            raise PermissionError(errno.EACCES, "in use")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "read_text", read_text)
    if for_how_long == 3:
        write_cards([tmp_path / "dog.ckpt"], config, run, MADE)
    else:
        with pytest.raises(StorageError, match="in use"):
            write_cards([tmp_path / "dog.ckpt"], config, run, MADE)
    monkeypatch.undo()
    assert notes_of(tmp_path)["notes"] == "my own words"


def test_a_lora_tells_what_to_write_into_the_prompt(tmp_path, config, run):
    from dataclasses import replace

    write_cards([tmp_path / "dog.safetensors"], replace(config, lora_rank=4), run, MADE)
    assert (notes_of(tmp_path)["activation text"], notes_of(tmp_path)["preferred weight"]) == ("rxz dog", 1.0)
    bracketed = replace(config.concepts[0], token="(rxz)", instance_prompt="[name] [class], [filewords]")
    write_cards([tmp_path / "cat.safetensors"], replace(config, lora_rank=4, concepts=(bracketed,)), run, MADE)
    assert json.loads((tmp_path / "cat.json").read_text())["activation text"] == r"\(rxz\) dog"


def test_what_somebody_else_wrote_stays_and_ours_is_brought_up_to_date(tmp_path, config, run):
    write_cards([tmp_path / "dog.ckpt"], config, run, MADE)
    own = {**notes_of(tmp_path), "description": "my own words", "vae": "mine.pt"}
    (tmp_path / "dog.json").write_text(json.dumps(own), encoding="utf-8")
    write_cards([tmp_path / "dog.ckpt"], config, run, {**MADE, "steps": 60})
    assert (notes_of(tmp_path)["description"], notes_of(tmp_path)["vae"]) == ("my own words", "mine.pt")
    assert "60 steps" in notes_of(tmp_path)["notes"]
    with Image.open(tmp_path / "dog.preview.png") as preview:
        assert preview.getpixel((0, 0)) == (60, 0, 0)
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "dog.preview.png")
    write_cards([tmp_path / "dog.ckpt"], config, run, MADE)
    with Image.open(tmp_path / "dog.preview.png") as preview:
        assert preview.size == (4, 4)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_a_damaged_card_is_written_anew(tmp_path, config, run, content):
    (tmp_path / "dog.json").write_bytes(content)
    write_cards([tmp_path / "dog.ckpt"], config, run, MADE)
    assert notes_of(tmp_path)["description"]


def test_links_and_damaged_previews_are_no_pictures(tmp_path, config, run):
    for path in run.previews_dir.iterdir():
        path.unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    (run.previews_dir / "step-000040-0.png").symlink_to(tmp_path / "elsewhere.png")
    assert preview_of(run, 40) is None
    (run.previews_dir / "step-000020-0.png").write_bytes(b"no picture")
    assert write_cards([tmp_path / "dog.ckpt"], config, run, MADE) == [tmp_path / "dog.json"]


@pytest.mark.parametrize(("name", "step"), [("step-000100", 100), ("step-000100-0.png", 100), ("step-1234567", 1234567),
                                            ("diffusers", None), ("step-", None), ("step-000100x", None)])
def test_steps_are_read_from_names(name, step):
    assert step_in(name) == step


def test_a_card_without_a_preview_of_its_step_does_not_keep_another_steps(tmp_path, config, run):
    paths = [tmp_path / "dog.ckpt"]
    write_cards(paths, config, run, MADE)
    assert write_cards(paths, config, run, {**MADE, "steps": 10}) == [tmp_path / "dog.json"]
    assert "10 steps" in notes_of(tmp_path)["notes"] and not (tmp_path / "dog.preview.png").exists()
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "dog.preview.png")
    write_cards(paths, config, run, {**MADE, "steps": 10})
    assert (tmp_path / "dog.preview.png").exists()  # somebody else's


def test_a_card_of_two_files_says_which_one_it_is_of(tmp_path, config, run):
    """Hosts have one for both, and the one that was there before may be of another step."""
    paths = [tmp_path / "dog.ckpt", tmp_path / "dog.safetensors"]
    paths[0].touch()
    write_cards(paths[:1], config, run, MADE)
    assert notes_of(tmp_path)["notes"].startswith("Dreambooth: 40 steps")
    paths[1].touch()
    write_cards(paths[1:], config, run, {**MADE, "steps": 20})
    assert notes_of(tmp_path)["notes"].startswith("Dreambooth: dog.safetensors: 20 steps")
    write_cards(paths, config, run, MADE)
    assert notes_of(tmp_path)["notes"].startswith("Dreambooth: 40 steps")
