"""A round by the implicit reward, and rounds that several processes draw and score together."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from forked_ranks import forked_ranks
from reward_models import write_reward_model
from round_runs import recipe, rows

from sdpo.config.judging import JudgeConfig
from sdpo.errors import UserError
from sdpo.events import Event, ProgressEvent
from sdpo.inputs.judges import locate_judge
from sdpo.processes.judging_specs import GenerateSpec, ImplicitSpec, ScoreSpec
from sdpo.processes.stage_results import GenerateResult
from sdpo.processes.stage_specs import StageSpec, read_spec
from sdpo.processes.supervisor import run_stage


@pytest.fixture(scope="module")
def implicit(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values, demo_files: DemoFiles
) -> Outcome:
    """A round on a split of a data set of prompts, judged by the implicit reward."""
    from datasets import Dataset, DatasetDict

    folder = tmp_path_factory.mktemp("implicit")
    prompts = folder / "prompts"
    asked = [{"question": f"What do {name} like, and why?"} for name in ("cats", "owls", "bees")]
    splits = {"train": Dataset.from_list(asked[:1]), "test": Dataset.from_list(asked)}
    DatasetDict(splits).save_to_disk(prompts)
    changes = recipe(
        demo_files,
        prompts=str(prompts),
        prompt_column="question",
        prompts_split="test",
        judge={"implicit": True, "implicit_beta": 0.5},
        temperature=0.9,
        top_p=0.9,
    )
    return Bench(folder, tiny_recipe).run(changes)


def test_the_implicit_reward_is_beta_times_the_log_ratio(implicit: Outcome) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    def logp(folder: Path, prompt: list[int], answer: list[int]) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
        logps = logits.log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return float(sum(logps[at, token] for at, token in zip(places, answer, strict=True)))

    generated, samples = rows(implicit, 2, "generated"), rows(implicit, 2, "samples")
    assert len({row["prompt_key"] for row in samples}) == 3
    start = Path(json.loads((implicit.folder / "logs/judge-2.json").read_text())["start"]["folder"])
    for drawn, kept in list(zip(generated, samples, strict=True))[:3]:
        ratio = logp(implicit.run.model(1), drawn["prompt_ids"], drawn["token_ids"]) - logp(
            start, drawn["prompt_ids"], drawn["token_ids"]
        )
        assert kept["score"] == pytest.approx(0.5 * ratio, abs=1e-4)
        assert kept["kl"] >= 0


def test_the_report_says_why_its_models_are_not_seen_from_outside(implicit: Outcome) -> None:
    page = implicit.run.report.read_text(encoding="utf-8")
    assert "the implicit reward is of another model every round" in page


def told(made: Outcome, node: str, folder: Path, **changes: object) -> StageSpec:
    """What a stage of the run was told, as two processes that write into ``folder``."""
    spec = read_spec(made.folder / "logs" / f"{node}.json")
    launch = spec.launch.model_copy(update={"processes": 2, "strategy": "ddp"})
    return spec.model_copy(update={"run": folder, "launch": launch, **changes})


def notes(events: list[Event]) -> set[str]:
    return {event.note for event in events if isinstance(event, ProgressEvent)}


def test_two_processes_draw_a_share_each_and_the_samples_are_those_of_one(
    implicit: Outcome, tmp_path: Path
) -> None:
    so_far, out, events = tmp_path / "log.jsonl", tmp_path / "out.parquet", list[Event]()
    spec = told(implicit, "generate-2", tmp_path, so_far=so_far, out=out)
    assert isinstance(spec, GenerateSpec)
    one = pq.read_table(implicit.run.step(2) / "generated.parquet")
    with forked_ranks():
        with pytest.raises(UserError, match="one of 2 processes have") as stopped:
            run_stage(spec.model_copy(update={"max_tokens_total": 2}), listen=events.append)
        assert "generate.max_tokens_total is 2" in str(stopped.value)
        result = run_stage(spec, listen=events.append)
    shares = [
        {json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()}
        for path in (so_far, tmp_path / "log-1.jsonl")
    ]
    assert sorted(map(len, shares)) == [1, 2]
    assert set.union(*shares) == set(one["prompt_key"].to_pylist())
    assert pq.read_table(out).equals(one)
    assert notes(events) == {"4 samples of each, process 1 of 2"}
    assert result.read(GenerateResult).tokens == sum(map(len, one["token_ids"].to_pylist()))


def test_two_processes_score_a_share_each_by_the_implicit_reward(
    implicit: Outcome, tmp_path: Path
) -> None:
    events, out = list[Event](), tmp_path / "scores.parquet"
    spec = told(implicit, "judge-2", tmp_path, kept=tmp_path / "scored", out=out)
    assert isinstance(spec, ImplicitSpec)
    with forked_ranks():
        run_stage(spec, listen=events.append)
    assert pq.read_table(out).equals(pq.read_table(implicit.run.step(2) / "scores.parquet"))
    assert notes(events) == {"process 1 of 2"}


def test_two_processes_score_a_share_each_by_a_reward_model(
    implicit: Outcome, demo_files: DemoFiles, tmp_path: Path
) -> None:
    model = write_reward_model(tmp_path / "reward", like=demo_files.model, seed=3)
    drawn = told(implicit, "generate-2", tmp_path)
    judge = locate_judge(JudgeConfig(reward_model=str(model)), where="judge", cache=tmp_path)
    assert isinstance(drawn, GenerateSpec)
    spec = ScoreSpec(
        name="judge", run=tmp_path, model=drawn.model, launch=drawn.launch, judge=judge,
        prompts=drawn.prompts, samples=drawn.out, kept=tmp_path / "kept", out=tmp_path / "two",
    )  # fmt: skip
    alone = {"launch": drawn.launch.alone, "out": tmp_path / "one"}
    with forked_ranks():
        run_stage(spec, listen=lambda _: None)
        run_stage(spec.model_copy(update=alone), listen=lambda _: None)
    two, one = (pq.read_table(tmp_path / name) for name in ("two", "one"))
    assert two.equals(one)
    assert len(set(one["score"].to_pylist())) > 6
