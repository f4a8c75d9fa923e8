"""The HTTP routes about runs, presets and pictures: plain answers, files alone, nothing from outside a run."""

import base64
import io
import json
import zipfile

import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

from dreambooth_ext import api  # noqa: E402
from dreambooth_ext.comparison import BASE, Column, Comparison  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.jobs import Job, Jobs  # noqa: E402
from dreambooth_ext.run_folder import RunFolder, RunState  # noqa: E402
from dreambooth_ext.service import Service  # noqa: E402


@pytest.fixture
def service(tmp_path):
    for name in ("models", "runs", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.ckpt").write_bytes(b"x")
    return Service(StandaloneHost(tmp_path / "models", tmp_path / "runs"), jobs=Jobs())


@pytest.fixture
def values(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "a.png")
    return {"base": "base.ckpt", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"), "token": "rxz",
            "class_noun": "dog", "steps": 8}


@pytest.fixture
def run(service, values):
    config = service.settings(values)
    run = RunFolder.for_config(config)
    run.create(config)
    run.write_state(RunState("failed", 4, 8, "the loss became nan"))
    run.append_metrics({"step": 4, "loss": 0.5})
    run.log("secret rxz")
    for name in ("step-000002", "step-000004"):
        (run.checkpoints_dir / name / "unet").mkdir(parents=True)
        (run.checkpoints_dir / name / "state.pt").write_bytes(b"x")
    found = Comparison(("rxz dog",), ("subject",), (1,), 20, 7.0, 64, (Column(BASE, 0, 0.0), Column("step-000002", 2, 0.7)))
    found.write(run)
    for column in (BASE, "step-000002"):
        found.path(run, column, 0, 1).parent.mkdir()
        Image.new("RGB", (64, 64), "blue").save(found.path(run, column, 0, 1))
    return run


@pytest.fixture
def http(service):
    app = fastapi.FastAPI()
    api.mount(app, service, {})
    return TestClient(app, raise_server_exceptions=False)


def get(http, path, **more):
    return http.get(api.PREFIX + path, **more)


def post(http, path, body):
    return http.post(api.PREFIX + path, json=body)


def test_what_is_known_of_a_run(http, run):
    known = get(http, "/runs/rex").json()
    assert (known["state"], known["step"], known["snapshots"]) == ("failed", 4, ["step-000002", "step-000004"])
    assert known["figures"]["loss"] == 0.5 and known["comparison"]["best"] == "step-000002" and "secret rxz" in known["log"][-1]
    assert get(http, "/runs/rex/metrics").json() == [{"step": 4, "loss": 0.5}]
    assert get(http, "/runs/rex/comparison").json()["columns"][1]["nearness"] == 0.7
    settings = get(http, "/runs/rex/settings").json()
    assert settings["output_name"] == "rex-2" and settings["steps"] == 8
    assert get(http, "/runs/nothing").status_code == 422


def test_figures_that_are_no_numbers_are_left_out(http, run):
    """fp16's scaler begins too high: the first gradients are infinite, and their update is skipped."""
    run.append_metrics({"step": 5, "loss": 0.25, "grad_norm": float("inf"), "validation_loss": float("nan")})
    assert get(http, "/runs/rex").json()["figures"] == {"step": 5, "loss": 0.25}
    assert get(http, "/runs/rex/metrics").json()[-1] == {"step": 5, "loss": 0.25}


def test_a_base_that_is_not_there_is_told(http, tmp_path):
    asked = {"base": "nowhere.ckpt", "resolution": 64, "token": "rxz", "class_noun": "dog"}
    for path, more in (("/class-images/plan", {"instance_dir": str(tmp_path / "pictures")}), ("/pictures/token", {})):
        answer = post(http, path, {**asked, **more})
        assert answer.status_code == 422 and "nowhere.ckpt is to be used" in answer.json()["error"]


def test_its_settings_start_a_new_run(http, service, run, monkeypatch):
    from dreambooth_ext import recipe

    monkeypatch.setattr(recipe, "train", lambda config, host, progress: config)
    job = post(http, "/start", get(http, "/runs/rex/settings").json()).json()
    assert service.jobs.find(job["id"]).done.wait(120) and service.jobs.find(job["id"]).result.output_name == "rex-2"


def test_pictures_come_from_previews_and_comparison_alone(http, run, tmp_path):
    assert get(http, "/runs/rex/pictures/step-000002/00-1.png").headers["content-type"] == "image/png"
    assert get(http, "/runs/rex").json()["previews"] == []
    run.previews_dir.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(run.previews_dir / "step-000002-0.png")
    for name in (shown := get(http, "/runs/rex").json()["previews"]):
        assert get(http, f"/runs/rex/pictures/previews/{name}").headers["content-type"] == "image/png"
    assert shown == ["step-000002-0.png"]
    (run.path / "comparison" / "base" / "link.png").symlink_to(tmp_path / "pictures" / "a.png")
    for path in ("base/link.png", "../config.json", "base/comparison.json", "..%2f..%2fmodels/base.ckpt", "base/..%2f..%2fx.png",
                 "previews/nothing.png", "dataset/a.png", "%2e%2e/config.json"):
        assert get(http, f"/runs/rex/pictures/{path}").status_code in (404, 422), path


def test_report_and_explanation_are_files(http, run):
    report = get(http, "/runs/rex/report")
    assert "attachment" in report.headers["content-disposition"] and "the loss became nan" in report.text
    for wishes, told in (({}, False), ({"with_prompts": True}, True)):
        with zipfile.ZipFile(io.BytesIO(post(http, "/runs/rex/explain", wishes).content)) as archive:
            assert ("rxz" in archive.read("log.txt").decode()) is told


def test_on_a_shared_webui_no_path_is_told_whatever_is_asked(service, run, tmp_path):
    shared = Service(service.host, roots=[tmp_path / "pictures"], jobs=Jobs())
    with zipfile.ZipFile(shared.explain("rex", tmp_path, with_paths=True)) as archive:
        assert str(tmp_path) not in archive.read("settings.json").decode()
    app = fastapi.FastAPI()
    api.mount(app, shared, {})
    answer = TestClient(app).post(f"{api.PREFIX}/runs/rex/open-folder", json={})
    assert answer.status_code == 422 and str(tmp_path) not in answer.text
    assert TestClient(app).post(f"{api.PREFIX}/pictures/audit", json={"folder": "/etc"}).status_code == 422


@pytest.mark.parametrize(("path", "body", "named"), [
    ("/runs/rex/compare", {"count": 0}, "--count"), ("/runs/rex/compare", {"nonsense": 1}, "nonsense"),
    ("/runs/rex/compare", {"snapshots": ["step-000009"]}, "--snapshots"), ("/runs/rex/resume", {"steps": 2}, "--steps"),
    ("/runs/rex/resume", {"steps": "many"}, "--steps"), ("/runs/rex/resume", {"learning_rate": "fast"}, "--learning-rate"),
    ("/queue/move", {"job": "x", "places": "up"}, "places"), ("/request", {"wish": "money"}, "wish"),
    ("/presets/style", {"base": "b"}, "a preset named style"), ("/presets/mine", {"learning_rate": "fast"}, "--learning-rate"),
    ("/presets/nothing/delete", {}, "the preset nothing"), ("/import", {"content": "{", "file": "x.json"}, "x.json"),
    ("/uploads", {"files": {"a.exe": "eA=="}}, "a.exe"), ("/uploads", {"files": {"a.png": "?"}}, "a.png"),
    ("/uploads", {}, "files"),
])
def test_bad_bodies_are_refused_by_name(http, service, run, path, body, named):
    service.settings({"base": "base.ckpt"})
    answer = post(http, path, body)
    assert answer.status_code == 422 and answer.json()["faults"][0].startswith(named), answer.text
    assert service.jobs.all() == []


def test_going_on_from_a_snapshot_that_is_gone(http, service, run):
    answer = post(http, "/runs/rex/resume", {"snapshot": "step-000003"})
    assert answer.status_code == 422 and "step-000002, step-000004" in answer.json()["error"]


def test_the_order_of_the_queue_changes(http, service):
    import threading

    begun, over = threading.Event(), threading.Event()
    service.jobs.start(Job("first", lambda progress: (begun.set(), over.wait(120))))
    assert begun.wait(120)
    waiting = [service.jobs.start(Job(name, lambda progress: None)) for name in ("a", "b", "c")]

    def order():
        return [job["name"] for job in get(http, "/status").json()["queue"]]

    for job, places, expected in ((2, -1, "acb"), (2, -5, "cab"), (2, 99, "abc"), (0, 1, "bac"), (0, 0, "bac")):
        assert post(http, "/queue/move", {"job": waiting[job].id, "places": places}).json() == {"moved": True}
        assert order() == list(expected)
    assert post(http, "/queue/move", {"job": "none", "places": 1}).json() == {"moved": False}
    assert post(http, "/stop", {"job": waiting[1].id}).json() == {"stopping": True} and order() == ["a", "c"]
    over.set()
    assert all(job.done.wait(120) for job in waiting)


def test_presets_are_kept_read_and_removed(http, values):
    assert post(http, "/presets/mine", {**values, "learning_rate": 1e-6}).json() == {"saved": "mine"}
    assert get(http, "/presets").json()[-1] == "mine"
    assert get(http, "/presets/mine").json()["learning_rate"] == 1e-6
    assert post(http, "/presets/mine/delete", {}).json() == {"deleted": True} and "mine" not in get(http, "/presets").json()


def test_settings_of_other_trainers_are_taken(http):
    content = json.dumps({"model_name": "old", "learning_rate": 2e-6, "attention": "xformers", "concepts_list": []})
    answer = post(http, "/import", {"file": "../../db_config.json", "content": content}).json()
    assert answer["settings"]["learning_rate"] == 2e-6 and answer["not_taken"] == ["attention: it has no counterpart here"]


def test_uploaded_pictures_can_be_audited_and_trained_from(http, service, values):
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    folder = post(http, "/uploads", {"files": {"a.png": picture, "sub/a.png": picture, "a.txt": "cmV4"}}).json()["folder"]
    found = post(http, "/pictures/audit", {"folder": folder, "resolution": 64}).json()
    assert len(found["pictures"]) == 2
    faults = post(http, "/check", {**values, "instance_dir": folder}).json()["faults"]
    assert faults and all("instance" not in fault for fault in faults)  # base.ckpt is no checkpoint; the pictures are fine
    assert get(http, "/checkpoints").json() == [{"title": "base.ckpt", "file": "base.ckpt", "loaded": False}]


def test_the_wish_reaches_the_running_job(http, service):
    import threading

    begun, over = threading.Event(), threading.Event()
    assert post(http, "/request", {"wish": "preview"}).json() == {"taken": False}
    job = service.jobs.start(Job("rex", lambda progress: (begun.set(), over.wait(120))))
    assert begun.wait(120) and post(http, "/request", {"wish": "preview"}).json() == {"taken": True}
    assert job.progress.take_request("preview")
    over.set()
    assert job.done.wait(120)
