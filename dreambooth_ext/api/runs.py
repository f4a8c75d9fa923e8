"""HTTP routes about runs, their comparison and reports, the queue, presets, and settings that are not started yet.

    GET  /checkpoints                       what can be trained from
    POST /check                             body: the settings; answers their faults, and starts nothing
    POST /estimate                          body: the settings; what each memory profile needs
    POST /uploads                           body: {"files": {"a.png": base64, ...}}; answers the folder for instance_dir
    POST /request                           body: {"wish": "preview" or "snapshot"}, of the running job
    POST /queue/move                        body: {"job": id, "places": -1}
    GET  /runs/{name}                       state, last figures, snapshots, log
    GET  /runs/{name}/settings              for /start, under a name that is free
    GET  /runs/{name}/metrics
    POST /runs/{name}/compare               body: {"prompts": [], "snapshots": [], "count": 4, "seed": 1, ...}
    GET  /runs/{name}/comparison
    GET  /runs/{name}/pictures/{folder}/{file}    of previews, base or step-000100
    GET  /runs/{name}/report                a page
    POST /runs/{name}/explain               body: {"with_paths": false, "with_prompts": false}; a zip
    POST /runs/{name}/open-folder
    GET  /presets, /presets/{preset}
    POST /presets/{preset}                  body: the settings
    POST /presets/{preset}/delete
    POST /import                            body: {"file": "db_config.json", "content": "..."}
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import other_trainers, presets
from ..errors import ConfigError, ResumeError
from ..files import require_safe_name
from ..outbox import OUTBOX
from ..service import Service
from ..uploads import harmless

WISHES = ("preview", "snapshot")
Handler = Callable[[Any, dict[str, str]], Any]  # of (body, path parameters); answers plain values, or a file to be sent
Route = tuple[str, str, Handler]  # method, path, handler


def routes(service: Service) -> list[Route]:
    return [*_of_settings(service), *_of_uploads(service), *_of_runs(service), *_of_presets(service)]


def _of_settings(service: Service) -> list[Route]:
    def move(body: dict[str, Any], path: dict[str, str]) -> dict[str, bool]:
        places = body.get("places")
        if isinstance(places, bool) or not isinstance(places, int):
            raise ConfigError(["places: a whole number is needed, such as -1 for one place sooner"])
        return {"moved": service.move(str(body.get("job", "")), places)}

    def request(body: dict[str, Any], path: dict[str, str]) -> dict[str, bool]:
        if body.get("wish") not in WISHES:
            raise ConfigError([f"wish: it is one of {', '.join(WISHES)}"])
        return {"taken": service.request(body["wish"])}

    return [
        ("GET", "/checkpoints", lambda body, path: [{"title": each.title, "file": each.path.name, "loaded": each.loaded}
                                                    for each in service.host.checkpoints()]),
        ("POST", "/check", lambda body, path: {"faults": service.faults(body)}),
        ("POST", "/estimate", lambda body, path: service.estimate(body)),
        ("POST", "/request", request),
        ("POST", "/queue/move", move),
    ]


def _of_uploads(service: Service) -> list[Route]:
    def uploads(body: dict[str, Any], path: dict[str, str]) -> dict[str, str]:
        files = body.get("files")
        if not isinstance(files, dict) or not all(isinstance(content, str) for content in files.values()):
            raise ConfigError(["files: an object is needed, of names with their content as base64"])
        with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
            return {"folder": str(service.keep_uploads([_decoded(Path(folder), name, text) for name, text in files.items()]))}

    return [("POST", "/uploads", uploads)]


def _decoded(folder: Path, name: str, text: str) -> str:
    """A file of its own folder: two names may differ only in what is harmless."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError([f"{harmless(name)} is no base64 ({error})"]) from error
    own = Path(tempfile.mkdtemp(dir=folder)) / harmless(Path(name).name)
    own.write_bytes(content)
    return str(own)


def _of_runs(service: Service) -> list[Route]:
    def explain(body: dict[str, Any], path: dict[str, str]) -> Path:
        return service.explain(path["name"], OUTBOX.folder(), with_paths=body.get("with_paths") is True,
                               with_prompts=body.get("with_prompts") is True)

    return [
        ("GET", "/runs/{name}", lambda body, path: service.details(path["name"])),
        ("GET", "/runs/{name}/settings", lambda body, path: service.cloned(path["name"])),
        ("GET", "/runs/{name}/metrics", lambda body, path: service.run(path["name"]).metrics()),
        ("POST", "/runs/{name}/compare", lambda body, path: service.compare(path["name"], body).status()),
        ("GET", "/runs/{name}/comparison", lambda body, path: service.comparison(path["name"])),
        ("GET", "/runs/{name}/pictures/{folder}/{file}", lambda body, path: _picture(service, path)),
        ("GET", "/runs/{name}/report", lambda body, path: service.report(path["name"], OUTBOX.folder())),
        ("POST", "/runs/{name}/explain", explain),
        ("POST", "/runs/{name}/open-folder", lambda body, path: {"opened": service.open_folder(path["name"]).name}),
    ]


def _of_presets(service: Service) -> list[Route]:
    folder = service.presets_dir

    def save(body: dict[str, Any], path: dict[str, str]) -> dict[str, str]:
        return {"saved": presets.save(path["preset"], service.settings(body), folder).stem}

    def delete(body: dict[str, Any], path: dict[str, str]) -> dict[str, bool]:
        presets.delete(path["preset"], folder)
        return {"deleted": True}

    def read(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        imported = other_trainers.import_text(str(body.get("content", "")), str(body.get("file", "settings.json")))
        return {"settings": imported.settings, "not_taken": list(imported.not_taken)}

    return [
        ("GET", "/presets", lambda body, path: presets.names(folder)),
        ("GET", "/presets/{preset}", lambda body, path: presets.load(path["preset"], folder)),
        ("POST", "/presets/{preset}", save),
        ("POST", "/presets/{preset}/delete", delete),
        ("POST", "/import", read),
    ]


def _picture(service: Service, path: dict[str, str]) -> Path:
    """A picture of a run's previews or comparison. Raises ResumeError, UnsafePath."""
    run = service.run(path["name"])
    folder, name = require_safe_name(path["folder"], "the folder"), require_safe_name(path["file"], "the picture")
    file = (run.previews_dir if folder == "previews" else run.path / "comparison" / folder) / name
    if file.suffix != ".png" or file.is_symlink() or not file.is_file():
        raise ResumeError(f"{folder}/{name} is to be shown", "there is no such picture", "GET /runs/NAME tells what there is.")
    return file

