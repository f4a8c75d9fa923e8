"""The WebUI's upscalers and captioners, as its own code offers them, in preparation and for captions."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from dreambooth_ext import picture_room


class Interrogator:
    """BLIP: to be loaded first, and unloaded whatever happens."""

    def __init__(self):
        self.loaded, self.log, self.offline = False, [], False

    def load(self):
        self.loaded = True  # BLIP is, before CLIP is fetched
        if self.offline:
            raise OSError("no network")
        self.log.append("load")

    def unload(self):
        self.loaded = False
        self.log.append("unload")

    def generate_caption(self, pil_image):
        assert self.loaded and pil_image.mode == "RGB"
        if pil_image.width == 13:
            raise RuntimeError("out of memory")
        return f"a picture {pil_image.width} wide"


class DeepBooru:
    """deepbooru.model: started and stopped around; by the user's settings with weights, and as prompts escape brackets."""

    def __init__(self):
        self.running = False

    def start(self):
        self.running = True

    def stop(self):
        self.running = False

    def tag_multi(self, pil_image, force_disable_ranks=False):
        assert self.running
        tags = ("1girl", r"miku_\(singer\)")
        return ", ".join(tags if force_disable_ranks else (f"({tag}:0.998)" for tag in tags))


@pytest.fixture
def tools(webui, monkeypatch):
    """The double with what a WebUI has: two upscalers, BLIP and DeepBooru."""
    asked = []

    def upscale(image, scale, path):
        asked.append((image.size, scale, path))
        side = 4 * max(image.size)
        return Image.new("RGB", (side, side), "lime")

    scaler = SimpleNamespace(upscale=upscale)
    upscalers = [SimpleNamespace(name=name, scaler=scaler, data_path=f"models/{name}.pth") for name in ("None", "ESRGAN_4x")]
    monkeypatch.setattr(webui.shared, "sd_upscalers", upscalers)
    monkeypatch.setattr(webui.shared, "interrogator", Interrogator(), raising=False)
    module = ModuleType("modules.deepbooru")
    module.model, module.__spec__ = DeepBooru(), SimpleNamespace(name="modules.deepbooru")
    monkeypatch.setitem(sys.modules, "modules.deepbooru", module)
    monkeypatch.setattr(sys.modules["modules"], "deepbooru", module, raising=False)
    return SimpleNamespace(asked=asked, interrogator=webui.shared.interrogator, deepbooru=module.model)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(2):
        Image.new("RGB", (40 + number, 40), "red").save(source / f"{number}.png")
    return source


def test_a_small_picture_is_enlarged_by_the_webuis_upscaler(host, tools, folder):
    assert host.upscalers() == ["ESRGAN_4x"]
    prepared = picture_room.prepare_folder(folder, host, resolution=64, upscaler="ESRGAN_4x")
    assert [(size, path) for size, _, path in tools.asked] == [((40, 40), "models/ESRGAN_4x.pth")] * 2
    with Image.open(prepared.pictures[0].path) as image:
        assert image.getpixel((3, 3)) == (0, 255, 0)


def test_blip_and_deepbooru_describe_pictures(host, tools, folder):
    assert host.captioners() == ["BLIP", "deepbooru"]
    done = picture_room.caption_with(folder, host, "BLIP")
    assert (folder / "0.txt").read_text() == "a picture 40 wide\n" and len(done.written) == 2
    assert tools.interrogator.log == ["load", "unload"]
    picture_room.caption_with(folder, host, "deepbooru", overwrite=True)
    assert (folder / "1.txt").read_text() == "1girl, miku_(singer)\n" and not tools.deepbooru.running


def test_a_captioner_that_fails_is_unloaded_and_named(host, tools, folder):
    from dreambooth_ext.errors import HostError

    Image.new("RGB", (13, 13)).save(folder / "9.png")
    with pytest.raises(HostError, match="out of memory"):
        picture_room.caption_with(folder, host, "BLIP")
    assert not tools.interrogator.loaded
    tools.interrogator.offline = True
    with pytest.raises(HostError, match="no network"):
        picture_room.caption_with(folder, host, "BLIP")
    assert not tools.interrogator.loaded
