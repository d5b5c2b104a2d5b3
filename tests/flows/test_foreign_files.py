"""What a user has under a name that this project uses stays as it is, whatever is called."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from bench import Bench
from command_line import Sdpo
from foreign import (
    BESIDE_RUNS,
    CONTENTS,
    NAMES,
    OF_A_CACHE,
    PARENTS,
    State,
    below,
    fill,
    state_of,
)
from histories import origin, write_new_pairs
from written import TEMPORARY, joined_names, noted, recorded, shape

from flows.cli.app import app
from sdpo.system.files import write_json
from sdpo.system.ownership import MARKER

REFUSED = (
    ("run", "{recipe}", "--name", "{data}"),
    ("run", "{recipe}", "--runs-dir", "{folder}", "--name", "{mine_name}"),
    ("run", "{recipe}", "--name", "new", "--set", "store.cache_dir={mine}"),
    ("resume", "{data}", "--runs-dir", "{runs}"),
    ("resume", "{mine}"),
    ("pull", "{store}", "{data}", "--runs-dir", "{runs}"),
    ("resume", "{store}/{data}", "--runs-dir", "{runs}"),
    ("check", "{recipe}", "--set", "store.cache_dir={mine}"),
    ("run", "{recipe}", "--name", "{mine_name}", "--set", "store.remote=file://{folder}"),
    ("pull", "file://{mine}", "--runs-dir", "{runs}"),
    ("partition", "{recipe}", "--name", "{data}"),
    ("partition", "{recipe}", "--out", "{mine}/plan.json"),
    ("export", "tiny", "{mine}", "--runs-dir", "{runs}"),
    ("push", "tiny", "mine/tiny", "--dry-run", "{mine}", "--runs-dir", "{runs}"),
    ("report", "{data}", "--runs-dir", "{runs}"),
    ("from-trl", "{mine}"),
    ("from-llama-factory", "{mine}"),
    ("from-axolotl", "{mine}"),
    ("evaluate", "{data}", "--suite", "h4", "--runs-dir", "{runs}"),
    ("replay", "tiny/step-2", "--name", "{data}", "--runs-dir", "{runs}"),
    ("replay", "{data}/step-2", "--runs-dir", "{runs}"),
    ("extend", "tiny", "--source", "{new}", "--name", "{data}", "--runs-dir", "{runs}"),
    ("extend", "{data}", "--source", "{new}", "--name", "new", "--runs-dir", "{runs}"),
    ("compare", "{recipe}", "--name", "{data}"),
    ("compare", "{recipe}", "--arms", "sdpo,{data}"),
    ("sweep", "{recipe}", "--over", "training.beta=0.1,0.2", "--name", "{data}"),
    ("diff", "tiny", "{data}", "--runs-dir", "{runs}"),
    ("lineage", "{data}/step-1", "--runs-dir", "{runs}"),
    ("node", "join", "--rendezvous", "{mine}"),
    ("server", "up", "--folder", "{mine}"),
    ("server", "down", "--folder", "{mine}"),
    ("server", "form", "demo", "--folder", "{mine}"),
    ("server", "password", "--folder", "{mine}"),
    ("server", "status", "--folder", "{mine}"),
)
"""What names a folder of the user's."""
FAILED = (
    ("promote", "tiny", "--runs-dir", "{runs}"),
    ("rollback", "tiny", "--runs-dir", "{runs}"),
    ("current", "tiny", "--runs-dir", "{runs}"),
    ("retrain", "tiny", "--source", "{new}", "--runs-dir", "{runs}"),
)
"""What needs a registry, or a lock, whose name a file of the user's has."""
DONE = (
    ("gc", "--yes", "--runs-dir", "{runs}"),
    ("gc", "--yes", "--runs-dir", "{runs}", "--cache-dir", "{mine}"),
    ("gc", "--yes", "--runs-dir", "{folder}"),
    ("status", "--runs-dir", "{runs}"),
    ("status", "tiny", "--runs-dir", "{runs}"),
    ("recipes",),
    ("slurm", "{recipe}"),
    ("plugins",),
    ("schema",),
    ("run", "{recipe}"),
    ("check", "{recipe}"),
    ("report", "tiny", "--runs-dir", "{runs}"),
    ("partition", "{recipe}", "--name", "planned"),
    ("export", "tiny", "{folder}/exported", "--runs-dir", "{runs}"),
    ("push", "tiny", "mine/tiny", "--dry-run", "{folder}/would-go", "--runs-dir", "{runs}"),
    ("run", "{recipe}", "--name", "new", "--set", "training.max_steps=1"),
    ("replay", "tiny/step-2", "--name", "again", "--only", "--runs-dir", "{runs}"),
    ("extend", "tiny", "--source", "{new}", "--name", "more", "--runs-dir", "{runs}"),
    ("promote", "tiny", "--runs-dir", "{runs}"),
    ("promote", "new", "--name", "tiny", "--runs-dir", "{runs}"),
    ("rollback", "tiny", "--runs-dir", "{runs}"),
    ("current", "tiny", "--runs-dir", "{runs}"),
    ("retrain", "tiny", "--source", "{newer}", "--runs-dir", "{runs}"),
    ("gc", "--yes", "--runs-dir", "{runs}"),
    ("resume", "new", "--runs-dir", "{runs}"),
    ("verify", "new", "--runs-dir", "{runs}"),
    ("compare", "{recipe}", "--arms", "new,sdpo", "--set", "training.max_steps=1"),
    ("sweep", "{recipe}", "--over", "training.beta=0.1,0.2", "--dry-run"),
    (
        "run",
        "{recipe}",
        "--name",
        "new",
        "--set",
        "training.max_steps=1",
        "--set",
        "store.remote={store}",
    ),
    ("pull", "{store}/new", "--runs-dir", "{folder}/runs"),
    ("verify", "new", "--remote", "--runs-dir", "{runs}"),
    ("diff", "tiny", "new", "--runs-dir", "{runs}"),
    ("lineage", "new/step-2", "--runs-dir", "{runs}"),
)
"""What has nothing to do with them, in an order in which all can be done."""
OF_A_REGISTRY = ("registry.json", ".registry.lock", ".tiny.retrain.lock")
VARIANTS = range(0, 9, 3)
"""With which of the contents the first of the names begins."""
IN_TEMPORARIES = (
    "scratch",
    "all",
    "drawn",
    "rejected.jsonl",
    "rows.parquet",
    "claim",
    "part-1.arrow",
    "object",
    "model.gguf",
    "events.jsonl",
)
"""What is only ever below a name that nobody can guess."""
ONLY_READ = (
    *("data", "dataset_dict.json", "state.json"),  # data sets as `datasets` saves them
    *("blobs", "refs", "datasets--mine"),  # a folder of the hub's
    *("recipes", "losses.py", "report.css"),  # of the package itself
    "dataset_info.json",  # of LLaMA-Factory
)
"""Names of what others write."""
BY_USERS = ("cache", ".sdpo-server", "runs")
"""Defaults of what a user names: whole folders, each with its marker."""


