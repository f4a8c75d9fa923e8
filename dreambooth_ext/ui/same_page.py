"""Our own server answers our own page alone: neither another site's page nor a name that was rebound to this computer."""

from __future__ import annotations

from typing import Any

from ..errors import HostError
from ..origin import is_loopback, require_own_page


class SamePageOnly:
    """ASGI middleware. It sees web sockets too, which browsers open to anywhere without asking."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or _is_ours(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers no other site."})


def _is_ours(scope: Any) -> bool:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if not is_loopback(headers.get("host", "")):
        return False
    if headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET" and scope["path"] == "/":
        return True  # a link to the page, wherever it stood, opens the page
    try:
        require_own_page(headers)
    except HostError:
        return False
    return True
