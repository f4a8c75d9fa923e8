"""What the tab and the API share: validation, the host's folders, shared WebUIs, runs."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_ext import recipe
from dreambooth_ext.compare import snapshot_folder
from dreambooth_ext.dataset.pictures import list_pictures
from dreambooth_ext.errors import ConfigError, ResumeError, RunBusy, UnsafePath
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.service import Service


@pytest.fixture
def host(tmp_path):
    for name in ("models", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.safetensors").write_bytes(b"x")
    return StandaloneHost(tmp_path / "models", tmp_path / "runs")


@pytest.fixture
def service(host):
    return Service(host, jobs=Jobs())


@pytest.fixture
def values(tmp_path):
    (tmp_path / "pictures").mkdir()
    return {"base": "base.safetensors", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"),
            "token": "rxz", "class_noun": "dog"}


@pytest.fixture
def played(monkeypatch):
    """Training that goes on until it is stopped."""
    def train(config, host, progress):
        run = RunFolder.for_config(config)
        run.create(config)
        while True:
            progress.check()
            threading.Event().wait(0.01)

    monkeypatch.setattr(recipe, "train", train)


def test_a_title_becomes_a_file_and_folders_come_from_the_host(service, host, values):
    config = service.settings(values)
    assert config.base == str(host.models_dir / "base.safetensors")
    assert (config.models_dir, config.runs_dir) == (str(host.models_dir), str(host.runs_dir))
    assert service.settings({**values, "models_dir": "elsewhere"}).models_dir == "elsewhere"


def test_a_lora_goes_to_the_loras(service, host, values):
    assert service.settings({**values, "lora_rank": 8}).models_dir == str(host.lora_dir)


def test_every_fault_is_told_at_once(service):
    with pytest.raises(ConfigError) as caught:
        service.start({"base": "", "output_name": "", "steps": 0, "nonsense": 1})
    assert caught.value.faults == ("nonsense: there is no such setting", "--steps: 0 is less than 1, the least that makes sense")
    with pytest.raises(ConfigError) as caught:
        service.start({"base": "", "output_name": "a/b", "instance_dir": "", "token": "", "class_noun": ""})
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize("name", ["base", "vae", "models_dir", "runs_dir", "instance_dir", "class_dir"])
def test_a_shared_webui_confines_every_path(host, tmp_path, values, name):
    service = Service(host, roots=[tmp_path / "dreambooth"], jobs=Jobs())
    values["instance_dir"] = str(tmp_path / "dreambooth" / "pictures")
    service.settings(values)
    with pytest.raises(UnsafePath):
        service.settings({**values, name: "/etc"})


def test_a_link_out_of_the_roots_is_no_way_out(host, tmp_path, values):
    root = tmp_path / "dreambooth"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "pictures")
    service = Service(host, roots=[root], jobs=Jobs())
    with pytest.raises(UnsafePath):
        service.settings({**values, "instance_dir": str(root / "link")})
    with pytest.raises(UnsafePath):
        service.require_allowed(root / ".." / "secret")


def test_a_run_is_started_seen_and_stopped(service, values, played):
    job = service.start(values)
    while not service.status()["running"]:
        threading.Event().wait(0.01)
    assert service.shown_job() is job
    with pytest.raises(ConfigError, match="there already"):
        service.start(values)
    while not (service.host.runs_dir / "rex" / "config.json").exists():
        threading.Event().wait(0.01)
    with pytest.raises(RunBusy):
        service.delete("rex")
    assert service.stop(job.id, "a test") and job.done.wait(120)
    assert job.state == "cancelled" and service.status()["last"]["stopped_by"] == "a test"
    assert [row["name"] for row in service.runs()] == ["rex"]


def test_a_name_that_would_replace_anothers_model_is_refused_at_once(service, host, values, played):
    (host.models_dir / "rex.ckpt").write_bytes(b"somebody else's")
    with pytest.raises(ConfigError, match=r"--output-name: rex\.ckpt is in the models folder already"):
        service.start(values)
    assert service.jobs.all() == []


def test_stop_and_discard_leaves_nothing(service, values, played):
    job = service.start(values)
    while not (service.host.runs_dir / "rex" / "config.json").exists():
        threading.Event().wait(0.01)
    service.stop(job.id, "a test", discard=True)
    assert job.done.wait(120) and service.runs() == []
    assert not (service.host.runs_dir / "rex").exists()


def test_a_run_that_is_finished_before_it_hears_that_it_is_to_be_discarded_is_kept_and_that_is_said(service, values, monkeypatch):
    def train(config, host, progress):
        RunFolder.for_config(config).create(config)
        while not progress.cancelled:  # as while the model is selected
            threading.Event().wait(0.01)

    monkeypatch.setattr(recipe, "train", train)
    job = service.start(values)
    while service.jobs.running is None:
        threading.Event().wait(0.01)
    assert service.stop(job.id, "a test", discard=True) and job.done.wait(120)
    assert job.state == "finished" and service.run("rex").exists
    assert "too late" in job.message and "delete the one in Runs" in job.message


@pytest.mark.parametrize("use", ["publish", "compare"])
def test_stop_and_discard_of_what_only_uses_a_run_leaves_the_run(service, values, monkeypatch, use):
    from dreambooth_ext import compare

    def until_stopped(progress):
        while True:
            progress.check()
            threading.Event().wait(0.01)

    monkeypatch.setattr(recipe, "publish", lambda run, progress, **_: until_stopped(progress))
    monkeypatch.setattr(compare, "compare", lambda run, host, progress, wishes: until_stopped(progress))
    monkeypatch.setattr(compare, "plan", lambda *_: None)
    RunFolder(service.host.runs_dir / "rex").create(service.settings(values))
    job = getattr(service, use)("rex")
    while service.jobs.running is None:
        threading.Event().wait(0.01)
    assert service.stop(job.id, "a test", discard=True) and job.done.wait(120)
    assert job.state == "cancelled" and service.run("rex").exists


def test_a_waiting_run_can_be_taken_out_of_the_queue(service, values, played):
    first = service.start(values)
    second = service.start({**values, "output_name": "second"})
    assert [job["name"] for job in service.status()["queue"]] in (["second"], ["rex", "second"])
    service.stop(second.id, "a test")
    service.stop(first.id, "a test")
    assert first.done.wait(120) and second.done.wait(120)


def test_wishes_reach_the_running_job(service, values, played):
    assert not service.request("preview")
    job = service.start(values)
    while service.jobs.running is None:
        threading.Event().wait(0.01)
    assert service.request("preview") and job.progress.take_request("preview")
    service.stop(job.id, "a test")
    assert job.done.wait(120)


def test_a_run_is_deleted_but_nothing_else(service, values, tmp_path):
    config = replace(service.settings(values), concepts=())
    run = RunFolder.for_config(config)
    run.create(config)
    service.delete("rex")
    assert not run.path.exists() and (tmp_path / "pictures").exists()
    for name in ("rex", "../models", "..", ""):
        with pytest.raises((ResumeError, UnsafePath)):
            service.delete(name)
    assert (tmp_path / "models").exists()


def test_a_damaged_run_does_not_hide_the_others(service, values):
    config = service.settings(values)
    for name in ("rex", "bad"):
        RunFolder(service.host.runs_dir / name).create(replace(config, output_name=name))
    (service.host.runs_dir / "bad" / "config.json").write_text("{")
    rows = {row["name"]: row for row in service.runs()}
    assert set(rows) == {"rex", "bad"} and "JSON" in rows["bad"]["message"]


def test_snapshots_that_hold_a_model_can_be_published(service, values):
    run = RunFolder.for_config(service.settings(values))
    run.create(service.settings(values))
    for name in ("step-000010", "step-000020"):
        (run.checkpoints_dir / name).mkdir(parents=True)
    (run.checkpoints_dir / "step-000020" / "unet").mkdir()
    assert service.snapshots(run) == ["step-000020"]
    assert snapshot_folder(run, "step-000020").name == "step-000020"
    for name in ("step-000010", "step-000099"):
        with pytest.raises(ResumeError):
            snapshot_folder(run, name)
    with pytest.raises(UnsafePath):
        snapshot_folder(run, "../../models")


def test_uploads_are_kept_under_harmless_names(service, tmp_path):
    files = []
    for number, name in enumerate(("a.png", "a.png", "bö se?.jpg", ".hidden.png", "CON.png",
                                     "x" * 60 + "." + "y" * 99 + ".png")):
        (tmp_path / str(number)).mkdir()
        files.append(tmp_path / str(number) / name)
        files[-1].write_bytes(name.encode())
    folder = service.keep_uploads([str(file) for file in files])
    assert sorted(path.name for path in folder.iterdir()) == ["1-a.png", "_CON.png", "a.png", "b_ se_.jpg", "hidden.png",
                                                                "y" * 99 + ".png"]
    assert len(list_pictures(folder)) == len(files)
    assert service.host.runs_dir in folder.parents


def test_pasted_pictures_join_those_that_were_dropped_before(service, tmp_path):
    """Browsers call each of them image.png."""
    pasted = tmp_path / "image.png"
    folder = ""
    for content in (b"first", b"second", b"third"):
        pasted.write_bytes(content)
        folder = str(service.keep_uploads([str(pasted)], folder))
    assert sorted(path.read_bytes() for path in Path(folder).iterdir()) == [b"first", b"second", b"third"]
    for elsewhere in (tmp_path, service.host.runs_dir / "uploads", service.host.runs_dir / "uploads" / ".." / ".." / "pictures"):
        assert str(service.keep_uploads([str(pasted)], str(elsewhere))) not in (str(elsewhere), folder)


@pytest.mark.parametrize("shared", [False, True])
def test_a_caption_stays_beside_the_picture_that_it_came_with(service, tmp_path, shared):
    """Two pictures of one name, the second with a caption; then one for a picture that is there; and another trainer's ending."""
    if shared:
        service = Service(service.host, roots=[], jobs=Jobs())

    def sent(*names, content):
        for name in names:
            (tmp_path / name).write_bytes(content + name[-4:].encode())
        return [str(tmp_path / name) for name in names]

    folder = service.keep_uploads(sent("a.png", "b.jpg", content=b"1"))
    folder = service.keep_uploads(sent("a.png", "a.txt", "b.caption", content=b"2"), str(folder))
    assert {path.name: path.read_bytes()[:1] for path in folder.iterdir()} == {
        "a.png": b"1", "1-a.png": b"2", "1-a.txt": b"2", "b.jpg": b"1", "b.txt": b"2"}


