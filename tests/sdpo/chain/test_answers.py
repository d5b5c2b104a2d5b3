"""Answers for win rates: they go on by prompt, on every process of the launch, from any file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import Bench
from forked_ranks import forked_ranks
from second_node import free_port, second_node

from sdpo.errors import DataError, Fault
from sdpo.events import Event, ProgressEvent, WarningEvent
from sdpo.history.evaluate import Evaluated, evaluate_run
from sdpo.history.gc import collect
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.processes.judging_specs import CompletionsSpec
from sdpo.processes.stage_specs import read_spec
from sdpo.processes.supervisor import run_stage
from sdpo.report.win_rates import load_win_rates, win_rate_tables
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import file_digest
from sdpo.tokens.token_file import TokenFile

RULE = [
    "evaluation.win_rate.judge.rule=length",
    "evaluation.win_rate.prompts=5",
    "evaluation.win_rate.max_new_tokens=6",
]
DIES = """
from sdpo.generation.sample_log import SampleLog
add = SampleLog.add
def dying(self, *arguments):
    add(self, *arguments)
    if len(self.done) == 3:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
SampleLog.add = dying
"""
NOTES = """
from sdpo.generation.sample_log import SampleLog
add = SampleLog.add
def noting(self, key, samples):
    print("drawn", key, flush=True)
    add(self, key, samples)
SampleLog.add = noting
"""


def judge(
    run: RunFolder, *settings: str, first: str = "", models: tuple[str, ...] = ("M_0", "M_1")
) -> tuple[Evaluated, list[Event]]:
    events: list[Event] = []
    with forked_ranks(first=first):
        done = evaluate_run(
            run,
            win_rate=True,
            models=models,
            overrides=[*RULE, *settings],
            host=Host(listen=events.append),
        )
    return done, events


@pytest.fixture(scope="module")
def place(finished_bench: Bench, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A copy of the finished run whose first two models have answered reserved prompts."""
    copy = finished_bench.copy_to(tmp_path_factory.mktemp("answers"))
    judge(RunFolder(copy.runs / "tiny"))
    return copy


@pytest.fixture(scope="module")
def judged(place: Bench) -> RunFolder:
    return RunFolder(place.runs / "tiny")


def answers(run: RunFolder, model: int, source: str = "") -> pa.Table:
    """The answers of a model: to reserved prompts, or to those of a file."""
    for path in sorted((run.evaluations / f"M_{model}").glob("answers-*.parquet")):
        table = pq.read_table(path)
        if (set(table["source"].to_pylist()) == {source}) == bool(source):
            return table
    raise AssertionError(f"no answers of M_{model}")


def said(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, WarningEvent)]


# --- killed, and several processes


def test_answers_whose_process_was_killed_go_on_with_the_next_prompt_and_are_the_same(
    judged: RunFolder, finished_copy: Bench
) -> None:
    run, cache = RunFolder(finished_copy.runs / "tiny"), finished_copy.folder / "cache"
    with pytest.raises(Fault, match="SIGKILL"):
        judge(run, first=DIES)
    (kept,) = cache.glob("completions/*/answers.jsonl")
    three = kept.read_text("utf-8").splitlines()
    assert len(three) == 3
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"key": "cut sho')
    with collect(finished_copy.runs, cache=cache) as found:
        assert kept.parent not in [waste.path for waste in found.waste]
        assert f"{kept.parent} is not finished and less than a day old: left alone" in found.notes
    _, events = judge(run, first=NOTES)
    assert not [message for message in said(events) if "damaged" in message]
    log = (run.path / "logs/answers-M_0.log").read_text("utf-8")
    drawn = [line.split()[1] for line in log.splitlines() if line.startswith("drawn")]
    assert len(drawn) == 2, "of five prompts"
    assert not set(drawn) & {json.loads(line)["key"] for line in three}
    for model in (0, 1):
        assert answers(run, model).equals(answers(judged, model))
    assert not list(cache.glob("completions/*/answers*.jsonl"))


@pytest.fixture
def told(judged: RunFolder, tmp_path: Path) -> CompletionsSpec:
    """What the stage of M_1's answers was told, to be answered once more in another place."""
    return told_again(judged, tmp_path)


def told_again(run: RunFolder, folder: Path) -> CompletionsSpec:
    alone = answers(run, 1)
    table = alone.select(["prompt_key", "source", "prompt"]).append_column(
        "prompt_ids", pa.array(prompt_ids(run, alone), pa.list_(pa.int32()))
    )
    pq.write_table(table, folder / "prompts.parquet")
    spec = read_spec(run.path / "logs/answers-M_1.json")
    assert isinstance(spec, CompletionsSpec)
    own = {"run": folder, "prompts": folder / "prompts.parquet", "out": folder / "out"}
    return spec.model_copy(update=own)


def test_two_processes_answer_a_share_each_and_the_answers_are_those_of_one(
    judged: RunFolder, told: CompletionsSpec
) -> None:
    launch = told.launch.model_copy(update={"processes": 2, "strategy": "ddp"})
    events: list[Event] = []
    with forked_ranks():
        run_stage(told.model_copy(update={"launch": launch}), listen=events.append)
    check_shares(told.out, answers(judged, 1))
    notes = {event.note for event in events if isinstance(event, ProgressEvent)}
    assert notes == {"process 1 of 2"}


