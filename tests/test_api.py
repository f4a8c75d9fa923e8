"""The HTTP routes: the same validation as everywhere, guarded by the host's credentials."""

import base64
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

from dreambooth_ext import api, recipe  # noqa: E402
from dreambooth_ext.config import Concept, TrainConfig  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.jobs import Jobs  # noqa: E402
from dreambooth_ext.service import Service  # noqa: E402


@pytest.fixture
def service(tmp_path):
    for name in ("models", "runs", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.ckpt").write_bytes(b"x")
    return Service(StandaloneHost(tmp_path / "models", tmp_path / "runs"), jobs=Jobs())


def client(service, credentials=None):
    app = fastapi.FastAPI()
    api.mount(app, service, credentials or {})
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def body(tmp_path):
    return {"base": "base.ckpt", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"), "token": "rxz",
            "class_noun": "dog"}


def test_a_run_through_http(service, body, monkeypatch):
    def train(config, host, progress):
        while True:
            progress.check()

    monkeypatch.setattr(recipe, "train", train)
    http = client(service)
    started = http.post(f"{api.PREFIX}/start", json=body)
    assert started.status_code == 200 and started.json()["name"] == "rex"
    while http.get(f"{api.PREFIX}/status").json()["running"] is None:
        pass
    assert http.post(f"{api.PREFIX}/stop", json={}).json() == {"stopping": True}
    assert service.jobs.find(started.json()["id"]).done.wait(120)
    last = http.get(f"{api.PREFIX}/status").json()["last"]
    assert (last["state"], last["stopped_by"]) == ("cancelled", "the API")
    assert http.post(f"{api.PREFIX}/stop", json={}).json() == {"stopping": False}
    assert http.get(f"{api.PREFIX}/runs").json() == []


@pytest.mark.parametrize(("change", "named"), [
    ({"steps": 0}, "--steps"), ({"token": ""}, "--token"), ({"output_name": "../x"}, "--output-name"),
    ({"nonsense": 1}, "nonsense"), ({"learning_rate": "fast"}, "--learning-rate"), ({"steps": True}, "--steps"),
])
def test_bad_settings_are_refused_by_name(service, body, change, named):
    answer = client(service).post(f"{api.PREFIX}/start", json={**body, **change})
    assert answer.status_code == 422
    assert any(fault.startswith(named) for fault in answer.json()["faults"])


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_object_is_refused(service, content):
    answer = client(service).post(f"{api.PREFIX}/start", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


ROUTES_THAT_ACT = ["/start", "/stop", "/runs/rex/resume", "/runs/rex/publish", "/runs/rex/delete"]


@pytest.fixture
def finished_run(service, body):
    from dreambooth_ext.run_folder import RunFolder

    config = service.settings(body)
    run = RunFolder.for_config(config)
    run.create(config)
    return run


@pytest.mark.parametrize("path", ROUTES_THAT_ACT)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "text/plain; charset=json", "text/plain;application/json", "application/jsonp", "", "json"])
def test_a_form_that_any_web_page_can_send_is_refused(service, body, finished_run, path, kind):
    """Also an empty one: deleting needs no body, and a form without fields sends none."""
    http = client(service)
    for content in (json.dumps({**body, "output_name": "new"}), ""):
        if kind == "" and content == "":
            continue  # what a program sends, see below; a page says where it comes from
        answer = http.post(api.PREFIX + path, content=content, headers={"Content-Type": kind} if kind else {})
        assert answer.status_code == 422, (path, kind, content)
    assert service.jobs.all() == [] and finished_run.exists


