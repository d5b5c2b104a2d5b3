"""Win rates of a finished run: what is compared, kept, found again and shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench
from forked_stages import forked_stages
from judge_server import Answer, judge_server, prefers_longer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.errors import ConfigError, UserError
from sdpo.events import Event
from sdpo.history.evaluate import Evaluated, evaluate_run
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.judges import rule_of
from sdpo.report import summarise
from sdpo.report.tracked import tracked_scalars
from sdpo.report.win_rates import load_win_rates, win_rate_tables
from sdpo.scoring.sampling import Prompt, uniforms
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_status import read_status
from sdpo.store.win_rates import Verdicts, read_verdicts
from sdpo.system.permissions import JUDGE_ENDPOINTS

SMALL = ["evaluation.win_rate.prompts=6", "evaluation.win_rate.max_new_tokens=12"]
RULE = [*SMALL, "evaluation.win_rate.judge.rule=length"]


def judge(run: RunFolder, *settings: str, **options: Any) -> tuple[Evaluated, list[Event]]:
    events: list[Event] = []
    with forked_stages():
        done = evaluate_run(
            run,
            win_rate=True,
            overrides=settings or RULE,
            host=Host(listen=events.append),
            **options,
        )
    return done, events


@pytest.fixture(scope="module")
def place(finished_bench: Bench, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A copy of the finished run of which every model was judged by a rule."""
    copy = finished_bench.copy_to(tmp_path_factory.mktemp("judged"))
    judge(RunFolder(copy.runs / "tiny"))
    return copy


@pytest.fixture(scope="module")
def judged(place: Bench) -> RunFolder:
    """The run that was judged; tests add to it and change nothing."""
    return RunFolder(place.runs / "tiny")


@pytest.fixture
def run(place: Bench, tmp_path: Path) -> RunFolder:
    """A copy of it with its caches, to be changed."""
    return RunFolder(place.copy_to(tmp_path).runs / "tiny")


def answers(run: RunFolder, model: int) -> list[dict[str, Any]]:
    (path,) = (run.evaluations / f"M_{model}").glob("answers-*.parquet")
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_every_model_is_compared_with_the_one_before_it_and_with_s(judged: RunFolder) -> None:
    found = read_verdicts(judged)
    assert [(each.model, each.other) for each in found] == [(1, 0), (2, 1), (2, 0)]
    length = rule_of("length")
    for each in found:
        rows = pq.read_table(each.table).to_pylist()
        mine, theirs = answers(judged, each.model), answers(judged, each.other)
        assert len(rows) == len(mine) == len(theirs) == 6
        for row, one, other in zip(rows, mine, theirs, strict=True):
            assert row["prompt_key"] == one["prompt_key"] == other["prompt_key"]
            scores = length([], one["text"]), length([], other["text"])
            assert (row["first_score"], row["second_score"]) == scores
            won = 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])
            assert row["forward"] == row["backward"] == won
    shown = {(w.verdicts.model, w.verdicts.other): w.found.rate for w in load_win_rates(judged)}
    told = tracked_scalars(judged.path)
    for each in found:
        values = pq.read_table(each.table)["forward"].to_numpy()
        assert shown[each.model, each.other] == pytest.approx(values.mean())
        names = [n for n in told[each.model] if n.endswith(f"over_M_{each.other}/rate")]
        assert [told[each.model][n] for n in names] == pytest.approx([values.mean()])


@pytest.mark.parametrize("model", [0, 2])
def test_answers_are_what_the_published_model_draws_by_hand(
    judged: RunFolder, finished_bench: Bench, model: int
) -> None:
    base = Path(finished_bench.recipe["model"]["name_or_path"])
    policy = AutoModelForCausalLM.from_pretrained(judged.model(model) if model else base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    for row in answers(judged, model)[:3]:
        turns = [{"role": t["role"], "content": t["content"]} for t in row["prompt"]]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        prompt = Prompt(key=row["prompt_key"], ids=np.array(ids), sample=0)
        numbers = uniforms(prompt, seed=42, tokens=12)
        drawn = list(ids)
        for number in numbers:
            with torch.no_grad():
                logits = policy(torch.tensor([drawn])).logits[0, -1].double()
            cumulative = logits.softmax(-1).cumsum(-1)
            drawn.append(int((cumulative <= number * cumulative[-1]).sum()))
            if drawn[-1] == tokenizer.eos_token_id:
                break
        assert drawn[len(ids) :] == row["token_ids"]
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]
        assert row["finished"] == (drawn[-1] == tokenizer.eos_token_id)


