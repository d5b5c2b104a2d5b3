"""Retraining from a file of prompts that grows: each prompt is answered once, a step each time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bench import Bench, Values
from command_line import Sdpo, caller
from forked_stages import forked_stages
from histories import origin

from sdpo.errors import ConfigError, DataError
from sdpo.history.lineage import lineage_of
from sdpo.history.new_prompts import NewRound
from sdpo.history.verify import verify_run
from sdpo.promotion.judge import GateSettings
from sdpo.promotion.retrain import Retrained, retrain
from sdpo.promotion.versions import current
from sdpo.store.run_folder import RunFolder

LENIENT = GateSettings(
    when_too_few="estimate",
    accuracy_tolerance=1,
    margin_tolerance_nats=1000,
    gamma_change_min_nats=-1000,
)
ROUND = (
    *("judge.rule=length", "n=3", "max_new_tokens=5", "unfinished=keep", "held_out=0"),
    "prompt_column=text",
)


def write(path: Path, prompts: Sequence[Any]) -> Path:
    lines = [json.dumps({"text": prompt}) + "\n" for prompt in prompts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def retrained(bench: Bench, prompts: Path, *settings: str, **options: Any) -> Retrained:
    made = NewRound(prompts=str(prompts), settings=settings)
    options = {"overrides": ["training.max_steps=1", "training.warmup_ratio=0"]} | options
    with forked_stages():
        return retrain("tiny", [], made=made, runs_dir=bench.runs, gate=LENIENT, **options)


def drawn(run: Path | None, step: int) -> set[str]:
    """The texts of the prompts that were answered for a step."""
    assert run is not None
    rows: list[Values] = pq.read_table(RunFolder(run).step(step) / "prompts.parquet").to_pylist()
    return {row["prompt"][-1]["content"] for row in rows}


def test_a_file_of_prompts_that_grows_makes_a_round_each_time(promoted: Bench) -> None:
    run = origin(promoted)
    plan = pq.read_table(run.plan).to_pylist()
    held = next(row["pair_id"] for row in plan if not row["step"])
    turns = {row["pair_id"]: row["prompt"] for row in pq.read_table(run.pairs).to_pylist()}[held]
    reserved = [{key: turn[key] for key in ("role", "content")} for turn in turns]
    texts = [f"What is {number} good for?" for number in range(6)]
    file = write(promoted.folder / "requests.jsonl", [*texts, reserved])

    found = retrained(promoted, file, *ROUND)
    assert (found.status, found.new_pairs) == ("promoted", 6)
    assert drawn(found.run, 3) == set(texts), "a reserved prompt is not answered"
    assert current("tiny", runs_dir=promoted.runs).in_use.step == 3
    assert found.run is not None
    assert verify_run(RunFolder(found.run)).faults == []
    links = lineage_of(found.run.name, runs_dir=promoted.runs).links
    assert links[-1].models["data"] == "M_2"

    nothing = retrained(promoted, file)
    assert (nothing.status, nothing.run) == ("nothing new", None)
    few = write(file, [*texts, reserved, "And what now?"])
    assert "1 new prompts for tiny" in retrained(promoted, few, min_new_pairs=2).reason

    more = [f"And {number}, then?" for number in range(4)]
    write(file, [*texts, reserved, *more])
    again = retrained(promoted, file)  # by the rules of the round before
    assert (again.status, again.new_pairs) == ("promoted", 4)
    assert drawn(again.run, 4) == set(more), "what was answered is not drawn again"
    assert again.run is not None
    samples = pq.read_table(RunFolder(again.run).step(4) / "samples.parquet").to_pylist()
    assert len(samples) == 4 * 3
    assert all(row["score"] == len(row["text"]) for row in samples)
    links = lineage_of(again.run.name, runs_dir=promoted.runs).links
    assert [link.models.get("data") for link in links] == [None, None, "M_2", "M_3"]
    assert verify_run(RunFolder(again.run)).faults == []


def test_a_round_that_cannot_be_is_refused_in_words(promoted: Bench) -> None:
    file = write(promoted.folder / "requests.jsonl", ["What now?"])
    with pytest.raises(ConfigError, match=r"judge names none.*--generate judge.rule="):
        retrained(promoted, file, "max_new_tokens=5")
    with pytest.raises(ConfigError, match="--generate rounds=2: a further step is one round"):
        retrained(promoted, file, *ROUND, "rounds=2")
    with pytest.raises(DataError, match="no prompts at"):
        retrained(promoted, promoted.folder / "nowhere.jsonl", *ROUND)
    with pytest.raises(DataError, match="it has no column `prompt`"):
        retrained(promoted, file, *ROUND, "prompt_column=prompt")
    assert {path.parent.name for path in promoted.runs.glob("*/run.yaml")} == {"tiny"}


def test_the_command_line_takes_pairs_or_prompts(
    promoted: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    sdpo: Sdpo = caller(capsys)
    asked = ("retrain", "tiny", "--runs-dir", promoted.runs)
    alone = sdpo(*asked, "--generate", "n=3")
    assert (alone.code, "name their file (--prompts)" in alone.told) == (2, True)
    nothing = sdpo(*asked)
    assert (nothing.code, "name a source (--source)" in nothing.told) == (2, True)
    file = write(promoted.folder / "requests.jsonl", ["What now?"])
    both = sdpo(*asked, "--source", file, "--prompts", file, "--generate", "judge.rule=length")
    assert (both.code, "a step is of one of them" in both.told) == (2, True)
