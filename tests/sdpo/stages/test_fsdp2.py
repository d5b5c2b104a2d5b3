"""FSDP2 on two CPU processes (gloo) is the step of one process, from load to publication."""

import json

import pyarrow.parquet as pq
import pytest
from forked_ranks import forked_ranks
from forked_stages import forked_stages

from sdpo.config import EvaluationConfig, LaunchConfig, ModelConfig, ProbeConfig
from sdpo.identity.model_digest import model_digest, tensor_entries
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import LAUNCH, TWENTY_STEPS, PreparedRun, check_curve, prepare_run

SHARED = LaunchConfig(processes=2, strategy="fsdp2", device="cpu", threads=1)
PAIRS = {0: 5, 1: 25, 2: 4}


def run_step(run: PreparedRun, **fields) -> list[dict]:
    """Step 1 in processes of its own; returns the events it sent."""
    fields = {
        "measure_input": True,
        "measure_output": True,
        "evaluation": EvaluationConfig(every=4),
        "probe": ProbeConfig(completions=2, completion_tokens=8),
    } | fields
    events: list[dict] = []
    spec = run.spec(1, fields.pop("training", TWENTY_STEPS), **fields)
    run_stage(spec, listen=lambda event: events.append(dict(event)))
    return events


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> PreparedRun:
    run = prepare_run(tmp_path_factory.mktemp("single"), pairs=PAIRS)
    with forked_stages():
        run_step(run, launch=LAUNCH)
    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> PreparedRun:
    run = prepare_run(tmp_path_factory.mktemp("shared"), pairs=PAIRS)
    model = ModelConfig(name_or_path=str(run.model), max_shard_size=0.0005)
    run_step(run, launch=SHARED, model=model)
    return run


def test_shares_give_the_curve_of_one_process_over_20_steps(single, shared):
    curve, other = single.metrics(1), shared.metrics(1)
    assert len([line for line in curve if "loss" in line]) == 20
    for line, found in zip(curve, other, strict=True):
        assert set(line) == set(found)
        for name in set(line) - {"rewards/accuracies", "eval_rewards/accuracies"}:
            assert found[name] == pytest.approx(line[name], rel=1e-4, abs=1e-4), name
    norms = [line["grad_norm"] for line in curve if "grad_norm" in line]
    assert max(norms) > TWENTY_STEPS.max_grad_norm, "gradients are clipped"


def test_shares_score_every_row_once_and_the_same(single, shared):
    """In trl#6470 the reference was asked before FSDP2 had its weights: the last bits are those of
    one process here, the gate compares them with the policy, and the step trains after it."""
    assert shared.record(1)["gate"]["max_abs_difference_nats"] < 1e-3
    tables = [pq.read_table(r.folder.step(1) / "reference.parquet") for r in (single, shared)]
    assert tables[0].equals(tables[1])
    assert shared.record(1)["scored_rows"] == {"computed": 25, "cached": 0}
    probes = [pq.read_table(r.folder.probes / "M_0.parquet") for r in (single, shared)]
    assert probes[0].equals(probes[1])


def test_shares_publish_one_model_in_files_of_the_size_that_was_asked(single, shared):
    folder = shared.folder.model(1)
    record = shared.record(1)
    assert record["outputs"]["model"] == model_digest(folder)
    assert shared.folder.damage(record) == []
    assert record["environment"] | {"processes": 2, "strategy": "fsdp2"} == record["environment"]
    entries = tensor_entries(folder)
    assert [e.name for e in entries] == [e.name for e in tensor_entries(single.folder.model(1))]
    files = sorted(folder.glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    assert sum(max(f.stat().st_size, 0) > 520_000 for f in files) == 0


def test_shares_write_the_completions_of_one_process(single, shared):
    said = [
        json.loads((r.folder.probes / "M_0.completions.json").read_text()) for r in (single, shared)
    ]
    assert said[0] == said[1]
    assert len(said[0]) == 2


@pytest.mark.slow
def test_four_give_the_curve_of_one_process_over_20_steps(single, tmp_path):
    run = prepare_run(tmp_path, pairs=PAIRS)
    with forked_ranks():
        run_step(run, launch=SHARED.model_copy(update={"processes": 4}))
    check_curve(run, single)
    tables = [pq.read_table(r.folder.step(1) / "reference.parquet") for r in (single, run)]
    assert tables[0].equals(tables[1])
    assert run.record(1)["outputs"]["model"] == model_digest(run.folder.model(1))
