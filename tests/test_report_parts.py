"""What a report tells: every part of it, and that each run ends in one."""

import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from dreambooth_ext.comparison import BASE, Column, Comparison
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, Diverged
from dreambooth_ext.ledger import ledger, read_ledger
from dreambooth_ext.plot import VALIDATION_COLOUR
from dreambooth_ext.progress import Progress
from dreambooth_ext.record import reported, told_in_the_run_folder
from dreambooth_ext.report import report_html, write_report
from dreambooth_ext.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "rex")
    run.create(TrainConfig(base="models/base.safetensors", output_name="rex", learning_rate=3e-6, concepts=(
        Concept(instance_dir="pictures", token="rxz", class_noun="dog"),)))
    run.write_inputs({"base": "ab" * 32, "0/a.png": "cd" * 32, "0/a.txt": "ef" * 32, "0/choices": "01" * 32})
    return run


def test_every_part_is_there(run):
    for step in range(1, 4):
        run.append_metrics({"step": step, "loss": 0.5 / step, "lr": 3e-6, "validation_loss": 0.4 - step / 10, "seconds": 0.25})
    for folder, name in ((run.previews_dir, "step-000000-0.png"), (run.previews_dir, "step-000002-0.png"),
                         (run.dataset_dir / "concept-0", "a.png")):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (run.dataset_dir / "manifest.json").write_text(json.dumps(
        {"instance": [], "prior": [{"prompt": "dog", "sha256": str(number), "concept": 0} for number in range(5)]}))
    (run.path / "audit.json").write_text(json.dumps({"concepts": [{"summary": "1 picture looked at: 1 good as it is."}]}))
    found = Comparison(("rxz dog",), ("subject",), (1,), 20, 7.0, 64,
                       (Column(BASE, 0, 0.0), Column("step-000002", 2, 0.75, None), Column("step-000004", 4, 0.2, None)))
    found.write(run)
    found.path(run, "step-000002", 0, 1).parent.mkdir()
    Image.new("RGB", (64, 64), "blue").save(found.path(run, "step-000002", 0, 1))
    with ledger(run, progress := Progress()):
        progress.start("training", 3)
        progress.report(1, 3, memory_gib=5.25)
        progress.report(2, 3, memory_gib=4.0)
    page = report_html(run)
    for told in ("step 2 (best)", "near 75 %", "near 20 %", "Step 2: 75 % of the way", "learning rate", "validation",
                 "sha256 " + "ab" * 32, "1, and 1 caption;", "5 of &quot;dog&quot;", "1 picture looked at", "0.25 s (median of 3)",
                 "5.2 GiB", "3e-06", "rxz dog"):
        assert told in page, told
    assert page.count("<img") == 4 and page.count("<svg") == 3


def test_the_validation_loss_is_drawn_beside_the_loss(run):
    for step in range(1, 41):
        more = {"validation_loss": 0.4 - step / 100} if step % 10 == 0 else {}
        run.append_metrics({"step": step, "loss": 0.5 / step, **more})
    write_report(run)
    drawn = re.search(r"<h3>Loss</h3>(<svg.*?</svg>)", (run.path / "report.html").read_text()).group(1)
    dots = [circle for circle in ElementTree.fromstring(drawn).iter("circle") if circle.get("fill") == VALIDATION_COLOUR]
    across, down = ([float(dot.get(name)) for dot in dots] for name in ("cx", "cy"))
    assert len(dots) == 4 and across == sorted(across) and down == sorted(down)  # to the right, and downwards as it falls
    lines = [line for line in ElementTree.fromstring(drawn).iter("polyline") if line.get("stroke") == VALIDATION_COLOUR]
    assert len(lines) == 1 and len(lines[0].get("points").split()) == 4


def test_time_and_memory_are_counted_over_resumes(run):
    for memory in (2.0, None):
        with ledger(run, progress := Progress()):
            progress.start("training", 3)
            progress.report(1, 3, memory_gib=memory)
            progress.start("publishing", 1)
    took = read_ledger(run)
    assert set(took["seconds"]) == {"training", "publishing"} and took["memory_gib"] == 2.0


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": 5}', '{"seconds": {"a": "x"}}',
                                     '{"seconds": {"a": 1}, "memory_gib": []}'])
def test_a_tampered_ledger_breaks_nothing(run, content):
    (run.path / "took.json").write_text(content)
    assert isinstance(report_html(run), str) and read_ledger(run)["memory_gib"] is None


@pytest.mark.parametrize(("error", "told"), [(None, "training"), (Cancelled(), "stopped by the user"),
                                             (Diverged("training", "the loss became nan", "Lower it."), "the loss became nan"),
                                             (ZeroDivisionError("oops"), "ZeroDivisionError: oops")])
def test_however_a_run_ends_it_has_its_report(run, error, told):
    try:
        with reported(run, Progress()), told_in_the_run_folder(run, Progress()):
            if error is not None:
                raise error
    except (Cancelled, Diverged, ZeroDivisionError):
        pass
    assert told in (run.path / "report.html").read_text()
