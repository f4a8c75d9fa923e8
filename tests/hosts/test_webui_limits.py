"""What a WebUI, as it was started, allows."""

import pytest

from dreambooth_ext.errors import HostError
from dreambooth_ext.hosts import webui_limits, webui_options
from dreambooth_ext.progress import Progress


def test_directml_is_refused_by_name(webui, host):
    webui.shared.cmd_opts.use_directml = True
    with pytest.raises(HostError, match="DirectML"), host.job("run", Progress()):
        pytest.fail("it began")
    assert "DirectML" in webui_limits.warning()


def test_onnx_is_refused(webui, monkeypatch):
    import sys
    import types

    monkeypatch.setattr(webui_limits, "find_spec", lambda name: object())
    assert webui_limits.warning() == ""
    webui.opts.data["onnx_enable"] = True
    assert "ONNX" in webui_limits.warning()
    assert isinstance(sys.modules["modules"], types.ModuleType)


@pytest.mark.parametrize(("flags", "shared"), [
    ({}, False), ({"listen": True}, True), ({"share": True}, True), ({"server_name": "127.0.0.1"}, False),
    ({"server_name": "0.0.0.0"}, True), ({"listen": True, "enable_insecure_extension_access": True}, False),
    ({"hide_ui_dir_config": True}, True),
])
def test_a_shared_webui_confines_paths(webui, tmp_path, flags, shared):
    for name, value in flags.items():
        setattr(webui.shared.cmd_opts, name, value)
    assert webui_limits.roots(tmp_path / "d" / "runs") == ([tmp_path / "d"] if shared else None)


@pytest.mark.parametrize("shared", [False, True])
def test_who_uses_a_shared_webui_does_not_say_where_the_runs_stand(webui, tmp_path, shared):
    """All paths are confined to the folder around them: whoever sets it to / would be confined to nothing."""
    webui.shared.cmd_opts.listen = shared
    webui_options.add()
    assert webui.opts.set("dreambooth_runs_dir", str(tmp_path / "elsewhere" / "runs")) is not shared
    assert (webui.opts.dreambooth_runs_dir == "") is shared
    assert webui.opts.set("dreambooth_free_ram", True)


@pytest.mark.parametrize(("flags", "users"), [
    ({"api": True}, {}), ({"api": False}, None), ({"api": False, "nowebui": True}, {}),
    ({"api": True, "api_auth": "ann:s3:cret,bob:x"}, {"ann": "s3:cret", "bob": "x"}),
])
def test_the_apis_users(webui, flags, users):
    for name, value in flags.items():
        setattr(webui.shared.cmd_opts, name, value)
    assert webui_limits.api_credentials() == users


@pytest.mark.parametrize(("flags", "trusted"), [
    ({}, False), ({"cors_allow_origins": "http://b.example,http://a.example"}, True),
    ({"cors_allow_origins": "http://b.example"}, False),
    ({"cors_allow_origins": "*"}, True), ({"cors_allow_origins_regex": r"http://[ab]\.example"}, True),
    ({"cors_allow_origins_regex": r"http://a"}, False),
])
def test_the_pages_that_the_owner_trusts(webui, flags, trusted):
    for name, value in flags.items():
        setattr(webui.shared.cmd_opts, name, value)
    assert webui_limits.allows_origin("http://a.example") is trusted


@pytest.mark.parametrize(("flags", "host", "answered"), [
    ({}, "127.0.0.1:7860", True), ({}, "localhost:7860", True), ({}, "[::1]:7860", True), ({}, "192.168.1.7:7860", True),
    ({}, "evil.example:7860", False), ({}, "127.0.0.1.evil.example", False), ({}, "localhost.evil.example", False), ({}, "", False),
    ({}, "[::1", False), ({"listen": True}, "desktop.local:7860", True),
    ({"cors_allow_origins": "https://my.example"}, "my.example", True),
    ({"cors_allow_origins": "https://my.example"}, "evil.example", False),
])
def test_names_that_were_rebound_to_this_computer_are_not_answered(webui, flags, host, answered):
    for name, value in flags.items():
        setattr(webui.shared.cmd_opts, name, value)
    assert webui_limits.answers_to(host) is answered


def test_gradio_serves_nothing_of_the_runs(tmp_path, monkeypatch):
    """gradio 3 serves every file below the folder that the WebUI was started in, and runs stand there by default."""
    gradio = pytest.importorskip("gradio")
    import urllib.error
    import urllib.request

    runs = tmp_path / "dreambooth" / "runs"
    (runs / "uploads").mkdir(parents=True)
    for path in (runs / "log.txt", runs / "uploads" / "private.txt", tmp_path / "served.txt"):
        path.write_text("dear diary")
    monkeypatch.chdir(tmp_path)
    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.Textbox()
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)

    def answer(path):
        found = []
        for prefix in ("file=", "gradio_api/file="):
            try:
                with urllib.request.urlopen(f"{address}{prefix}{path}", timeout=120) as response:
                    found.append(response.read().decode("utf-8", "replace"))
            except urllib.error.HTTPError as error:
                found.append(f"refused {error.code}")
        return " ".join(found)

    try:
        before = answer("dreambooth/runs/log.txt")
        webui_limits.keep_private(page, runs)
        webui_limits.keep_private(None, runs)  # --nowebui
        for path in ("dreambooth/runs/log.txt", f"{runs}/log.txt", "dreambooth/runs/uploads/private.txt",
                     "dreambooth/../dreambooth/runs/log.txt"):
            assert "dear diary" not in answer(path), path
        assert ("dear diary" in before) == ("dear diary" in answer("served.txt"))  # the rest of the host's is left as it was
    finally:
        page.close()
