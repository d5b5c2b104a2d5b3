"""Every file of a run, damaged in every way: it is named, or nothing that is told rests on it.

Never a traceback (``sdpo`` of these tests lets them through), and never something else in silence.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from command_line import Called, Sdpo
from histories import origin

from sdpo.store.run_folder import RunFolder
from sdpo.system.files import checksum_path, checksum_text, file_digest, read_json, write_json

Damage = Callable[[Path, Path | None], object]
"""Damages a file; the second is the file of the same name of another step, where there is one."""


def _replaced(change: Callable[[bytes], bytes]) -> Damage:
    """Another content in a file of its own: other links of the old one stay as they are."""

    def damage(path: Path, _other: Path | None) -> None:
        content = change(path.read_bytes())
        path.unlink()
        path.write_bytes(content)

    return damage


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _instead(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, _other: Path | None) -> None:
        path.unlink()
        make(path)

    return damage


def _swapped(path: Path, other: Path | None) -> None:
    """That of the other step, with the digest beside it, which fits."""
    assert other is not None
    for mine, theirs in ((path, other), (checksum_path(path), checksum_path(other))):
        if theirs.is_file():
            mine.unlink()
            shutil.copyfile(theirs, mine)


DAMAGES: dict[str, Damage] = {
    "a flipped bit": _replaced(_flipped),
    "cut": _replaced(lambda content: content[: len(content) // 2]),
    "empty": _replaced(lambda content: b""),
    "other bytes": _replaced(lambda content: b"\xff\xfe\0\x1b]52;c;aGk=\x07PAR1" * 9),
    "gone": _instead(lambda path: None),
    "a folder": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),
    "a link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "a link in a circle": _instead(lambda path: path.symlink_to(path.name)),
    "that of another step": _swapped,
}

CHANGED = ("a flipped bit", "cut", "empty", "other bytes", "that of another step")
"""Damages of a file that is still there."""
BUT_FOR_PEOPLE = ("README.md", "lineage.json")
"""Beside a model: only what is told of it changes."""


def files_of(run: RunFolder) -> list[str]:
    """Every file of a run that it is read from, but logs."""
    paths = sorted(path for path in run.path.rglob("*") if path.is_file())
    names = [str(path.relative_to(run.path)) for path in paths]
    return [name for name in names if not name.startswith("logs/") and name != ".lock"]


def other_step(path: Path) -> Path | None:
    """The file of the same name of another step, model or measurement."""
    for mine, theirs in (("step-1", "step-2"), ("M_1", "M_2"), ("gamma-1", "gamma-2")):
        for old, new in ((mine, theirs), (theirs, mine)):
            other = Path(str(path).replace(old, new))
            if old in str(path) and other.is_file() and other.read_bytes() != path.read_bytes():
                return other
    return None


@contextmanager
def damaged(run: RunFolder, name: str, damage: str) -> Iterator[None]:
    """The run with one file damaged; afterwards it is as before."""
    path = run.path / name
    kept = {p: p.read_bytes() for p in (path, checksum_path(path)) if p.is_file()}
    try:
        DAMAGES[damage](path, other_step(path))
        yield
    finally:
        for old, content in kept.items():
            if old.is_dir() and not old.is_symlink():
                old.rmdir()
            old.unlink(missing_ok=True)
            old.write_bytes(content)


def trials(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Files with a damage each, another one for the next file."""
    for number, name in enumerate(files_of(run)):
        has_other, content = other_step(run.path / name), (run.path / name).read_bytes()
        possible = [d for d in DAMAGES if d != "that of another step" or has_other]
        possible = possible if content else ["a folder"]
        yield name, possible[number % len(possible)]


def must_be_told(command: str, name: str, damage: str) -> bool:
    """Whether a command that succeeds in spite of the damage has told something wrong."""
    weighs = name.startswith("step-2/model/") and not name.endswith(BUT_FOR_PEOPLE)
    match command:
        case "verify":
            # Without its marker a run is one of before there were any, which is a note.
            return not (name == ".sdpo.json" and damage == "gone") and name != "report.html"
        case "lineage" | "export" | "promote":
            return weighs or (name == "step-2/record.json" and damage in CHANGED)
        case "diff" | "report":
            told = ("plan.json", "step-1/metrics.jsonl", "step-2/metrics.jsonl")
            drawn = command == "report" and name.startswith(("probes/", "rejected_rows"))
            return name in told or drawn or (command == "diff" and name.endswith("gamma.json"))
    return False


def calls(bench: Bench) -> dict[str, Sequence[object]]:
    """Commands that read a run."""
    return {
        "verify": ("verify", "tiny"),
        "lineage": ("lineage", "tiny"),
        "status": ("status", "tiny"),
        "diff": ("diff", "tiny", "tiny"),
        "report": ("report", "tiny"),
        "gc": ("gc",),
        "replay": ("replay", "tiny/step-2", "--dry-run"),
        "promote": ("promote", "tiny"),
        "export": ("export", "tiny", bench.folder / "exported"),
    }


