"""Who gets which report from the server, and what a report may do in a browser."""

import asyncio
import base64
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from flows.server.reports import Reports
from flows.ui.folder import REPORTS, report_link
from sdpo.store.run_folder import RunFolder
from sdpo.system.ownership import claim

PASSWORD = "sdpo:secret"


class Answer:
    """What was sent back."""

    status = 0
    body = b""
    headers: dict[str, str]


def ask(
    runs: Path,
    path: str,
    *,
    given: str | bytes | None = PASSWORD,
    method: str = "GET",
    password: str = PASSWORD,
) -> Answer:
    """Ask for a path with ``given`` as user and password; `passed` is what lies behind."""
    answer = Answer()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        answer.body = b"passed"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = []
    if isinstance(given, str):
        given = b"Basic " + base64.b64encode(given.encode())
    if given is not None:
        headers.append((b"authorization", given))
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    app = Reports(behind, runs_dir=runs, password=password)
    asyncio.run(app(scope, receive, send))
    return answer


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with the run `mine`, which has a report, and a file of somebody's beside it."""
    made = tmp_path / "runs"
    claim(made / "mine", "run", proof=lambda _: False)
    (made / "mine" / "report.html").write_text("<h1>mine</h1>")
    (tmp_path / "report.html").write_text("outside")
    return made


def test_a_report_is_served_without_script_or_origin(runs: Path) -> None:
    answer = ask(runs, "/reports/mine")
    assert (answer.status, answer.body) == (HTTPStatus.OK, b"<h1>mine</h1>")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox ")
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("given", [PASSWORD, f"anybody:{PASSWORD}"])
def test_what_the_command_prints_is_good_as_it_stands_or_as_the_password(
    runs: Path, given: str
) -> None:
    assert ask(runs, "/reports/mine", given=given).status == HTTPStatus.OK


@pytest.mark.parametrize("path", ["/reports/mine", "/reports/", "/reports", "/reports/none"])
@pytest.mark.parametrize(
    "given",
    [None, "", ":", "sdpo:", "sdpo:wrong", "sdpo:secre", "secret", b"Basic !!", b"Bearer x", b""],
)
def test_nobody_is_told_anything_without_the_password(
    runs: Path, path: str, given: str | bytes | None
) -> None:
    answer = ask(runs, path, given=given)
    assert answer.status == HTTPStatus.UNAUTHORIZED
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert b"mine" not in answer.body


def test_a_server_without_a_password_asks_nobody(runs: Path) -> None:
    assert ask(runs, "/reports/mine", given=None, password="").status == HTTPStatus.OK


@pytest.mark.parametrize(
    "name",
    ["..", "../report.html", "../", "mine/../..", "%2e%2e", "/etc/passwd", ".", "mine/", "no such",
     "mine/run.yaml", "other", "\x00", "linked", "away", "piped", "empty", "foreign"],
)  # fmt: skip
def test_no_path_leads_out_of_the_runs(runs: Path, name: str) -> None:
    for own in ("away", "piped", "empty"):
        claim(runs / own, "run", proof=lambda _: False)
    (runs / "linked").symlink_to(runs / "mine")
    (runs / "away" / "report.html").symlink_to(runs.parent / "report.html")
    os.mkfifo(runs / "piped" / "report.html")
    (runs / "foreign").mkdir()
    (runs / "foreign" / "report.html").write_text("no run of ours")
    answer = ask(runs, f"/reports/{name}")
    assert answer.status == HTTPStatus.NOT_FOUND
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"outside" not in answer.body
    assert b"no run of ours" not in answer.body


def test_a_run_without_a_report_is_told_how_to_get_one(runs: Path) -> None:
    (runs / "mine" / "report.html").unlink()
    assert b"sdpo report mine" in ask(runs, "/reports/mine").body


def test_the_listing_has_the_runs_that_have_a_report(runs: Path) -> None:
    (runs / "foreign").mkdir()
    (runs / "foreign" / "report.html").write_text("no run of ours")
    listing = ask(runs, "/reports/").body
    assert b'href="/reports/mine"' in listing
    assert b"foreign" not in listing
    assert ask(runs, "/reports").headers["location"] == "/reports/"
    assert b"There is none yet" in ask(runs.parent / "nowhere", "/reports/").body


@pytest.mark.parametrize("path", ["/", "/api/health", "/reportsx", "/runs/reports/mine"])
def test_everything_else_is_prefects(runs: Path, path: str) -> None:
    assert ask(runs, path, given=None).body == b"passed"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_a_report_can_only_be_read(runs: Path, method: str) -> None:
    assert ask(runs, "/reports/mine", method=method).status == HTTPStatus.METHOD_NOT_ALLOWED


def test_a_card_links_to_a_report_that_the_server_serves_and_to_no_other(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = RunFolder(runs / "mine").path
    assert report_link(mine) == ""
    monkeypatch.setenv(REPORTS, str(runs.parent / "link"))
    (runs.parent / "link").symlink_to(runs)
    assert report_link(mine) == "/reports/mine"
    assert report_link(runs.parent / "elsewhere" / "mine") == ""
