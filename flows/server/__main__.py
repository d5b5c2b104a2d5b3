"""Run Prefect's server behind :mod:`flows.server.guard`: ``python -m flows.server --port 4200``.

Prefect's own settings, the password among them, come from the environment.
"""

import argparse
import os
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from flows.server.guard import LOOPBACK, Guard, known
from flows.server.reports import Reports

_KEEP_ALIVE_S = 5
_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
HOSTS = "SDPO_ALLOWED_HOSTS"
"""This environment variable holds further names of the server, separated by commas."""


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(prog="python -m flows.server", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK[0], help="address to listen at")
    port = int(os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="a further name that it is known by, with the port that browsers see if it is another",
    )
    parser.add_argument(
        "--runs-dir", type=Path, help="serve the reports of the runs in this folder at /reports"
    )
    given = parser.parse_args()
    if given.host not in LOOPBACK and not os.environ.get(_AUTH):
        parser.error(f"{given.host} is reached from other machines: set {_AUTH}=user:password")
    told = [name.strip() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]
    guarded = known([*LOOPBACK, given.host, *given.allow_host, *told], port=given.port)
    origins = sorted(f"http://{name}" for name in guarded)
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", ",".join(origins))
    os.environ.setdefault("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true")
    from prefect.server.api.server import create_app  # reads the settings when it is imported

    application: ASGIApp = create_app(final=True)
    if given.runs_dir:
        password = os.environ.get(_AUTH, "")
        application = Reports(application, runs_dir=given.runs_dir, password=password)
    uvicorn.run(
        Guard(application, hosts=guarded),
        host=given.host,
        port=given.port,
        timeout_keep_alive=_KEEP_ALIVE_S,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
