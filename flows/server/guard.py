"""Let only pages talk to the server that it served itself, under a name that it is known by.

A stranger's name can be made to resolve to a loopback address. A page that was loaded under that
name has the same origin as the server, and can read its answers and its CSRF tokens. But its name
gives it away: browsers say in `Host` which name they were given. Prefect has no list of names.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UNSAID = (80, 443)
"""Browsers leave these ports out of `Host` and `Origin`."""
_EVERYWHERE = ("0.0.0.0", "[::]")
"""A server may listen at these addresses, but they are no names of it."""
_REFUSED = 403
_POLICY_VIOLATION = 1008


class Guard:
    """A guard is an ASGI application that passes on only what its owner's browser and commands ask.

    Args:
        application: what is guarded.
        hosts: names that the server is known by, as browsers say them (see :func:`known`).
    """

    def __init__(self, application: Application, *, hosts: Iterable[str]) -> None:
        self._application = application
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with the reason; the server's lifespan events pass."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else ""
        if not refusal:
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal})
        else:
            await _refuse(refusal, send)

    def _refusal(self, scope: Scope) -> str:
        host = _values(scope, b"host")
        if len(host) != 1 or host[0] not in self._hosts:
            return "this server is not known by that name (sdpo server up --allow-host NAME)"
        origin = _values(scope, b"origin")
        if len(origin) > 1 or any(not self._is_own(each) for each in origin):
            return "this server answers its own pages alone"
        return ""

    def _is_own(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host in self._hosts


def bracketed(host: str) -> str:
    """Return a name or address as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def known(hosts: Iterable[str], *, port: int) -> set[str]:
    """Return hosts, each given as ``NAME`` or ``NAME:PORT``, with ports as browsers send them."""
    found = set()
    for host in hosts:
        name, colon, given = bracketed(host.lower()).rpartition(":")
        if not colon or given.endswith("]"):
            name, given = bracketed(host.lower()), str(port)
        found |= {f"{name}:{given}", *([name] if int(given) in _UNSAID else [])}
    return found - {f"{name}:{port}" for name in _EVERYWHERE}


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


async def _refuse(reason: str, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": _REFUSED, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
