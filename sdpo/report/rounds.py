"""Show what the models of a run wrote for their own steps: scores, lengths, variety, pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from sdpo.report.load import RunData
from sdpo.report.tables import Table, count, model_name, number, percent
from sdpo.store.records import Part
from sdpo.store.step_data import data_node
from sdpo.store.stored_run import read_stored


class RoundOutputs(Part):
    """The record of a generated step's data says this of its samples and pairs.

    ``score`` is the mean of the judge's scores, ``margin`` that of the pairs' rewards; ``tokens``
    the mean length of a sample; ``finished`` and ``distinct_2`` are shares.
    """

    prompts: int
    samples: int
    pairs: int
    score: float
    margin: float
    tokens: float
    finished: float
    distinct_2: float
    pairs_not_made: dict[str, int] = Field(default_factory=dict)
    samples_left_out: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """Step ``step`` had this made by the model before it."""

    step: int
    source: str
    outputs: RoundOutputs


def rounds_of(data: RunData) -> list[Round]:
    """Return the generated steps whose data is there, in order."""
    found: list[Round] = []
    for planned in data.steps:
        record = data.folder.find(data_node(planned.step)) if planned.generated else None
        if record and planned.generated:
            outputs = record.read_outputs(RoundOutputs)
            found.append(Round(planned.step, planned.generated.source, outputs))
    return found


def _not_seen_from_outside(data: RunData) -> Iterator[str]:
    """Yield why models of a source's rounds have not answered held-out prompts for its judge."""
    for source in read_stored(data.folder).config.data.generated:
        judge = source.generate.judge
        if judge.implicit:
            yield (
                f"Models of {source.name} are not compared on held-out prompts: the implicit "
                "reward is of another model every round, so that scores have no common measure."
            )
        elif judge.kind == "endpoint":
            yield (
                f"Models of {source.name} are not compared on held-out prompts: an endpoint "
                "compares answers and scores none; evaluation.win_rate.judge has it compare them."
            )


def rounds_table(data: RunData) -> Table:
    """Show every round: who wrote, and what the judge made of it."""
    rows = [
        (
            f"D_{each.step}",
            each.source,
            model_name(each.step - 1),
            count(each.outputs.prompts),
            count(each.outputs.samples),
            number(each.outputs.score, digits=3),
            number(each.outputs.tokens, digits=1),
            percent(each.outputs.finished),
            percent(each.outputs.distinct_2),
            percent(each.outputs.samples_left_out.get("repeated", 0) / each.outputs.samples),
            count(each.outputs.pairs),
            number(each.outputs.margin, digits=3),
            count(sum(each.outputs.pairs_not_made.values())),
        )
        for each in rounds_of(data)
    ]
    note = "Scores are the judge's. Every sample is in samples.parquet of its step."
    note += "".join(f" {why}" for why in _not_seen_from_outside(data)) if rows else ""
    return Table(
        title="Rounds: what the models wrote for the next step",
        columns=(
            *("", "Source", "Written by", "Prompts", "Samples", "Mean score", "Mean tokens"),
            *("Finished", "Distinct 2-grams", "Repeated", "Pairs", "Mean margin", "Pairs not made"),
        ),
        rows=tuple(rows),
        text_columns=3,
        note=note if rows else "",
    )
