"""What the containers' files run, run here: entry point, server, compose's settings."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""As in an image: the environment that runs the tests has the commands."""
DOCKER = ROOT / "docker"
ENTRYPOINT = DOCKER / "entrypoint.sh"


def entered(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {"PATH": PATH, **environment}
    return subprocess.run(
        [str(ENTRYPOINT), *command], capture_output=True, text=True, env=kept, check=False
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def started(
    *command: str,
    log: Path,
    cwd: Path = ROOT,
    before: tuple[str, ...] = (str(ENTRYPOINT),),
    **environment: str,
) -> Iterator[None]:
    """A container's process, once it is well at ``HEALTH``; ``before``: what executes it."""
    health = environment.pop("HEALTH")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*before, *command],
            env={"PATH": PATH, **environment},
            cwd=cwd,
            stdout=file,
            stderr=file,
        )
        try:
            deadline = time.monotonic() + 300
            while not is_well(health):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(60)


def is_well(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return content