FOREIGN = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://testserver.evil.example"},
           {"Origin": "http://testserver:8080"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
           {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example/testserver"}]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_sites_page_cannot_call_any_route(service, body, finished_run, headers):
    http = client(service)
    for method, path, _ in api._routes(service):
        answer = http.request(method, api.PREFIX + path.replace("{name}", "rex"), headers=headers,
                              **({"json": body} if method == "POST" else {}))
        assert answer.status_code == 403, (method, path)
        assert answer.json()["error"].count("\n") == 1 and "access-control-allow-origin" not in answer.headers
    assert service.jobs.all() == [] and finished_run.exists


def test_a_name_that_was_rebound_to_this_computer_reaches_no_route(service, body, finished_run):
    """The page of such a name is of the same origin, as browsers see it; only the Host tells."""
    from dreambooth_ext.origin import is_address

    app = fastapi.FastAPI()
    api.mount(app, service, {}, answers=is_address)
    http = TestClient(app, raise_server_exceptions=False)
    for method, path, _ in api._routes(service):
        headers = {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}
        answer = http.request(method, api.PREFIX + path.replace("{name}", "rex"), headers=headers,
                              **({"json": body} if method == "POST" else {}))
        assert answer.status_code == 403 and "evil.example" in answer.json()["error"], (method, path)
    assert service.jobs.all() == [] and finished_run.exists
    assert http.get(api.PREFIX + "/runs", headers={"Host": "127.0.0.1:7860"}).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://testserver"}, {"Sec-Fetch-Site": "same-origin"},
                                     {"Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"},
                                     {"Origin": "http://trusted.example", "Sec-Fetch-Site": "cross-site"}], ids=str)
def test_our_own_page_programs_and_trusted_origins_can(service, finished_run, headers):
    app = fastapi.FastAPI()
    api.mount(app, service, {}, lambda origin: origin == "http://trusted.example")
    answer = TestClient(app).post(f"{api.PREFIX}/runs/rex/delete", headers=headers)
    assert answer.status_code == 200 and not finished_run.path.exists()


def test_a_body_without_end_is_refused_early(service):
    def endless():
        for _ in range(100):
                yield b" " * (1 << 20)

    answer = client(service).post(f"{api.PREFIX}/start", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and "longer than 1 MiB" in answer.json()["faults"][0]


@pytest.mark.parametrize("path", ["/runs/nothing/resume", "/runs/nothing/publish", "/runs/nothing/delete", "/runs/../delete"])
def test_runs_that_are_not_there(service, path):
    assert client(service).post(api.PREFIX + path, json={}).status_code in (404, 422)


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_every_route_needs_a_password_where_the_host_has_one(service, body):
    http = client(service, {"ann": "s3:cret"})
    for method, path, _ in api._routes(service):
        call = getattr(http, method.lower())
        url = api.PREFIX + path.replace("{name}", "rex")
        for headers in ({}, basic("ann", "wrong"), basic("bob", ""), basic("bob", "s3:cret"), basic("", ""),
                        {"Authorization": "Bearer s3:cret"}, {"Authorization": "Basic ???"},
                        {"Authorization": "Basic sécret".encode()}, {"Authorization": b"Basic \xff\xfe"}):
            assert call(url, headers=headers).status_code == 401, (method, path, headers)
        assert call(url, headers=basic("ann", "s3:cret")).status_code != 401
    assert service.jobs.all() == []


def test_the_schema_is_served(service):
    assert client(service).get(f"{api.PREFIX}/schema").json()["title"] == "TrainConfig"


def test_only_some_settings_of_a_publication_may_change(service, body):
    config = service.settings(body)
    from dreambooth_ext.run_folder import RunFolder

    RunFolder.for_config(config).create(config)
    answer = client(service).post(f"{api.PREFIX}/runs/rex/publish", json={"settings": {"models_dir": "/etc"}})
    assert answer.status_code == 422 and "models_dir" in answer.json()["error"]


def test_the_document_lists_each_route_and_no_other(tmp_path):
    text = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:GET|POST) /[^`]+)` \|", text, re.MULTILINE)
    there = [f"{method} {path}" for method, path, _ in api._routes(Service(StandaloneHost(tmp_path, tmp_path)))]
    assert sorted(listed) == sorted(there)


def test_the_schema_knows_every_option():
    found = api.schema()
    of_concept = {field.name for field in fields(Concept)}  # a single one stands on the top level
    assert set(found["properties"]) == {field.name for field in fields(TrainConfig)} | of_concept
    assert set(found["properties"]["concepts"]["items"]["properties"]) == {field.name for field in fields(Concept)}
    assert found["properties"]["steps"]["type"] == ["integer", "null"] and found["properties"]["steps"]["minimum"] == 1