def test_blocks_of_two_prompts_are_shared_whole_and_have_the_bits_of_one_process(
    finished_copy: Bench, tmp_path: Path
) -> None:
    run, eight = RunFolder(finished_copy.runs / "tiny"), "evaluation.win_rate.prompts=8"
    judge(run, eight)
    spec = told_again(run, tmp_path)
    launch = spec.launch.model_copy(update={"processes": 2, "strategy": "ddp"})
    with forked_ranks():
        run_stage(spec.model_copy(update={"launch": launch}), listen=lambda event: None)
    check_shares(tmp_path / "out", answers(run, 1), sizes=[4, 4])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_answer_a_share_each_and_the_answers_are_those_of_one_process(
    judged: RunFolder, told: CompletionsSpec, tmp_path: Path
) -> None:
    with second_node(tmp_path) as node:
        port = free_port()
        spec = told.model_copy(update={"launch": node.launch(port)})
        node.run_stage(spec, port, lambda event: None)
        assert "node 1 of 2" in node.log.read_text("utf-8")
    check_shares(told.out, answers(judged, 1))


def check_shares(out: Path, alone: pa.Table, sizes: Sequence[int] = (2, 3)) -> None:
    """Two processes drew a share each, which together are what one draws."""
    shares = [
        {json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()}
        for path in sorted(out.glob("answers*.jsonl"))
    ]
    assert sorted(map(len, shares)) == list(sizes)
    assert set.union(*shares) == set(alone["prompt_key"].to_pylist())
    assert pq.read_table(out / "completions.parquet").equals(alone)


def prompt_ids(run: RunFolder, table: pa.Table) -> list[list[int]]:
    """What the model read of each prompt: the run's own token ids."""
    (path,) = (run.path.parents[1] / "cache/tokens").glob("*.arrow")
    tokens = TokenFile.open(path)
    plan = {row["prompt_key"]: row["token_row"] for row in pq.read_table(run.plan).to_pylist()}
    return [tokens.row(plan[key]).prompt_ids.tolist() for key in table["prompt_key"].to_pylist()]


# --- prompts of a file


@pytest.fixture(scope="module")
def prompts(place: Bench, judged: RunFolder) -> Path:
    """A file with two prompts of its own, one of them twice, one trained on, and one too long."""
    plan = pq.read_table(judged.plan).to_pylist()
    trained = next(row["pair_id"] for row in plan if row["step"] == 1)
    pairs = {row["pair_id"]: row["prompt"] for row in pq.read_table(judged.pairs).to_pylist()}
    texts = ["Who are you?", "Why is it so?", "Who are you?", "why " * 300]
    rows: list[dict[str, Any]] = [{"instruction": text} for text in texts]
    rows.insert(
        2, {"instruction": [{k: t[k] for k in ("role", "content")} for t in pairs[trained]]}
    )
    path = place.folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def of_file(path: Path, column: str = "instruction") -> tuple[str, str]:
    return (
        f"evaluation.win_rate.prompt_file={path}",
        f"evaluation.win_rate.prompt_column={column}",
    )


@pytest.fixture(scope="module")
def asked(judged: RunFolder, prompts: Path) -> tuple[Evaluated, list[Event]]:
    """The run, judged by the answers to the file's prompts besides."""
    return judge(judged, *of_file(prompts))


def test_prompts_of_a_file_are_answered_and_judged_under_its_name_and_digest(
    judged: RunFolder, asked: tuple[Evaluated, list[Event]], prompts: Path
) -> None:
    done, _ = asked
    found = answers(judged, 1, "asked.jsonl")
    texts = [row["prompt"][-1]["content"] for row in found.to_pylist()]
    assert texts[:2] == ["Who are you?", "Why is it so?"]
    assert len(texts) == 3
    (node,) = (name for name in done.executed if name.startswith("prompts-"))
    record = judged.record(node)
    assert record.identity["file"] == file_digest(prompts)
    (name,) = (each for each in done.executed if each.startswith("answers-M_1"))
    assert judged.record(name).identity["prompts"] == digest_of(record.identity)
    tables = win_rate_tables(load_win_rates(judged))
    sets = {table.title.partition(" on answers to ")[2].partition(":")[0] for table in tables}
    assert sets == {"reserved prompts", f"asked.jsonl ({file_digest(prompts)[:8]})"}
    assert len(tables) == 2
    assert verify_run(judged).faults == []


def test_rows_that_are_not_answered_and_prompts_that_were_trained_on_are_said(
    asked: tuple[Evaluated, list[Event]],
) -> None:
    _, events = asked
    told = [message for message in said(events) if "prompt_file: asked.jsonl" in message]
    assert len(told) == 2
    assert "2 of 5 rows are no prompt that is used (duplicate 1, " in told[0]
    assert "1 of 3 prompts are among the pairs that steps train on" in told[1]


def test_the_same_prompts_are_answered_once_and_others_again(
    judged: RunFolder, asked: tuple[Evaluated, list[Event]], prompts: Path
) -> None:
    assert asked
    again, events = judge(judged, *of_file(prompts))
    assert again.executed == ()
    assert not [event for event in events if isinstance(event, ProgressEvent)]
    other = prompts.with_name("more.jsonl")
    other.write_text('{"instruction": "And now?"}\n', encoding="utf-8")
    done, _ = judge(judged, *of_file(other))
    kinds = [name.partition("-")[0] for name in done.executed]
    assert kinds == ["prompts", "answers", "answers", "win", "report"]


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("askd.jsonl", "instruction", r"prompt_file: no prompts at .*did you mean asked\.jsonl"),
        ("asked.jsonl", "question", "no column `question`, but instruction: set .*prompt_column"),
    ],
)
def test_prompts_that_cannot_be_had_are_refused_before_anything_is_done(
    judged: RunFolder, prompts: Path, name: str, column: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        judge(judged, *of_file(prompts.with_name(name), column))
