"""A step's pairs are made by the model before it: sampled, judged, paired, trained on."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from forked_stages import forked_stages
from histories import flip, origin, replayed, write_new_pairs
from judge_server import judge_server, prefers_longer
from reward_models import write_reward_model
from round_runs import TOKENS, N, recipe, rows

from sdpo.data.keys import draw_key
from sdpo.errors import DataError
from sdpo.history.extend import extend_run
from sdpo.history.lineage import lineage_of
from sdpo.history.replay import look, plan_replay
from sdpo.history.verify import verify_run
from sdpo.report.held_out import rounds_seen
from sdpo.store.held_out import read_held
from sdpo.system.permissions import JUDGE_ENDPOINTS

PROMPTS, SEED, HELD = 6, 42, 5
ROUNDS = (2, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("rounds"), tiny_recipe)


@pytest.fixture(scope="module")
def changes(demo_files: DemoFiles) -> Values:
    judge = {"rule": "length"}
    return recipe(
        demo_files, prompts_of="requests", rounds=2, per_round=PROMPTS, judge=judge, held_out=HELD
    )


@pytest.fixture(scope="module")
def made(place: Bench, changes: Values) -> Outcome:
    return place.run(changes)


def test_the_plan_has_the_rule_and_every_round_has_its_step(made: Outcome) -> None:
    steps = made.json("plan.json")["steps"]
    assert [step["pairs"] for step in steps[1:]] == [0, 0]
    assert [step.get("generated") for step in steps] == [
        None,
        {"source": "round", "round": 1},
        {"source": "round", "round": 2},
    ]
    (rule,) = made.record("plan")["identity"]["generated"]
    assert rule["generate"]["judge"] == {"rule": "length"}
    assert {"data.requests"} < rule.keys()
    assert steps[0]["sources"].keys() == {"questions"}, "requests are not trained on"


def test_prompts_are_of_the_source_and_none_is_reserved_or_drawn_twice(made: Outcome) -> None:
    usable = pq.read_table(made.run.usable).to_pylist()
    pool = {row["prompt_key"] for row in usable if row["source"] == "requests"}
    held = {row["prompt_key"] for row in usable if row["reserved"]}
    drawn = [{row["prompt_key"] for row in rows(made, step, "samples")} for step in ROUNDS]
    assert [len(each) for each in drawn] == [PROMPTS, PROMPTS]
    assert drawn[0] | drawn[1] <= pool - held
    assert not drawn[0] & drawn[1]


@pytest.mark.parametrize("step", ROUNDS)
def test_score_rank_and_choice_follow_from_the_samples_alone(made: Outcome, step: int) -> None:
    of_prompt: dict[str, list[Values]] = {}
    for row in rows(made, step, "samples"):
        of_prompt.setdefault(row["prompt_key"], []).append(row)
    wanted = set()
    for samples in of_prompt.values():
        assert [row["sample"] for row in samples] == list(range(N))
        assert [row["score"] for row in samples] == [len(row["text"]) for row in samples]
        by_rank = sorted(samples, key=lambda row: (-row["score"], row["sample"]))
        assert [row["rank"] for row in by_rank] == list(range(1, N + 1))
        best, worst = by_rank[0], by_rank[-1]
        assert [row["use"] for row in by_rank] == ["chosen", *["not paired"] * (N - 2), "rejected"]
        assert best["pair_id"] == worst["pair_id"] != ""
        wanted.add((best["pair_id"], best["text"], worst["text"], best["score"], worst["score"]))
    pairs = {
        (
            *(row["pair_id"], row["chosen"][0]["content"], row["rejected"][0]["content"]),
            *(row["chosen_score"], row["rejected_score"]),
        )
        for row in rows(made, step, "pairs")
    }
    assert pairs == wanted
    reference = rows(made, step, "reference")
    assert {row["pair_id"] for row in reference} == {pair for pair, *_ in wanted}
    assert made.record(f"step-{step}")["pairs"] == PROMPTS


@pytest.mark.parametrize("step", ROUNDS)
def test_samples_are_drawn_from_the_model_before_the_step(made: Outcome, step: int) -> None:
    """By transformers alone, a whole forward for each token, and the uniform numbers by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made.run.model(step - 1), dtype=torch.float32)
    row = rows(made, step, "generated")[N + 1]
    words = [int(row["prompt_key"][at : at + 8], 16) for at in range(0, 32, 8)]
    seed = draw_key(SEED, step.to_bytes(4, "big"))
    numbers = np.random.default_rng([seed, row["sample"], *words]).random(TOKENS)
    ids = list(row["prompt_ids"])
    for number in numbers[: len(row["token_ids"])]:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids])).logits[0, -1].double()
        ids.append(int(torch.searchsorted(logits.softmax(-1).cumsum(-1), number, right=True)))
    assert ids[len(row["prompt_ids"]) :] == row["token_ids"]


