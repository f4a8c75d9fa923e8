"""The demo itself, at a fixed seed: a subject is learnt, and what else the base knows is kept."""

import json

import pytest

from dreambooth_ext.cli import run


@pytest.mark.demo
@pytest.mark.timeout(2400)
def test_the_demo_reaches_its_figures(tmp_path, capsys):
    assert run(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    base, trained, without = (result["scores"][name] for name in ("base", "trained", "without class images"))
    assert base["subject"] < 0.05
    assert trained["subject"] >= 0.8
    assert trained["background"] >= 0.8 * base["background"]
    assert trained["class_shows_subject"] < 0.1
    assert without["class_shows_subject"] > trained["class_shows_subject"] + 0.1
    assert (tmp_path / "demo" / "contact_sheet.png").stat().st_size > 10_000
    written = {path.name.removeprefix("rxz_square") for path in (tmp_path / "demo" / "models").glob("rxz_square.*")}
    assert written == {".ckpt", ".safetensors", ".yaml", ".json", ".preview.png"}


def test_a_former_demo_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "runs" / "rxz_square").mkdir(parents=True)
    (tmp_path / "runs" / "rxz_square" / "config.json").write_text("{}")
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "former demo" in capsys.readouterr().err
