"""HTTP routes about pictures: what the picture room does, for programs.

    GET  /pictures/tools                     the host's upscalers and captioners
    POST /pictures/audit                     body: {"folder": "", "kind": "subject", "resolution": 512}
    POST /pictures/choose                    body: {"folder": "", "picture": "", "choice": "drop", "sha256": "", "box": null}
    POST /pictures/prepare                   body: {"folder": "", "resolution": 512, "crop": "", "upscaler": "", "flatten_on": ""}
    POST /pictures/captions                  body: {"folder": "", "token": "", "class_noun": "", "instance_prompt": ""}
    POST /pictures/caption                   body: {"folder": "", "picture": "", "text": ""}
    POST /pictures/describe                  body: {"folder": "", "captioner": "BLIP", "overwrite": false}
    POST /pictures/token                     body: {"token": "", "class_noun": "", "base": "", "resolution": null}, ...
    POST /class-images/plan                  body: the settings
    POST /class-images/strike-out            body: the settings, and "pictures": [names]

The picture room is imported by the first request for it: the WebUI's start does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import OPTIONS, Concept
from ..errors import ConfigError
from ..files import expanded
from ..progress import Progress
from ..service import Service
from .runs import Route

_TEXTS = ("token", "class_noun", "instance_prompt", "class_prompt")


def routes(service: Service) -> list[Route]:
    return [*_of_folders(service), *_of_captions(service), *_of_the_class(service)]


def _of_folders(service: Service) -> list[Route]:
    def tools(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        return {"upscalers": service.host.upscalers(), "captioners": service.host.captioners()}

    def audit(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        from .. import picture_room

        folder = _folder(service, body, {"kind", "resolution"})
        asked = _checked(body, "kind", "resolution")
        return picture_room.review(folder, service.host.runs_dir, kind=asked.get("kind", "subject"),
                                   resolution=asked.get("resolution") or 512).to_dict()

    def choose(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        from .. import picture_room

        folder = _folder(service, body, {"picture", "choice", "sha256", "box"})
        picture, box = _picture(folder, body), body.get("box")
        if body.get("choice") not in (None, "keep", "fix", "drop"):
            raise ConfigError(["choice: keep, fix, drop, or null to forget it"])
        if box is not None and not picture_room.is_box(box):
            raise ConfigError(["box: [left, top, right, bottom] in whole pixels"])
        chosen = picture_room.Choice(body["choice"], str(body.get("sha256") or ""), tuple(box) if box else None) \
            if body.get("choice") else None
        file = picture_room.choices_file(service.host.runs_dir, folder)
        return {"chosen": {name: each.choice for name, each in picture_room.choose(file, picture.name, chosen).items()}}

    def prepare(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        from .. import picture_room

        names = ("resolution", "crop", "upscaler", "flatten_on")
        folder, asked = _folder(service, body, set(names)), _checked(body, *names)
        prepared = picture_room.prepare_folder(folder, service.host, **{**asked, "resolution": asked.get("resolution") or 512})
        return {"folder": str(prepared.folder), "unreadable": dict(prepared.refused), "pictures": [
            {"file": each.path.name, "source": each.source.name, "box": list(each.box)} for each in prepared.pictures]}

    return [("GET", "/pictures/tools", tools), ("POST", "/pictures/audit", audit), ("POST", "/pictures/choose", choose),
            ("POST", "/pictures/prepare", prepare)]


def _of_captions(service: Service) -> list[Route]:
    def captions(body: dict[str, Any], path: dict[str, str]) -> list[dict[str, Any]]:
        from .. import picture_room

        folder = _folder(service, body, set(_TEXTS))
        return [{"picture": each.picture.name, "text": each.text, "prompt": each.prompt, "tokens": each.tokens, "cut": each.cut,
                 "problem": each.problem} for each in picture_room.captions(folder, _concept(body))]

    def caption(body: dict[str, Any], path: dict[str, str]) -> dict[str, str]:
        from .. import picture_room

        picture = _picture(_folder(service, body, {"picture", "text"}), body)
        return {"file": picture_room.write_caption(picture, str(body.get("text") or "")).name}

    def describe(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        from .. import picture_room

        folder = _folder(service, body, {"captioner", "overwrite"})
        done = picture_room.caption_with(folder, service.host, str(body.get("captioner") or ""),
                                         overwrite=body.get("overwrite") is True, progress=Progress())
        return {"sentence": done.sentence, "written": [path.name for path in done.written], "refused": dict(done.refused)}

    def token(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        from .. import picture_room

        asked, concept = _checked(body, "resolution", "prediction_type", "clip_skip", "vae"), _concept(body)
        if not concept.token.strip():
            raise ConfigError(["token: the new word is needed"])
        drawn = []
        if body.get("base"):
            base = service.require_allowed(Path(service.file_of(str(body["base"]))))
            vae = str(service.require_allowed(Path(asked["vae"]).expanduser())) if asked.get("vae") else ""
            side = asked.get("resolution") or picture_room.resolution_of(base)
            drawn = picture_room.token_pictures(base, concept, service.host, Progress(), resolution=side,
                                                prediction_type=asked.get("prediction_type", "auto"),
                                                clip_skip=asked.get("clip_skip", 1), vae=vae)
        return {"told": picture_room.token_told(concept.token),
                "drawn": [{"prompt": each.prompt, "pictures": [str(path) for path in each.pictures]} for each in drawn]}

    return [("POST", "/pictures/captions", captions), ("POST", "/pictures/caption", caption),
            ("POST", "/pictures/describe", describe), ("POST", "/pictures/token", token)]


def _of_the_class(service: Service) -> list[Route]:
    def plan(body: dict[str, Any], path: dict[str, str]) -> list[Mapping[str, object]]:
        from .. import picture_room

        return picture_room.plans_as_values(picture_room.class_image_plans(service.settings(body), service.host))

    def strike_out(body: dict[str, Any], path: dict[str, str]) -> list[Mapping[str, object]]:
        from .. import picture_room

        names = body.get("pictures")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(["pictures: a list of names is needed, as /class-images/plan gives them"])
        config = service.settings({name: value for name, value in body.items() if name != "pictures"})
        picture_room.strike_out(picture_room.named(picture_room.class_image_plans(config, service.host), names))
        return picture_room.plans_as_values(picture_room.class_image_plans(config, service.host))

    return [("POST", "/class-images/plan", plan), ("POST", "/class-images/strike-out", strike_out)]


def _folder(service: Service, body: Mapping[str, Any], more: set[str]) -> Path:
    """The folder that a request names. Raises ConfigError for other names than these, UnsafePath on a shared host."""
    unknown = sorted(set(body) - {"folder", *more})
    if unknown:
        raise ConfigError([f"{name}: there is no such setting here" for name in unknown])
    folder = body.get("folder")
    if not isinstance(folder, str) or not folder.strip() or "\x00" in folder:
        raise ConfigError(["folder: the folder of pictures is needed"])
    return service.require_allowed(expanded(folder))


def _picture(folder: Path, body: Mapping[str, Any]) -> Path:
    """One picture of a folder, by its name. Raises ConfigError, PictureError."""
    from .. import picture_room

    name = body.get("picture")
    found = next((path for path in picture_room.list_pictures(folder) if path.name == name), None)
    if found is None:
        raise ConfigError([f"picture: there is no {name!r} in that folder"])
    return found


def _checked(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These settings, as far as they are given. Raises ConfigError with every fault."""
    given = {name: body[name] for name in names if body.get(name) not in (None, "")}
    faults = [fault for name, value in given.items() if (fault := OPTIONS[name].fault(value))]
    if faults:
        raise ConfigError(faults)
    return given


def _concept(body: Mapping[str, Any]) -> Concept:
    return Concept(**_checked(body, *(name for name in _TEXTS if name in body)))
