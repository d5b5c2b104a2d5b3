"""Read what the models of a run scored on suites, from the records of its nodes."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdpo.model_names import ModelName
from sdpo.store.evaluations import GroupFacts, SuiteFacts, Summary, TaskFacts
from sdpo.store.recorded import recorded_tables
from sdpo.store.run_folder import RunFolder

PREFIX = "eval-"
"""The names of nodes that are evaluations begin so."""


class AskedSoFar(BaseModel):
    """How a suite was asked for; what a later version adds is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    names: list[str] = []
    limit: int = 0
    chat_template: bool = False
    batch_size: int = 1
    seed: int = 0


class _Outputs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    common: str
    asked: AskedSoFar
    facts: TaskFacts
    groups: list[GroupFacts]
    suites: list[SuiteFacts]
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """M_``model`` was evaluated on a task; ``table`` has its scores by document.

    Evaluations with one ``common`` key differ in their model alone. ``groups`` and ``suites``: what
    the task was asked for as a part of.
    """

    model: int
    common: str
    created: str
    asked: AskedSoFar
    facts: TaskFacts
    summary: Summary
    groups: tuple[GroupFacts, ...]
    suites: tuple[SuiteFacts, ...]
    table: Path


def read_evaluations(run: RunFolder, *, checked: bool = True) -> list[Evaluation]:
    """Return every evaluation of a run's models, by model and time.

    Raises:
        IntegrityError: scores are not those that were written; only where ``checked``.
    """
    found = [
        Evaluation(
            model=ModelName.of(outputs.model).step,
            common=outputs.common,
            created=record.created,
            asked=outputs.asked,
            facts=outputs.facts,
            summary=outputs.summary,
            groups=tuple(outputs.groups),
            suites=tuple(outputs.suites),
            table=table,
        )
        for record, outputs, table in recorded_tables(run, PREFIX, _Outputs, checked=checked)
    ]
    return sorted(found, key=lambda each: (each.model, each.created, each.facts.name))