def assert_told(bench: Bench, sdpo: Sdpo, name: str, damage: str, *commands: str) -> None:
    asked = calls(bench)
    for command in commands or asked:
        called: Called = sdpo(*asked[command], "--runs-dir", bench.runs)
        shutil.rmtree(bench.folder / "exported", ignore_errors=True)
        (bench.runs / "registry.json").unlink(missing_ok=True)
        assert called.code in (0, 1, 2), (command, name, damage)
        assert not {"\x1b", "\x9b"} & set(called.out + called.err)
        if must_be_told(command, name, damage):
            assert called.code, (command, name, damage, called.told)


QUICK = ("lineage", "status", "diff", "report", "replay")
"""Those that start no process, and write nothing but the report."""


@pytest.mark.timeout(600)
def test_a_damaged_file_is_told_and_never_a_traceback(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    for number, (name, damage) in enumerate(trials(run)):
        with damaged(run, name, damage):
            asked = QUICK[number % len(QUICK)]
            assert_told(finished_copy, sdpo, name, damage, "verify", asked)
    assert sdpo("verify", "tiny", "--runs-dir", finished_copy.runs).code == 0


def test_a_model_with_a_damaged_file_is_not_handed_on(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    for number, name in enumerate(n for n in files_of(run) if n.startswith("step-2/")):
        damage = list(DAMAGES)[number % (len(DAMAGES) - 1)]
        with damaged(run, name, damage):
            assert_told(finished_copy, sdpo, name, damage, "promote", "lineage", "export")


@pytest.mark.parametrize("command", ["export", "lineage", "diff", "promote"])
def test_the_step_before_a_damaged_one_is_not_taken_for_the_last(
    finished_copy: Bench, sdpo: Sdpo, command: str
) -> None:
    run = origin(finished_copy)
    path = run.record_path("step-2")
    path.write_bytes(path.read_bytes().replace(b'"pairs": 3', b'"pairs": 4'))
    called = sdpo(*calls(finished_copy)[command], "--runs-dir", finished_copy.runs)
    assert called.code == 1
    assert "step-2/record.json was changed after it was written" in called.told


FORMS: dict[str, Callable[[dict[str, object]], object]] = {
    "a list": lambda record: [record],
    "nothing": lambda record: None,
    "files of another kind": lambda record: record | {"files": ["a"]},
    "a digest of another kind": lambda record: record | {"files": {"pairs.parquet": 1}},
    "a file outside": lambda record: record | {"files": {"../mine": "0" * 64}},
    "an absolute file": lambda record: record | {"files": {"/etc/hostname": "0" * 64}},
    "outputs of another kind": lambda record: record | {"outputs": "x"},
    "another node": lambda record: record | {"node": "plan", "step": 7},
}


@pytest.mark.parametrize("node", ["data", "step-2", "probe-M_1"])
def test_a_record_of_another_form_is_none_whatever_its_digest_says(
    finished_copy: Bench, sdpo: Sdpo, node: str
) -> None:
    run = origin(finished_copy)
    path = run.record_path(node)
    record = read_json(path)
    for form, change in FORMS.items():
        write_json(path, change(record))
        checksum_path(path).write_text(checksum_text(path))
        called = sdpo("verify", "tiny", "--runs-dir", finished_copy.runs)
        assert called.code == 1, form
        assert "is no record" in called.told, (form, called.told)
    for command in QUICK:
        called = sdpo(*calls(finished_copy)[command], "--runs-dir", finished_copy.runs)
        assert called.code in (0, 1, 2)


Within = tuple[str, str, Callable[[Any], object], str]
WITHIN: dict[str, Within] = {
    "a source without its count": (
        *("data", "", lambda record: record["outputs"]["sources"][0].pop("kept")),
        "diff",
    ),
    "a gate of text": (
        *("step-1", "", lambda record: record["gate"].update(tolerance_nats="x")),
        "report",
    ),
    "a plan without sources": (
        *("plan", "plan.json", lambda plan: plan["steps"][0].update(sources=None)),
        "report",
    ),
    "a plan of text": (*("plan", "plan.json", lambda plan: plan.update(steps="ab")), "diff"),
    "a completion of something else": (
        *("probe-M_1", "probes/M_1.completions.json", lambda rows: rows[0].clear()),
        "report",
    ),
}
"""A node, a file of it or its record, what becomes of its content, and a command that reads it."""


@pytest.mark.parametrize("within", WITHIN)
def test_what_a_received_run_has_within_is_told_where_its_form_is_not_known(
    finished_copy: Bench, sdpo: Sdpo, within: str
) -> None:
    run = origin(finished_copy)
    node, name, change, command = WITHIN[within]
    record = run.read_record(node)
    assert record is not None
    content = read_json(run.path / name) if name else record
    change(content)
    if name:
        write_json(run.path / name, content)
        record["files"] = record["files"] | {name: file_digest(run.path / name)}
    run.publish_record(node, record)
    called = sdpo(*calls(finished_copy)[command], "--runs-dir", finished_copy.runs)
    assert called.code == 1, called.told
    assert "this version" in called.told
    listed = sdpo("status", "--runs-dir", finished_copy.runs)
    assert (listed.code, "tiny" in listed.out) == (0, True)