def test_a_name_is_taken_in_whatever_case(service, values):
    for name in ("Rex", "REX-2"):
        config = service.settings({**values, "output_name": name})
        RunFolder.for_config(config).create(config)
    (service.host.models_dir / "Rex-3.safetensors").write_bytes(b"a model whose run is deleted")
    assert service.free_name("rex") == "rex-4"
    with pytest.raises(ConfigError, match="a run named Rex is there already"):
        service.require_free_name(service.settings({**values, "output_name": "rex"}))


def test_a_free_name_can_be_used_however_long_the_former_is(service, values):
    config = service.settings({**values, "output_name": "x" * 120})
    RunFolder.for_config(config).create(config)
    service.settings({**values, "output_name": service.free_name("x" * 120)}).validate()
    with pytest.raises(ConfigError, match="it has 121 characters, and 120 are the most"):
        service.settings({**values, "output_name": "x" * 121}).validate()


def test_a_model_that_cannot_be_read_when_it_is_to_be_selected_fails_no_run(host):
    """Its disk has gone since it was written there."""
    heard = []
    (host.models_dir / "rex.safetensors").mkdir()
    host.select = lambda path: path.read_bytes()
    recipe._select(host.models_dir / "rex.safetensors", host, Progress(lambda report: heard.append(report.text)))
    assert len(heard) == 1 and heard[0].startswith("rex.safetensors is to be selected: ")
