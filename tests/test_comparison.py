"""What is asked of a comparison, what is read back, and which snapshot is called the best, without any network."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ext import files
from dreambooth_ext.compare import _forget_other
from dreambooth_ext.comparison import (
    BASE,
    CLASS,
    SUBJECT,
    Column,
    Comparison,
    Wishes,
    folder_of,
    forget_after,
    prompts_for,
    read_comparison,
)
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import ConfigError, StorageError
from dreambooth_ext.run_folder import RunFolder

CONFIG = TrainConfig(base="b.ckpt", output_name="r", concepts=(Concept(instance_dir="p", token="rxz", class_noun="dog"),))


def comparison(*measures):
    """measures: (nearness, drift) of steps 100, 200, ..."""
    columns = [Column(BASE, 0, 0.0, 0.0)]
    columns += [Column(f"step-{100 * number:06d}", 100 * number, *pair) for number, pair in enumerate(measures, start=1)]
    return Comparison(("a", "b"), (SUBJECT, CLASS), (1, 2), 20, 7.0, 64, tuple(columns), "standalone")


@pytest.mark.parametrize(("measures", "best", "told"), [
    ([(0.4, 0.0), (0.9, 0.1), (0.92, 0.3)], 200, "Going on to step 300"),  # over-trained: the class pays for it
    ([(0.80, 0.1), (0.82, 0.1), (0.83, 0.1)], 100, "hardly differs"),  # the earliest of what hardly differs
    ([(0.2, 0.0), (0.3, 0.0), (0.45, 0.0)], 300, "more steps may help"),
    ([(0.30, 0.0), (0.31, 0.0), (0.32, 0.0)], 100, "nearer to the base than to the subject, too: a higher learning rate may help."),
    ([(0.9, 0.1, 0.2), (1.05, 0.1, 0.0)], 100, "hardly differs"),  # within what other seeds would make of them
    ([(0.9, 0.1, 0.1), (1.05, 0.1, 0.0)], 200, "Step 200"),
    ([(0.05, 0.01, 0.4), (0.61, 0.34, 0.0)], 200, "Step 200"),  # of two seeds: the first one is next to the base itself
    ([(0.4, 0.6, 0.15), (0.5, 0.6, 0.0)], 100, "hardly differs"),  # all drift more than they are near
    ([(0.95, None), (0.5, None)], 100, "Step 100"),  # no prompt of the class
])
def test_the_best_one_and_why(measures, best, told):
    found = comparison(*measures)
    assert found.best.step == best and told in found.why


@pytest.mark.parametrize("for_how_long", [3, 10**6])
def test_a_comparison_that_cannot_be_read_for_the_moment_keeps_its_pictures_and_its_truth(tmp_path, monkeypatch, for_how_long):
    """Rendered for minutes each; and the columns of snapshots that are no more would be shown for those to come."""
    run, made = RunFolder(tmp_path / "r"), comparison((0.4, 0.0), (0.9, 0.1))
    made.write(run)
    picture = folder_of(run) / "step-000100" / "picture.png"
    picture.parent.mkdir()
    picture.touch()
    read, refused = Path.read_text, []

    def read_text(path, *args, **kwargs):
        if path.name == "comparison.json" and len(refused) < for_how_long:
            refused.append(path)
            raise PermissionError(errno.EACCES, "in use")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "read_text", read_text)
    if for_how_long == 3:
        _forget_other(run, made)
        refused.clear()
        forget_after(run, 100)
        assert read_comparison(run).columns == made.columns[:2]
    else:
        for act in (lambda: _forget_other(run, made), lambda: forget_after(run, 0)):
            with pytest.raises(StorageError, match="in use"):
                act()
    assert picture.is_file()


def test_without_measures_there_is_no_best_one():
    assert comparison((None, None), (None, 0.1)).best is None and comparison((None, None)).why == ""


def test_prompts_with_the_token_show_the_subject():
    prompts, kinds = prompts_for(CONFIG)
    assert prompts == ("rxz dog", "rxz dog on a beach", "dog") and kinds == (SUBJECT, SUBJECT, CLASS)
    wished = ["photo of RXZ, sitting", " ", "a cat", "rxzed dog", "a cat"]
    assert prompts_for(CONFIG, wished) == (("photo of RXZ, sitting", "a cat", "rxzed dog"), (SUBJECT, CLASS, CLASS))
    style = replace(CONFIG, concepts=(replace(CONFIG.concepts[0], kind="style", instance_prompt="art of [name], [filewords]"),))
    assert prompts_for(style)[0] == ("art of rxz", "art of rxz a mountain landscape", "dog")


@pytest.mark.parametrize(("values", "named"), [
    ({"count": 0}, "--count"), ({"count": "many"}, "--count"), ({"render_steps": 1000}, "--render-steps"), ({"seed": -1}, "--seed"),
    ({"guidance_scale": "strong"}, "--guidance-scale"), ({"prompts": "a dog"}, "--prompts"), ({"nonsense": 1}, "nonsense"),
    ({"count": True}, "--count"), ({"snapshots": [1]}, "--snapshots"), ({"prompts": ["a dog"] * 100}, "--prompts: 100 are too"),
])
def test_bad_wishes_are_refused_by_name(values, named):
    with pytest.raises(ConfigError) as caught:
        Wishes.from_dict(values)
    assert caught.value.faults[0].startswith(named)


def test_it_is_read_as_it_was_written(tmp_path):
    run, found = RunFolder(tmp_path), comparison((0.5, 0.1), (0.7, None))
    assert read_comparison(run) is None
    found.write(run)
    assert read_comparison(run) == found


@pytest.mark.parametrize("change", [
    {"columns": [{"name": "../../etc", "step": 1}]}, {"columns": [{"name": "step-000001"}]}, {"columns": 5}, {"prompts": [1]},
    {"prompts": "ab"}, {"kinds": ["subject"]}, {"kinds": ["x", "y"]}, {"seeds": []}, {"seeds": [10**30]}, {"side": "big"},
    {"side": True}, {"guidance_scale": [1]}, {"columns": [[]]}, {"seeds": list(range(65))},
], ids=str)
def test_a_tampered_file_is_none(tmp_path, change):
    run = RunFolder(tmp_path)
    comparison((0.5, 0.1)).write(run)
    path = folder_of(run) / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_comparison(run) is None


@pytest.mark.parametrize("content", ["", "[]", "{", "5", '{"columns": [{"name": "base", "step": 0, "nearness": NaN}]}',
                                     "[" * 99999])
def test_what_is_no_comparison_is_none(tmp_path, content):
    folder_of(RunFolder(tmp_path)).mkdir()
    (folder_of(RunFolder(tmp_path)) / "comparison.json").write_text(content)
    assert read_comparison(RunFolder(tmp_path)) is None
