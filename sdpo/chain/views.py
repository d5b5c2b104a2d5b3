"""What is made from records and probes alone, and again where one is new: gamma, report."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sdpo.chain.context import Context, run_once
from sdpo.chain.start_stage import reads_previous
from sdpo.identity.canonical import digest_of
from sdpo.report import write_report as render_report
from sdpo.stats.gamma import gamma_view
from sdpo.system.files import file_digest, read_json, write_json


def write_gamma(context: Context, step: int) -> None:
    """``gamma.json``: a view over the probes of M_0..M_step, made anew where one of them is new."""
    files = {f"M_{k}": context.run.probes / f"M_{k}.parquet" for k in range(step + 1)}
    options: dict[str, Any] = {
        "step": step,
        "beta": context.config.training_of(step).beta if reads_previous(context, step) else None,
        "resamples": context.config.probe.bootstrap_resamples,
        "seed": context.config.probe.seed,
    }
    sizes = {entry["step"]: entry["pairs"] for entry in read_json(context.run.plan_file)["steps"]}
    identity = options | {"probes": {name: file_digest(path) for name, path in files.items()}}

    def make() -> tuple[dict[str, Any], list[Path]]:
        target = context.run.step(step) / "gamma.json"
        write_json(
            target,
            gamma_view(
                {name: pq.read_table(path) for name, path in files.items()}, sizes=sizes, **options
            ),
        )
        return {}, [target]

    run_once(context, f"gamma-{step}", identity, make)


def write_report(context: Context) -> Path:
    """``report.html``, from what is in the run folder; made anew where anything there is new."""
    nodes = sorted(context.run.path.glob("nodes/*.json")) + sorted(
        context.run.path.glob("step-*/record.json")
    )
    records = {str(path.relative_to(context.run.path)): file_digest(path) for path in nodes}
    records.pop("nodes/report.json", None)
    identity = {"records": digest_of(records)[:16]}

    def make() -> tuple[dict[str, Any], list[Path]]:
        return {}, [render_report(context.run.path)]

    run_once(context, "report", identity, make)
    return context.run.report
