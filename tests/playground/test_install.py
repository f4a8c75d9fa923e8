"""The playground base in a models folder: it loads from there, and its sidecar leads the host to CLIP offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_ext.cli import run
from dreambooth_ext.models.load import inspect
from dreambooth_ext.playground.base import playground_base_path


def test_the_command_writes_a_checkpoint_that_loads_and_a_text_encoder_beside_it(tmp_path: Path, capsys) -> None:
    yaml = pytest.importorskip("yaml")
    transformers = pytest.importorskip("transformers")
    assert run(["playground", "--into", str(tmp_path)]) == 0
    assert "playground.safetensors" in capsys.readouterr().out
    written = tmp_path / "playground.safetensors"
    assert written.read_bytes() == playground_base_path().read_bytes()
    assert inspect(written).resolution == 64
    model = yaml.safe_load((tmp_path / "playground.yaml").read_text())["model"]["params"]
    folder = Path(model["cond_stage_config"]["params"]["version"])
    assert folder.parent == tmp_path.resolve()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder))
    assert tokenizer("a red star").input_ids[0] == 49406
    assert transformers.CLIPTextConfig.from_pretrained(str(folder)).hidden_size == 64


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert run(["playground", "--into", str(blocked)]) == 2
    assert "file" in capsys.readouterr().err