def test_models_before_and_after_a_round_answer_the_same_reserved_prompts(made: Outcome) -> None:
    held = {each.model: pq.read_table(each.table).to_pylist() for each in read_held(made.run)}
    assert held.keys() == {1, 2, 3}
    usable = pq.read_table(made.run.usable).to_pylist()
    reserved = {row["prompt_key"] for row in usable if row["reserved"]}
    keys = {row["prompt_key"] for row in held[1]}
    assert len(keys) == HELD
    assert keys <= reserved
    assert all({row["prompt_key"] for row in held[model]} == keys for model in held)
    assert all(row["score"] == len(row["text"]) for of in held.values() for row in of)
    assert all(0 < row["tokens"] <= TOKENS for of in held.values() for row in of)
    of_prompt = {
        row["prompt_key"]: row["prompt"] for row in pq.read_table(made.run.pairs).to_pylist()
    }
    assert all(row["prompt"] == of_prompt[row["prompt_key"]] for row in held[3])


def test_the_report_shows_a_round_from_outside(made: Outcome) -> None:
    """Gain and share won are recomputed here from the tables of answers."""
    (first, second) = rounds_seen(made.run)
    assert (first.step, second.step) == ROUNDS
    score = {
        each.model: {
            row["prompt_key"]: row["score"] for row in pq.read_table(each.table).to_pylist()
        }
        for each in read_held(made.run)
    }
    for seen in (first, second):
        gains = [score[seen.step][key] - score[seen.step - 1][key] for key in score[1]]
        assert seen.gain == pytest.approx(sum(gains) / HELD)
        assert seen.won == pytest.approx(sum((g > 0) + (g == 0) / 2 for g in gains) / HELD)
        low, high = seen.gain_bounds
        assert low is not None
        assert high is not None
        assert min(gains) <= low <= seen.gain <= high <= max(gains)
    page = made.run.report.read_text(encoding="utf-8")
    assert "Rounds on held-out prompts" in page
    assert "The model before wrote" in page


def test_doing_it_again_does_nothing(made: Outcome, place: Bench, changes: Values) -> None:
    assert {"generate-2", "judge-2", "data-2", "data-3"} <= set(made.result.executed)
    assert place.run(changes).result.executed == ()


def test_the_run_is_whole_and_its_lineage_names_the_models_that_wrote(made: Outcome) -> None:
    assert verify_run(made.run).faults == []
    lineage = lineage_of("tiny", runs_dir=made.folder.parent)
    assert lineage.is_whole
    assert [link.models.get("data") for link in lineage.links] == [None, "M_1", "M_2"]


@pytest.mark.parametrize("name", ["samples", "generated", "scores", "prompts"])
def test_a_change_of_a_file_of_a_round_is_found(
    made: Outcome, place: Bench, tmp_path: Path, name: str
) -> None:
    del made
    run = origin(place.copy_to(tmp_path))
    flip(run.step(2) / f"{name}.parquet")
    assert f"step-2/{name}.parquet" in {fault.file for fault in verify_run(run).faults}


