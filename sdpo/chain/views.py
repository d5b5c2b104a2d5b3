"""Make gamma and report, which rest on records and probes alone, again whenever one is new."""

from typing import TypedDict

import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import EVERYTHING, Find, Identity, Made, Node
from sdpo.chain.start_stage import reads_previous
from sdpo.identity.canonical import digest_of
from sdpo.report import write_report as render_report
from sdpo.stats.gamma import gamma_view
from sdpo.system.files import file_digest, read_json, write_json


class _Options(TypedDict):
    """A view is made from its probes with these options."""

    step: int
    beta: float | None
    resamples: int
    seed: int


def write_gamma(context: Context, step: int) -> Node:
    """Return the node of ``gamma.json``, a view of the probes of M_0..M_step."""
    files = {f"M_{k}": context.run.probes / f"M_{k}.parquet" for k in range(step + 1)}
    options: _Options = {
        "step": step,
        "beta": context.config.training_of(step).beta if reads_previous(context, step) else None,
        "resamples": context.config.probe.bootstrap_resamples,
        "seed": context.config.probe.seed,
    }

    def identity() -> Identity:
        probes = {name: file_digest(path) for name, path in files.items()}
        return {
            "step": step,
            "beta": options["beta"],
            "resamples": options["resamples"],
            "seed": options["seed"],
            "probes": probes,
        }

    def make(_find: Find) -> Made:
        entries = read_json(context.run.plan_file)["steps"]
        sizes = {entry["step"]: entry["pairs"] for entry in entries}
        target = context.run.step(step) / "gamma.json"
        write_json(
            target,
            gamma_view(
                {name: pq.read_table(path) for name, path in files.items()}, sizes=sizes, **options
            ),
        )
        return Made({}, [target])

    return Node(
        name=f"gamma-{step}",
        inputs=("plan", *(f"probe-{name}" for name in files)),
        identity=identity,
        make=make,
        is_view=True,
    )


def write_report(context: Context) -> Node:
    """Return the node of ``report.html``, made anew where a record in the run folder is new."""
    run = context.run.path

    def identity() -> Identity:
        nodes = sorted(run.glob("nodes/*.json")) + sorted(run.glob("step-*/record.json"))
        records = {str(path.relative_to(run)): file_digest(path) for path in nodes}
        records.pop("nodes/report.json", None)
        return {"records": digest_of(records)[:16]}

    def make(_find: Find) -> Made:
        return Made({}, [render_report(run)])

    return Node(
        name="report",
        title="report",
        inputs=(EVERYTHING,),
        identity=identity,
        make=make,
        is_view=True,
    )
