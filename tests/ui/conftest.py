import pytest
from browsing import launched

from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.service import Service

pytest.importorskip("gradio")


@pytest.fixture
def service(tmp_path):
    for name in ("models", "runs", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.ckpt").write_bytes(b"x")
    return Service(StandaloneHost(tmp_path / "models", tmp_path / "runs"), jobs=Jobs())


@pytest.fixture
def values(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (64, 64), (number, 80, 90)).save(tmp_path / "pictures" / f"{number}.png")
    return {"base": "base.ckpt", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"), "token": "rxz",
            "class_noun": "dog"}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = launched(playwright)
        yield running
        running.close()
