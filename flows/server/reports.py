"""Serve the reports of runs beside Prefect's UI, under the same password.

A browser sends no header of the UI's when it follows a link, so the password is asked for by a
challenge, which it keeps for this address and port alone; a cookie would go to every port of the
host. A report holds other people's text and is of one origin with the UI, whose pages keep the
password: the sandbox of its security policy gives it an origin of its own and no script.
"""

import asyncio
import base64
import binascii
import hmac
import os
import stat
from html import escape
from http import HTTPStatus
from pathlib import Path

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.ui.folder import REPORTS_PATH as PREFIX
from sdpo.config.load import check_run_name
from sdpo.errors import ConfigError
from sdpo.store.run_folder import RunFolder

_HEADERS = {
    "Content-Security-Policy": "sandbox allow-popups; default-src 'none'; style-src "
    "'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_CHALLENGE = 'Basic realm="sDPO reports: what `sdpo server password` prints", charset="UTF-8"'
_LONGEST = 2000


class Reports:
    """An ASGI application that answers below ``/reports`` itself and passes on the rest.

    Args:
        application: what answers everything else.
        runs_dir: the runs whose reports are served are in this folder; it is looked at anew for
            every request, so a link there may be set to another.
        password: `user:password` that is asked for; empty: nobody is asked.
    """

    def __init__(self, application: ASGIApp, *, runs_dir: Path, password: str) -> None:
        self._application = application
        self._runs_dir = runs_dir
        self._password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a report, or pass it on."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path != PREFIX and not path.startswith(f"{PREFIX}/"):
            await self._application(scope, receive, send)
            return
        answer = await asyncio.to_thread(self._answer, scope, path)
        answer.headers.update(_HEADERS)
        await answer(scope, receive, send)

    def _answer(self, scope: Scope, path: str) -> Response:
        if not self._is_known(scope):
            challenge = {"WWW-Authenticate": _CHALLENGE}
            said = "the password of the UI is asked for here too (sdpo server password)\n"
            return PlainTextResponse(said, HTTPStatus.UNAUTHORIZED, challenge)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("a report can be read, no more\n", 405, {"Allow": "GET, HEAD"})
        name = path.removeprefix(PREFIX)
        if not name:
            return RedirectResponse(f"{PREFIX}/")
        if name == "/":
            return HTMLResponse(_listing(self._runs_dir))
        try:
            return HTMLResponse(read_report(self._runs_dir, name.removeprefix("/")))
        except ConfigError as error:
            return PlainTextResponse(f"{error}\n", HTTPStatus.NOT_FOUND)

    def _is_known(self, scope: Scope) -> bool:
        """Return whether the request has the password.

        Where the whole of what `sdpo server password` prints was given as the password, whatever
        the user, that is it too.
        """
        if not self._password:
            return True
        sent = [value for key, value in scope["headers"] if key == b"authorization"]
        if len(sent) != 1 or len(sent[0]) > _LONGEST:
            return False
        kind, _, encoded = sent[0].partition(b" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            return False
        wanted = self._password.encode()
        whole = hmac.compare_digest(given, wanted)
        pasted = hmac.compare_digest(given.partition(b":")[2], wanted)
        return kind.lower() == b"basic" and (whole or pasted)


def read_report(runs_dir: Path, name: str) -> bytes:
    """Return the report of the run that is called ``name`` in ``runs_dir``, and of nothing outside.

    Raises:
        ConfigError: there is no such run, or it has no report; a link counts as neither.
    """
    try:
        folder = RunFolder(runs_dir / check_run_name(name))
    except ConfigError as error:
        raise ConfigError("no run has such a name") from error
    if folder.path.is_symlink() or not folder.path.is_dir() or not folder.is_own:
        raise ConfigError(f"there is no run {name} in {runs_dir.resolve()}")
    content = _read_plain(folder)
    if content is None:
        raise ConfigError(f"run {name} has no report yet: `sdpo report {name}` writes one")
    return content


def _read_plain(folder: RunFolder) -> bytes | None:
    """Return what a plain file holds; None for a link, a pipe, or where nothing is."""
    try:
        inside = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(folder.report.name, flags, dir_fd=inside)
    except OSError:
        return None
    finally:
        os.close(inside)
    with os.fdopen(descriptor, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _listing(runs_dir: Path) -> str:
    """Return a page with a link to each report, the latest first."""
    found = []
    for path in runs_dir.glob("*/report.html"):
        with_report = RunFolder(path.parent)
        if not path.is_symlink() and not path.parent.is_symlink() and with_report.is_own:
            found.append((path.stat().st_mtime, with_report.name))
    items = "".join(
        f'<li><a href="{PREFIX}/{escape(name)}">{escape(name)}</a></li>'
        for _, name in sorted(found, reverse=True)
    )
    where = escape(str(runs_dir.resolve()))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light '
        'dark"><title>Reports</title><style>body{font:1rem/1.6 system-ui,sans-serif;max-width:'
        f"40rem;margin:2rem auto;padding:0 1rem}}</style><h1>Reports</h1><p>Runs in {where}, the "
        f"latest first.</p>{f'<ul>{items}</ul>' if items else '<p>There is none yet.</p>'}"
    )
