"""Attacks: a page that posts to localhost, files from the internet, strangers at a shared WebUI. See docs/security.md."""

import json
import os
import pickle
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreambooth_ext import presets, uploads
from dreambooth_ext.errors import CheckpointError, ConfigError, DreamboothError, ResumeError, StorageError, UnsafePath
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.report import explain_failure, report_html
from dreambooth_ext.run_folder import RunFolder, RunState
from dreambooth_ext.service import Service
from dreambooth_ext.training import checkpoint

ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture
def host(tmp_path):
    for name in ("models", "runs", "pictures", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.ckpt").write_bytes(b"x")
    (tmp_path / "secret" / "diary.txt").write_text("dear diary")
    return StandaloneHost(tmp_path / "models", tmp_path / "runs")


@pytest.fixture
def service(host):
    return Service(host, jobs=Jobs())


@pytest.fixture
def shared(host, tmp_path):
    """A WebUI that strangers use: everything they name must lie in this folder."""
    return Service(host, roots=[tmp_path / "runs"], jobs=Jobs())


@pytest.fixture
def values(tmp_path):
    return {"base": "base.ckpt", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"), "token": "rxz",
            "class_noun": "dog"}


@pytest.fixture
def run(service, values):
    """One that its owner made, before anybody tampered with it."""
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    return run


# ---- a checkpoint from the internet


class Payload:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def payloads(target: Path):
    command = f"echo done > '{target}'"
    return {"os.system": Payload(os.system, command), "subprocess": Payload(subprocess.call, ["sh", "-c", command]),
            "eval": Payload(eval, f"open({str(target)!r}, 'w').close()"),
            "exec": Payload(exec, f"open({str(target)!r}, 'w').close()"),
            "getattr": Payload(getattr, Path(target), "touch"), "nested": {"a": [Payload(os.system, command)]}}


@pytest.mark.parametrize("where", ["base", "vae", "snapshot"])
@pytest.mark.parametrize("name", ["os.system", "subprocess", "eval", "exec", "getattr", "nested"])
def test_a_pickle_is_refused_and_never_runs(service, values, run, tmp_path, inputs, name, where):
    target, path = tmp_path / "executed", tmp_path / "models" / "evil.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {"a": payloads(target)[name]}}, 2))
        archive.writestr("archive/version", "3\n")
    if where == "snapshot":
        (run.checkpoints_dir / "step-000001").mkdir(parents=True)
        path.replace(run.checkpoints_dir / "step-000001" / "state.pt")
        with pytest.raises(ResumeError, match="cannot be read"):
            checkpoint.read(run.checkpoints_dir / "step-000001")
    elif where == "vae":
        from dreambooth_ext.models.load import load_checkpoint

        with pytest.raises(CheckpointError):
            load_checkpoint(inputs[0], vae=path)
    else:
        job = service.start({**values, "base": "evil.ckpt", "output_name": "other", "instance_dir": str(inputs[1])})
        assert job.done.wait(60) and job.state == "failed" and "evil.ckpt" in job.message, job.message
    assert not target.exists()


# ---- a run folder from the internet


def tampered(run, name, change):
    path = run.path / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **change} if isinstance(change, dict) else change))


@pytest.mark.parametrize(("name", "change"), [
    ("state.json", {"state": 3}), ("state.json", {"state": ["training"]}), ("state.json", {"started_s": "now"}),
    ("state.json", {"started_s": 1e300}), ("state.json", {"step": 10**400}), ("state.json", {"published": [1, None]}),
    ("state.json", {"message": {"a": 1}}), ("state.json", {"published": 7}), ("state.json", [1]),
    ("config.json", {"base": 5}), ("config.json", {"base": None}), ("config.json", {"concepts": [{"token": ["x"]}]}),
    ("config.json", {"concepts": "x"}), ("config.json", {"preview_prompts": [1]}), ("config.json", {"steps": 10**400}),
    ("config.json", {"base": "a\x00b"}), ("config.json", {"base": "~nobody-here/x.ckpt"}), ("inputs.json", [1]),
    ("inputs.json", {"base": 7}),
], ids=str)
def test_a_tampered_run_neither_crashes_the_list_nor_hides_the_others(service, values, run, name, change):
    other = replace(run.config(), output_name="other")
    RunFolder.for_config(other).create(other)
    tampered(run, name, change)
    rows = {row["name"]: row for row in service.runs()}
    assert set(rows) == {"rex", "other"}
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import runs_panel

    assert "other" in runs_panel.runs_html(service)
    job = service.resume("other")
    assert job.done.wait(60)
    try:
        job = service.resume("rex")
        assert job.done.wait(60) and job.state == "failed" and "Error:" not in job.message.split("\n")[0], job.message
    except DreamboothError:
        pass


@pytest.mark.parametrize("line", [
    '{"step": 1e999, "loss": 1}', '{"step": 2, "loss": "<script>"}', "[1]", '{"step": "x"}', '{"step": 3, "seconds": "1"}',
    '{"step": -1, "loss": 1}', "{" * 5000, '{"step": 1' + "0" * 400 + "}"])