def test_a_replay_is_bitwise_the_same(made: Outcome) -> None:
    result, again = replayed(made.run, step=3, only=True, name="again")
    assert result.comparison.verdict == "bitwise identical"
    assert {"generate-3", "judge-3", "data-3"} <= set(again.result.shared)
    assert verify_run(again.run).faults == []


def test_another_beta_reuses_samples_and_scores(made: Outcome) -> None:
    lines = look(plan_replay(made.run, step=3, overrides=["steps=[{}, {}, {beta: 0.3}]"]))
    actions = {line.node: line.action for line in lines}
    nodes = ("generate-3", "judge-3", "data-3", "step-3")
    assert [actions[node] for node in nodes] == ["REUSE", "REUSE", "REUSE", "RUN"]


def test_another_judge_reuses_the_samples(made: Outcome) -> None:
    judge = "data.sources.2.generate.judge={implicit: true}"
    _, again = replayed(made.run, judge, step=2, only=True, name="judged")
    assert "generate-2" in again.result.shared
    assert {"judge-2", "data-2", "step-2"} <= set(again.result.executed)
    drawn = [row["token_ids"] for row in rows(made, 2, "samples")]
    assert [row["token_ids"] for row in rows(again, 2, "samples")] == drawn
    assert all(row["kl"] >= 0 for row in rows(again, 2, "samples"))


