"""Attacks: a page that posts to localhost, files from the internet, strangers at a shared WebUI. See docs/security.md."""

import json
import os
import pickle
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreambooth_ext import other_trainers, presets, recipe, uploads
from dreambooth_ext.dataset.manifest import sha256_of
from dreambooth_ext.errors import CheckpointError, ConfigError, DreamboothError, ResumeError, StorageError, UnsafePath
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.progress import Progress
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
        assert job.done.wait(120) and job.state == "failed" and "evil.ckpt" in job.message, job.message
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
    assert job.done.wait(120)
    try:
        job = service.resume("rex")
        assert job.done.wait(120) and job.state == "failed" and "Error:" not in job.message.split("\n")[0], job.message
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


@pytest.mark.parametrize("setting", ["base", "vae", "models_dir", "instance_dir", "class_dir"])
def test_a_run_from_elsewhere_is_confined_like_what_is_typed(shared, run, tmp_path, setting):
    """Strangers cannot bring a run folder by themselves, but one that they were given may name any path."""
    inside = {"models_dir": str(tmp_path / "models"), "instance_dir": str(run.path)}
    config = run.config()
    run.create(replace(config, models_dir=inside["models_dir"],
                       concepts=(replace(config.concepts[0], instance_dir=inside["instance_dir"]),)))
    shared.resume("rex").done.wait(120)
    values = json.loads((run.path / "config.json").read_text())
    owner = values if setting in values else values["concepts"][0]
    owner[setting] = str(tmp_path / "secret")
    (run.path / "config.json").write_text(json.dumps(values))
    for act in (shared.resume, shared.publish):
        with pytest.raises(UnsafePath):
            act("rex")


def test_the_folder_of_runs_is_where_a_run_from_elsewhere_stands_whatever_it_says(shared, run, tmp_path):
    values = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**values, "runs_dir": str(tmp_path / "secret")}))
    assert shared.run("rex").config().runs_dir == str(run.path.parent)
    assert shared.cloned("rex")["runs_dir"] == str(run.path.parent)


def test_links_in_a_run_are_not_followed(service, shared, run, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "secret" / "private.png")
    run.previews_dir.mkdir()
    (run.previews_dir / "step-000001-0.png").symlink_to(tmp_path / "secret" / "private.png")
    (run.path / "linked").symlink_to(tmp_path / "secret")
    assert "data:image" not in report_html(run)
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import choose_panel, timeline

    assert "data:image" not in choose_panel.grid_html(service, "rex") + timeline.timeline_html(run)
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
    imported = other_trainers.import_settings(tmp_path / "db.json")
    assert imported.settings == {"output_name": "x"} and len(imported.not_taken) == 4


def reviewed(service, values):
    """Review's grid and one picture of it, once they are made."""
    import time

    import gradio as gr

    from dreambooth_ext.ui.review_panel import ReviewPanel
    from dreambooth_ext.ui.sentences import Sentences

    with gr.Blocks():
        panel = ReviewPanel(service, Sentences(service))
    for _ in range(2400):
        pages = [panel.grid_html(values), *panel._picked("<img src=x onerror=alert(1)>.png", values)[1:2]]
        if not any("dreambooth-pending" in page for page in pages):
            assert "<figure" in pages[0] and "<figure" in pages[1]
            return pages
        time.sleep(0.05)
    raise AssertionError(pages)


