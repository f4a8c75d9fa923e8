import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "webui_double"))


@pytest.fixture
def webui(tmp_path):
    import double

    with double.running(tmp_path / "webui", {"a-first.ckpt": b"first", "base.ckpt": b"base"}) as running:
        yield running


@pytest.fixture
def host(webui):
    from dreambooth_ext.hosts.a1111 import A1111Host

    return A1111Host()


@pytest.fixture
def base(webui):
    return webui.folder / "base.ckpt"
