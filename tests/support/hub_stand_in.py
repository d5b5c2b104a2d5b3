"""A stand-in of the hub that speaks what huggingface_hub asks when a model is uploaded.

Repositories, the check of a card, the modes of files, Git LFS in one part and in several, commits.
Files are kept as bytes, only once they were committed; what was said is kept to be looked at.
"""

import base64
import hashlib
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

TOKEN = "hf_a-token-that-may-write"
LARGE = 2**14
PART = 2**16


@dataclass(slots=True)
class Repository:
    """A repository: who may see it, what was committed, and with which messages."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StandIn:
    """The hub's state; ``asked`` are the requests in order, ``failing`` answers 500 to a path."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failing: str = ""

    def content(self, oid: str) -> bytes:
        """An object that was uploaded, its parts together."""
        return b"".join(part for _, part in sorted(self.objects.get(oid, {}).items()))


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, how: Any) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = b"".join(self._chunks()) if chunked else self.rfile.read(length)
        self.parts = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {self.parts.path}")
        if self.hub.failing and self.hub.failing in self.path:
            self._say(500, {"error": "out of order"})
            return
        how()

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _say(self, code: int, content: Any, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _may(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._say(401, {"error": "Invalid credentials"})
        return False

    def _get(self) -> None:
        if not self._may():
            return
        name = self.parts.path.removeprefix("/api/models/").partition("/revision/")[0]
        found = self.hub.repositories.get(name)
        if found is None:
            self._say(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
            return
        self._say(200, {"id": name, "private": found.private, "sha": "0" * 40, "siblings": []})

    def _post(self) -> None:
        path = self.parts.path
        if path.startswith("/lfs/"):  # an address that was given out: it needs no token
            self._complete(path)
        elif not self._may():
            return
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._validate()
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch()
        elif path.startswith("/verify/"):
            self._verify()
        elif "/preupload/" in path:
            files = json.loads(self.body)["files"]
            modes = [self._mode(each) for each in files]
            self._say(200, {"files": modes})
        elif "/commit/" in path:
            self._commit()
        else:
            self._say(404, {"error": path})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "mine":
            self._say(403, {"error": "no rights in this namespace"})
        elif name in self.hub.repositories:
            self._say(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories[name] = Repository(private)
            self._say(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self) -> None:
        asked = json.loads(self.body)
        front = asked["content"].split("---\n")[1]
        errors = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no metadata"}]
        self._say(200 if not errors else 400, {"errors": errors, "warnings": []})

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] > LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _batch(self) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/lfs/{each['oid']}"
            header: dict[str, str] = {}
            if each["size"] > PART:
                header = {"chunk_size": str(PART)}
                count = math.ceil(each["size"] / PART)
                header |= {str(part): f"{href}?part={part}" for part in range(1, count + 1)}
            actions = {
                "upload": {"href": href, "header": header},
                "verify": {"href": f"{self.hub.url}/verify/{each['oid']}"},
            }
            objects.append({**each, "actions": actions})
        self._say(200, {"transfer": "basic", "objects": objects})

    def _put(self) -> None:
        oid = self.parts.path.removeprefix("/lfs/")
        part = int(parse_qs(self.parts.query).get("part", ["1"])[0])
        self.hub.objects.setdefault(oid, {})[part] = self.body
        self._say(200, {}, ETag=hashlib.md5(self.body).hexdigest())

    def _complete(self, path: str) -> None:
        oid = path.removeprefix("/lfs/")
        parts = {each["partNumber"]: each["etag"] for each in json.loads(self.body)["parts"]}
        held = self.hub.objects.get(oid, {})
        whole = parts == {n: hashlib.md5(part).hexdigest() for n, part in held.items()}
        self._say(200 if whole else 400, {})

    def _verify(self) -> None:
        oid = self.parts.path.removeprefix("/verify/")
        content = self.hub.content(oid)
        whole = hashlib.sha256(content).hexdigest() == oid
        self._say(200 if whole and len(content) == json.loads(self.body)["size"] else 400, {})

    def _commit(self) -> None:
        name = self.parts.path.removeprefix("/api/models/").partition("/commit/")[0]
        repository = self.hub.repositories[name]
        for line in self.body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header":
                repository.commits.append(value["summary"])
            elif said["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.content(value["oid"])
        url = f"{self.hub.url}/{name}/commit/{'1' * 40}"
        self._say(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})


@contextmanager
def hub_stand_in() -> Iterator[StandIn]:
    """A hub at an address of this machine, until the end of the block."""
    hub = StandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