def test_names_that_are_html_are_shown_as_text(service, run, tmp_path):
    pytest.importorskip("gradio")
    from PIL import Image

    from dreambooth_ext.ui import choose_panel, html, runs_panel, timeline, watch_panel
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
    pages = [runs_panel.runs_html(service), choose_panel.grid_html(service, "rex"), timeline.timeline_html(run),
             report_html(run, with_paths=True), html.note(ATTACK), html.faults([ATTACK]), html.bar(0.5, ATTACK),
             *reviewed(service, {"instance_dir": str(tmp_path / "pictures"), "token": ATTACK, "class_noun": ATTACK}),
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
    kept = checkpoint.Kept({"unet": {"a": torch.ones(2)}}, state, lambda folder: None, model_bytes=0, in_folder=False)
    folder = checkpoint.write(tmp_path, 3, kept, keep=2)
    weights, read = checkpoint.read(folder)
    assert read["step"] == 3 and torch.equal(weights["unet"]["a"], torch.ones(2))


# ---- links, names and numbers that a run folder or a picture set may bring


def linked(run, name, elsewhere):
    """What an archive may unpack: a folder or file of the run that is a link."""
    path = run.path / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("name", ["dataset", "dataset/concept-0", "checkpoints", "previews", "diffusers", "log.txt",
                                  "metrics.jsonl", ".lock", "audit.json"])
def test_a_run_with_a_link_in_it_is_not_worked_on(service, values, run, tmp_path, inputs, name):
    """Preparation removes pictures that it does not know, pruning removes snapshots, the log is added to."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "secret" / "mine.png")
    (tmp_path / "secret" / "step-000001").mkdir()
    before = sorted((path, path.read_bytes() if path.is_file() else b"") for path in (tmp_path / "secret").rglob("*"))
    concept = replace(run.config().concepts[0], instance_dir=str(inputs[1]))
    config = replace(run.config(), base=str(inputs[0]), resolution=64, concepts=(concept,))
    run.create(config, recipe.inputs_of(config))
    single = name.endswith((".txt", ".jsonl", ".json", ".lock"))
    linked(run, name, tmp_path / "secret" / ("diary.txt" if single else ""))
    with pytest.raises(UnsafePath, match="link to elsewhere"):
        recipe.resume(run, service.host, Progress())
    with pytest.raises(DreamboothError):
        recipe.publish(run, Progress())
    assert sorted((path, path.read_bytes() if path.is_file() else b"") for path in (tmp_path / "secret").rglob("*")) == before
    service.delete("rex")
    assert not run.path.exists() and (tmp_path / "secret" / "mine.png").exists()


def test_nothing_of_a_linked_folder_is_shown(service, run, tmp_path):
    pytest.importorskip("gradio")
    from PIL import Image

    from dreambooth_ext.ui import choose_panel, runs_panel, timeline

    for name in ("step-000001-0.png", "private.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "secret" / name)
    for name in ("previews", "dataset", "comparison"):
        linked(run, name, tmp_path / "secret")
    linked(run, "log.txt", tmp_path / "secret" / "diary.txt")
    page = report_html(run) + timeline.timeline_html(run) + choose_panel.grid_html(service, "rex")
    page += runs_panel.runs_html(service)
    with zipfile.ZipFile(explain_failure(run, tmp_path / "failure.zip")) as archive:
        page += "".join(archive.read(name).decode() for name in archive.namelist())
    assert "data:image" not in page and "dear diary" not in page


@pytest.mark.parametrize("name", ["class-images", "Presets", "uploads", "choices", "prepared", "token-check"])
def test_folders_beside_the_runs_are_no_runs(service, values, run, name):
    """Else deleting a run of that name would delete what belongs to all runs: presets, uploads, class images, choices."""
    folder = service.host.runs_dir / name
    folder.mkdir()
    (folder / "config.json").write_bytes((run.path / "config.json").read_bytes())
    assert [row["name"] for row in service.runs()] == ["rex"]
    for act in (service.run, service.delete, service.resume):
        with pytest.raises(UnsafePath):
            act(name)
    with pytest.raises(UnsafePath):
        service.start({**values, "output_name": name})
    assert (folder / "config.json").exists()


def test_half_characters_and_odd_names_hide_no_run(service, run, tmp_path):
    """JSON and file systems can write what no page and no API can say."""
    gradio = pytest.importorskip("gradio")
    from dreambooth_ext.ui import runs_panel

    tampered(run, "state.json", {"message": "\ud800", "published": ["\udfff"], "state": "\ud801"})
    odd = os.fsencode(service.host.runs_dir) + b"/odd\xff"
    os.mkdir(odd)
    with open(odd + b"/config.json", "wb") as stream:
        stream.write((run.path / "config.json").read_bytes())
    run.previews_dir.mkdir()
    for name in ("step-\u00b2-0.png", "step-000001-\u00b2.png", "step--.png", "step-1.png"):
        (run.previews_dir / name).write_bytes(b"x")
    assert len(json.dumps(service.runs(), ensure_ascii=False).encode()) > 10
    from dreambooth_ext.ui import choose_panel, timeline

    shown = runs_panel.runs_html(service) + choose_panel.grid_html(service, "rex") + timeline.timeline_html(run)
    assert shown.encode() and report_html(run).encode() and gradio


def test_a_list_of_runs_survives_files_that_go_meanwhile(service, run, monkeypatch):
    """Another process prunes its snapshots while the page asks."""
    real = os.lstat
    (run.path / "going").write_bytes(b"x")

    def gone(path, **more):
        if str(path).endswith("going"):
            raise FileNotFoundError(path)
        return real(path, **more)

    monkeypatch.setattr(os, "lstat", gone)
    assert [row["name"] for row in service.runs()] == ["rex"]


def program_in_a_snapshot(path):
    """A TorchScript archive: before torch 2.6 torch.load runs it, with weights_only as without (CVE-2025-32434)."""
    class Module(torch.nn.Module):
        def forward(self, x):
            return x

    torch.jit.save(torch.jit.script(Module()), path)


def compressed(path):
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)


def legacy(path):
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("make", [program_in_a_snapshot, compressed, legacy], ids=lambda make: make.__name__)
def test_a_snapshot_that_torch_did_not_write_here_is_refused(tmp_path, make, monkeypatch):
    folder = tmp_path / "step-000001"
    folder.mkdir()
    make(folder / "state.pt")
    monkeypatch.setattr(torch, "load", lambda *arguments, **more: pytest.fail("it was loaded"))
    with pytest.raises(ResumeError, match="cannot be read"):
        checkpoint.read(folder)


@pytest.mark.parametrize("row", ['{"file": "a.png", "seed": 1}', '{"file": "a.png", "seed": 1, "request": 3}', "[" * 50_000,
                                 '{"file": 3}', "\xff\xfe", '{"file": "../x.png", "seed": 2}'], ids=lambda row: row[:20])
def test_a_tampered_manifest_of_class_images_is_survived(tmp_path, row):
    from PIL import Image

    from dreambooth_ext.config import Concept
    from dreambooth_ext.dataset.class_images import plan

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    sha256 = sha256_of(tmp_path / "a.png")
    (tmp_path / "manifest.jsonl").write_bytes(row.replace('"a.png"', f'"a.png", "sha256": "{sha256}"').encode("latin-1") + b"\n")
    found = plan(Concept(class_noun="dog", class_dir=str(tmp_path), num_class_images=2), "0" * 64, pictures=1, steps=9, batch=1,
                 accumulation=1, class_steps=1, guidance_scale=7.0, resolution=64, seed=0, library=tmp_path)
    assert found.missing == 2 and len(found.foreign) == 1


def test_picture_sets_with_links_to_nowhere_break_no_sentence(service, tmp_path):
    pytest.importorskip("gradio")
    from dreambooth_ext.ui.sentences import Sentences

    (tmp_path / "pictures" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    sentences, values = Sentences(service), {"instance_dir": str(tmp_path / "pictures")}
    assert sentences.audit(values).event.wait(120)
    said = sentences.pictures(values)
    assert "0 good" in said or "cannot" in said or "damaged" in said, said


def test_two_uploads_at_once_never_share_a_folder(service, tmp_path):
    files = []
    for owner in ("ann", "bob"):
        (tmp_path / owner).mkdir()
        for name in ("\u00e4.png", "\u00f6.png", "\u00e4.txt", "\u00f6.txt"):
            (tmp_path / owner / name).write_text(f"{owner} {name}")
        files.append([str(path) for path in sorted((tmp_path / owner).iterdir(), key=lambda path: path.suffix)])
    folders = [service.keep_uploads(each) for each in files]
    assert folders[0] != folders[1]
    for owner, folder in zip(("ann", "bob"), folders, strict=True):
        kept = {path.name: path.read_text() for path in folder.iterdir()}
        assert len(kept) == 4 and all(text.startswith(owner) for text in kept.values())
        for name, text in kept.items():  # each caption stays beside its own picture
            assert kept[name.rpartition(".")[0] + ".txt"].split(".")[0] == text.split(".")[0]


def test_pictures_dropped_at_once_into_one_folder_are_all_kept(tmp_path):
    """Pasted pictures are all called image.png, and a WebUI answers its pages side by side."""
    files = [tmp_path / str(number) / "image.png" for number in range(8)]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes(bytes([number]) * 100_000)
    for turn in range(20):
        (tmp_path / f"uploads-{turn}").mkdir()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda file, turn=turn: uploads.add([str(file)], tmp_path / f"uploads-{turn}"), files))
        assert sorted(path.read_bytes()[0] for path in (tmp_path / f"uploads-{turn}").iterdir()) == list(range(8))


def test_an_upload_that_fails_leaves_nothing(service, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"x")

    def full(source, target):
        if str(source).endswith("b.png"):
            raise OSError(28, "No space left on device")
        Path(target).write_bytes(b"x")

    monkeypatch.setattr(uploads.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="full"):
        service.keep_uploads([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    assert list((service.host.runs_dir / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["settings.json", "settings.toml", "config.json"])
def test_huge_settings_are_refused_unread(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.truncate(1 << 33)  # 8 GiB of nothing
    with pytest.raises(ConfigError, match="too large"):
        other_trainers.import_settings(path)
    with pytest.raises(ConfigError, match="too large"):
        presets.TrainConfig.read(path)


def test_a_run_folder_of_somebody_elses_files_is_left_alone(service, values, tmp_path, inputs):
    """A name that is taken by a folder which no run made."""
    folder = tmp_path / "runs" / "holiday" / "dataset"
    folder.mkdir(parents=True)
    (folder / "beach.png").write_bytes(b"x")
    job = service.start({**values, "base": str(inputs[0]), "instance_dir": str(inputs[1]), "output_name": "holiday", "steps": 1})
    assert job.done.wait(120) and job.state == "failed" and "no run's" in job.message, job.message
    assert [path.name for path in (tmp_path / "runs" / "holiday").iterdir()] == ["dataset"] and (folder / "beach.png").exists()
