"""moto's S3 server in a process of its own on loopback: the real API, a bucket, and nothing of a
cloud."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

BUCKET = "runs"
_START_S = 60


@contextmanager
def s3_server(log: Path) -> Iterator[Any]:
    """Serve S3 until the block ends, with this process's environment pointing to it.

    Yields a client of boto3; the bucket ``runs`` is there.
    """
    boto3 = pytest.importorskip("boto3", reason="boto3 and moto are of `make test-real`")
    pytest.importorskip("moto.server", reason="boto3 and moto are of `make test-real`")
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(port).items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            _wait_for(port, process)
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            yield client
        finally:
            process.kill()
            process.wait()


def environment(port: int) -> dict[str, str]:
    """Where AWS's libraries find the server, and the keys that it takes: any."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAWHOEVER",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/moto-api/")
            connection.getresponse().read()
            connection.close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("moto's server does not answer")
