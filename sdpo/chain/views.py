"""Make gamma and report, which rest on records and probes alone, again whenever one is new."""

from typing import TypedDict

from sdpo.chain.context import Context
from sdpo.chain.node import EVERYTHING, Find, Identity, Made, Node
from sdpo.chain.start_stage import reads_previous
from sdpo.identity.canonical import digest_of
from sdpo.report import write_report as render_report
from sdpo.stats.gamma import gamma_view
from sdpo.store.step_data import pairs_of_steps, probes_of, read_probe
from sdpo.system.files import file_digest, write_json


class _Options(TypedDict):
    """A view is made from its probes with these options."""

    step: int
    beta: float | None
    resamples: int
    seed: int


def write_gamma(context: Context, step: int) -> Node:
    """Return the node of ``gamma.json``, a view of the probes of M_0..M_step."""
    run = context.run
    probes = [name for k in range(step + 1) for name in probes_of(run, k, last=step)]
    options: _Options = {
        "step": step,
        "beta": context.config.training_of(step).beta if reads_previous(context, step) else None,
        "resamples": context.config.probe.bootstrap_resamples,
        "seed": context.config.probe.seed,
    }

    def identity() -> Identity:
        return {
            "step": step,
            "beta": options["beta"],
            "resamples": options["resamples"],
            "seed": options["seed"],
            "probes": {name: file_digest(run.probes / f"{name}.parquet") for name in probes},
        }

    def make(_find: Find) -> Made:
        tables = {f"M_{k}": read_probe(run, k, last=step) for k in range(step + 1)}
        sizes = pairs_of_steps(run)
        target = run.step(step) / "gamma.json"
        rows = gamma_view(tables, sizes=sizes, **options)
        write_json(target, [row.as_json() for row in rows])
        return Made({}, [target])

    return Node(
        name=f"gamma-{step}",
        inputs=("plan", *(f"probe-{name}" for name in probes)),
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
        for made_of_all in ("report", "trackers"):
            records.pop(f"nodes/{made_of_all}.json", None)
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
