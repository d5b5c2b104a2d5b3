"""A round by the implicit reward, and rounds that several processes draw and score together."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from forked_ranks import forked_ranks
from reward_models import write_reward_model
from round_runs import recipe, rows
from second_node import SecondNode, free_port, second_node

from sdpo.chain.run_chain import run_chain
from sdpo.config.judging import JudgeConfig
from sdpo.config.load import make_config
from sdpo.errors import UserError
from sdpo.events import Event, ProgressEvent
from sdpo.inputs.judges import locate_judge
from sdpo.processes.judging_specs import GenerateSpec, ImplicitSpec, ScoreSpec
from sdpo.processes.stage_results import GenerateResult
from sdpo.processes.stage_specs import StageSpec, read_spec
from sdpo.processes.supervisor import run_stage
from sdpo.store.held_out import read_held


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
    return spec.model_copy(update={"run": folder, "launch": launch} | changes)


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
    check_shares(spec, one)
    assert notes(events) == {"4 samples of each, process 1 of 2"}
    assert result.read(GenerateResult).tokens == sum(map(len, one["token_ids"].to_pylist()))


def check_shares(spec: GenerateSpec, one: pa.Table) -> None:
    """Two processes drew a share each, which together are what one draws."""
    shares = [
        {json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()}
        for path in (spec.so_far, spec.so_far.with_name("log-1.jsonl"))
    ]
    assert sorted(map(len, shares)) == [1, 2]
    assert set.union(*shares) == set(one["prompt_key"].to_pylist())
    assert pq.read_table(spec.out).equals(one)


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
    spec = scored(implicit, demo_files, tmp_path)
    alone = {"launch": spec.launch.alone, "out": tmp_path / "one"}
    with forked_ranks():
        run_stage(spec, listen=lambda _: None)
        run_stage(spec.model_copy(update=alone), listen=lambda _: None)
    two, one = (pq.read_table(tmp_path / name) for name in ("two", "one"))
    assert two.equals(one)
    assert len(set(one["score"].to_pylist())) > 6


def scored(made: Outcome, demo_files: DemoFiles, folder: Path) -> ScoreSpec:
    """What a stage is told that scores the samples of the run by a reward model."""
    model = write_reward_model(folder / "reward", like=demo_files.model, seed=3)
    drawn = told(made, "generate-2", folder)
    judge = locate_judge(JudgeConfig(reward_model=str(model)), where="judge", cache=folder)
    assert isinstance(drawn, GenerateSpec)
    return ScoreSpec(
        name="judge", run=folder, model=drawn.model, launch=drawn.launch, judge=judge,
        prompts=drawn.prompts, samples=drawn.out, kept=folder / "kept", out=folder / "two",
    )  # fmt: skip


# --- nodes

LAUNCH = {"device": "cpu", "threads": 1, "processes": 2, "strategy": "ddp"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondNode]:
    """The other node."""
    with second_node(tmp_path_factory.mktemp("node")) as there:
        yield there


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_draw_and_score_a_share_each_and_all_is_as_of_one_process(
    implicit: Outcome, node: SecondNode, demo_files: DemoFiles, tmp_path: Path
) -> None:
    port, out = free_port(), tmp_path / "out.parquet"
    on_both = {"launch": node.launch(port)}
    so_far, kept = tmp_path / "log.jsonl", tmp_path / "kept"
    drawn = told(implicit, "generate-2", tmp_path, so_far=so_far, out=out, **on_both)
    assert isinstance(drawn, GenerateSpec)
    node.run_stage(drawn, port, lambda _: None)
    check_shares(drawn, pq.read_table(implicit.run.step(2) / "generated.parquet"))
    by_ratio = told(implicit, "judge-2", tmp_path, kept=kept, out=tmp_path / "ratio", **on_both)
    node.run_stage(by_ratio, port, lambda _: None)
    assert pq.read_table(tmp_path / "ratio").equals(
        pq.read_table(implicit.run.step(2) / "scores.parquet")
    )
    by_model = scored(implicit, demo_files, tmp_path)
    with forked_ranks():
        alone = {"launch": by_model.launch.alone, "out": tmp_path / "one"}
        run_stage(by_model.model_copy(update=alone), listen=lambda _: None)
    node.run_stage(by_model.model_copy(update=on_both), port, lambda _: None)
    two, one = (pq.read_table(tmp_path / name) for name in ("two", "one"))
    assert two.equals(one)
    assert node.log.read_text("utf-8").count("node 1 of 2") == 3, "of three stages"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_chain_on_two_nodes_has_its_rounds_on_both_and_they_are_those_of_two_processes(
    node: SecondNode,
    demo_files: DemoFiles,
    tiny_recipe: Values,
    tmp_path: Path,
) -> None:
    """Held-out answers of the models before and after the round are drawn and scored so as well."""
    model = write_reward_model(tmp_path / "judge", like=demo_files.model, seed=3)
    given = {"judge": {"reward_model": str(model)}, "held_out": 3}
    changes = recipe(demo_files, prompts_of="requests", per_round=5, **given)
    made = {}
    for name in ("nodes", "processes"):
        place, port = Bench(tmp_path / name, tiny_recipe), free_port()
        place.folder.mkdir()
        launch = {**LAUNCH, "nodes": 2, "launcher": "torchrun", "rendezvous": f"{node.here}:{port}"}
        config = place.values(changes | {"launch": launch if name == "nodes" else LAUNCH})
        with node.joined(port) if name == "nodes" else forked_ranks():
            made[name] = Outcome(run_chain(make_config(config)), [])
    on_nodes, on_one = made["nodes"], made["processes"]
    for stage in ("generate-2", "judge-2", "held-M_2", "judge-held-M_2"):
        spec = on_nodes.folder / "logs" / f"{stage}.json"
        assert read_spec(spec).launch.nodes == 2
        assert f"node 1 of 2 for {spec}" in node.log.read_text("utf-8")
    paths = [f"step-2/{name}.parquet" for name in ("generated", "scores", "samples", "pairs")]
    paths += [str(each.table.relative_to(on_one.run.path)) for each in read_held(on_one.run)]
    assert len(paths) == 4 + 2
    for path in paths:
        assert (on_nodes.folder / path).read_bytes() == (on_one.folder / path).read_bytes(), path
    for step in (1, 2):
        outputs = on_nodes.record(f"step-{step}")["outputs"]
        assert outputs["model"] == on_one.record(f"step-{step}")["outputs"]["model"]