def test_what_was_answered_and_judged_is_not_again(judged: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in judged.evaluations.rglob("*.parquet")}
    done, events = judge(judged)
    assert done.executed == ()
    assert not [event for event in events if event["event"] in ("progress", "stage")]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_judge_takes_the_same_answers(judged: RunFolder) -> None:
    done, events = judge(judged, *SMALL, "evaluation.win_rate.judge.rule=on_topic")
    assert {name.partition("-")[0] for name in done.executed} <= {"win", "report"}
    assert not [e for e in events if e["event"] == "progress" and "answers of" in e["phase"]]
    judges = [each.outputs.judge for each in read_verdicts(judged)]
    assert sorted(set(judges)) == ["the rule `length`", "the rule `on_topic`"]


def test_report_summary_status_card_and_verify_have_them(judged: RunFolder) -> None:
    judge = "Win rates by the rule `length` on answers to reserved prompts: 1 each, up to "
    tables = win_rate_tables(load_win_rates(judged))
    (table,) = (each for each in tables if each.title.startswith(judge))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["Model"], row["Over"], row["Prompts"]) == ("M_1", "S", "6")
    assert "(too few to tell)" in row["Won"], "six prompts"
    assert table in summarise(judged.path).evaluations
    html = judged.report.read_text(encoding="utf-8")
    assert "Win rates" in html
    assert "Length-controlled" in html
    assert read_status(judged).evaluated["M_2"] >= 2
    card = (judged.model(2) / "README.md").read_text(encoding="utf-8")
    assert "type: win_rate" in card
    assert "over M_1; judged by the rule `length`; 6 prompts" in card
    assert not verify_run(judged).faults


def by_endpoint(run: RunFolder) -> list[Verdicts]:
    return [each for each in read_verdicts(run) if each.outputs.pairwise]


def test_verdicts_of_an_endpoint_are_asked_for_once_and_a_failure_loses_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"left": 5}

    def dies(message: str) -> str | Answer:
        calls["left"] -= 1
        return (
            Answer(status=400, body="out of credit")
            if calls["left"] < 0
            else prefers_longer(message)
        )

    with judge_server(dies) as server:
        monkeypatch.setenv(JUDGE_ENDPOINTS, server.url)
        settings = [
            *SMALL,
            f"evaluation.win_rate.judge.endpoint={server.url}",
            "evaluation.win_rate.judge.model=m",
            "evaluation.win_rate.judge.max_tokens_total=1000000",
            "evaluation.win_rate.judge.parallel=1",
        ]
        with pytest.raises(UserError, match=r"answers 400.*out of credit.*kept"):
            judge(run, *settings)
        assert by_endpoint(run) == []
        server.says = prefers_longer
        judge(run, *settings)
        asked = len(server.requests)
        (kept,) = (run.path.parents[1] / "cache" / "verdicts").glob("*/verdicts.jsonl")
        lines = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
        assert len(lines) == asked - 1, "all but the one that failed"
        assert {line["spent_for"] for line in lines} == {"tiny"}
        judge(run, *settings)
        assert len(server.requests) == asked
    assert len(by_endpoint(run)) == 3
    for each in by_endpoint(run):
        for row in pq.read_table(each.table).to_pylist():
            longer = np.sign(row["first_chars"] - row["second_chars"])
            assert row["forward"] == row["backward"] == (longer + 1) / 2


def test_what_cannot_be_judged_is_refused_before_anything_is_done(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"by which judge\?"):
        judge(run, *SMALL)
    monkeypatch.delenv(JUDGE_ENDPOINTS, raising=False)
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError, match=rf"evaluation\.win_rate\.judge\.endpoint: {url}"):
        judge(
            run,
            f"evaluation.win_rate.judge.endpoint={url}",
            "evaluation.win_rate.judge.model=m",
            "evaluation.win_rate.judge.max_tokens_total=10",
        )
    assert by_endpoint(run) == []
