"""A store of objects behind HTTP on loopback that can be slow, full, or fail, and a file system for
it: what fsspec sees of such a store, without a cloud.

The server does what S3 does of it: an object is whole or not there, and ``If-None-Match: *`` makes
one of several writers the first.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem

PROTOCOL = "teststore"


@dataclass(slots=True)
class Store:
    """What the server has, and how it behaves: every answer after ``delay_s``; ``fails`` with 503;
    no more than ``room`` bytes; ``is_conditional``: it heeds If-None-Match."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    delay_s: float = 0.0
    fails: bool = False
    room: float = float("inf")
    is_conditional: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    written: list[str] = field(default_factory=list)

    def named(self, part: str) -> list[str]:
        """The names of objects that have this in them, sorted."""
        return sorted(name for name in self.objects if part in name)

    def flip(self, name: str) -> None:
        """Change one bit of an object."""
        content = bytearray(self.objects[name])
        content[len(content) // 2] ^= 1
        self.objects[name] = bytes(content)


@contextmanager
def http_store() -> Iterator[Store]:
    """A store, served until the block ends."""
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fsspec.register_implementation(PROTOCOL, HttpStore, clobber=True)
    store.url = f"{PROTOCOL}://127.0.0.1:{server.server_port}/bucket"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name, query = self._asked()
        if query == "list":
            inside = [key[len(name) :] for key in list(self.store.objects) if key.startswith(name)]
            self._answer(200, json.dumps(sorted({key.split("/")[0] for key in inside})).encode())
        elif name in self.store.objects:
            self._answer(200, self.store.objects[name])
        else:
            self._answer(404)

    def do_HEAD(self) -> None:
        name, _ = self._asked()
        found = self.store.objects.get(name)
        if found is None:
            self._answer(404)
        else:
            self._answer(200, length=len(found))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name, _ = self._asked()
        store = self.store
        with store.lock:
            used = sum(map(len, store.objects.values()))
            exists = name in store.objects and store.is_conditional
            if self.headers.get("If-None-Match") == "*" and exists:
                self._answer(412)
            elif store.fails:
                self._answer(503)
            elif used + len(content) > store.room:
                self._answer(507)
            else:
                store.objects[name] = content
                store.written.append(name)
                self._answer(200)

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        self._answer(200 if self.store.objects.pop(name, None) is not None else 404)

    def _asked(self) -> tuple[str, str]:
        time.sleep(self.store.delay_s)
        path, _, query = self.path.partition("?")
        return unquote(path).lstrip("/"), query

    def _answer(self, code: int, content: bytes = b"", length: int | None = None) -> None:
        if self.store.fails:
            code, content, length = 503, b"", None
        self.send_response(code)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)


class HttpStore(AbstractFileSystem):  # type: ignore[misc]
    """The file system of :func:`http_store`."""

    protocol = PROTOCOL
    cachable = False

    def _ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        host, _, name = self._strip_protocol(path).partition("/")
        name, _, query = name.partition("?")
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            where = f"/{quote(name)}{query and '?'}{query}"
            given = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, where, body or None, given)
            answer = connection.getresponse()
            content = answer.read()
            length = int(answer.headers.get("Content-Length", 0))
        finally:
            connection.close()
        match answer.status:
            case 200:
                return length, content
            case 404:
                raise FileNotFoundError(path)
            case 412:
                raise FileExistsError(path)
            case 507:
                raise OSError(28, "the store is full")
            case code:
                raise OSError(5, f"the store answers {code}")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object."""
        self._ask("PUT", path, value, **({"If_None_Match": "*"} if mode == "create" else {}))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Upload a file."""
        self._ask("PUT", rpath, Path(lpath).read_bytes())

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Download a file."""
        Path(lpath).write_bytes(self._ask("GET", rpath)[1])

    def cat_file(self, path: str, **_: Any) -> bytes:
        """Read an object."""
        content: bytes = self._ask("GET", path)[1]
        return content

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and kind of an object."""
        return {"name": path, "size": self._ask("HEAD", path)[0], "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Names in a folder."""
        found = json.loads(self._ask("GET", f"{path.rstrip('/')}/?list")[1])
        return [f"{path}/{name}" for name in found]

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self._ask("DELETE", path)
