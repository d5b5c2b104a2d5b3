"""What is printed reaches whoever reads it, harms nobody's terminal, and ends no run."""

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from bench import Bench
from command_line import Sdpo
from hypothesis import given
from hypothesis import strategies as st

from flows.cli.options import SafeConsole, make_console
from sdpo.system.streams import visible

SDPO = [sys.executable, "-m", "flows.cli.app"]


def call(command: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """A shell command in which ``$SDPO`` is the command line."""
    environment = {**os.environ, "SDPO": " ".join(SDPO), **environment}
    shell = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(shell, capture_output=True, env=environment, check=False, timeout=120)


CLOSED = ["$SDPO recipes >&- <&-", "$SDPO recipes 2>&-"]


@pytest.mark.parametrize("command", CLOSED)
def test_a_closed_stream_is_no_fault(command: str) -> None:
    done = call(command)
    assert done.returncode == 0
    assert b"Error" not in done.stderr


def test_an_exit_code_is_kept_where_nobody_can_be_told() -> None:
    done = call("$SDPO status nope 2>&- >&-")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["schema | head -1", "recipes | true"])
def test_a_reader_that_leaves_is_no_fault(command: str) -> None:
    done = call(f"$SDPO {command}")
    assert done.returncode == 0
    assert done.stderr == b""


ASCII = {"PYTHONIOENCODING": "ascii"}
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("command", "how"), [("recipes", ASCII), ("recipes demo", POSIX), ("status nope", ASCII)]
)
def test_an_ascii_terminal_gets_ascii(command: str, how: dict[str, str]) -> None:
    done = call(f"$SDPO {command}", **how)
    assert done.returncode == (2 if "nope" in command else 0)
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_does_not_fit_on_a_disk_is_told() -> None:
    done = call("$SDPO schema > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "failed: standard output was cut short: No space left on device\n"
    )


def assert_goes_on(bench: Bench, recipe: Path) -> None:
    """Into a pipe that is closed after a line, with a terminal that knows ASCII alone."""
    (bench.runs / "tiny" / "report.html").unlink(missing_ok=True)
    done = call(f"$SDPO run {recipe} | head -1", **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1
    assert (bench.runs / "tiny" / "report.html").is_file()


def test_a_run_goes_on_whether_or_not_it_is_read(finished_copy: Bench) -> None:
    assert_goes_on(finished_copy, finished_copy.write())


@pytest.mark.slow
def test_a_whole_run_goes_on_whether_or_not_it_is_read(bench: Bench) -> None:
    assert_goes_on(bench, bench.write({"training": {"max_steps": 1}}))


HARMFUL = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "c1": "\x9b31m\x9d52;c;ZXZpbA==\x9c",
    "back": "a\x08b\x0cc\rd\x7f",
    "direction": "safe\u202egpj.exe\u202c \u2066x\u2069 \u200fy",
    "no width": "pay\u200bpal pay\u2060pal pay\ufeffpal pay\u00adpal pay\u200dpal",
    "lines": "one\u2028two\u2029three",
    "tags": "a\U000e0041\U000e007f",
}


NO_TEXT, JOINERS = {"Cc", "Cf", "Zl", "Zp"}, "\u200c\u200d"
KEPT = "\t\n" + JOINERS


@pytest.mark.parametrize("text", HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_sends_no_control_sequences_but_its_own(text: str, terminal: bool) -> None:
    from rich.panel import Panel

    from flows.show.console import table

    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, color_system=None, width=80)
    for shown in (text, Panel(text, title=text), table([{text: text}], title=text)):
        console.print(shown)
    console.print(f"[bold]{text}[/]")
    sent = out.getvalue()
    assert not [c for c in sent if c != "\n" and unicodedata.category(c) in NO_TEXT], sent
    assert "ZXZpbA==" in sent or "ZXZpbA" not in text, "it is shown, not hidden"


def test_a_console_has_its_own_sequences_on_a_terminal() -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, color_system="standard")
    console.print("[red]x\x1b[32my", highlight=False)
    assert out.getvalue() == "\x1b[31mx␛[32my\x1b[0m\n"


