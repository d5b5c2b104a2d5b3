"""Who tells the server that a flow run's process was killed: ``python -m flows.ui.guardian``.

A worker tells it of runs that die under it; one that is asked to end, or is killed itself, kills
its runs' processes and tells nobody, and they would be running for ever in the UI.
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
"""Environment variable that a worker gives to the process of a flow run."""
_WORKERS_TURN_S = 4.0
_TRIES = 20
_PAUSE_S = 3.0
_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextmanager
def guarded(run_count: int) -> Iterator[None]:
    """Within it, the death of this process becomes known, where a worker runs it.

    ``run_count``: which attempt at the flow run this is; the state of a later one is not touched.
    """
    if RUN_ID not in os.environ or "PREFECT_API_URL" not in os.environ:
        yield
        return
    with outlived_by("flows.ui.guardian", os.environ[RUN_ID], str(run_count)):
        yield


def tell(flow_run: str, run_count: int) -> None:
    """Put the run into the state that it ended in, unless somebody has, or it runs again."""
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
    """What a request that changes something has to say; nothing where the server wants none."""
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
    """Wait for the death of the flow run's process, and tell of it."""
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
