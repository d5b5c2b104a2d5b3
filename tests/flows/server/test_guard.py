"""Which requests reach the server: those of its own pages, under names that it is known by."""

import asyncio
from typing import Any

import pytest

from flows.server.guard import LOOPBACK, Guard, known


def answer(headers: list[tuple[bytes, bytes]], *, kind: str = "http", port: int = 4200) -> Any:
    """What is sent back: by the guarded application `passed`, else the refusal's status or code."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        sent.append("passed")

    async def send(message: Any) -> None:
        sent.append(message.get("status") or message.get("code"))

    async def receive() -> Any:
        raise AssertionError("a request that is refused is not read")

    guard = Guard(application, hosts=known([*LOOPBACK, "Trainer.example"], port=port))
    asyncio.run(guard({"type": kind, "headers": headers}, receive, send))
    return sent[0]


def host(name: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", name.encode())]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "name",
    ["127.0.0.1:4200", "localhost:4200", "[::1]:4200", "trainer.example:4200", "LOCALHOST:4200"],
)
def test_names_that_are_known_pass(name, kind):
    assert answer(host(name), kind=kind) == "passed"
    own = [*host(name), (b"origin", f"http://{name}".encode())]
    assert answer(own, kind=kind) == "passed"


@pytest.mark.parametrize(("kind", "refused"), [("http", 403), ("websocket", 1008)])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        host("evil.test:4200"),
        host("evil.test"),
        host("127.0.0.1"),
        host("127.0.0.1:80"),
        host("127.0.0.1:4200.evil.test"),
        host("127.0.0.1.evil.test:4200"),
        host("evil.test@127.0.0.1:4200"),
        host("localhost.:4200"),
        host("2130706433:4200"),
        host(""),
        [*host("127.0.0.1:4200"), *host("evil.test:4200")],
        [*host("127.0.0.1:4200"), (b"origin", b"http://evil.test")],
        [*host("127.0.0.1:4200"), (b"origin", b"http://127.0.0.1:8000")],
        [*host("127.0.0.1:4200"), (b"origin", b"http://127.0.0.1:4200.evil.test")],
        [*host("127.0.0.1:4200"), (b"origin", b"null")],
        [*host("127.0.0.1:4200"), (b"origin", b"")],
        [*host("127.0.0.1:4200"), (b"origin", b"file://127.0.0.1:4200")],
        [
            *host("127.0.0.1:4200"),
            (b"origin", b"http://127.0.0.1:4200"),
            (b"origin", b"http://evil.test"),
        ],
    ],
    ids=str,
)
def test_strangers_are_refused_before_anything_is_read(headers, kind, refused):
    assert answer(headers, kind=kind) == refused


def test_a_port_that_browsers_do_not_say_need_not_be_said():
    assert answer(host("localhost"), port=80) == "passed"
    assert answer(host("evil.test"), port=80) == 403


def test_what_is_no_request_passes():
    assert answer([], kind="lifespan") == "passed"


def test_a_name_may_have_the_port_that_browsers_see():
    assert known(["localhost:8080", "0.0.0.0", "::1", "[::1]:9000"], port=4200) == {
        "localhost:8080",
        "[::1]:4200",
        "[::1]:9000",
    }
    assert known(["trainer.example:443"], port=4200) == {"trainer.example:443", "trainer.example"}
