"""Which page a request comes from: a browser tells, and a page of somebody else's must not act here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from .errors import HostError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def nobody(origin: str) -> bool:
    return False


def anybody(host: str) -> bool:
    return True


def require_own_page(headers: Mapping[str, str], allows: Callable[[str], bool] = nobody) -> None:
    """Raise HostError for what another site's page has sent; programs that are no browsers say nothing of a page.

    `headers` has names in lower case. `allows` knows the other origins that the host's owner trusts.
    """
    origin = headers.get("origin", "")
    if origin and allows(origin):
        return
    # "null" is a sandboxed page or a local file; behind a proxy the Host may be rewritten, then the browser's own word counts.
    foreign = bool(origin) and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    site = headers.get("sec-fetch-site", "")
    if site in ("cross-site", "same-site") or (foreign and site != "same-origin"):
        raise HostError("a web page wants to act here", f"it is another site's ({origin or site})",
                        "Open the WebUI itself; a page of your own can be allowed with --cors-allow-origins.")


def is_address(host: str) -> bool:
    """Whether a Host header is an address, or localhost: any other name may have been rebound to this computer."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ip_address(name)
    except ValueError:
        return host.lower().partition(":")[0] == "localhost"
    return True


def require_own_name(host: str, answers: Callable[[str], bool]) -> None:
    """Raise HostError for a Host header that is none of the server's names (DNS rebinding)."""
    if not answers(host):
        raise HostError("a request came here", f"it was sent to {host!r}, which is no name of this computer",
                        "Behind a proxy, name its address with --cors-allow-origins.")


def is_loopback(host: str) -> bool:
    """Whether a Host header names this computer: another name that leads here is a rebound one."""
    name = host.lower()
    return (name if name.endswith("]") else name.rpartition(":")[0] or name) in LOOPBACK
