"""The packaged base: its size, its names, and that it draws what it is asked for."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from dreambooth_ext.playground import evaluate
from dreambooth_ext.playground.base import playground_base_path

PATH = playground_base_path()
needs_base = pytest.mark.skipif(not PATH.exists(), reason="the base is not in this checkout")


def header() -> dict[str, Any]:
    with PATH.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length))


@needs_base
def test_is_small_enough_and_has_sd1s_layout() -> None:
    assert PATH.stat().st_size <= 32_000_000
    tensors = {name: value for name, value in header().items() if name != "__metadata__"}
    assert sum(name.startswith("model.diffusion_model.") for name in tensors) == 686
    assert sum(name.startswith("first_stage_model.") for name in tensors) == 248
    positions = tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert positions["dtype"] == "I64" and positions["shape"] == [1, 77]
    weights = [value for name, value in tensors.items() if name.split(".")[0] in ("model", "first_stage_model")]
    assert {value["dtype"] for value in weights} == {"F16"}
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"]["shape"] == [96, 96, 1, 1]
    assert tensors["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]["shape"] == [49408, 64]


@needs_base
def test_its_yaml_says_what_its_tensors_say() -> None:
    yaml = pytest.importorskip("yaml")
    model = yaml.safe_load(PATH.with_suffix(".yaml").read_text())["model"]["params"]
    tensors = header()
    unet, vae = model["unet_config"]["params"], model["first_stage_config"]["params"]["ddconfig"]
    assert model["scale_factor"] == 0.18215
    assert tensors["model.diffusion_model.input_blocks.0.0.weight"]["shape"][0] == unet["model_channels"]
    assert tensors["first_stage_model.encoder.conv_in.weight"]["shape"][0] == vae["ch"]
    for level, factor in enumerate(unet["channel_mult"]):
        name = f"model.diffusion_model.input_blocks.{1 + 3 * level}.0.out_layers.3.weight"
        assert tensors[name]["shape"][0] == factor * unet["model_channels"]
    for level, factor in enumerate(vae["ch_mult"]):
        assert tensors[f"first_stage_model.encoder.down.{level}.block.0.conv1.weight"]["shape"][0] == factor * vae["ch"]


@needs_base
def test_draws_held_out_combinations() -> None:
    rates, _ = evaluate.evaluate(evaluate.base_renderer(PATH), count=24, seed=1)
    assert rates.background >= 0.85 and rates.colour >= 0.75 and rates.shape >= 0.65, str(rates)


def test_asks_for_all_held_out_combinations_in_all_sizes() -> None:
    asked = evaluate.held_out_prompts()
    assert len(asked) == len({item.prompt for item in asked}) == 204
    assert evaluate.held_out_prompts(30, seed=4) == evaluate.held_out_prompts(30, seed=4)
