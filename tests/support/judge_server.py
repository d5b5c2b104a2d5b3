"""An OpenAI-compatible server on loopback: real HTTP, and a judge that the test writes."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Says = Callable[[str], "str | Answer"]
"""What the judge says to a message."""
ANSWERS = re.compile(r"\[Answer A\]\n(.*)\n\[End of answer A\].*\[Answer B\]\n(.*)\n\[End", re.S)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is more than its text."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str = ""
    ended: str = "stop"
    wait_s: float = 0
    body: str = ""


@dataclass(slots=True)
class JudgeServer:
    """A server that runs; ``requests`` are the bodies that came, ``keys`` what they carried."""

    url: str
    says: Says
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tokens: int = 100


def both(message: str) -> tuple[str, str]:
    """The two answers that a message of the project's own prompt shows."""
    found = ANSWERS.search(message)
    assert found is not None, message
    return found[1], found[2]


def prefers_longer(message: str) -> str:
    """The longer answer is the better one."""
    a, b = both(message)
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


@contextmanager
def judge_server(says: Says = prefers_longer) -> Iterator[JudgeServer]:
    """A server while within."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.requests.append(body)
            found.times.append(time.monotonic())
            found.keys.append(self.headers.get("authorization", ""))
            said = found.says(body["messages"][0]["content"])
            answer = Answer(said) if isinstance(said, str) else said
            time.sleep(answer.wait_s)
            message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
            whole = {
                "model": "served-name",
                "choices": [{"message": message, "finish_reason": answer.ended}],
                "usage": {"total_tokens": found.tokens},
            }
            text = (answer.body or json.dumps(whole)).encode()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # who asked has given up

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = JudgeServer(f"http://127.0.0.1:{server.server_port}/v1", says)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
