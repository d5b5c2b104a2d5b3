"""The chain end to end: what a run leaves, what a second call does, what a recipe's parts do."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, DemoFiles, Outcome, Values
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.config.load import make_config
from sdpo.errors import RunExistsError
from sdpo.events import NoteEvent
from sdpo.identity.model_digest import model_digest
from sdpo.inputs import demo
from sdpo.inputs.resolve import resolve
from sdpo.system import machine
from sdpo.tokens.token_file import TokenFile

LN_2 = math.log(2)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TRL_NAMES = {
    *("loss", "grad_norm", "learning_rate", "epoch", "logps/chosen", "logps/rejected"),
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
}
STATISTICS = {
    *("pairs", "mean", "sd", "se", "quantiles", "ranking_accuracy", "per_token_mean"),
    "length_correlation",
}


def states(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and size of every file of a run, but for the lock that says who holds it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, str(path.stat().st_size))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# --- what a finished run leaves


def test_a_finished_run_has_the_files_of_the_run_store(finished: Outcome) -> None:
    for name in ("run.yaml", "pairs.parquet", "plan.json", "rejected_rows.jsonl", "report.html"):
        assert (finished.folder / name).stat().st_size > 0, name
    for step in ("step-1", "step-2"):
        for name in (
            *("record.json", "record.json.sha256", "reference.parquet", "metrics.jsonl"),
            *("gamma.json", "model/model.safetensors", "model/config.json", "model/README.md"),
        ):
            assert (finished.folder / step / name).stat().st_size > 0, f"{step}/{name}"
    assert not list(finished.folder.rglob(".tmp-*"))
    assert finished.result.steps == 2


def test_what_bf16_would_do_on_a_cpu_is_told_at_the_first_start_alone(
    finished: Outcome, finished_copy: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(outcome: Outcome) -> int:
        notes = [event for event in outcome.events if isinstance(event, NoteEvent)]
        return sum("bf16 would train faster" in note.message for note in notes)

    assert told(finished) == machine.multiplies_bf16()
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: True)
    assert told(finished_copy.run()) == 0


def test_the_model_of_a_step_is_reference_and_target_of_the_next(
    finished: Outcome, demo_files: DemoFiles
) -> None:
    first, second = finished.record("step-1"), finished.record("step-2")
    assert first["inputs"]["reference"] == first["inputs"]["target"]
    assert first["inputs"]["reference"] == model_digest(demo_files.model)
    assert second["inputs"]["reference"] == second["inputs"]["target"]
    assert second["inputs"]["target"] == first["outputs"]["model"]
    assert first["outputs"]["model"] == model_digest(finished.run.model(1))
    assert second["outputs"]["model"] == model_digest(finished.run.model(2))
    assert len({first["inputs"]["target"], *(r["outputs"]["model"] for r in (first, second))}) == 3


def test_the_gate_saw_the_log_probs_agree_at_both_steps(finished: Outcome) -> None:
    for step in (1, 2):
        gate = finished.record(f"step-{step}")["gate"]
        assert gate["loss"] == pytest.approx(LN_2, abs=1e-3)
        assert 0 <= gate["max_abs_difference_nats"] < 1e-3
        first = finished.metrics(step)[0]
        assert first["loss"] == pytest.approx(LN_2, abs=1e-3)


def test_the_second_steps_reference_was_scored_by_the_first_steps_probe(finished: Outcome) -> None:
    plan = finished.json("plan.json")
    first, second = finished.record("step-1"), finished.record("step-2")
    assert first["scored_rows"] == {"computed": plan["steps"][0]["pairs"], "cached": 0}
    assert second["scored_rows"] == {"computed": 0, "cached": plan["steps"][1]["pairs"]}


def test_the_reference_values_are_log_probs_that_another_reader_gets_too(
    finished: Outcome,
) -> None:
    """D_2 under M_1, scored here with transformers alone."""
    stored = pq.read_table(finished.run.step(2) / "reference.parquet").to_pylist()[:4]
    policy = AutoModelForCausalLM.from_pretrained(finished.run.model(1), dtype=torch.float32)
    tokens = TokenFile.open(next((finished.folder.parents[1] / "cache/tokens").glob("*.arrow")))
    plan = {row["pair_id"]: row for row in pq.read_table(finished.run.plan).to_pylist()}
    for row in stored:
        pair = tokens.row(plan[row["pair_id"]]["token_row"])
        for side, completion in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            ids = torch.tensor([*pair.prompt_ids, *completion])[None]
            with torch.no_grad():
                logps = policy(ids).logits[0, :-1].log_softmax(-1)
            mine = logps.gather(1, ids[0, 1:, None])[len(pair.prompt_ids) - 1 :].sum().item()
            assert row[f"reference_{side}_logps"] == pytest.approx(mine, abs=1e-3)
            assert row[f"{side}_tokens"] == len(completion)


def test_gamma_has_every_model_on_every_probe(finished: Outcome) -> None:
    entries = finished.json("step-2/gamma.json")
    found = Counter((entry["model"], entry["probe"]) for entry in entries)
    probes = ("reserve:questions", "reserve:requests", "D_1", "D_2")
    assert found == Counter((f"M_{k}", probe) for k in range(3) for probe in probes)
    for entry in entries:
        assert entry.keys() >= STATISTICS
        assert entry["complete"].keys() >= STATISTICS
        assert list(entry["quantiles"]) == ["1", "5", "25", "50", "75", "95", "99"]
        later = entry["model"] != "M_0"
        assert (entry["accuracy_vs_S"] is not None) == later
        assert (entry["accuracy_vs_previous"] is not None) == later
        if later:
            assert entry["vs_S"]["low"] <= entry["vs_S"]["mean"] <= entry["vs_S"]["high"]
    early = finished.json("step-1/gamma.json")
    assert {entry["model"] for entry in early} == {"M_0", "M_1"}


def test_gamma_on_a_partition_is_that_of_the_reference_it_was_trained_with(
    finished: Outcome,
) -> None:
    reference = pq.read_table(finished.run.step(2) / "reference.parquet")
    gamma = (
        reference["reference_chosen_logps"].to_numpy().astype(np.float64)
        - reference["reference_rejected_logps"].to_numpy()
    )
    entry = next(
        entry
        for entry in finished.json("step-2/gamma.json")
        if (entry["model"], entry["probe"]) == ("M_1", "D_2")
    )
    assert entry["whole"]
    assert entry["mean"] == pytest.approx(gamma.mean(), abs=1e-9)
    assert entry["ranking_accuracy"] == pytest.approx((gamma > 0).mean(), abs=1e-9)


def test_a_step_moves_the_model_towards_its_partition(finished: Outcome) -> None:
    entries = {(e["model"], e["probe"]): e for e in finished.json("step-2/gamma.json")}
    assert entries["M_1", "D_1"]["vs_previous"]["low"] > 0
    assert entries["M_2", "D_2"]["vs_previous"]["low"] > 0


def test_metrics_have_trls_names_and_end_with_an_evaluation(finished: Outcome) -> None:
    for step in (1, 2):
        *trained, last = finished.metrics(step)
        assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
        assert all(line.keys() >= TRL_NAMES for line in trained)
        assert trained[-1]["epoch"] == 1
        assert {"eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"} <= last.keys()
        assert last["step"] == 6


def test_the_loss_curves_are_the_golden_ones(bench: Bench, tmp_path: Path) -> None:
    """Bitwise on one machine (see the twin); on another CPU the last digits are others."""
    golden = json.loads((Path(__file__).parents[2] / "golden" / "tiny_losses.json").read_text())
    sources = [
        {"name": name, "path": str(demo.materialise(f"demo:{name}", tmp_path))}
        for name in ("questions", "requests")
    ]
    outcome = bench.run({"data": {"sources": sources}})
    for step in (1, 2):
        losses = [line["loss"] for line in outcome.metrics(step)[:-1]]
        assert losses == pytest.approx(golden[f"step-{step}"], abs=2e-5)


def test_a_published_model_loads_in_fp32_with_the_tokenizer_of_s(
    finished: Outcome, demo_files: DemoFiles
) -> None:
    folder = finished.run.model(2)
    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert policy.generation_config.eos_token_id is not None
    text = "Where do cows live?"
    base = AutoTokenizer.from_pretrained(demo_files.model)
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == base(text).input_ids
    for name in TOKENIZER_FILES:
        assert (folder / name).read_bytes() == (demo_files.model / name).read_bytes(), name


def test_a_published_model_names_its_lineage(finished: Outcome) -> None:
    digests = [finished.record(f"step-{step}")["outputs"]["model"] for step in (1, 2)]
    lineage = json.loads((finished.run.model(2) / "lineage.json").read_text())
    assert [step["outputs"]["model"] for step in lineage["steps"]] == digests
    card = (finished.run.model(2) / "README.md").read_text()
    assert all(digest[:12] in card for digest in digests)


def test_a_record_says_what_made_the_model(finished: Outcome) -> None:
    record = finished.record("step-2")
    assert record["identity"]["training"]["learning_rate"] == 1e-3
    assert record["identity"]["inputs"]["partition"] == record["inputs"]["partition"]
    assert record["environment"]["threads"] == 1
    assert {"torch", "transformers", "python"} <= record["environment"]["versions"].keys()
    assert {"load", "score", "gate", "train", "publish"} <= record["timings_s"].keys()
    assert str(finished.folder) not in json.dumps(record), "a path bears no identity"


def test_resolved_settings_are_what_a_run_stores(finished: Outcome, finished_bench: Bench) -> None:
    stored = finished.run.read_run().as_json()
    resolved = resolve(make_config(finished_bench.values()))
    assert stored["inputs"] == dict(resolved.inputs)
    assert stored["config"]["training"]["precision"] == "fp32"
    assert stored["config"]["launch"]["strategy"] == "single"
    assert stored["config"]["data"]["max_length"] == 160


# --- a second call


def test_a_second_call_executes_nothing_and_touches_no_file(finished_copy: Bench) -> None:
    before = states(finished_copy.folder)
    again = finished_copy.run()
    assert again.result.executed == ()
    assert states(finished_copy.folder) == before


def test_where_metrics_go_and_where_runs_are_kept_changes_nothing(
    finished_copy: Bench, tmp_path: Path
) -> None:
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "cache", tmp_path / "moved" / "elsewhere")
    shutil.move(tmp_path / "runs", tmp_path / "moved" / "models")
    store = {
        "runs_dir": str(tmp_path / "moved" / "models"),
        "cache_dir": str(tmp_path / "moved" / "elsewhere"),
    }
    again = finished_copy.run(
        {"tracking": {"tools": ["tensorboard"]}},
        overrides=[f"store.{key}={value}" for key, value in store.items()],
    )
    assert again.result.executed == ("trackers",), "a tracker is told of what is done"


def test_a_run_that_lost_its_last_record_redoes_only_that_step(
    finished: Outcome, finished_copy: Bench
) -> None:
    (finished_copy.runs / "tiny/step-2/record.json").unlink()
    again = finished_copy.run()
    assert again.result.executed == ("step-2", "report")
    assert again.record("step-2")["outputs"] == finished.record("step-2")["outputs"]
    assert again.record("step-2")["scored_rows"]["computed"] == 0


def test_a_flipped_byte_in_a_model_is_noticed_and_the_step_redone(
    finished: Outcome, finished_copy: Bench
) -> None:
    weights = finished_copy.runs / "tiny/step-1/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = finished_copy.run()
    assert again.reason("step-1") == "step-1/model/model.safetensors was changed"
    assert again.result.executed == ("step-1", "report"), "M_1 is the same again, so step 2 stands"
    for step in (1, 2):
        old, new = finished.record(f"step-{step}"), again.record(f"step-{step}")
        assert new["outputs"] == old["outputs"]
    assert model_digest(again.run.model(1)) == again.record("step-1")["outputs"]["model"]


@pytest.mark.parametrize(
    ("name", "redone"),
    [
        ("pairs.parquet", ("data", "reserve", "report")),  # the rejected rows are of both
        ("plan.parquet", ("plan", "report")),
        ("step-1/gamma.json", ("gamma-1", "report")),
        ("probes/M_1.parquet", ("probe-M_1", "report")),
        ("report.html", ("report",)),
    ],
)
def test_a_file_that_is_gone_is_made_again_and_nothing_else(
    finished: Outcome, finished_copy: Bench, name: str, redone: tuple[str, ...]
) -> None:
    path = finished_copy.runs / "tiny" / name
    path.unlink()
    again = finished_copy.run()
    assert again.result.executed == redone
    assert path.read_bytes() == (finished.folder / name).read_bytes()


def test_without_its_cache_a_finished_run_is_still_finished(finished_copy: Bench) -> None:
    shutil.rmtree(finished_copy.folder / "cache")
    again = finished_copy.run()
    assert again.result.executed == ("tokens",)


def test_the_same_recipe_under_another_name_shares_the_cache_and_ends_in_the_same_bits(
    finished: Outcome, finished_copy: Bench
) -> None:
    twin = finished_copy.run({"name": "twin"})
    for step in (1, 2):
        mine, theirs = finished.record(f"step-{step}"), twin.record(f"step-{step}")
        assert theirs["scored_rows"]["computed"] == 0
        assert theirs["outputs"] == mine["outputs"]
        assert theirs["identity"] == mine["identity"]
        assert twin.metrics(step) == finished.metrics(step)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"training": {"learning_rate": 2e-3, "beta": 0.2}},
            "training.learning_rate: 0.001 -> 0.0",
        ),
        ({"data": {"limit": 39}}, "data.limit: 40 -> 39"),
        ({"partition": {"strategy": "random"}}, "partition.strategy: natural -> random"),
        ({"supervised": {"enabled": True}}, "supervised.enabled: False -> True"),
        ({"steps": [{"beta": 0.2}]}, "steps.0.beta: nothing -> 0.2"),
    ],
)
def test_a_changed_recipe_under_an_existing_name_is_refused(
    finished_copy: Bench, changes: Values, named: str
) -> None:
    before = states(finished_copy.folder)
    with pytest.raises(RunExistsError, match="run tiny exists") as caught:
        finished_copy.run(changes)
    assert named in str(caught.value)
    assert "another name" in str(caught.value)
    assert states(finished_copy.folder) == before


def test_changed_data_under_an_existing_name_is_refused(
    finished_copy: Bench, demo_files: DemoFiles, tmp_path: Path
) -> None:
    changed = tmp_path / "questions.jsonl"
    changed.write_text(demo_files.questions.read_text() + "\n", encoding="utf-8")
    sources = [
        {"name": "questions", "path": str(changed)},
        finished_copy.recipe["data"]["sources"][1],
    ]
    with pytest.raises(RunExistsError, match=r"inputs\.data\.questions: "):
        finished_copy.run({"data": {"sources": sources}})


def test_the_same_data_at_another_path_is_the_same_run(
    finished_copy: Bench, demo_files: DemoFiles, tmp_path: Path
) -> None:
    moved = shutil.copy(demo_files.questions, tmp_path / "moved.jsonl")
    sources = [
        {"name": "questions", "path": str(moved)},
        finished_copy.recipe["data"]["sources"][1],
    ]
    assert finished_copy.run({"data": {"sources": sources}}).result.executed == ()


def test_other_data_in_step_two_leaves_step_one_its_identity(
    finished: Outcome, finished_copy: Bench, demo_files: DemoFiles, tmp_path: Path
) -> None:
    lines = demo_files.requests.read_text(encoding="utf-8").splitlines(keepends=True)
    other = tmp_path / "requests.jsonl"
    other.write_text("".join(lines[100:]), encoding="utf-8")
    questions, _ = finished_copy.recipe["data"]["sources"]
    sources = [questions, {"name": "requests", "path": str(other)}]
    run = finished_copy.run({"name": "other", "data": {"sources": sources}})
    assert run.record("step-1")["identity"] == finished.record("step-1")["identity"]
    assert run.record("step-1")["outputs"] == finished.record("step-1")["outputs"]
    assert (
        run.record("step-2")["inputs"]["partition"]
        != (finished.record("step-2")["inputs"]["partition"])
    )


# --- parts of the recipe


@pytest.fixture(scope="module")
def eased(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Outcome:
    """Supervised on the chosen sides, steps in the order that S finds easy, settings per step."""
    return Bench(tmp_path_factory.mktemp("eased"), tiny_recipe).run(
        {
            "supervised": {"enabled": True, "learning_rate": 3e-3, "batch_size": 8},
            "partition": {"order": "easy_first"},
            "steps": [{"beta": 0.3, "max_steps": 2}, {"learning_rate": 2e-3, "max_steps": 3}],
            "evaluation": {"every": 2},
            "tracking": {"tools": ["tensorboard"]},
        }
    )


def test_the_supervised_stage_is_step_zero_and_its_model_is_s(
    eased: Outcome, demo_files: DemoFiles
) -> None:
    record = eased.record("step-0")
    assert record["kind"] == "supervised"
    assert record["inputs"]["base"] == model_digest(demo_files.model)
    assert eased.record("step-1")["inputs"]["reference"] == record["outputs"]["model"]
    losses = [line["loss"] for line in eased.metrics(0)]
    assert losses[-1] < losses[0] - 0.5, "the chosen sides were learnt"


def test_the_supervised_stage_leaves_the_reserve_alone(eased: Outcome) -> None:
    reserved = pq.read_table(eased.run.usable)["reserved"].to_numpy(zero_copy_only=False)
    assert reserved.sum() > 0
    assert eased.record("step-0")["examples"] == (~reserved).sum()


def test_easy_first_orders_the_sources_by_measured_gamma(eased: Outcome) -> None:
    usable = pq.read_table(eased.run.usable).to_pylist()
    columns = pq.read_table(eased.run.features, columns=["pair_id", "gamma"]).to_pydict()
    gamma = dict(zip(*columns.values(), strict=True))
    share = {
        source: np.mean(
            [
                gamma[row["pair_id"]] > 0
                for row in usable
                if row["source"] == source and not row["reserved"]
            ]
        )
        for source in ("questions", "requests")
    }
    order = sorted(share, key=lambda source: -share[source])
    assert share["questions"] != share["requests"]
    assert [next(iter(s["sources"])) for s in eased.json("plan.json")["steps"]] == order


def test_gamma_measured_for_the_order_is_the_first_steps_reference(eased: Outcome) -> None:
    assert eased.record("step-1")["scored_rows"]["computed"] == 0


def test_settings_of_one_step_reach_its_record(eased: Outcome) -> None:
    first, second = eased.record("step-1"), eased.record("step-2")
    assert (first["training"]["beta"], second["training"]["beta"]) == (0.3, 0.1)
    assert first["training"]["learning_rate"] == 1e-3
    assert second["training"]["learning_rate"] == 2e-3
    assert (first["optimizer_steps"], second["optimizer_steps"]) == (2, 3)
    assert first["identity"]["training"]["beta"] == 0.3


def test_the_reserve_is_evaluated_as_often_as_asked_and_at_the_end(eased: Outcome) -> None:
    evaluated = [line["step"] for line in eased.metrics(2) if "eval_loss" in line]
    assert evaluated == [2, 3]


def test_metrics_reach_the_trackers(eased: Outcome) -> None:
    assert list((eased.run.step(1) / "tracking").rglob("events.out.tfevents*"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Outcome:
    """LoRA on stratified partitions."""
    return Bench(tmp_path_factory.mktemp("adapted"), tiny_recipe).run(
        {
            "training": {"lora_r": 4, "learning_rate": 5e-3},
            "partition": {"strategy": "stratified", "fractions": [0.25, 0.75]},
        }
    )


def test_with_lora_the_second_steps_reference_is_the_merged_model(adapted: Outcome) -> None:
    first, second = adapted.record("step-1"), adapted.record("step-2")
    assert second["inputs"]["reference"] == first["outputs"]["model"]
    assert second["inputs"]["reference"] != first["inputs"]["reference"]
    assert second["gate"]["loss"] == pytest.approx(LN_2, abs=1e-3)
    folder = adapted.run.model(1)
    assert not list(folder.glob("adapter*")), "what is published is one set of tensors"
    assert model_digest(folder) == second["inputs"]["reference"]


def test_with_lora_only_linear_layers_have_moved(adapted: Outcome, demo_files: DemoFiles) -> None:
    base = AutoModelForCausalLM.from_pretrained(demo_files.model).state_dict()
    model = AutoModelForCausalLM.from_pretrained(adapted.run.model(1)).state_dict()
    moved = {name for name in base if not torch.equal(base[name], model[name])}
    assert moved
    assert all("_proj" in name for name in moved)


def test_stratified_partitions_have_their_share_of_every_source(adapted: Outcome) -> None:
    steps = adapted.json("plan.json")["steps"]
    for source in ("questions", "requests"):
        total = sum(step["sources"][source] for step in steps)
        assert steps[0]["sources"][source] == pytest.approx(0.25 * total, abs=1)


@pytest.fixture(scope="module")
def shuffled(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values, demo_files: DemoFiles
) -> Outcome:
    """Random partitions of two sources that ask the same; supervised on a source of its own."""
    folder = tmp_path_factory.mktemp("shuffled")
    rows = [json.loads(line) for line in demo_files.questions.read_text().splitlines()]
    asked = {row["prompt"]: row for row in rows if row["rejected"]}
    variants = [
        {"prompt": p, "chosen": r["chosen"] + " Indeed.", "rejected": r["rejected"] + " No."}
        for p, r in asked.items()
    ]
    examples = [{"prompt": p, "completion": row["chosen"]} for p, row in asked.items()]
    for name, written in (("variants", variants), ("examples", examples)):
        text = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    sources = [
        {"name": "questions", "path": str(demo_files.questions)},
        {"name": "variants", "path": str(folder / "variants.jsonl")},
    ]
    return Bench(folder, tiny_recipe).run(
        {
            "data": {"sources": sources, "limit": 200},
            "supervised": {
                "enabled": True,
                "examples": "source",
                "path": str(folder / "examples.jsonl"),
                "max_steps": 1,
            },
            "partition": {"strategy": "random", "fractions": [0.5, 0.5]},
            "training": {"max_steps": 1},
            "probe": {"max_pairs": 16, "completions": 0},
        }
    )


def test_random_partitions_have_the_sizes_asked_for(shuffled: Outcome) -> None:
    sizes = [step["pairs"] for step in shuffled.json("plan.json")["steps"]]
    assert abs(sizes[0] - sizes[1]) <= 1
    plan = pq.read_table(shuffled.run.plan)
    assert len(set(plan["pair_id"].to_pylist())) == plan.num_rows


def test_prompts_that_two_partitions_share_are_reported(shuffled: Outcome) -> None:
    plan = pq.read_table(shuffled.run.plan).to_pylist()
    prompts = [{r["prompt_key"] for r in plan if r["step"] == step} for step in (1, 2)]
    shared = len(prompts[0] & prompts[1])
    assert shared > 0
    (overlap,) = shuffled.json("plan.json")["overlap"]
    assert set(overlap["steps"]) == {1, 2}
    assert overlap["prompts"] == shared


def test_a_prompt_reserved_anywhere_is_trained_on_nowhere(shuffled: Outcome) -> None:
    plan = pq.read_table(shuffled.run.plan).to_pylist()
    held = {row["prompt_key"] for row in plan if row["step"] == 0}
    assert held.isdisjoint(row["prompt_key"] for row in plan if row["step"])
    examples = pq.read_table(shuffled.folder / "supervised.parquet")["prompt_key"].to_pylist()
    kept = sum(prompt not in held for prompt in examples)
    assert kept < len(examples), "the supervised source has reserved prompts"
    assert shuffled.record("step-0")["examples"] == kept


def test_a_probe_is_a_sample_of_at_most_so_many_pairs_the_same_for_every_model(
    shuffled: Outcome,
) -> None:
    samples = []
    for k in range(3):
        table = pq.read_table(shuffled.run.probes / f"M_{k}.parquet").to_pylist()
        rows = [row for row in table if row["sampled"]]
        sizes = Counter(row["probe"] for row in rows)
        assert (sizes["D_1"], sizes["D_2"]) == (16, 16)
        samples.append({row["pair_id"] for row in rows})
    assert samples[0] == samples[1] == samples[2]
