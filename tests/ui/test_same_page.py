"""Our own server, as a browser reaches it that has another site's page open."""

import asyncio
import http.client
import json

import pytest

gradio = pytest.importorskip("gradio")

from dreambooth_ext import api  # noqa: E402
from dreambooth_ext.errors import ConfigError  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.ui import app  # noqa: E402
from dreambooth_ext.ui.same_page import SamePageOnly  # noqa: E402


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in ("models", "runs"):
        (folder / name).mkdir()
    (folder / "private.txt").write_text("dear diary")
    (folder / "runs" / "private.png").write_text("dear diary")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # as somebody starts it in their own folder
        address = app.launch(StandaloneHost(folder / "models", folder / "runs"), open_browser=False, block=False,
                             extend=lambda server, service: api.mount(server, service, {}))
        yield int(address.rstrip("/").rpartition(":")[2]), folder
    gradio.close_all()


def answer(port, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body=body, headers={"Host": f"127.0.0.1:{port}", **named})
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "replace")


def test_the_page_opens_for_its_owner(port):
    number, _ = port
    assert answer(number, "/")[0] == 200
    assert answer(number, "/", Host=f"localhost:{number}")[0] == 200
    assert answer(number, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200  # a link to it
    assert answer(number, "/config", Origin=f"http://127.0.0.1:{number}", Sec_Fetch_Site="same-origin")[0] == 200


def test_the_api_answers_programs_on_this_computer(port):
    number, _ = port
    assert answer(number, "/dreambooth/v1/runs") == (200, "[]")
    status, text = answer(number, "/dreambooth/v1/start", "POST", "{}", Content_Type="application/json")
    assert status == 422 and "--base: a checkpoint file is needed" in json.loads(text)["faults"]


def test_a_port_that_is_in_use_is_told(port):
    for number in (port[0], 99_999):
        with pytest.raises(ConfigError, match=f"--port: {number} cannot be had"):
            app.launch(StandaloneHost(port[1] / "models", port[1] / "runs"), port=number, open_browser=False, block=False)


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:7860"},
    {"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://localhost:1", "Sec_Fetch_Site": "same-site"}, {"Host": ""},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
], ids=str)
def test_no_other_page_reads_or_posts(port, headers):
    number, _ = port
    for method, path in (("GET", "/config"), ("POST", "/run/predict"), ("POST", "/gradio_api/run/predict"),
                         ("POST", "/upload"), ("POST", "/gradio_api/upload"), ("GET", "/"), ("GET", "/dreambooth/v1/runs"),
                         ("POST", "/dreambooth/v1/stop")):
        status, text = answer(number, path, method, json.dumps({"fn_index": 0, "data": []}) if method == "POST" else None,
                              Content_Type="application/json", **headers)
        assert status in (400, 403) and "dreambooth" not in text.lower(), (method, path, status)


def test_files_of_the_folder_it_was_started_in_are_not_served(port):
    number, folder = port
    for prefix in ("/file=", "/gradio_api/file="):
        for path in ("private.txt", f"{folder}/private.txt", "runs/private.png", f"{folder}/runs/private.png"):
            status, text = answer(number, prefix + path)
            assert status in (403, 404) and "dear diary" not in text


@pytest.mark.parametrize(("headers", "reached"), [
    ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
    ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
    ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
    ({"host": "evil.example", "origin": "http://evil.example"}, False),
])
def test_web_sockets_are_judged_too(headers, reached):
    """Browsers let any page open one; only the Origin tells."""
    seen, sent = [], []

    async def inner(scope, receive, send):
        seen.append(scope)

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/queue/join", "headers": listed}
    asyncio.run(SamePageOnly(inner)(scope, receive, send))
    assert (bool(seen), sent) == (reached, [] if reached else ["websocket.close"])
