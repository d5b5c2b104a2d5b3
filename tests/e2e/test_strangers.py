"""What a web page, another name and another account of the machine can do to the server: nothing.

By raw HTTP, so that no browser's own blocking makes it green, and in a real browser.
"""

import base64
import http.client
import json
import os
import subprocess
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from desk import Desk, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NOBODY = 65534
COMMAND = {"job_variables": {"command": "touch /tmp/was-here"}}


def asked(
    desk: Desk, headers: dict[str, str], *, method: str = "GET", path: str = "/api/version"
) -> int:
    """Status of one request, with these headers and no others; the connection is to the server."""
    body = json.dumps(COMMAND).encode() if method == "POST" else b""
    with closing(http.client.HTTPConnection("127.0.0.1", desk.port, timeout=60)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as answer:
            return answer.status


def known(desk: Desk) -> dict[str, str]:
    """What a client says that has the password."""
    encoded = base64.b64encode(desk.password.encode()).decode()
    return {"Host": f"127.0.0.1:{desk.port}", "Authorization": f"Basic {encoded}"}


def test_a_page_under_another_name_gets_nothing_even_with_the_password(desk: Desk) -> None:
    assert asked(desk, known(desk)) == 200
    rebound = known(desk) | {"Host": f"rebound.test:{desk.port}"}
    upgrade = {
        **{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    for path in ("/", "/api/version", "/api/csrf-token?client=me", "/ui-settings"):
        assert asked(desk, rebound, path=path) == 403
        assert asked(desk, known(desk) | {"Origin": "http://evil.test"}, path=path) == 403
    for path in ("/api/events/in", "/api/events/out", "/api/logs/out"):
        assert asked(desk, rebound | upgrade, path=path) == 403
        assert asked(desk, known(desk) | upgrade | {"Origin": "null"}, path=path) == 403


def test_a_run_with_a_command_is_made_by_nobody_without_password_and_token(desk: Desk) -> None:
    found = desk.api("/deployments/name/sdpo-align/align")["id"]
    path = f"/api/deployments/{found}/create_flow_run"
    before = len(desk.runs())
    plain = {"Host": f"127.0.0.1:{desk.port}", "Content-Type": "text/plain"}
    for headers in (
        plain,
        plain | {"Origin": "http://evil.test"},
        plain | {"Prefect-Csrf-Token": "guessed", "Prefect-Csrf-Client": "guessed"},
        known(desk),  # a form that a page sends has no token, whatever else the browser adds
    ):
        assert asked(desk, headers, method="POST", path=path) in (401, 403)
    assert len(desk.runs()) == before


def test_another_account_cannot_read_the_password_and_is_refused_without_it(desk: Desk) -> None:
    folder = desk.folder / ".sdpo-server"
    process = desk.processes.running["server"].pid
    code = f"""
import urllib.request
for path in ("{folder}/password", "/proc/{process}/environ"):
    try:
        open(path).read()
        print("read", path)
    except PermissionError:
        pass
print(open("/proc/{process}/cmdline").read())
try:
    urllib.request.urlopen("{desk.url}/api/deployments/count", data=b"{{}}")
    print("answered")
except urllib.error.HTTPError as error:
    print(error.code)
"""
    python = "/usr/bin/python3"  # this one may lie where others must not look
    if os.geteuid() or not os.access(python, os.X_OK):
        pytest.skip("another account is root's to take, and needs a Python of the system")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, user=NOBODY, check=True
    )
    assert "read" not in done.stdout
    assert "answered" not in done.stdout
    assert desk.password.partition(":")[2] not in done.stdout
    assert done.stdout.split()[-1] in ("401", "403")


PAGE = """<!doctype html><title>waiting</title><script>
const attempts = [
  fetch("URL/api/version"),
  fetch("URL/api/deployments/filter", {method: "POST", body: "{}"}),
  fetch("URL/api/deployments/filter", {method: "POST", mode: "no-cors", body: "{}"}),
];
const socket = new Promise((yes, no) => {
  const made = new WebSocket("URL/api/events/in".replace("http", "ws"));
  made.onopen = () => yes({ok: true, type: "open"});
  made.onclose = no;
});
Promise.allSettled([...attempts, socket]).then(all => {
  const read = all.filter(each => each.status === "fulfilled" && each.value.ok);
  document.title = "done " + read.length;
});
</script>"""


class Page(BaseHTTPRequestHandler):
    """A stranger's site."""

    def __init__(self, page: str, *arguments: object) -> None:
        self.page = page
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Serve the page that attacks."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is told."""


@pytest.fixture
def foreign_site(desk: Desk) -> Iterator[int]:
    """Port of a site whose page asks the server for whatever it gives."""
    port = free_port()
    page = PAGE.replace("URL", desk.url)
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Page, page)) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield port
        site.shutdown()


def test_a_browser_gives_a_strangers_page_nothing(desk: Desk, foreign_site: int) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed: extra `e2e`")
    from browser import CHROMIUM
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("there is no chromium: apt-get install chromium")
    rules = "--host-resolver-rules=MAP evil.test 127.0.0.1,MAP rebound.test 127.0.0.1"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", rules]
        )
        page = chromium.new_page()
        page.goto(f"http://evil.test:{foreign_site}/")
        page.wait_for_function("document.title.startsWith('done')")
        assert page.title() == "done 0"
        answer = page.goto(f"http://rebound.test:{desk.port}/api/csrf-token?client=me")
        assert answer is not None
        assert answer.status == 403
        assert "not known by that name" in page.content()
        chromium.close()


def test_without_a_password_it_is_no_server_for_others(desk: Desk) -> None:
    for arguments in (["--host", "0.0.0.0"], ["--allow-host", "trainer.example"]):
        done = desk.sdpo("up", "--no-auth", *arguments)
        assert done.returncode == 2
        assert "leave out one of the two" in done.stderr.replace("Leave", "leave")
        assert "warning" in done.stderr
    assert desk.sdpo("up", "--no-auth", "--port", str(desk.port)).returncode == 2, "it asks already"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        desk.api("/deployments/filter", {}, password="")
