"""Tell the server that a flow run's process was killed: ``python -m flows.ui.guardian``.

A worker tells the server of runs that die while it works. A worker that is asked to end, or is
killed itself, takes its runs' processes with it and tells nobody, and the UI would show them as
running for ever.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from sdpo.system.json_values import JsonObject
from sdpo.system.watchdog import outlived_by, parent_died

RUN_ID = "PREFECT__FLOW_RUN_ID"
"""A worker gives the process of a flow run the run's id in this environment variable."""
_WORKERS_TURN_S = 4.0
_TRIES = 20
_PAUSE_S = 3.0
_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextmanager
def guarded(run_count: int) -> Iterator[None]:
    """Let the server know if this process dies within it, where a worker runs it.

    ``run_count``: which attempt at the flow run this is; the state of a later one is not touched.
    """
    if RUN_ID not in os.environ or "PREFECT_API_URL" not in os.environ:
        yield
        return
    with outlived_by("flows.ui.guardian", os.environ[RUN_ID], str(run_count)):
        yield


def tell(flow_run: str, run_count: int) -> None:
    """Set a run whose process was killed to crashed, or to cancelled where that was asked.

    A run that has ended already, was scheduled again or is at a later attempt is left as it is.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    found = _ask(f"/flow_runs/{flow_run}")
    state = found["state"]["type"]
    if state in _FINAL or found["run_count"] != run_count or state == "SCHEDULED":
        return
    cancelled = state == "CANCELLING"
    ended = {
        "type": "CANCELLED" if cancelled else "CRASHED",
        "name": "Cancelled" if cancelled else "Crashed",
        "message": "The process of this run was killed. What was published stands: Retry goes on.",
    }
    _ask(f"/flow_runs/{flow_run}/set_state", {"state": ended, "force": True})


def _ask(path: str, body: JsonObject | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if auth := os.environ.get("PREFECT_API_AUTH_STRING", ""):
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    if body is None:
        return _answer(path, None, headers)
    return _answer(path, json.dumps(body).encode(), headers | _token(headers))


def _token(headers: dict[str, str]) -> dict[str, str]:
    """Return the CSRF headers of a request that changes something, if the server wants any."""
    client = f"guardian-{os.getpid()}"
    try:
        token = _answer(f"/csrf-token?client={client}", None, headers)["token"]
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.UNPROCESSABLE_ENTITY:
            raise
        return {}
    return {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}


def _answer(path: str, data: bytes | None, headers: dict[str, str]) -> Any:
    url = os.environ["PREFECT_API_URL"] + path
    request = urllib.request.Request(url, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def main() -> None:
    """Wait for the end of the flow run's process, and tell the server if it was killed."""
    flow_run, run_count, descriptor = sys.argv[1:]
    if not parent_died(int(descriptor)):
        return
    time.sleep(_WORKERS_TURN_S)
    for _ in range(_TRIES):
        try:
            tell(flow_run, int(run_count))
        except OSError:  # the server may be ending or starting with the rest
            time.sleep(_PAUSE_S)
        else:
            return


if __name__ == "__main__":
    main()