@dataclass(frozen=True, slots=True)
class Place:
    """A finished run among files of the user's, everywhere and under every name, three times with
    other contents; ``state`` is theirs, ``folders`` are those that hold nothing else."""

    bench: Bench
    state: State
    folders: Mapping[Path, set[Path]]

    def assert_untouched(self, after: object) -> None:
        """Each file is byte for byte as it was, and nothing stands beside it."""
        assert state_of(self.state) == self.state, after
        assert {folder: below(folder) for folder in self.folders} == self.folders, after


@pytest.fixture
def place(finished_copy: Bench) -> Place:
    runs, state, folders = finished_copy.runs, {}, {}
    for first in VARIANTS:
        for folder in (finished_copy.folder / f"mine-{first}", runs / f"data-{first}"):
            state |= fill(folder, first=first)
            folders[folder] = below(folder)
    others = [name for name in BESIDE_RUNS if name not in OF_A_REGISTRY]
    state |= fill(runs, others)
    state |= fill(finished_copy.folder / "cache", OF_A_CACHE)
    own = ("notes.txt", ".tmp-mine/notes", "step-1/my-notes", "step-1/resume/notes")
    state |= fill(runs / "tiny", own)
    return Place(finished_copy, state, folders)


def called(
    bench: Bench, sdpo: Sdpo, command: tuple[str, ...], *, variant: int, first: str = ""
) -> tuple[int, str]:
    words = {
        "recipe": bench.write(),
        "store": f"file://{bench.folder}/store",
        "folder": bench.folder,
        "runs": bench.runs,
        "mine": bench.folder / f"mine-{variant}",
        "mine_name": f"mine-{variant}",
        "data": f"data-{variant}",
        "new": write_new_pairs(bench.folder / "new.jsonl", *range(20)),
        "newer": write_new_pairs(bench.folder / "newer.jsonl", *range(20, 40)),
    }
    done = sdpo(*(word.format(**words) for word in command), first=first)
    assert "Traceback" not in done.told
    return done.code, done.told


