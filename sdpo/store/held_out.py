"""Define what is kept of a round's held-out prompts: what a model answered, and its scores.

Reserved prompts are never answered for a step. Every model of a source's rounds answers the same
few of them, and the judge of the rounds scores the answers: so a round is seen from outside.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdpo.model_names import ModelName
from sdpo.store.recorded import recorded_tables
from sdpo.store.run_folder import RunFolder

PREFIX = "held-"
"""The names of nodes that hold scored answers to held-out prompts begin so."""


class HeldOutputs(BaseModel):
    """A record of scored answers tells whose they are, for the rounds of which source, and by whom
    they were judged. ``asked``: which answers may be compared."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    source: str
    judge: str
    asked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """M_``model`` answered held-out prompts; ``table`` has a row for each: ``prompt_key``,
    ``prompt``, ``text``, ``tokens``, ``finished`` and ``score``."""

    model: int
    outputs: HeldOutputs
    table: Path


def read_held(run: RunFolder, *, checked: bool = True) -> list[Held]:
    """Return a run's scored answers to held-out prompts.

    Raises:
        IntegrityError: they are not those that were written; only where ``checked``.
    """
    return [
        Held(model=ModelName.of(outputs.model).step, outputs=outputs, table=table)
        for _, outputs, table in recorded_tables(run, PREFIX, HeldOutputs, checked=checked)
    ]
