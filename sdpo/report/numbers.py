"""Compute the gamma statistics of a run anew from its probes.

The functions and the seed are those of ``gamma.json``, and so are the numbers; those on the reserve
of all sources together are the report's alone.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdpo.model_names import ModelName
from sdpo.report.load import RunData
from sdpo.stats.contamination import contamination
from sdpo.stats.gamma import (
    RESERVE,
    Measured,
    gamma_view,
    other_reference_entry,
    reference_entry,
    split_probes,
)
from sdpo.stats.gamma_rows import Contamination, GammaRow, ProbeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The report's numbers are rows as in ``gamma.json``.

    entries: by (model number, probe), on reserves and samples. references: by step, its reference
    on D_t (M_{t-1} where it has none), whole where the step's objective reads one. reserve: by
    model number, on the reserve of all sources. before, after: contamination and fit gap by step.
    samples: by (model number, probe), the measured pairs behind ``entries``. reserve_overlap: by
    step, prompts of D_t that are in the reserve as well.
    """

    entries: dict[tuple[int, str], GammaRow]
    references: dict[int, ProbeRow]
    reserve: dict[int, GammaRow]
    before: dict[int, Contamination]
    after: dict[int, Contamination]
    samples: dict[tuple[int, str], Measured]
    reserve_overlap: dict[int, int]

    @property
    def probes(self) -> list[str]:
        """Return the names of all probes: reserves, then partitions in order."""
        return list(dict.fromkeys(probe for _, probe in self.entries))


def measure_run(data: RunData) -> Numbers:
    """Return all numbers that the probes of a run give; empty where nothing was measured."""
    last = data.measured
    if last < 0:
        return Numbers(
            entries={}, references={}, reserve={}, before={}, after={}, samples={},
            reserve_overlap={},
        )  # fmt: skip
    settings = data.config["probe"]
    resamples, seed = settings["bootstrap_resamples"], settings["seed"]
    beta, sizes = data.beta(max(last, 1)), data.sizes
    view = gamma_view(
        data.probes, step=last, beta=beta, resamples=resamples, seed=seed, sizes=sizes
    )
    pooled = gamma_view(_pooled(data), step=last, beta=beta, resamples=resamples, seed=seed)
    split = [split_probes(table) for table in data.probes.values()]
    steps = [step.step for step in data.steps]
    references: dict[int, ProbeRow] = {
        step: entry
        for step in steps
        if step <= last + 1
        and (
            entry := reference_entry(
                data.probes, step=step, resamples=resamples, seed=seed, sizes=sizes
            )
        )
    }
    references |= {
        step: other_reference_entry(
            table, data.probes["M_0"], step=step, resamples=resamples, seed=seed
        )
        for step, table in data.references.items()
    }
    gaps = {
        (step, model): gap
        for step in steps
        for model in (step - 1, step)
        if model <= last
        and (
            gap := contamination(
                data.probes, step=step, model=model, resamples=resamples, seed=seed
            )
        )
    }
    # The view's first entry may be the reference on D_t whole; its sample comes later and stays.
    return Numbers(
        entries={(_number(e), e.probe): e for e in sorted(view, key=_number)},
        references=references,
        reserve={_number(entry): entry for entry in pooled},
        before={step: gap for (step, model), gap in gaps.items() if model < step},
        after={step: gap for (step, model), gap in gaps.items() if model == step},
        samples={
            (model, probe): rows.take(rows.sampled)
            for model, probes in enumerate(split)
            for probe, rows in probes.items()
        },
        reserve_overlap=_reserve_overlap(split),
    )


def _number(row: GammaRow) -> int:
    return ModelName.of(row.model).step


def _pooled(data: RunData) -> dict[str, pa.Table]:
    """Return the probes with the reserves of all sources as one, and nothing else."""
    tables = {}
    for model, table in data.probes.items():
        rows = table.filter(pc.starts_with(table["probe"], RESERVE))
        probe = pa.array([RESERVE] * len(rows), pa.string())
        tables[model] = rows.set_column(rows.schema.get_field_index("probe"), "probe", probe)
    return tables


def _reserve_overlap(split: list[dict[str, Measured]]) -> dict[int, int]:
    reserved = [rows.prompt_key for name, rows in split[0].items() if name.startswith(RESERVE)]
    keys = np.unique(np.concatenate(reserved)) if reserved else np.array([], dtype=np.str_)
    overlap = {}
    for model, probes in enumerate(split):
        rows = probes.get(f"D_{model + 1}")
        if rows is not None:
            overlap[model + 1] = int(np.isin(np.unique(rows.prompt_key), keys).sum())
    return {step: prompts for step, prompts in overlap.items() if prompts}
