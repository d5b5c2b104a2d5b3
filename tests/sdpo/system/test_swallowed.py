"""A request to stop that comes where Python swallows what its handler raises."""

import signal
import subprocess
import sys

import pytest

from sdpo.errors import ModelError
from sdpo.system.limits import bounded

PLACES = {
    "a destructor": """
class Slow:
    def __del__(self):
        wait()
Slow()
""",
    "a callback of a weak reference": """
import weakref
class Referent:
    pass
referent = Referent()
reference = weakref.ref(referent, lambda _: wait())
del referent
""",
}
STAGE = """
from sdpo.system import interrupts
interrupts.listen()
"""
COMMAND = """
import sys
from flows.cli import app, exits
def wait_instead(arguments):
    try:
        work()
    except BaseException as error:
        sys.exit(exits.interrupted(error))
app.run_app = wait_instead
"""
WAIT = """
import time
def wait():
    print("waits", flush=True)
    time.sleep(20)
"""


def ended(code: str, number: signal.Signals) -> tuple[int, str]:
    """Exit code and standard error of ``code``, to which ``number`` is sent while it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        error = process.stderr.read()
        return process.wait(timeout=10), error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", PLACES)
def test_a_stage_ends_wherever_the_request_finds_it(place, number):
    code = WAIT + STAGE + PLACES[place] + "\ntime.sleep(20)\nprint('it went on')\n"
    assert ended(code, number) == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", PLACES)
def test_a_command_ends_wherever_the_request_finds_it(place, number):
    body = PLACES[place].replace("\n", "\n    ")
    code = f"{WAIT}\ndef work():\n    {body}\n    time.sleep(20)\n{COMMAND}\napp.main()\n"
    exit_code, error = ended(code, number)
    assert exit_code == 130
    assert error.startswith("interrupted: what was complete stands")


def test_what_other_code_loses_is_told_as_ever():
    code = STAGE + "class Faulty:\n    def __del__(self):\n        raise SystemExit(3)\nFaulty()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Exception ignored in" in done.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_computing_within_a_destructor_is_bounded_too():
    class Endless:
        def __del__(self) -> None:
            while True:
                pass

    def compute() -> None:
        Endless()
        while True:
            pass

    with (
        pytest.raises(ModelError, match="has computed"),
        bounded("it", seconds=0.1, size_bytes=10**9),
    ):
        compute()