def test_an_endpoint_judges_the_samples_of_a_round(
    made: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prefers the longer of two answers: a sample's score is the share of others it beats."""
    with judge_server(prefers_longer) as server:
        monkeypatch.setenv(JUDGE_ENDPOINTS, server.url)
        judge = (
            f"data.sources.2.generate.judge={{endpoint: '{server.url}', model: m, "
            "max_tokens_total: 1000000}"
        )
        _, again = replayed(made.run, judge, step=2, only=True, name="by-endpoint")
    assert server.requests
    assert "generate-2" in again.result.shared
    of_prompt: dict[str, list[str]] = {}
    for row in rows(again, 2, "samples"):
        of_prompt.setdefault(row["prompt_key"], []).append(row["text"])
    for row in rows(again, 2, "samples"):
        lengths = [len(text) for text in of_prompt[row["prompt_key"]]]
        own = len(row["text"])
        beaten = sum((own > other) + (own == other) / 2 for other in lengths) - 0.5
        assert row["score"] == pytest.approx(beaten / (N - 1))


def test_a_reward_model_judges_the_samples_of_a_round(
    made: Outcome, demo_files: DemoFiles, tmp_path: Path
) -> None:
    """Its scores are those that transformers gives by hand."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    folder = write_reward_model(tmp_path / "reward", like=demo_files.model, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    judge = f"data.sources.2.generate.judge={{reward_model: '{folder}'}}"
    _, again = replayed(made.run, judge, step=2, only=True, name="by-reward")
    assert "generate-2" in again.result.shared
    for row in rows(again, 2, "samples")[:3]:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
        turns.append({"role": "assistant", "content": row["text"]})
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            reward = float(model(input_ids=ids).logits[0, 0])
        assert row["score"] == pytest.approx(reward, abs=1e-5)


def test_a_chain_that_grows_keeps_its_rounds(made: Outcome, tmp_path: Path) -> None:
    new = write_new_pairs(tmp_path / "new.jsonl", *range(12))
    with forked_stages():
        grown = extend_run(made.run, [str(new)], name="grown")
    assert grown.chain is not None
    nodes = {f"{node}-{step}" for node in ("generate", "judge", "data", "step") for step in ROUNDS}
    assert nodes <= set(grown.chain.shared)
    assert grown.chain.steps == 4
    more = Outcome(grown.chain, [])
    assert [step.get("generated") for step in more.json("plan.json")["steps"]][2] is not None
    assert verify_run(more.run).faults == []


def test_a_round_goes_on_from_the_prompts_that_are_done(
    made: Outcome, place: Bench, changes: Values, tmp_path: Path
) -> None:
    """What was drawn before the process died is taken as it is, the rest comes out the same."""
    del made
    copy = place.copy_to(tmp_path)
    run, step = origin(copy), 3
    before = pq.read_table(run.step(step) / "generated.parquet").to_pylist()
    spec = json.loads((run.path / "logs" / f"generate-{step}.json").read_text(encoding="utf-8"))
    so_far = run.step(step) / "generating" / Path(spec["so_far"]).name
    so_far.parent.mkdir()
    first = [row for row in before if row["prompt_key"] == before[0]["prompt_key"]]
    told = [[[7, 8, 9], False], *([row["token_ids"], row["finished"]] for row in first[1:])]
    line = json.dumps({"key": first[0]["prompt_key"], "samples": told})
    so_far.write_text(f'{line}\n{{"key": "cut sh', encoding="utf-8")
    for node in (f"generate-{step}", f"judge-{step}", f"data-{step}", f"step-{step}"):
        path = run.record_path(node)
        path.unlink()
        path.with_name(f"{path.name}.sha256").unlink()
    again = copy.run(changes)
    after = rows(again, step, "generated")
    assert after[0]["token_ids"] == [7, 8, 9], "a sample that was there is not drawn again"
    assert after[1:] == before[1:]
    assert not so_far.parent.exists()


def test_a_round_without_pairs_ends_in_words(
    made: Outcome, place: Bench, changes: Values, demo_files: DemoFiles
) -> None:
    judge = {"rule": "asks_back"}
    ties = recipe(demo_files, prompts_of="requests", per_round=PROMPTS, judge=judge)
    with pytest.raises(DataError, match=r"no pair is left of 24 samples of 6 prompts.* 6 tie"):
        place.run({**ties, "name": "ties"})
    wide = recipe(demo_files, prompts_of="requests", per_round=PROMPTS, judge=judge, min_margin=1e6)
    wide["data"]["sources"][2]["generate"]["judge"] = {"rule": "length"}
    with pytest.raises(DataError, match=r"6 min_margin.* lower generate.min_margin"):
        place.run({**wide, "name": "wide"})


def test_a_pair_that_an_earlier_step_has_is_left_out_and_counted(
    place: Bench, demo_files: DemoFiles
) -> None:
    """The models nearly agree, and answer the same prompts by one of a few likely tokens."""
    few = {"n": 32, "max_new_tokens": 1, "temperature": 0.25, "top_p": 0.1}
    judge = {"rule": "length"}
    changes = recipe(demo_files, prompts_of="requests", judge=judge, rounds=2, again=True, **few)
    changes["training"] |= {"learning_rate": 1e-6}
    made = place.run({**changes, "name": "repeats"})
    first, second = (
        {row["prompt_key"]: (row["chosen"], row["rejected"]) for row in rows(made, step, "pairs")}
        for step in ROUNDS
    )
    wanted: dict[str, list[Values]] = {}
    for row in rows(made, 3, "samples"):
        wanted.setdefault(row["prompt_key"], []).append(row)
    ranked = {
        key: sorted((row for row in of if row["rank"]), key=lambda row: row["rank"])
        for key, of in wanted.items()
    }
    best_and_worst = {
        key: tuple(
            [{"role": "assistant", "content": of[end]["text"], "rest": None}] for end in (0, -1)
        )
        for key, of in ranked.items()
        if len(of) > 1 and of[0]["score"] > of[-1]["score"]
    }
    repeated = {key for key, pair in best_and_worst.items() if first.get(key) == pair}
    assert repeated
    assert second == {key: p for key, p in best_and_worst.items() if key not in repeated}
    not_made = made.record("data-3")["outputs"]["pairs_not_made"]
    assert not_made["an earlier step has the pair"] == len(repeated)
