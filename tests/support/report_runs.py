"""A run folder made of random numbers: the shape of a real one, and nothing measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from probe_records import record_probes

from sdpo.config import RunConfig
from sdpo.identity.canonical import digest_of
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import write_json

SOURCES = ("orca", "ultrafeedback")
PAIRS = {"D_1": 260, "D_2": 700, "reserve:orca": 48, "reserve:ultrafeedback": 220}


def write_run(
    path: Path,
    *,
    effect: float = 4.0,
    seen: float = 0.0,
    done: int = 2,
    supervised: bool = True,
    completion: str = "Paris is the capital of France.",
    seed: int = 0,
) -> Path:
    """Write a run of two steps that got as far as step ``done``.

    ``effect``: nats by which every step raises gamma on pairs it never met, half of it on the
    reserve; ``seen``: nats by which M_1 moved on D_2 beyond that, as if it had trained on it.
    """
    folder = RunFolder(path)
    generator = np.random.default_rng(seed)
    _write_run_file(folder, supervised=supervised)
    _write_plan(folder)
    _write_rejected(folder)
    pairs = {probe: _pairs(probe, count, generator) for probe, count in PAIRS.items()}
    for model in range(done + 1):
        _move(pairs, model, effect, seen, generator)
        _write_probe(folder, pairs, model)
        _write_completions(folder, model, completion)
    record_probes(folder)
    digests = [digest_of(f"model {model}") for model in range(done + 1)]
    if supervised:
        _write_step(folder, 0, digests, generator)
    for step in range(1, done + 1):
        _write_step(folder, step, digests, generator)
    return path


def _write_run_file(folder: RunFolder, *, supervised: bool) -> None:
    config = RunConfig.model_validate(
        {
            "name": folder.name,
            "model": {"name_or_path": "random/numbers-2m"},
            "data": {"sources": [{"name": name, "path": f"{name}.jsonl"} for name in SOURCES]},
            "supervised": {"enabled": supervised},
            "training": {"learning_rate": 1e-4},
            "probe": {"bootstrap_resamples": 300},
        }
    )
    folder.path.mkdir(parents=True)
    folder.write_run(
        {
            "name": folder.name,
            "created": "2025-01-02T03:04:05+00:00",
            "identity": {},
            "config": config.model_dump(),
            "versions": {"sdpo": "0.1.0", "torch": "2.13.0"},
            "inputs": {"model": digest_of("base"), "tokenizer": digest_of("tokenizer")},
        }
    )


def _write_plan(folder: RunFolder) -> None:
    steps = [
        {
            "step": number,
            "pairs": PAIRS[f"D_{number}"],
            "sources": {source: PAIRS[f"D_{number}"]},
            "digest": digest_of(f"D_{number}"),
            "lengths": {
                "pairs": PAIRS[f"D_{number}"],
                "sequence": {"median": 540.0 + 80 * number, "p95": 1020.0, "maximum": 1024},
                "chosen_truncated": 0.05 * (number - 1),
                "rejected_truncated": 0.07 * (number - 1),
            },
        }
        for number, source in enumerate(SOURCES, start=1)
    ]
    write_json(
        folder.plan_file,
        {
            "strategy": "natural",
            "seed": 42,
            "steps": steps,
            "reserve": {source: PAIRS[f"reserve:{source}"] for source in SOURCES},
            "overlap": [{"steps": [1, 2], "prompts": 3, "pairs": 7}],
        },
    )


def _write_rejected(folder: RunFolder) -> None:
    reasons = {"equal_sides": 4, "empty_side": 2}
    sources = [
        {"name": "orca", "read": 308, "kept": 308, "rejected": {}},
        {"name": "ultrafeedback", "read": 926, "kept": 920, "rejected": reasons},
    ]
    folder.write_record("data", {"identity": {}, "outputs": {"sources": sources}}, files=[])
    rows = [
        {"source": "ultrafeedback", "row": row, "reason": reason, "detail": detail}
        for row, reason, detail in [
            (306, "equal_sides", ""), (478, "empty_side", "rejected"), (655, "equal_sides", ""),
            (833, "empty_side", "chosen"), (910, "equal_sides", ""), (997, "equal_sides", ""),
        ]
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder.path / "rejected_rows.jsonl").write_text(text, encoding="utf-8")


def _pairs(probe: str, count: int, generator: np.random.Generator) -> dict[str, Any]:
    chosen = generator.integers(40, 400, count)
    rejected = np.maximum(chosen + generator.normal(0, 20, count).astype(int), 8)
    whole = count <= 512
    if probe == "D_1":
        source = "orca"
    else:
        source = "ultrafeedback" if probe == "D_2" else probe.removeprefix("reserve:")
    return {
        "pair_id": [f"{probe}-{i:04d}" for i in range(count)],
        "prompt_key": [f"{probe}-p{i // 2:04d}" for i in range(count)],
        "source": [source] * count,
        "probe": [probe] * count,
        "sampled": np.ones(count, dtype=bool) if whole else generator.permutation(count) < 512,
        "chosen_tokens": chosen.astype(np.int32),
        "rejected_tokens": rejected.astype(np.int32),
        "complete": generator.random(count) > (0.12 if probe == "D_2" else 0.02),
        "chosen_logps": -1.1 * chosen + generator.normal(-1, 9, count),
        "rejected_logps": -1.1 * rejected + generator.normal(1, 9, count),
    }


def _move(
    pairs: dict[str, dict[str, Any]],
    model: int,
    effect: float,
    seen: float,
    generator: np.random.Generator,
) -> None:
    """From M_{model-1} to M_model: every pair's chosen log-prob walks, its prompt mates alike."""
    if not model:
        return
    for probe, columns in pairs.items():
        count = len(columns["pair_id"])
        shift = effect * (0.5 if probe.startswith("reserve") else 1.0)
        shift += 20.0 if probe == f"D_{model}" else 0.0
        shift += seen if (model, probe) == (1, "D_2") else 0.0
        prompts = np.repeat(generator.normal(0, 3, (count + 1) // 2), 2)[:count]
        columns["chosen_logps"] = (
            columns["chosen_logps"] + shift + prompts + generator.normal(0, 3, count)
        )


def _write_probe(folder: RunFolder, pairs: dict[str, dict[str, Any]], model: int) -> None:
    tables = []
    for probe, columns in pairs.items():
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        kept = columns["sampled"] | (probe == f"D_{model + 1}")
        tables.append(table.filter(pa.array(kept)))
    folder.probes.mkdir(exist_ok=True)
    pq.write_table(pa.concat_tables(tables), folder.probes / f"M_{model}.parquet")


def _write_completions(folder: RunFolder, model: int, completion: str) -> None:
    prompts = ["What is the capital of France?", "Tell me a story about a duck.", "عاصمة فرنسا؟"]
    write_json(
        folder.probes / f"M_{model}.completions.json",
        [
            {
                "prompt_key": f"p{index}",
                "source": SOURCES[index % 2],
                "prompt": prompt,
                "completion": " ".join([completion] * (model + 1 + 2 * index)),
                "finished": index != 1,
            }
            for index, prompt in enumerate(prompts)
        ],
    )


def _write_step(
    folder: RunFolder, step: int, digests: list[str], generator: np.random.Generator
) -> None:
    total = {0: 30, 1: 9, 2: 44}[step]
    lines = []
    walk = np.cumsum(generator.normal(0.02, 0.02, total))
    for number, height in enumerate(walk.tolist(), start=1):
        line = {"step": number, "epoch": number / total, "loss": 3.2 - height}
        if step:
            line |= {
                "loss": 0.693 - 0.3 * height,
                "rewards/margins": height,
                "rewards/accuracies": float(np.clip(0.5 + 0.4 * height, 0, 1)),
            }
        lines.append(line)
    if step:
        lines.append(
            {
                "step": total,
                "eval_loss": 0.66,
                "eval_rewards/margins": 0.12,
                "eval_rewards/accuracies": 0.61,
            }
        )
    folder.step(step).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder.step(step) / "metrics.jsonl").write_text(text, encoding="utf-8")
    folder.write_record(f"step-{step}", _record(step, digests), files=[])


def _record(step: int, digests: list[str]) -> dict[str, Any]:
    reference = digests[step - 1] if step else digest_of("base")
    record: dict[str, Any] = {
        "step": step,
        "identity": {"step": step},
        "inputs": {"reference": reference, "target": reference},
        "outputs": {"model": digests[step]},
        "timings_s": {"load": 0.4, "score": 6.1, "train": 60.0 * step + 8, "publish": 0.2},
        "environment": {"device": "cpu"},
        "training": RunConfig.model_validate({"training": {"learning_rate": 1e-4}})
        .training_of(max(step, 1))
        .model_dump(),
    }
    if step:
        record["inputs"]["partition"] = digest_of(f"D_{step}")
        record["gate"] = {
            "loss": 0.693147,
            "max_abs_difference_nats": 3.1e-5,
            "tolerance_nats": 1.3e-3,
            "pairs": 64,
        }
        record["scored_rows"] = {"computed": PAIRS[f"D_{step}"] - 48, "cached": 48}
    return record
