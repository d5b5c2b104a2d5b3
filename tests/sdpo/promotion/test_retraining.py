"""Retraining: one step of what is new, the gate, and `current`, which moves or stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from forked_stages import forked_stages
from histories import contents, origin, write_new_pairs

from sdpo.errors import ConfigError, IntegrityError, InUseError, UserError
from sdpo.events import Event
from sdpo.history.target import Checkpoint
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.promotion.decisions import DECISION
from sdpo.promotion.judge import GateSettings
from sdpo.promotion.retrain import Answer, Retrained, _was_in_use, retrain
from sdpo.promotion.versions import current, promote, rollback
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored

LENIENT = GateSettings(
    when_too_few="estimate",
    accuracy_tolerance=1,
    margin_tolerance_nats=1000,
    gamma_change_min_nats=-1000,
)
"""Passes whatever six optimizer steps of a tiny model come to."""
QUICK = ["training.max_steps=1", "training.warmup_ratio=0"]
"""One optimizer step that moves the weights."""
STRICT = LENIENT.model_copy(update={"gamma_change_min_nats": 1000.0})


def retrained(bench: Bench, source: Path, **options: Any) -> tuple[Retrained, list[str]]:
    """What came of it, and the nodes that were executed."""
    events: list[Event] = []
    options = {"gate": LENIENT, "overrides": QUICK} | options
    with forked_stages():
        found = retrain(
            "tiny", [str(source)], runs_dir=bench.runs, host=Host(listen=events.append), **options
        )
    made = [e["node"] for e in events if e["event"] == "node" and e["status"] == "run"]
    return found, made


def decision(found: Retrained) -> dict[str, Any]:
    assert found.run is not None
    content: dict[str, Any] = json.loads((found.run / DECISION).read_text(encoding="utf-8"))
    return content


def runs(bench: Bench) -> set[str]:
    return {path.parent.name for path in bench.runs.glob("*/run.yaml")}


def test_new_pairs_become_a_step_that_is_promoted_and_the_second_call_makes_none(
    promoted: Bench,
) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    before = current("tiny", runs_dir=promoted.runs).in_use
    found, made = retrained(promoted, news)
    assert (found.status, found.new_pairs) == ("promoted", 20)
    assert "step-3" in made
    assert "step-2" not in made
    now = current("tiny", runs_dir=promoted.runs).in_use
    assert (now.version, now.step, now.replaced) == (2, 3, 1)
    assert found.run == (promoted.runs / now.run).absolute()
    record = RunFolder(promoted.runs / now.run).read_record("step-3")
    assert record is not None
    assert record["inputs"]["target"] == before.digest
    assert record["outputs"]["model"] == now.digest
    told = decision(found)
    assert told["status"] == "promoted"
    assert told["judgement"]["comparisons"][0]["scope"] == "all"
    assert told["judgement"]["comparisons"][0]["pairs"] == found.judgement.pairs  # type: ignore[union-attr]
    assert now.why == told["reason"]
    assert not verify_run(RunFolder(promoted.runs / now.run)).faults

    again, made = retrained(promoted, news)
    assert (again.status, again.run, made) == ("nothing new", None, [])
    assert again.reason == "nothing new for tiny, which is at version 2"

    more = write_new_pairs(promoted.folder / "new.jsonl", *range(35))
    third, _ = retrained(promoted, more)
    assert (third.status, third.new_pairs) == ("promoted", 15)
    assert current("tiny", runs_dir=promoted.runs).in_use.step == 4
    assert len(runs(promoted)) == 3


def test_a_refused_step_stays_beside_and_is_not_made_again_but_judged_by_new_rules(
    promoted: Bench,
) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    found, _ = retrained(promoted, news, gate=STRICT)
    assert found.status == "refused"
    assert found.reason.startswith("gamma (all): mean gamma changed by ")
    assert decision(found)["status"] == "refused"
    assert current("tiny", runs_dir=promoted.runs).current == 1
    again, made = retrained(promoted, news, gate=STRICT)
    assert (again.status, made) == ("nothing new", [])
    assert found.run is not None
    assert f"Run {found.run.name} was made from what came before and is not in use" in again.reason
    few = write_new_pairs(promoted.folder / "new.jsonl", *range(25))
    assert retrained(promoted, few, gate=STRICT, min_new_pairs=6)[0].status == "nothing new"
    assert len(runs(promoted)) == 2
    write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    judged, made = retrained(promoted, news)
    assert (judged.status, judged.run, made) == ("promoted", found.run, [])
    assert decision(judged)["status"] == "promoted"


def test_a_step_that_was_rolled_back_is_not_promoted_again_by_any_rules(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    found, _ = retrained(promoted, news)
    assert found.run is not None
    rollback("tiny", runs_dir=promoted.runs, why="worse in production")
    out = "was version 2 of tiny and was taken out of use (worse in production)"
    again, made = retrained(promoted, news)
    assert (again.status, made) == ("nothing new", [])
    assert f"Run {found.run.name} was made from what came before and {out}" in again.reason
    other = LENIENT.model_copy(update={"accuracy_tolerance": 0.9})
    refused, made = retrained(promoted, news, gate=other)
    assert (refused.status, refused.run, made) == ("refused", found.run, [])
    assert out in refused.reason
    assert f"`sdpo promote {found.run.name} --name tiny` puts it back" in refused.reason
    # Overrides that say the same otherwise, or what holds anyway, make no other model.
    beta = read_stored(RunFolder(found.run)).config.training.beta
    for same in (
        [*QUICK, f"training.beta={beta}"],
        [f"training.beta={beta:.6f}", "training.max_steps=2", *QUICK],
        ["steps.2.max_steps=1", "steps.2.warmup_ratio=0"],
    ):
        again, made = retrained(promoted, news, overrides=same)
        assert (again.status, made) == ("nothing new", []), same
    assert current("tiny", runs_dir=promoted.runs).current == 1


def test_whatever_makes_the_same_model_again_it_is_the_one_that_was_taken_out(
    finished_copy: Bench,
) -> None:
    runs = finished_copy.runs
    for step in (1, 2):
        promote(Checkpoint(RunFolder(runs / "tiny"), step), runs_dir=runs, name="chat")
    rollback("chat", runs_dir=runs, why="worse in production")
    first, second = current("chat", runs_dir=runs).versions
    out = "which was version 2 of chat and was taken out of use (worse in production)"
    assert out in _was_in_use("chat", second.digest, runs)
    assert not _was_in_use("chat", first.digest, runs), "it is in use"
    assert not _was_in_use("chat", "0" * 64, runs), "it is new"


def test_a_step_that_changes_no_weight_is_refused_with_what_would_change_one(
    promoted: Bench,
) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    asked: list[str] = []

    def ask(judgement: Any, run: RunFolder) -> Answer:
        asked.append(run.name)
        return Answer(approved=True)

    found, made = retrained(promoted, news, overrides=["training.max_steps=1"], ask=ask)
    assert ("step-3" in made, found.status, asked) == (True, "refused", [])
    assert found.reason.startswith("the step changed nothing: M_3 is M_2, weight for weight")
    assert "set training.warmup_ratio=0" in found.reason
    assert decision(found)["status"] == "refused"
    assert current("tiny", runs_dir=promoted.runs).current == 1
    assert retrained(promoted, news)[0].status == "promoted", "by settings that change something"


def test_the_tiny_reserve_is_too_few_to_tell_and_does_not_promote(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    found, _ = retrained(promoted, news, gate=GateSettings(gamma_change_min_nats=-1000))
    assert found.status == "too few to tell"
    assert "reserved pairs are too few to tell, 200 are needed" in found.reason
    assert current("tiny", runs_dir=promoted.runs).current == 1


def test_a_person_has_the_last_word_and_without_one_the_next_call_asks_again(
    promoted: Bench,
) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    asked: list[str] = []

    def says(answer: Answer) -> Any:
        def ask(judgement: Any, run: RunFolder) -> Answer:
            asked.append(json.loads((run.path / DECISION).read_text())["status"])
            assert judgement.outcome == "passed"
            return answer

        return ask

    found, made = retrained(promoted, news, ask=says(Answer(approved=None)))
    assert (found.status, "step-3" in made) == ("unanswered", True)
    found, made = retrained(promoted, news, ask=says(Answer(approved=False, why="too wordy")))
    assert (found.status, made) == ("rejected", [])
    assert found.reason == "a person rejected it: too wordy"
    assert current("tiny", runs_dir=promoted.runs).current == 1
    found, _ = retrained(promoted, news, ask=says(Answer(approved=True)))
    assert found.status == "nothing new", "it was answered"
    assert asked == ["waiting", "waiting"]
    more = write_new_pairs(promoted.folder / "new.jsonl", *range(30))
    found, _ = retrained(promoted, more, ask=says(Answer(approved=True, why="good")))
    assert (found.status, found.new_pairs) == ("promoted", 30), "with those that were rejected"
    version = current("tiny", runs_dir=promoted.runs).in_use
    assert version.why.startswith("approved by a person: good; gate: by estimates alone")


def test_a_call_that_ended_between_step_and_gate_is_gone_on_with(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    first, _ = retrained(promoted, news, gate=STRICT)
    assert first.run is not None
    (first.run / DECISION).unlink()
    again, made = retrained(promoted, news, gate=STRICT)
    assert (again.status, again.run, made) == ("refused", first.run, [])


def test_one_call_at_a_time_lets_a_model_grow_also_while_a_person_is_asked(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))

    def ask(_judgement: Any, _run: RunFolder) -> Answer:
        with pytest.raises(InUseError, match=r"the lineage tiny is in use by process \d+"):
            retrained(promoted, news)
        return Answer(approved=True)

    assert retrained(promoted, news, ask=ask)[0].status == "promoted"
    assert retrained(promoted, news)[0].status == "nothing new"


def test_a_pointer_that_was_moved_meanwhile_stays_where_it_is(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))

    def ask(_judgement: Any, run: RunFolder) -> Answer:
        promote(Checkpoint(origin(promoted), 1), runs_dir=promoted.runs, why="by hand")
        return Answer(approved=True)

    with pytest.raises(UserError, match="at version 2 now and was at 1"):
        retrained(promoted, news, ask=ask)
    assert current("tiny", runs_dir=promoted.runs).in_use.why == "by hand"


def test_a_person_can_roll_the_model_in_use_back_instead(promoted: Bench) -> None:
    news = write_new_pairs(promoted.folder / "new.jsonl", *range(20))
    promote(Checkpoint(origin(promoted), 1), runs_dir=promoted.runs)
    promote(Checkpoint(origin(promoted)), runs_dir=promoted.runs)
    answer = Answer(approved=False, why="worse than before", roll_back=True)
    found, _ = retrained(promoted, news, ask=lambda _judgement, _run: answer)
    assert (found.status, found.reason) == (
        "rolled back",
        "a person rolled tiny back: worse than before",
    )
    there = current("tiny", runs_dir=promoted.runs)
    assert (there.current, there.in_use.step) == (2, 1)
    assert there.moves[-1].why == "a person rolled it back: worse than before"
    assert found.version == there.in_use


def test_what_cannot_be_gone_on_from_is_told_and_nothing_is_made(finished_copy: Bench) -> None:
    news = write_new_pairs(finished_copy.folder / "new.jsonl", *range(20))
    with pytest.raises(UserError, match=r"not promoted yet.*`sdpo promote tiny` makes it"):
        retrained(finished_copy, news)
    promote(Checkpoint(origin(finished_copy), 1), runs_dir=finished_copy.runs)
    with pytest.raises(UserError, match="at M_1 of run tiny, which has 2 steps"):
        retrained(finished_copy, news)
    promote(Checkpoint(origin(finished_copy)), runs_dir=finished_copy.runs)
    with pytest.raises(ConfigError, match=r"carries over cannot change: partition\.seed"):
        retrained(finished_copy, news, overrides=["partition.seed=3"])
    before = contents(finished_copy.runs)
    with pytest.raises(UserError, match="no data at"):
        retrained(finished_copy, finished_copy.folder / "gone.jsonl")
    assert retrained(finished_copy, news, min_new_pairs=21)[0].reason == (
        "20 new pairs for tiny, which is at version 2, and 21 are wanted"
    )
    assert contents(finished_copy.runs) == before
    for name, told in (("", "which model"), ("nobody", "nothing was promoted as nobody yet")):
        with pytest.raises(UserError, match=told):
            retrain(name, [str(news)], runs_dir=finished_copy.runs)


def test_a_current_model_with_a_flipped_byte_is_not_gone_on_from(promoted: Bench) -> None:
    weights = origin(promoted).model(2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(IntegrityError, match="does not hold M_2 of run tiny"):
        retrained(promoted, write_new_pairs(promoted.folder / "new.jsonl", *range(20)))


def test_a_gate_that_asks_for_suites_which_the_recipe_does_not_name_is_refused_before_it_trains(
    promoted: Bench,
) -> None:
    news, before = write_new_pairs(promoted.folder / "new.jsonl", *range(20)), runs(promoted)
    with pytest.raises(ConfigError, match=r"--set evaluation\.suites=\[quiz\]"):
        retrained(promoted, news, gate=GateSettings(evaluations={"quiz": -0.01}))
    assert runs(promoted) == before
