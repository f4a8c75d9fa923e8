"""The picture room through HTTP: the same answers, the same refusals, no path outside what a shared host allows."""

import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

from dreambooth_ext import api  # noqa: E402
from dreambooth_ext.dataset.class_images import ensure  # noqa: E402
from dreambooth_ext.hosts.standalone import StandaloneHost  # noqa: E402
from dreambooth_ext.jobs import Jobs  # noqa: E402
from dreambooth_ext.picture_room import class_image_plans  # noqa: E402
from dreambooth_ext.playground import subject  # noqa: E402
from dreambooth_ext.playground.base import playground_base_path  # noqa: E402
from dreambooth_ext.progress import Progress  # noqa: E402
from dreambooth_ext.service import Service  # noqa: E402


class Host(StandaloneHost):
    """Has an upscaler and a captioner, and paints in one colour."""

    def upscalers(self):
        return ["ESRGAN_4x"]

    def upscale(self, image, name, scale):
        return Image.new("RGB", (image.width * 4, image.height * 4), "lime")

    def captioners(self):
        return ["BLIP"]

    def caption(self, images, name):
        return ["a square" for _ in images]

    def txt2img(self, base, request, progress):
        yield from (Image.new("RGB", (request.width, request.height), (seed, 0, 0)) for seed in request.seeds)


@pytest.fixture
def service(tmp_path):
    for name in ("models", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "base.safetensors").symlink_to(playground_base_path())
    subject.draw_pictures(tmp_path / "pictures", 3)
    return Service(Host(tmp_path / "models", tmp_path / "runs"), jobs=Jobs())


@pytest.fixture
def ask(service, tmp_path):
    app = fastapi.FastAPI()
    api.mount(app, service, {})
    http = TestClient(app, raise_server_exceptions=False)

    def post(path, status=200, **body):
        answer = http.post(f"{api.PREFIX}{path}", json=body) if body else http.get(f"{api.PREFIX}{path}")
        assert answer.status_code == status, answer.text
        return answer.json()

    return post


def test_pictures_are_looked_at_chosen_and_prepared(ask, tmp_path):
    folder = str(tmp_path / "pictures")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"x")
    assert ask("/pictures/tools") == {"upscalers": ["ESRGAN_4x"], "captioners": ["BLIP"]}
    report = ask("/pictures/audit", folder=folder, resolution=64)
    assert len(report["pictures"]) == 3 and report["unreadable"][0][0] == "bad.png"
    name = report["pictures"][1]["name"]
    assert ask("/pictures/choose", folder=folder, picture=name, choice="drop") == {"chosen": {name: "drop"}}
    assert ask("/pictures/audit", folder=folder, resolution=64)["pictures"][1]["choice"] == "drop"
    done = ask("/pictures/prepare", folder=folder, resolution=256, upscaler="ESRGAN_4x")
    assert len(done["pictures"]) == 2 and "bad.png" in done["unreadable"]
    with Image.open(f"{done['folder']}/{done['pictures'][0]['file']}") as image:
        assert image.size == (256, 256) and image.getpixel((9, 9)) == (0, 255, 0)
    assert ask("/pictures/choose", folder=folder, picture=name, choice=None) == {"chosen": {}}


def test_captions_are_read_written_and_described(ask, tmp_path):
    folder = str(tmp_path / "pictures")
    assert ask("/pictures/caption", folder=folder, picture="subject_01.png", text="my square") == {"file": "subject_01.txt"}
    first = ask("/pictures/captions", folder=folder, token="rxz", class_noun="square")[0]
    assert first["prompt"] == "my rxz square" and first["tokens"] == 6
    done = ask("/pictures/describe", folder=folder, captioner="BLIP")
    assert done["written"] == ["subject_02.txt", "subject_03.txt"]
    assert "2 pieces" in ask("/pictures/token", token="rxz")["told"]
    drawn = ask("/pictures/token", token="rxz", class_noun="square", base="base.safetensors")["drawn"]
    assert [each["prompt"] for each in drawn] == ["rxz", "rxz square", "square"]


def test_class_images_are_planned_and_struck_out(ask, service, tmp_path):
    settings = {"base": "base.safetensors", "output_name": "rex", "instance_dir": str(tmp_path / "pictures"), "token": "rxz",
                "class_noun": "square", "steps": 4, "class_steps": 2}
    assert ask("/class-images/plan", **settings)[0]["missing"] == 4
    plan = class_image_plans(service.settings(settings), service.host)[0]
    ensure(plan, tmp_path, service.host.txt2img, service.host.provenance(), Progress())
    names = ask("/class-images/plan", **settings)[0]["prompts"][0]["found"]
    after = ask("/class-images/strike-out", **settings, pictures=names[:1])[0]
    assert after["missing"] == 1 and after["prompts"][0]["found"] == names[1:]
    ask("/class-images/strike-out", 422, **settings, pictures=["../../x.png"])
    ask("/class-images/strike-out", 422, **settings, pictures="all")


@pytest.mark.parametrize(("path", "body"), [
    ("/pictures/audit", {"folder": ""}), ("/pictures/audit", {"folder": "FOLDER", "nonsense": 1}),
    ("/pictures/audit", {"folder": 3}), ("/pictures/audit", {"folder": "FOLDER", "kind": "landscape"}),
    ("/pictures/audit", {"folder": "FOLDER", "resolution": "large"}),
    ("/pictures/choose", {"folder": "FOLDER", "picture": "../x.png", "choice": "drop"}), ("/pictures/audit", {"folder": "a\0b"}),
    ("/pictures/choose", {"folder": "FOLDER", "picture": "subject_01.png", "choice": "burn"}),
    ("/pictures/choose", {"folder": "FOLDER", "picture": "subject_01.png", "choice": "fix", "box": [3, 3, 1, 1]}),
    ("/pictures/prepare", {"folder": "FOLDER", "upscaler": "nothing such"}),
    ("/pictures/prepare", {"folder": "FOLDER", "flatten_on": "mauve"}),
    ("/pictures/caption", {"folder": "FOLDER", "picture": None}),
    ("/pictures/describe", {"folder": "FOLDER", "captioner": "nobody"}), ("/pictures/token", {"token": " "}),
    ("/class-images/plan", {"base": "base.safetensors"}),
])
def test_what_cannot_be_done_is_refused_in_words(ask, tmp_path, path, body):
    body = {name: str(tmp_path / "pictures") if value == "FOLDER" else value for name, value in body.items()}
    assert ask(path, 422, **body)["error"]
    assert not list((tmp_path / "pictures").glob("*.txt"))


def test_a_shared_host_keeps_to_its_own_folders(service, tmp_path):
    app = fastapi.FastAPI()
    api.mount(app, Service(service.host, roots=[tmp_path / "runs"], jobs=Jobs()), {})
    http = TestClient(app, raise_server_exceptions=False)
    for path in ("audit", "captions", "prepare", "describe"):
        answer = http.post(f"{api.PREFIX}/pictures/{path}", json={"folder": str(tmp_path / "pictures")})
        assert answer.status_code == 422 and "pictures" in answer.json()["error"]