def commands_of(group: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the command line, by its words."""
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands_of(command, (*words, name))
        else:
            yield (*words, name)


def test_every_command_that_there_is_is_called_among_foreign_files() -> None:
    tried = (*REFUSED, *FAILED, *DONE)
    for words in commands_of(typer.main.get_command(app)):
        assert any(command[: len(words)] == words for command in tried), words


def test_every_name_that_the_code_joins_to_a_path_is_among_the_users() -> None:
    known = {part for name in NAMES for part in name.split("/")}
    known |= {*IN_TEMPORARIES, *ONLY_READ, *BY_USERS}
    unknown = {
        pattern: where
        for pattern, where in joined_names().items()
        if not any(re.fullmatch(pattern, name) for name in known)
    }
    assert not unknown, "tests/support/foreign.py has to name them"


def unlisted(place: Place, made: set[Path]) -> set[str]:
    """What was made under names that no file of the user's has, in the words of `shape`."""
    bench, known = place.bench, set(map(shape, PARENTS | set(NAMES)))
    given = {
        ".",
        "runs",
        "cache",
        "exported",
        "would-go",
        "recipe.yaml",
        "new.jsonl",
        "newer.jsonl",
    }
    found = set()
    users = {path for folder in place.folders for path in (folder, *below(folder))}
    for path in made - users - set(place.state):
        parts = path.relative_to(bench.folder).parts
        if parts[0] == "runs" and len(parts) > 1 and (bench.runs / parts[1]).is_dir():
            is_inner = len(parts) > 2 and (bench.runs / parts[1] / parts[2] / "run.yaml").is_file()
            parts = parts[3:] if is_inner else parts[2:]  # a run, of a study or not
        elif parts[0] in ("runs", "cache") and len(parts) > 1:
            parts = parts[1:]
        elif parts[0] == "store":
            parts = parts[2:]  # a run that is kept there
        elif parts[0] in ("exported", "would-go"):
            parts = ("step-1", "model", *parts[1:])
        shapes = [shape(part) for part in parts]
        if TEMPORARY in shapes:
            shapes = shapes[: shapes.index(TEMPORARY)]
        if shapes and "/".join(shapes) not in known | given:
            found.add("/".join(shapes))
    return found


def test_a_folder_that_is_the_users_is_refused_and_nothing_in_it_changes(
    place: Place, sdpo: Sdpo
) -> None:
    for command in REFUSED:
        for variant in VARIANTS:
            code, told = called(place.bench, sdpo, command, variant=variant)
            assert code in (1, 2), (command, variant, told)  # 1: what is there is damaged
            place.assert_untouched((command, variant))
            assert not (place.bench.runs / "new").exists(), command


def test_a_registry_or_a_lock_that_is_the_users_is_refused(place: Place, sdpo: Sdpo) -> None:
    for variant in VARIANTS:
        registry = fill(place.bench.runs, OF_A_REGISTRY, first=variant)
        for command in FAILED:
            code, told = called(place.bench, sdpo, command, variant=variant)
            assert code in (1, 2), (command, variant, told)
            assert state_of(registry) == registry, (command, variant)
            place.assert_untouched((command, variant))


@pytest.mark.timeout(600)
def test_what_is_the_users_stays_beside_what_is_done(
    place: Place, sdpo: Sdpo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "made"
    with recorded(place.bench.folder, log) as recorder:
        for command in DONE:
            of_mine = any("{mine}" in word for word in command)
            for variant in VARIANTS if of_mine else VARIANTS[:1]:
                code, told = called(place.bench, sdpo, command, variant=variant, first=recorder)
                # A judgement that keeps the model in use is an exit code of 1.
                assert code in ((0, 1) if command[0] == "retrain" else (0,)), (command, told)
                place.assert_untouched((command, variant))
    made = noted(log) | below(place.bench.folder)
    assert any(path.name == "step-2.events.jsonl" for path in made), "a stage told of what it made"
    assert not unlisted(place, made), "tests/support/foreign.py has to name them"
    verified = sdpo("verify", "tiny", "--runs-dir", place.bench.runs).out.splitlines()
    faults = [line for line in verified if line.startswith("fault: ")]
    assert faults == ["fault: step-1/my-notes was not published by this run"]


def test_the_refusal_names_what_is_there_and_what_to_do(bench: Bench, sdpo: Sdpo) -> None:
    fill(bench.runs / "data", ("pairs.parquet", "report.html", ".tmp-mine/notes"))
    refused = sdpo("run", bench.write(), "--name", "data")
    assert refused.code == 2
    assert "holds .tmp-mine, pairs.parquet, report.html: nothing in it is touched" in refused.told
    assert "--name" in refused.told


def test_a_single_file_under_any_name_is_enough_to_refuse_a_folder(
    bench: Bench, sdpo: Sdpo
) -> None:
    recipe = bench.write()
    for number, name in enumerate(NAMES):
        state = fill(bench.runs / f"data-{number}", [name], first=number)
        refused = sdpo("run", recipe, "--name", f"data-{number}")
        assert (refused.code, state_of(state)) == (2, state), (name, refused.told)


def unread(path: Path) -> tuple[int, ...]:
    """What of a file's state does not change where it is only looked at."""
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"mine"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.parent / "elsewhere"),
        os.mkfifo,
    ],
    ids=["a file", "a link to nothing", "a link to a folder", "a pipe"],
)
def test_what_is_no_folder_under_the_name_of_a_run_or_a_cache_stays(
    bench: Bench, sdpo: Sdpo, make: Callable[[Path], object]
) -> None:
    elsewhere = fill(bench.runs / "elsewhere", ["notes.txt"])
    for name, command in (
        ("data", ("run", bench.write(), "--name", "data")),
        ("kept", ("run", bench.write(), "--set", f"store.cache_dir={bench.runs / 'kept'}")),
        ("out", ("export", "tiny", bench.runs / "out", "--runs-dir", bench.runs)),
    ):
        path = bench.runs / name
        make(path)
        before = unread(path)
        assert sdpo(*command).code == 2
        assert unread(path) == before
    assert state_of(elsewhere) == elsewhere


