"""A reward model judges a whole chain: run, evaluate, report; its tokenizer is not the policy's."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, Outcome, Values
from forked_stages import forked_stages
from reward_models import write_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sdpo.events import ProgressEvent
from sdpo.history.evaluate import evaluate_run
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.report import summarise
from sdpo.store.win_rates import Verdicts, read_verdicts


def judging(reward_model: Path) -> Values:
    win_rate = {
        "judge": {"reward_model": str(reward_model)}, "prompts": 4, "max_new_tokens": 6
    }  # fmt: skip
    return {"evaluation": {"win_rate": win_rate}}


@pytest.fixture(scope="module")
def place(
    finished_bench: Bench, finished: Outcome, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """A copy of the finished run: what models are judged by changes nothing that is trained."""
    assert finished.folder.is_dir()
    return finished_bench.copy_to(tmp_path_factory.mktemp("rewarded"))


@pytest.fixture(scope="module")
def reward_model(place: Bench, foreign_model: Path) -> Path:
    return write_reward_model(place.folder / "reward", like=foreign_model, seed=3)


@pytest.fixture(scope="module")
def judged(place: Bench, reward_model: Path) -> Outcome:
    """The run's recipe with the reward model in it, run to the end."""
    return place.run(judging(reward_model))


def by_hand(folder: Path, judged: Outcome, model: int) -> list[float]:
    """What transformers alone gives the answers of a model."""
    policy = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (path,) = (judged.run.evaluations / f"M_{model}").glob("answers-*.parquet")
    found = []
    for row in pq.read_table(path).to_pylist():
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
        turns.append({"role": "assistant", "content": row["text"]})
        ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            found.append(policy(**ids).logits[0, 0].item())
    return found


def verdicts(judged: Outcome, judge: Path) -> list[Verdicts]:
    return [each for each in read_verdicts(judged.run) if each.outputs.judge == str(judge)]


def test_the_chain_judges_by_the_rewards_that_transformers_gives_by_hand(
    judged: Outcome, reward_model: Path
) -> None:
    kinds = [name.partition("-")[0] for name in judged.result.executed]
    assert kinds == ["answers"] * 3 + ["win"] * 3 + ["report"], "nothing is trained again"
    rewards = {model: by_hand(reward_model, judged, model) for model in (0, 1, 2)}
    assert len({reward for each in rewards.values() for reward in each}) > 6
    for each in verdicts(judged, reward_model):
        rows = pq.read_table(each.table).to_pylist()
        pairs = [*zip(rewards[each.model], rewards[each.other], strict=True)]
        scores = [(row["first_score"], row["second_score"]) for row in rows]
        assert np.array(scores) == pytest.approx(np.array(pairs), abs=1e-5)
        won = [0.5 if mine == other else float(mine > other) for mine, other in scores]
        assert [row["forward"] for row in rows] == [row["backward"] for row in rows] == won


def test_report_and_summary_have_its_win_rates(judged: Outcome, reward_model: Path) -> None:
    (table,) = summarise(judged.folder).evaluations
    assert table.title.startswith(f"Win rates by {reward_model} on answers to reserved prompts: ")
    assert [row[:2] for row in table.rows] == [("M_1", "S"), ("M_2", "M_1"), ("M_2", "S")]
    assert "Length-controlled" in judged.result.report.read_text(encoding="utf-8")
    assert verify_run(judged.run).faults == []


def test_evaluating_afterwards_finds_it_done_and_another_reward_model_judges_the_same_answers(
    place: Bench, judged: Outcome, reward_model: Path, foreign_model: Path
) -> None:
    assert place.run(judging(reward_model)).result.executed == ()
    other = write_reward_model(place.folder / "other", like=foreign_model, seed=4)
    events = []
    with forked_stages():
        done = evaluate_run(
            judged.run,
            win_rate=True,
            models=["M_0", "M_2"],
            overrides=[
                f"evaluation.win_rate.judge.reward_model={other}",
                "evaluation.win_rate.prompts=4",
                "evaluation.win_rate.max_new_tokens=6",
            ],
            host=Host(listen=events.append),
        )
    assert [name.partition("-")[0] for name in done.executed] == ["win", "report"]
    phases = {event.phase for event in events if isinstance(event, ProgressEvent)}
    assert not [phase for phase in phases if phase.startswith("answers")]
    (found,) = verdicts(judged, other)
    pairs = [*zip(by_hand(other, judged, 2), by_hand(other, judged, 0), strict=True)]
    rows = pq.read_table(found.table).to_pylist()
    scores = [(row["first_score"], row["second_score"]) for row in rows]
    assert np.array(scores) == pytest.approx(np.array(pairs), abs=1e-5)
