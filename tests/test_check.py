"""What is said of settings that can be trained with, and will disappoint."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

from dreambooth_ext import check, presets
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.demo import demo_config, draw_pictures
from dreambooth_ext.errors import ConfigError

CONFIG = TrainConfig(base="b.ckpt", output_name="r", concepts=(Concept(instance_dir="p", token="rxz", class_noun="dog"),))


@pytest.mark.parametrize(("settings", "warned"), [
    ({}, False), ({"lora_rank": 16}, True), ({"lora_rank": 16, "lora_alpha": 16.0}, True),
    ({"lora_rank": 16, "learning_rate": 1e-4}, False), (presets.PRESETS["LoRA"], False),
    ({"lora_rank": 128, "learning_rate": 1e-4}, True), ({"lora_rank": 4, "optimizer": "prodigy", "learning_rate": 1.0}, False),
])
def test_a_lora_that_would_learn_nothing_is_told(settings, warned):
    found = [line for line in check._warnings(dataclasses.replace(CONFIG, use_captions=False, **settings)) if "LoRA" in line]
    assert len(found) == warned and all("1e-4" in line for line in found)


def test_a_disk_without_room_for_a_snapshot_is_told_before_a_run_starts(tmp_path, monkeypatch):
    draw_pictures(tmp_path / "pictures")
    config = demo_config(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match=r"Each snapshot is to be written to .*runs: it needs .* are free") as caught:
        check.check(config)
    assert len(caught.value.faults) == 1
    check.check(config, goes_on=True)  # its last snapshot makes room when the next one is there
    check.check(dataclasses.replace(config, lora_rank=4))


def test_brackets_are_told_wherever_they_are(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a (red) ball")
    concept = Concept(str(tmp_path), "(rxz)", "dog", class_prompt="a [dog]")
    found = [line.partition(" has brackets")[0] for line in check._warnings(dataclasses.replace(CONFIG, concepts=(concept,)))]
    assert found[:3] == ['"(rxz)"', "The class prompt", "The caption a.txt"]
    unread = check._warnings(dataclasses.replace(CONFIG, concepts=(concept,), use_captions=False))
    assert not any("a.txt" in line for line in unread)
