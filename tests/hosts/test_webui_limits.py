"""What a WebUI, as it was started, allows."""

import pytest

from dreambooth_ext.errors import HostError
from dreambooth_ext.hosts import webui_limits
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
