"""Define what is kept of win rates: what models answered, and what a judge said of it.

In the cache ``completions/<key>/completions.parquet`` are the answers of one model,
``win_rates/<key>/verdicts.parquet`` the verdicts on those of two models; ``key.json`` beside each
is written last (:mod:`sdpo.store.kl_cache`). Until then answers are in ``answers.jsonl``.
``verdicts/<key>/verdicts.jsonl`` is every word of an endpoint: it was paid for, and nothing deletes
it. A run has its own copies, and a record of each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from sdpo.model_names import ModelName
from sdpo.stats.win_rate import WinRate, win_rate
from sdpo.store.recorded import recorded_tables
from sdpo.store.run_folder import RunFolder

COMPLETIONS = "completions.parquet"
ANSWERS_SO_FAR = "answers.jsonl"
"""The answers of a model that has not answered every prompt, or those of its first process."""
VERDICTS = "verdicts.parquet"
RESAMPLES = 2000
PREFIX = "win-"
"""The names of nodes that hold verdicts begin so."""


class WinOutputs(BaseModel):
    """A record of verdicts tells whose answers were compared, by whom, and how they were made.

    ``asked``: which verdicts may be shown together. ``prompt_set``: the file that the prompts are
    of; empty: reserved ones. ``seed``: that of the bootstrap.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cached: str
    model: str
    other: str
    judge: str
    pairwise: bool
    asked: str
    prompt_set: str = ""
    samples: int
    max_new_tokens: int
    temperature: float
    seed: int


def answers_so_far(folder: Path) -> list[Path]:
    """Return the files of answers in a folder that is not done, one of each process that drew."""
    return sorted(folder.glob("answers*.jsonl"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """M_``model`` was compared with M_``other``; ``table`` has the verdicts."""

    model: int
    other: int
    created: str
    outputs: WinOutputs
    table: Path


def read_verdicts(run: RunFolder, *, checked: bool = True) -> list[Verdicts]:
    """Return the verdicts on a run's models, by judge and settings, then by model.

    Raises:
        IntegrityError: they are not those that were written; only where ``checked``.
    """
    found = [
        Verdicts(
            model=ModelName.of(outputs.model).step,
            other=ModelName.of(outputs.other).step,
            created=record.created,
            outputs=outputs,
            table=table,
        )
        for record, outputs, table in recorded_tables(run, PREFIX, WinOutputs, checked=checked)
    ]
    return sorted(found, key=lambda each: (each.outputs.asked, each.model, -each.other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Won:
    """The win rate that ``verdicts`` amount to, and the mean characters of both models' answers."""

    verdicts: Verdicts
    found: WinRate
    chars: tuple[float, float]


def won_by(verdicts: Verdicts) -> Won | None:
    """Return the win rate of a model over another; None where there is no verdict."""
    table = pq.read_table(verdicts.table)
    forward, backward, first, second = (
        table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("forward", "backward", "first_chars", "second_chars")
    )
    found = win_rate(
        forward,
        backward,
        np.stack([first, second], axis=1).astype(np.int64),
        np.array(table["prompt_key"].to_pylist(), dtype=np.str_),
        resamples=RESAMPLES,
        seed=verdicts.outputs.seed,
    )
    chars = (float(first.mean()), float(second.mean())) if found else (0.0, 0.0)
    return Won(verdicts=verdicts, found=found, chars=chars) if found else None
