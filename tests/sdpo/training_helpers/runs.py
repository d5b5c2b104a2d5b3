"""A run folder on disk, ready for a step's stage: the demo's model and a few of its pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from sdpo.config import (
    DataConfig,
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    ProbeConfig,
    SourceConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.data.prepare import prepare_pairs
from sdpo.errors import Fault, Interrupted
from sdpo.events import Event, EventWriter, StateEvent
from sdpo.identity.model_digest import model_digest
from sdpo.inputs import demo
from sdpo.inputs.demo.text import questions
from sdpo.processes.spec import Spec
from sdpo.processes.stage_specs import Phase, StepSpec
from sdpo.processes.supervisor import run_stage
from sdpo.store.resume_states import states_folder
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json
from sdpo.tokens.token_file import TokenFile
from sdpo.tokens.tokenise import tokenise_pairs

LAUNCH = LaunchConfig(processes=1, strategy="single", device="cpu", threads=1)
TWENTY_STEPS = TrainingConfig(
    beta=0.2,
    learning_rate=1e-3,
    batch_size=6,
    epochs=4,
    seed=3,
    precision="fp32",
    micro_batch_tokens=300,
    max_grad_norm=1.0,
)
"""Of 25 pairs: each fifth optimizer step is of one pair, when a process has none of its own."""
FEW_STEPS = TWENTY_STEPS.model_copy(update={"epochs": 1, "learning_rate": 1e-2})


def slow(*values: Any) -> Any:
    """A case that only the slow tests have."""
    return pytest.param(*values, marks=pytest.mark.slow)


def skip_without(strategy: str) -> None:
    """Skip a test of a strategy whose library is not installed."""
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """Data of a run up to its plan. ``model`` is S; steps are numbered from 1, 0 is the reserve."""

    folder: RunFolder
    model: Path
    tokens: Path
    cache: Path

    def spec(self, step: int, training: TrainingConfig, /, **fields: Any) -> StepSpec:
        """A preference step from M_{step-1}, which must be there."""
        source = self.model if step == 1 else self.folder.model(step - 1)
        digest = model_digest(source)
        settings: dict[str, Any] = {
            "name": f"step-{step}",
            "run": self.folder.path,
            "model": ModelConfig(name_or_path=str(self.model)),
            "launch": LAUNCH,
            "step": step,
            "phases": _phases(fields),
            "input_model": source,
            "input_digest": digest,
            "input_name": f"M_{step - 1}",
            "base": self.model,
            "tokens": self.tokens,
            "pairs": self.folder.pairs,
            "usable": self.folder.usable,
            "plan": self.folder.plan,
            "cache": self.cache,
            "training": training,
            "evaluation": EvaluationConfig(),
            "probe": ProbeConfig(completions=0),
            "tracking": TrackingConfig(),
            "identity": {"step": step, "beta": training.beta},
            "inputs": {"reference": digest, "target": digest, "partition": "0" * 64},
        }
        return StepSpec(**(settings | {k: v for k, v in fields.items() if k not in _WHAT}))

    def run_step(self, step: int, training: TrainingConfig, /, **fields: Any) -> dict[str, Any]:
        """Run a step's stage in this process and return its result."""
        from sdpo.stages import step as stage

        from .models import accelerator

        accelerator()  # the state that an earlier test left behind is gone
        return stage.run(self.spec(step, training, **fields), EventWriter(None))

    def record(self, step: int) -> dict[str, Any]:
        """The record of a step, as it was written."""
        record = self.folder.read_record(f"step-{step}")
        assert record is not None, f"step {step} wrote no record"
        return record

    def metrics(self, step: int) -> list[dict[str, float]]:
        """Lines of ``metrics.jsonl``, those of the evaluation included."""
        path = self.folder.step(step) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def rows_of(self, step: int) -> list[dict[str, Any]]:
        """The plan's rows of a step."""
        return [row for row in pq.read_table(self.folder.plan).to_pylist() if row["step"] == step]

    def token_file(self) -> TokenFile:
        """Token ids of all pairs."""
        return TokenFile.open(self.tokens)


_WHAT = ("task", "measure_input", "measure_output")
"""What a test says of a step that is to be run: which becomes the phases of its stage."""


def _phases(fields: Mapping[str, Any]) -> tuple[Phase, ...]:
    measures, task = ("measure",), fields.get("task", "preference")
    return (
        *(("reference",) if task == "preference" else ()),
        *(measures if fields.get("measure_input") else ()),
        task,
        *(measures if fields.get("measure_output") else ()),
    )