def test_tampered_figures_do_not_break_the_report(run, line):
    run.append_metrics({"step": 5, "loss": 0.5, "seconds": 1.0})
    with run.metrics_path.open("a") as stream:
        stream.write(line + "\n")
    run.append_metrics({"step": 6, "loss": 0.4, "seconds": 1.0})
    page = report_html(run)
    assert "<script>" not in page and 0.4 in [entry.get("loss") for entry in run.metrics()]


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/x", "a/b", "a\\b", "", ".", "con", "a\x00b"])
def test_a_name_in_a_run_never_leaves_the_models_folder(service, run, name):
    tampered(run, "config.json", {"output_name": name})
    (run.diffusers_dir / "unet").mkdir(parents=True)
    with pytest.raises(ConfigError):
        service.publish("rex")
    with pytest.raises(DreamboothError):
        service.publish("rex", as_name=name or "..")


@pytest.mark.parametrize("setting", ["base", "vae", "models_dir", "runs_dir", "instance_dir", "class_dir"])
def test_a_run_from_elsewhere_is_confined_like_what_is_typed(shared, run, tmp_path, setting):
    """Strangers cannot bring a run folder by themselves, but one that they were given may name any path."""
    inside = {"models_dir": str(tmp_path / "models"), "instance_dir": str(run.path)}
    config = run.config()
    run.create(replace(config, models_dir=inside["models_dir"],
                       concepts=(replace(config.concepts[0], instance_dir=inside["instance_dir"]),)))
    shared.resume("rex").done.wait(60)
    values = json.loads((run.path / "config.json").read_text())
    owner = values if setting in values else values["concepts"][0]
    owner[setting] = str(tmp_path / "secret")
    (run.path / "config.json").write_text(json.dumps(values))
    for act in (shared.resume, shared.publish):
        with pytest.raises(UnsafePath):
            act("rex")


