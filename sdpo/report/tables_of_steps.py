"""Make the report's tables of steps: what each was made with and what came of it."""

from sdpo.config import describe
from sdpo.config.sampler import EXACT
from sdpo.report.load import RunData
from sdpo.report.numbers import Numbers
from sdpo.report.tables import UNKNOWN, Table, change, count, estimate, interval, number, percent
from sdpo.stats.kl import Estimate, KlRow


def steps_table(data: RunData, numbers: Numbers) -> Table:
    """Show objective, reference and target, gamma_ref on D_t, and how far the model moved."""
    rows, sizes = [], data.sizes
    for plan in data.steps:
        step = plan.step
        reference = numbers.references.get(step)
        rows.append(
            (
                f"{step}",
                describe(data.training(step)),
                data.model_name(step, "reference"),
                data.model_name(step, "target"),
                count(sizes[step]),
                estimate(reference, "mean"),
                change(reference.vs_S if reference else None),
                kl_cell(data, step, step - 1),
                kl_cell(data, step, 0),
            )
        )
    return Table(
        title="Steps",
        columns=(
            "Step",
            "Objective",
            "Reference",
            "Target",
            "Pairs",
            "Mean γ_ref on D_t",
            "Change from S",
            "KL from previous",
            "KL from S",
        ),
        text_columns=4,
        rows=tuple(rows),
        note="γ and KL in nats with 95% intervals, prompts resampled; the change is over the pairs "
        "of D_t on which S was measured too. Where the objective reads no reference, γ_ref is that "
        "of the model before, on a sample. KL: of the step's model, summed over a completion that "
        "it sampled for a reserved prompt, exact at every position (probe.kl_prompts).",
    )


def training_table(data: RunData) -> Table:
    """Show where the training of each step ended."""
    rows = [
        (
            f"{step}",
            number(_final(data, step, "loss"), digits=4),
            number(_excess(data, step), digits=4, signed=True),
            number(_final(data, step, "rewards/margins"), digits=3, signed=True),
            number(_final(data, step, "eval_rewards/margins"), digits=3, signed=True),
            percent(_final(data, step, "eval_rewards/accuracies")),
        )
        for step in (plan.step for plan in data.steps)
    ]
    return Table(
        title="Training",
        columns=(
            "Step",
            "Loss",
            "First loss, above agreement",
            "Margin",
            "Reserve margin",
            "Reserve reward accuracy",
        ),
        rows=tuple(rows),
        note="Loss and margin: last batch of the step, before the update by it; of a step with two "
        "or three updates, the first at rate 0 by warmup, they show little or nothing of its "
        "training. First loss: before any update, above its value where policy and reference "
        "agree; 0 where they are one model. "
        "Reserve: evaluation at the end of the step, rewards against the step's reference.",
    )


def kl_table(data: RunData) -> Table:
    """Show every estimator of every KL that was measured."""
    rows = [
        (
            f"{row.model} from {_shown(row.against)}",
            "T = 1" if row.sampler == EXACT else "T = 0.9, top-k 40",
            count(row.prompts),
            *(_cell(row.per_sequence.get(name)) for name in _estimators(row)),
            _cell(row.per_token["kl" if row.sampler == EXACT else "k1"], digits=4),
            percent(row.unfinished_share),
        )
        for _, of_step in sorted(data.kl.items())
        for row in of_step
    ]
    return Table(
        title="KL",
        columns=(
            "KL of",
            "Sampled at",
            "Prompts",
            "Exact per position",
            "k1: log-ratio",
            "k3",
            "Per token",
            "Unfinished",
        ),
        text_columns=2,
        rows=tuple(rows),
        note="Nats per completion, 95% intervals over prompts. At T = 1 all three estimate one "
        "number, and the exact one varies least. Truncated sampling is no sampling from the model: "
        "there the mean log-ratio per token is given, as arXiv 2502.01237 plots it. Unfinished: "
        "completions that were cut at probe.kl_tokens."
        if rows
        else "",
    )


def kl_cell(data: RunData, step: int, against: int) -> str:
    """Return KL(M_step||M_against) per completion with its interval."""
    for row in data.kl.get(step, []):
        if (row.against, row.sampler) == (f"M_{against}", EXACT):
            return _cell(row.per_sequence["kl"])
    return UNKNOWN


def _estimators(row: KlRow) -> tuple[str, ...]:
    return ("kl", "k1", "k3") if row.sampler == EXACT else ("", "k1", "")


def _cell(found: Estimate | None, *, digits: int = 3) -> str:
    if found is None:
        return UNKNOWN
    bounds = interval(found.low, found.high, digits=digits)
    return f"{number(found.mean, digits=digits)} {bounds}"


def _shown(model: str) -> str:
    return "S" if model == "M_0" else model


def _excess(data: RunData, step: int) -> float | None:
    gate = data.records[step].gate if step in data.records else None
    return gate.excess_loss if gate else None


def _final(data: RunData, step: int, name: str) -> float | None:
    """Return the last value of a metric in a step."""
    values = [line[name] for line in data.metrics.get(step, []) if name in line]
    return values[-1] if values else None
