"""Write ``report.html``: one file, no script, nothing fetched, everything escaped."""

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sdpo.config import describe
from sdpo.model_names import ModelName
from sdpo.report import figures, health, tables, tables_of_steps
from sdpo.report.evaluations import evaluation_tables, load_evaluations
from sdpo.report.figures import Curve
from sdpo.report.findings import caveats, verdict
from sdpo.report.gamma_figures import Figure, gamma_figures
from sdpo.report.held_out import held_tables
from sdpo.report.load import RunData, load_run
from sdpo.report.numbers import Numbers, measure_run
from sdpo.report.rounds import rounds_table
from sdpo.report.tables import model_name, number, percent
from sdpo.report.template import rendered
from sdpo.report.win_rates import load_win_rates, win_rate_tables
from sdpo.system.files import write_text

CURVES = (
    (
        "loss",
        "Loss",
        None,
        "",
        "",
    ),
    (
        "rewards/margins",
        "Reward margin",
        0.0,
        "",
        "β times the change of γ from the step's reference; without a reference, of the log-prob "
        "per token.",
    ),
    (
        "rewards/accuracies",
        "Reward accuracy",
        0.5,
        "",
        "Share of pairs whose γ rose above the reference's.",
    ),
)
"""These metrics are drawn: name, title, marked value and its label, caption."""


TERMS = (
    "S is the model that the chain starts from, M_t the model after step t, D_t the pairs that "
    "step t trains on. γ of a pair: the log-probability that a model gives the chosen answer less "
    "that of the rejected one, in nats (natural logarithm); γ_ref: γ under the model that a step "
    "is compared with, its reference. Reserve: pairs that nothing was trained on. Probe: pairs on "
    "which every model is measured. [a, b]: 95% interval."
)
"""A reader is told these words before they are used."""


def write_report(run: Path, *, out: Path | None = None) -> Path:
    """Write the report of the run in folder ``run``, as far as the run got; returns its path.

    ``out``: the file to write, by default ``report.html`` in the run's folder.

    Raises:
        UserError: there is no run at ``run``.
        IntegrityError: a record or a probe is damaged.
    """
    data = load_run(run)
    numbers = measure_run(data)
    path = out or data.folder.report
    summary = (
        tables_of_steps.steps_table(data, numbers),
        tables_of_steps.training_table(data),
        tables.reserve_table(data, numbers),
        tables_of_steps.kl_table(data),
    )
    healthy = health.measure_health(data)
    of_health = (
        health.retention_table(healthy),
        health.displacement_table(healthy),
        health.lengths_table(healthy),
    )
    counts = (
        tables.partition_table(data),
        rounds_table(data),
        *held_tables(data.folder),
        tables.read_table(data),
        tables.rejected_table(data),
    )
    text = rendered(
        "report.html.j2",
        data=data,
        facts=_facts(data),
        terms=TERMS,
        verdict=verdict(data, numbers),
        caveats=caveats(data, numbers),
        chain=_chain(data, numbers),
        chain_is_plain=_is_plain(data),
        figures=_figures(data, numbers),
        gamma_tables=[table for table in summary if table.rows],
        all_numbers=tables.sources_table(numbers),
        gaps=tables.gaps_table(numbers),
        suites=evaluation_tables(load_evaluations(data.folder)),
        win_rates=win_rate_tables(load_win_rates(data.folder)),
        health=health.health_sentences(healthy),
        health_tables=[table for table in of_health if table.rows],
        completions=_completions(data),
        data_tables=[table for table in counts if table.rows],
        lineage=tables.lineage_table(data),
        digests=tables.digests_table(data),
        timings=tables.timings_table(data),
        configuration=yaml.safe_dump(data.config, sort_keys=False, allow_unicode=True),
        versions=data.run.versions,
    )
    write_text(path, text)
    return path


def _facts(data: RunData) -> list[tuple[str, str]]:
    """Return the line of facts under the title."""
    config, plan = data.config, data.plan
    facts = [
        ("model", str(config["model"]["name_or_path"])),
        ("created", _date(data.run.created)),
    ]
    if plan:
        pairs = sum(step.pairs for step in plan.steps)
        facts.append(("partitions", f"{plan.strategy}, {tables.count(pairs)} pairs"))
    training = data.training(1)
    method = f"{describe(training)}, learning rate {training['learning_rate']:g}"
    facts.append(("training", method))
    return facts