def test_links_in_a_run_are_not_followed(service, shared, run, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "secret" / "private.png")
    run.previews_dir.mkdir()
    (run.previews_dir / "step-000001-0.png").symlink_to(tmp_path / "secret" / "private.png")
    (run.path / "linked").symlink_to(tmp_path / "secret")
    assert "data:image" not in report_html(run)
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import choose_panel, watch_panel

    assert "data:image" not in choose_panel.grid_html(service, "rex") + watch_panel.previews_html(run)
    (service.host.runs_dir / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_bytes((run.path / "config.json").read_bytes())
    with pytest.raises(UnsafePath):
        shared.run("away")
    with pytest.raises(StorageError):
        service.delete("away")
    assert (tmp_path / "elsewhere" / "config.json").exists()
    service.delete("rex")
    assert (tmp_path / "secret" / "diary.txt").exists() and (tmp_path / "secret" / "private.png").exists()


def test_a_broken_preview_breaks_neither_tab_nor_report(service, run):
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import choose_panel, html

    run.previews_dir.mkdir()
    broken = (b"", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, b"GIF89a\xff\xff\xff\xff\x00\x00\x00", b"P6 90000 90000 255\n")
    for number, content in enumerate(broken):
        (run.previews_dir / f"step-000001-{number}.png").write_bytes(content)
    assert "data:image" not in report_html(run) + choose_panel.grid_html(service, "rex")
    assert html.picture(run.previews_dir / "step-000001-0.png") == ""


# ---- presets and settings from the internet


@pytest.mark.parametrize("values", [{"learning_rate": "fast"}, {"preview_prompts": 5}, {"steps": [1]}, {"seed": 1e999},
                                    {"token": {"a": 1}}, {"seed": 10**400}, {"nonsense": 1}, [], {"version": "x"}], ids=str)
def test_a_preset_of_wrong_values_is_refused_before_it_fills_the_form(tmp_path, values):
    (tmp_path / "theirs.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        presets.load("theirs", tmp_path)


@pytest.mark.parametrize("name", ["../secret/diary", "/etc/passwd", "a\x00b", "..", "", "a/b"])
def test_a_preset_is_read_from_its_folder_alone(tmp_path, name):
    with pytest.raises(UnsafePath):
        presets.load(name, tmp_path)
    with pytest.raises((UnsafePath, ConfigError)):
        presets.save(name, presets.TrainConfig(), tmp_path)


def test_imported_settings_that_make_no_sense_are_listed_not_raised(tmp_path):
    (tmp_path / "db.json").write_text(
        '{"model_name": "x", "resolution": 1e999, "seed": 1e999, "learning_rate": [1], "optimizer": {}}')
    imported = presets.import_settings(tmp_path / "db.json")
    assert imported.settings == {"output_name": "x"} and len(imported.not_taken) == 4


def test_names_that_are_html_are_shown_as_text(service, run, tmp_path):
    pytest.importorskip("gradio")
    from PIL import Image

    from dreambooth_ext.ui import choose_panel, html, runs_panel, watch_panel
    from dreambooth_ext.ui.sentences import Sentences

    config = run.config()
    concept = replace(config.concepts[0], token=ATTACK, class_noun=ATTACK, instance_prompt=ATTACK)
    run.create(replace(config, base=ATTACK, concepts=(concept,), preview_prompts=(ATTACK,)))
    run.write_state(RunState(ATTACK, 1, 2, ATTACK, published=(ATTACK,)))
    run.log(ATTACK)
    run.previews_dir.mkdir()
    for path in (run.previews_dir / f"step-000001-{ATTACK.replace('/', '')}.png",
                 tmp_path / "pictures" / "<img src=x onerror=alert(1)>.png"):
        Image.new("RGB", (8, 8)).save(path)
    pages = [runs_panel.runs_html(service), choose_panel.grid_html(service, "rex"), watch_panel.previews_html(run),
             report_html(run, with_paths=True), html.note(ATTACK), html.faults([ATTACK]), html.bar(0.5, ATTACK),
             Sentences(service).review({"instance_dir": str(tmp_path / "pictures")}),
             Sentences(service).concept({"token": ATTACK, "class_noun": ATTACK}), watch_panel.status_html(service, ATTACK)]
    for page in pages:
        assert "<script" not in page and "<img src=x" not in page and "onerror=alert(1)>" not in page
    assert "&lt;script&gt;" in pages[0] and "&lt;img" in pages[7]


# ---- what is sent


def test_uploads_are_bounded_and_kept_whole_or_not_at_all(service, tmp_path, monkeypatch):
    files = []
    for name in ("a.png", "b.jpg", "a.txt"):
        (tmp_path / name).write_bytes(b"12345")
        files.append(str(tmp_path / name))
    assert len(list(service.keep_uploads(files).iterdir())) == 3
    before = set((service.host.runs_dir / "uploads").rglob("*"))
    for limit, value in (("FILES_AT_MOST", 2), ("BYTES_AT_MOST", 4), ("TOTAL_BYTES_AT_MOST", 14)):
        with monkeypatch.context() as patch:
            patch.setattr(uploads, limit, value)
            with pytest.raises(ConfigError, match="most"):
                service.keep_uploads(files)
    for name in ("page.html", "evil.svg", "run.py", "x.ckpt", "noend", "x.png.exe"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match="neither a picture"):
            service.keep_uploads([*files, str(tmp_path / name)])
    with pytest.raises(ConfigError, match="did not arrive"):
        service.keep_uploads([*files, str(tmp_path / "gone.png")])
    assert set((service.host.runs_dir / "uploads").rglob("*")) == before


def test_a_file_that_was_never_uploaded_is_left_out(tmp_path, monkeypatch):
    """gradio 3 takes any file of this computer for an upload, if the request names it."""
    pytest.importorskip("gradio")
    from dreambooth_ext.ui.compat import uploads as uploads_of

    class Sent:
        def __init__(self, name, orig_name):
            self.name, self.orig_name = name, orig_name

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    (tmp_path / "gradio").mkdir()
    (tmp_path / "gradio" / "a.png").write_bytes(b"x")
    (tmp_path / "private.png").write_bytes(b"x")
    (tmp_path / "gradio" / "link.png").symlink_to(tmp_path / "private.png")
    copy = str(tmp_path / "gradio" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert uploads_of([Sent(copy, copy), Sent(copy, "was-sent-as-data.png")]) == [copy, copy]
    for named in (tmp_path / "private.png", "private.png", tmp_path / "gradio" / ".." / "private.png",
                  tmp_path / "gradio" / "link.png"):
        assert uploads_of([Sent(copy, str(named))]) == []


# ---- what is told


def test_reports_name_no_folder_of_this_computer(service, run, tmp_path):
    message = f"a file is to be written to {tmp_path}/runs/rex: the disk is full; {Path.home()}/x; {tmp_path}/models/rex.ckpt"
    run.write_state(RunState("failed", 1, 2, message))
    run.log(message)
    page = report_html(run)
    with zipfile.ZipFile(explain_failure(run, tmp_path / "failure.zip")) as archive:
        page += "".join(archive.read(name).decode() for name in archive.namelist())
    assert "the disk is full" in page
    assert str(tmp_path) not in page and str(Path.home()) not in page
    assert str(tmp_path) in report_html(run, with_paths=True)


def test_what_is_offered_for_download_is_alone_in_its_folder(service, run):
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import runs_panel

    for make in (runs_panel._report, runs_panel._explanation):
        made = Path(make(service, "rex")[0]["value"])
        assert [path.name for path in made.parent.iterdir()] == [made.name]
        assert service.host.runs_dir not in made.parents


def test_weights_of_snapshots_are_plain_tensors(tmp_path):
    """What we write ourselves passes the strict reader: nobody is taught to read it in another way."""
    state = {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    folder = checkpoint.write(tmp_path, 3, lambda folder: None, {"unet": {"a": torch.ones(2)}}, state, keep=2)
    weights, read = checkpoint.read(folder)
    assert read["step"] == 3 and torch.equal(weights["unet"]["a"], torch.ones(2))
