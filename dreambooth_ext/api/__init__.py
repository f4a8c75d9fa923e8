"""HTTP routes over the same service as the tab. They exist only where the host's own API does.

    GET  /dreambooth/v1/schema                the settings, as JSON schema
    POST /dreambooth/v1/start                 body: the settings; answers the job
    GET  /dreambooth/v1/status                running, queue, last
    POST /dreambooth/v1/stop                  body: {"job": id, "discard": false}; without an id, the running one
    GET  /dreambooth/v1/runs
    POST /dreambooth/v1/runs/{name}/resume    body: {"snapshot": "", "steps": null, "learning_rate": null}
    POST /dreambooth/v1/runs/{name}/publish   body: {"snapshot": "", "name": "", "settings": {}}
    POST /dreambooth/v1/runs/{name}/delete

and those of runs.py and pictures.py, below the same prefix.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import Concept, TrainConfig
from ..errors import ConfigError, DreamboothError, HostError, RunBusy
from ..files import unforeseen
from ..options import options_of
from ..origin import anybody, nobody, require_own_name, require_own_page
from ..service import Service
from .pictures import routes as routes_of_pictures
from .runs import Handler, Route
from .runs import routes as routes_of_runs

PREFIX = "/dreambooth/v1"
BODY_BYTES_AT_MOST = 1 << 20  # all settings together have some KiB
LONGER_BODIES = {"/uploads": 256 << 20}  # pictures; larger sets: in several calls, or put them into a folder there


def mount(
    app: Any, service: Service, credentials: Mapping[str, str], allows: Callable[[str], bool] = nobody,
    answers: Callable[[str], bool] = anybody,
) -> None:
    """Add the routes to a FastAPI `app`. With `credentials`, each request needs one of them (HTTP Basic).

    Pages of other sites are refused, but for the origins that `allows` knows, and so are hosts that `answers` does not know.
    """
    from fastapi import Request
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import FileResponse, JSONResponse

    def route(method: str, path: str, handler: Handler) -> None:
        async def endpoint(request: Request) -> Any:
            if not _is_allowed(request.headers.get("authorization", ""), credentials):
                return JSONResponse({"error": "a user and password of --api-auth are needed"}, 401,
                                    {"WWW-Authenticate": "Basic"})
            try:
                require_own_name(request.headers.get("host", ""), answers)
                require_own_page(request.headers, allows)
            except HostError as error:
                return JSONResponse({"error": str(error), "faults": [error.why]}, 403)
            try:
                body = await _object(request, LONGER_BODIES.get(path, BODY_BYTES_AT_MOST)) if method == "POST" else {}
                answer = await run_in_threadpool(handler, body, dict(request.path_params))
                return FileResponse(answer, filename=answer.name) if isinstance(answer, Path) else JSONResponse(answer)
            except (DreamboothError, OSError) as caught:
                told = caught if isinstance(caught, DreamboothError) else unforeseen(caught)
                return JSONResponse({"error": str(told), "faults": list(told.faults)}, 409 if isinstance(told, RunBusy) else 422)

        # Starlette's own routes: no response model, so that every FastAPI and pydantic will do.
        app.router.add_route(PREFIX + path, endpoint, methods=[method])

    for method, path, handler in _routes(service):
        route(method, path, handler)


def _routes(service: Service) -> list[Route]:
    def stop(body: dict[str, Any], path: dict[str, str]) -> dict[str, bool]:
        running = service.jobs.running
        job_id = body.get("job") or (running.id if running else "")
        return {"stopping": service.stop(str(job_id), "the API", discard=body.get("discard") is True)}

    def publish(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        unknown = sorted(set(body) - {"snapshot", "name", "settings"})
        changes = body.get("settings", {})
        refused = sorted(set(changes) - set(PUBLISH_SETTINGS)) if isinstance(changes, dict) else ["settings"]
        if unknown or refused:
            raise ConfigError([f"{name}: there is no such setting of a publication" for name in [*unknown, *refused]])
        return service.publish(path["name"], snapshot=str(body.get("snapshot", "")), as_name=str(body.get("name", "")),
                               changes=changes).status()

    def resume(body: dict[str, Any], path: dict[str, str]) -> dict[str, Any]:
        unknown = sorted(set(body) - {"snapshot", "steps", "learning_rate"})
        if unknown:
            raise ConfigError([f"{name}: it cannot be set for a run that goes on" for name in unknown])
        return service.resume(path["name"], snapshot=str(body.get("snapshot") or ""), steps=body.get("steps"),
                              learning_rate=body.get("learning_rate")).status()

    def delete(body: dict[str, Any], path: dict[str, str]) -> dict[str, bool]:
        service.delete(path["name"])
        return {"deleted": True}

    return [
        ("GET", "/schema", lambda body, path: schema()),
        ("POST", "/start", lambda body, path: service.start(body).status()),
        ("GET", "/status", lambda body, path: service.status()),
        ("POST", "/stop", stop),
        ("GET", "/runs", lambda body, path: service.runs()),
        ("POST", "/runs/{name}/resume", resume),
        ("POST", "/runs/{name}/publish", publish),
        ("POST", "/runs/{name}/delete", delete),
        *routes_of_runs(service),
        *routes_of_pictures(service),
    ]


PUBLISH_SETTINGS = ("publish_format", "publish_dtype", "vae")


def schema() -> dict[str, Any]:
    """The settings as JSON schema, made from the options' own metadata."""
    names = {int: "integer", float: "number", str: "string", bool: "boolean", tuple: "array"}

    def properties(config_class: type) -> dict[str, Any]:
        found = {}
        for option in options_of(config_class):
            kind: Any = names[option.kind]
            entry: dict[str, Any] = {"type": [kind, "null"] if option.optional else kind, "title": option.label,
                                     "description": option.help, "default": option.default}
            limits = {"minimum": option.minimum, "maximum": option.maximum, "enum": list(option.choices) or None}
            entry.update({name: value for name, value in limits.items() if value is not None})
            if option.kind is tuple:
                entry["items"] = {"type": "string"}
            found[option.name] = entry
        return found

    concept = {"type": "object", "properties": properties(Concept), "additionalProperties": False}
    several = {"type": "array", "items": concept, "title": "Concepts",
               "description": "Several subjects; a single one may stand on the top level instead."}
    run = {**properties(TrainConfig), **properties(Concept), "concepts": several}
    return {"type": "object", "title": "TrainConfig", "additionalProperties": False,
            "required": ["base", "output_name"], "properties": run}


async def _object(request: Any, bytes_at_most: int) -> dict[str, Any]:
    """The request's JSON object. Raises ConfigError; a form, which any web page could send, is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):  # a form without a single field has an empty body, but says that it is a form
        raise ConfigError(["a JSON object is needed, with Content-Type: application/json"])
    content = bytearray()  # which grows without being copied
    async for chunk in request.stream():
        content += chunk
        if len(content) > bytes_at_most:
            raise ConfigError([f"the request is longer than {bytes_at_most >> 20} MiB"])
    if content and not kind:
        raise ConfigError(["a JSON object is needed, with Content-Type: application/json"])
    try:
        body = json.loads(content) if content else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"the request holds no JSON ({error})"]) from error
    if not isinstance(body, dict):
        raise ConfigError(["a JSON object is needed"])
    return body


def _is_allowed(header: str, credentials: Mapping[str, str]) -> bool:
    if not credentials:
        return True
    kind, _, encoded = header.partition(" ")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except ValueError:  # not base64, not UTF-8, or not even ASCII
        return False
    expected = credentials.get(user, "")
    same = secrets.compare_digest(password.encode(), expected.encode())
    return kind.lower() == "basic" and user in credentials and same