def _date(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()


def _chain(data: RunData, numbers: Numbers) -> list[dict[str, Any]]:
    """Show the models in order, each with the step that made it and what is known of it."""
    last, sizes = len(data.steps), data.sizes
    nodes = []
    for model in range(last + 1):
        entry = numbers.reserve.get(model)
        reference = numbers.references.get(model)
        nodes.append(
            {
                "model": model,
                "name": model_name(model),
                "there": model <= max(data.done, data.measured),
                "accuracy": percent(entry.ranking_accuracy) if entry else "",
                "made_by": sizes.get(model),
                "gamma_ref": f"{number(reference.mean)} nats" if reference else "",
                "models": _other_models(data, model),
            }
        )
    return nodes


def _other_models(data: RunData, step: int) -> str:
    """Name reference and target of a model's step, where one is not the model before."""
    if not step:
        return ""
    reference, target = (data.model_name(step, role) for role in ("reference", "target"))
    if {reference, target} == {model_name(step - 1)}:
        return ""
    return f"from {target}, against {reference}" if reference != "none" else f"from {target}"


def _is_plain(data: RunData) -> bool:
    """Return whether every step's reference and target is the model before."""
    return not any(_other_models(data, step.step) for step in data.steps)


def _figures(data: RunData, numbers: Numbers) -> dict[str, list[Figure]]:
    return {
        "gamma": gamma_figures(numbers),
        "histograms": _histograms(data, numbers),
        "training": _training_figures(data),
    }


def _histograms(data: RunData, numbers: Numbers) -> list[Figure]:
    drawn = []
    for step in (plan.step for plan in data.steps):
        rows = [
            (model, model_name(model), rows.gamma)
            for (model, probe), rows in numbers.samples.items()
            if probe == f"D_{step}" and len(rows)
        ]
        if rows:
            drawn.append(
                Figure(
                    f"γ on D_{step}",
                    figures.histograms(rows, label=f"γ on D_{step}, nats"),
                    f"Reference of step {step}: {data.model_name(step, 'reference')}. Vertical "
                    "lines: means. The outermost bars hold what lies beyond.",
                )
            )
    return drawn


def _training_figures(data: RunData) -> list[Figure]:
    drawn = []
    steps = [step.step for step in data.steps]
    for name, title, mark, mark_label, caption in _marked(data):
        series = [c for step in steps if (c := _curve(data, step, name))]
        if series:
            drawing = figures.curves(series, label=title, mark=mark, mark_label=mark_label)
            evaluated = any(curve.eval_steps for curve in series)
            marks = "Line: training batches" + ("; circles: the reserve." if evaluated else ".")
            drawn.append(Figure(title, drawing, f"{caption} {marks}".strip()))
    supervised = _curve(data, 0, "loss")
    if supervised:
        drawing = figures.curves([supervised], label="Supervised loss")
        drawn.append(Figure("Supervised stage", drawing, "Loss per token in nats, step 0."))
    return drawn


def _marked(data: RunData) -> Iterator[tuple[str, str, float | None, str, str]]:
    """Yield ``CURVES``, the loss with its value at the reference if all steps share it."""
    records = [record for step, record in data.records.items() if step]
    gates = [record.gate for record in records]
    agreed = {gate.expected_loss if gate and gate.compared == "policy" else None for gate in gates}
    value = agreed.pop() if len(agreed) == 1 else None
    for name, title, mark, label, caption in CURVES:
        if name == "loss" and value is not None:
            text = "ln 2" if value == math.log(2) else f"{value:.4g}"
            start = f"Each step starts at {text}, where policy and reference agree."
            yield name, title, value, text, start
        else:
            yield name, title, mark, label, caption


def _curve(data: RunData, step: int, name: str) -> Curve | None:
    lines = data.metrics.get(step, [])
    trained = [line for line in lines if name in line]
    measured = [line for line in lines if f"eval_{name}" in line]
    if not trained:
        return None
    return Curve(
        step,
        [line["step"] for line in trained],
        [line[name] for line in trained],
        [line["step"] for line in measured],
        [line[f"eval_{name}"] for line in measured],
    )


def _completions(data: RunData) -> list[dict[str, Any]]:
    """Show what each model wrote for every prompt."""
    prompts: dict[str, dict[str, Any]] = {}
    for model, written in data.completions.items():
        for item in written:
            prompt = prompts.setdefault(
                item["prompt_key"],
                {"prompt": item["prompt"], "source": item["source"], "answers": []},
            )
            number_of_model = ModelName.of(model).step
            prompt["answers"].append(
                {
                    "model": number_of_model,
                    "name": model_name(number_of_model),
                    "text": item["completion"],
                    "finished": item["finished"],
                }
            )
    return list(prompts.values())