def stop_step(
    run: PreparedRun, *, killed: bool, training: TrainingConfig, step: int = 1, **fields: Any
) -> int:
    """Run a step in processes of its own and end them after the first resume state.

    Returns the optimizer steps of the last state that they left.
    """
    spec = run.spec(
        step,
        training.model_copy(update={"checkpoint_every": 1}),
        measure_input=True,
        measure_output=True,
        evaluation=EvaluationConfig(every=2),
        **fields,
    )
    saved: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StateEvent) and event.event == "checkpoint":
            saved.append(event.optimizer_step)
            if len(saved) == 1 and killed:
                for process in stage_processes(spec):
                    process.kill()
            elif len(saved) == 1:
                raise Interrupted("enough")

    with pytest.raises(Fault if killed else Interrupted):
        run_stage(spec, listen=listen)
    assert not stage_processes(spec)
    states = sorted(states_folder(run.folder.step(step)).glob("[0-9]*"))
    assert len(states) == 1
    return int(states[0].name)


def stage_processes(spec: Spec) -> list[psutil.Process]:
    """Processes that run the stage of ``spec``, oldest first (it may just be forking another)."""
    wanted = str(spec.run / "logs" / f"{spec.name}.json")
    found = []
    for process in psutil.process_iter():
        try:
            if wanted in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=psutil.Process.create_time)


def prepare_run(
    root: Path,
    *,
    pairs: Mapping[int, int],
    rows: Sequence[Mapping[str, Any]] | None = None,
    model: Path | None = None,
) -> PreparedRun:
    """A run below ``root`` with ``pairs[step]`` pairs in every step.

    ``rows`` are those of a preference file, by default the demo's; ``model`` a model folder.
    """
    folder = RunFolder(root / "runs" / "tests")
    (folder.path / "logs").mkdir(parents=True)
    chosen_model = model or demo.materialise("demo:tiny-llama", root / "demo")
    count = sum(pairs.values())
    source = root / "pairs.jsonl"
    distinct = {row["prompt"]: row for row in questions()}.values()
    lines = [json.dumps(row) + "\n" for row in list(rows or distinct)[:count]]
    source.write_text("".join(lines), encoding="utf-8")
    data = DataConfig(sources=[SourceConfig(name="tests", path=str(source))])
    prepared = prepare_pairs(data, default_format="chat", strata=["source"], out=folder.path)
    assert prepared.pairs == count, "the helper's rows are all usable"
    tokens = root / "tokens.arrow"
    tokenise_pairs(
        folder.pairs,
        AutoTokenizer.from_pretrained(chosen_model),
        max_length=256,
        clock=datetime(2024, 1, 2, tzinfo=UTC),
        out=tokens,
        end_token_ids=[read_json(chosen_model / "generation_config.json")["eos_token_id"]],
    )
    _write_plan(folder, pairs)
    return PreparedRun(folder=folder, model=chosen_model, tokens=tokens, cache=root / "cache")


def _write_plan(folder: RunFolder, pairs: Mapping[int, int]) -> None:
    table = pq.read_table(folder.pairs, columns=["pair_id", "prompt_key", "source"])
    table = table.set_column(2, "source", table["source"].cast(pa.string()))
    table = table.append_column("token_row", pa.array(np.arange(table.num_rows)))
    steps = np.concatenate([np.full(count, step) for step, count in pairs.items()])
    usable = table.append_column("reserved", pa.array(steps == 0))
    pq.write_table(usable.sort_by("pair_id"), folder.usable)
    plan = table.append_column("step", pa.array(steps.astype(np.int32)))
    plan = plan.append_column("sampled", pa.array(np.ones(len(steps), dtype=np.bool_)))
    pq.write_table(plan.sort_by("pair_id"), folder.plan)


def check_curve(run: PreparedRun, alone: PreparedRun) -> None:
    """The metrics of twenty optimizer steps are those of ``alone``, which one process made."""
    curve, expected = run.metrics(1), alone.metrics(1)
    assert len([line for line in expected if "loss" in line]) == 20
    for line, wanted in zip(curve, expected, strict=True):
        assert set(line) == set(wanted)
        for name in {"loss", "eval_loss", "grad_norm", "rewards/margins"} & set(wanted):
            assert line[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), name