def test_a_console_shows_text_as_it_is() -> None:
    """Colons are no pictures, and letters of all languages stay themselves."""
    out = io.StringIO()
    console = make_console()
    console.file = out
    console.print("ok :warning: Müller 東京 عاصمة", soft_wrap=True)
    assert out.getvalue() == "ok :warning: Müller 東京 عاصمة\n"
    assert visible("a\tb\nc") == "a\tb\nc"


@given(st.text())
def test_whatever_is_no_text_is_seen_and_all_else_is_as_it_was(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in NO_TEXT and c not in KEPT]
    assert visible(shown) == shown
    is_text = all(unicodedata.category(c) not in NO_TEXT or c in "\t\n" for c in text)
    assert (shown == text) == is_text or any(c in JOINERS for c in text)


@pytest.mark.parametrize(
    "text", ["می\u200cخواهم", "क्\u200dष", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
)
def test_a_joiner_that_is_spelling_stays_and_one_that_hides_is_seen(text: str) -> None:
    assert visible(f"{text}\x1b") == f"{text}␛"
    for joiner in JOINERS:
        assert visible(f"pay{joiner}pal {joiner}") == f"pay\\u{ord(joiner):x}pal \\u{ord(joiner):x}"


@pytest.mark.parametrize(
    "name", ["source\x1b]52;c;eA==\x07", "[red]x[/]", "[/nothing]", "a\u202eb\u200bc"]
)
def test_names_from_data_are_shown_harmlessly(bench: Bench, sdpo: Sdpo, name: str) -> None:
    data = bench.folder / "pairs.jsonl"
    prompts = [f"What is {k} \x1b[31m and \u202e{k}?" for k in range(20)]
    rows = [{"prompt": p, "chosen": f"It is {p}", "rejected": "No."} for p in prompts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"name": name, "path": str(data)}]
    called = sdpo("check", bench.write({"data": {"sources": sources}}))
    assert "Traceback" not in called.told
    assert not {"\x1b", "\u202e", "\u200b"} & set(called.out + called.err)
    if called.code == 0:
        assert visible(name)[:4] in called.out


COMMANDS = {
    "status": "status --runs-dir {runs}",
    "status of a run": "status tiny --runs-dir {runs}",
    "verify": "verify tiny --runs-dir {runs}",
    "lineage": "lineage tiny --runs-dir {runs}",
    "report": "report tiny --runs-dir {runs}",
    "diff": "diff tiny/step-1 tiny/step-2 --runs-dir {runs}",
    "replay": "replay tiny --step 2 --dry-run --runs-dir {runs}",
    "gc": "gc --runs-dir {runs}",
    "current": "current --runs-dir {runs}",
    "export": "export tiny {out} --runs-dir {runs}",
    "check": "check {recipe}",
    "partition": "partition {recipe}",
    "run": "run {recipe}",
    "retrain": "retrain tiny --source {source} --min-new-pairs 100000 --runs-dir {runs}",
}
ENDS = {
    "nobody": "<&- >&- 2>&-",
    "a line": "2>&1 | head -1",
    "a full disk": ">/dev/full 2>/dev/full",
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_does_its_work_whoever_reads_it(promoted: Bench, command: str) -> None:
    """Its streams are closed, end after a line or are full, and its terminal knows ASCII alone."""
    for number, (end, to) in enumerate(ENDS.items()):
        called = COMMANDS[command].format(
            runs=promoted.runs,
            recipe=promoted.write(),
            source=promoted.values()["data"]["sources"][0]["path"],
            out=promoted.folder / f"out-{number}",
        )
        done = call(f"$SDPO {called} {to}", **(POSIX if number % 2 else ASCII))
        assert done.returncode == (end == "a full disk"), done.stderr
        assert b"Traceback" not in done.stdout + done.stderr
        assert (done.stdout + done.stderr).isascii()
        if command == "export":
            assert (promoted.folder / f"out-{number}" / "model.safetensors").is_file()