def test_a_link_of_a_run_that_leads_out_of_it_is_not_written_through(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    victim = fill(finished_copy.folder / "victim", ["model/config.json", "resume/00000002/x"])
    step = origin(finished_copy).step(2)
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    step.rmdir()
    step.symlink_to(finished_copy.folder / "victim")
    refused = sdpo("run", finished_copy.write())
    assert refused.code == 2
    assert "leads out of the run" in refused.told
    assert sdpo("gc", "--yes", "--runs-dir", finished_copy.runs).code == 0
    assert state_of(victim) == victim


def test_the_log_of_a_stage_is_not_written_through_a_link(bench: Bench, sdpo: Sdpo) -> None:
    sdpo("partition", bench.write(), "--name", "tiny")
    victim = fill(bench.folder, ["bashrc"])
    (bench.runs / "tiny" / "logs").mkdir()
    (bench.runs / "tiny" / "logs" / "step-1.log").symlink_to(bench.folder / "bashrc")
    assert sdpo("run", bench.write()).code != 0
    assert state_of(victim) == victim


def test_a_cache_that_a_received_run_names_is_not_cleaned(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = origin(finished_copy)
    victim = fill(finished_copy.folder / "victim", OF_A_CACHE)
    content = run.read_run().as_json()
    content["config"]["store"]["cache_dir"] = str(finished_copy.folder / "victim")
    run.write_run(content)
    said = sdpo("gc", "--yes", "--runs-dir", finished_copy.runs)
    assert (said.code, state_of(victim)) == (0, victim)
    assert "names the cache" in said.told
    assert "--cache-dir" in said.told


def test_a_token_file_that_a_record_names_outside_of_the_cache_is_not_read(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    run = origin(finished_copy)
    record = run.read_record("reserve") or {}
    record["identity"]["tokens"] = "../../mine"
    run.publish_record("reserve", record)
    mine = fill(finished_copy.folder, ["mine.arrow"])
    assert sdpo("gc", "--yes", "--runs-dir", finished_copy.runs).code == 0
    assert state_of(mine) == mine


@pytest.mark.parametrize("content", CONTENTS)
def test_a_marker_is_one_by_its_content(bench: Bench, sdpo: Sdpo, content: bytes) -> None:
    marker = bench.runs / "tiny" / MARKER
    marker.parent.mkdir(parents=True)
    marker.write_bytes(content)
    assert sdpo("run", bench.write()).code == 2
    assert marker.read_bytes() == content


def test_a_registry_of_another_format_stays(finished_copy: Bench, sdpo: Sdpo) -> None:
    path = finished_copy.runs / "registry.json"
    write_json(path, {"format": 2, "names": {}})
    before = path.read_bytes()
    assert sdpo("promote", "tiny", "--runs-dir", finished_copy.runs).code == 1
    assert path.read_bytes() == before
