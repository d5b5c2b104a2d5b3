"""Read what is in a run folder, as far as the run got, and compute nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdpo.objectives import objective_facts
from sdpo.stats.assigned import assigned
from sdpo.stats.kl import KlRow
from sdpo.store.plan_file import PlanFile, PlannedStep, read_plan
from sdpo.store.recorded import check_recorded, read_rows
from sdpo.store.records import DataOutputs, SourceFacts, StepRecord, merged_node
from sdpo.store.run_file import RunFile
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import pairs_of_steps, probes_of, read_probe
from sdpo.system.files import read_json

EXAMPLES = 3
"""So many rejected rows are shown per source and reason."""

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """These rows of one source were rejected for one reason; the first few are kept."""

    source: str
    reason: str
    count: int
    examples: tuple[JsonObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A run's data is everything the report is made from.

    ``probes`` and ``completions`` are by model name, M_0 first, up to the first model that was not
    measured; ``metrics`` and ``records`` by step number, those that are there; so ``kl``, the
    entries of ``kl.json``, and ``references``, ``reference.parquet`` of steps whose reference is
    not the model before. ``sources``: what was read, kept and rejected of each.
    """

    folder: RunFolder
    run: RunFile
    plan: PlanFile | None
    probes: dict[str, pa.Table]
    completions: dict[str, list[JsonObject]]
    metrics: dict[int, list[JsonObject]]
    records: dict[int, StepRecord]
    kl: dict[int, list[KlRow]]
    references: dict[int, pa.Table]
    sources: tuple[SourceFacts, ...]
    rejected: tuple[Rejected, ...]
    assigned: dict[int, NDArray[np.str_]]

    @property
    def config(self) -> JsonObject:
        """Return the resolved configuration."""
        return self.run.config

    @property
    def steps(self) -> list[PlannedStep]:
        """Return the plan's steps; none before the run is partitioned."""
        return self.plan.steps if self.plan else []

    @property
    def measured(self) -> int:
        """Return the number of the last model that was measured; -1 if none was."""
        return len(self.probes) - 1

    @property
    def done(self) -> int:
        """Return how many steps are complete, counted from step 1."""
        numbers = (step.step for step in self.steps)
        return next((n - 1 for n in numbers if n not in self.records), len(self.steps))

    def training(self, step: int) -> JsonObject:
        """Return the training settings of a step, its overrides applied."""
        if step in self.records:
            return dict(self.records[step].training)
        overrides = self.config.get("steps", [])[step - 1 : step]
        own = {k: v for override in overrides for k, v in override.items() if v is not None}
        return {**self.config["training"], **own}

    def beta(self, step: int) -> float | None:
        """Return the step's beta; None where its rewards are not beta times log-ratios."""
        training = self.training(step)
        return training["beta"] if objective_facts(training["objective"]).needs_reference else None

    def choice(self, step: int, role: str) -> str:
        """Return the recipe's choice of a step's ``reference`` or ``target``; ``none`` without
        one."""
        training = self.training(step)
        if role == "reference" and not objective_facts(training["objective"]).needs_reference:
            return "none"
        return str(training.get(role, "previous"))

    def model_name(self, step: int, role: str) -> str:
        """Return the name of the step's ``reference`` or ``target``; M_0 is S."""
        said = self.records[step].models.get(role) if step in self.records else None
        if said:
            name = said.name
        else:
            choice = self.choice(step, role)
            names = {
                "previous": f"M_{step - 1}",
                "base": "M_0",
                "guided": f"guide-{step}",
                "merged": merged_node(step) if step > 1 else "M_0",
            }
            name = names.get(choice) or (choice if choice == "none" else "as named")
        return "S" if name == "M_0" else name

    @property
    def sizes(self) -> dict[int, int]:
        """Return the number of pairs of every partition."""
        return pairs_of_steps(self.folder) if self.plan else {}


def load_run(path: Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        UserError: there is no run.
        IntegrityError: a record is not what was written.
    """
    folder = RunFolder(path)
    run = folder.read_run()
    check_recorded(folder, "plan", folder.plan_file)
    plan = read_plan(folder) if folder.plan_file.is_file() else None
    numbers = [0, *(step.step for step in plan.steps)] if plan else [0]
    records = {n: record for n in numbers if (record := folder.find_step(f"step-{n}"))}
    prepared = folder.find("data")
    check_recorded(folder, "reserve", folder.rejected)
    for number in records:
        for name in ("metrics.jsonl", "reference.parquet"):
            check_recorded(folder, f"step-{number}", folder.step(number) / name)
        check_recorded(folder, f"kl-M_{number}", folder.step(number) / "kl.json")
    measured = list(_measured(folder))
    others = [n for n, record in records.items() if _has_other_reference(record)]
    return RunData(
        folder=folder,
        run=run,
        plan=plan,
        probes={f"M_{n}": _probe(folder, n, last=measured[-1]) for n in measured},
        completions={
            f"M_{n}": read_json(path)
            for n in measured
            if _is_recorded(folder, n, path := folder.probes / f"M_{n}.completions.json")
        },
        metrics={n: list(_json_lines(folder.step(n) / "metrics.jsonl")) for n in numbers},
        records=records,
        kl={n: rows for n in numbers if (rows := read_rows(folder.step(n) / "kl.json", KlRow))},
        references={n: pq.read_table(folder.step(n) / "reference.parquet") for n in others},
        sources=tuple(prepared.read_outputs(DataOutputs).sources) if prepared else (),
        rejected=_rejected(folder.rejected),
        assigned=_assigned(folder, plan),
    )


def _assigned(folder: RunFolder, plan: PlanFile | None) -> dict[int, NDArray[np.str_]]:
    """Return reserved pairs by step; the table of a plan that goes by no feature is not read."""
    if not plan or not plan.features or not check_recorded(folder, "plan", folder.plan):
        return {}
    return assigned(folder.plan)


def _probe(folder: RunFolder, model: int, *, last: int) -> pa.Table:
    for name in probes_of(folder, model, last=last):
        check_recorded(folder, f"probe-{name}", folder.probes / f"{name}.parquet")
    return read_probe(folder, model, last=last)


def _has_other_reference(record: StepRecord) -> bool:
    """Return whether the step's reference is not the model before it."""
    said = record.models.get("reference")
    return said is not None and said.choice not in ("previous", "none")


def _measured(folder: RunFolder) -> Iterator[int]:
    """Yield M_0, M_1, ... up to the first that was not measured or has no record of it."""
    number = 0
    while _is_recorded(folder, number, folder.probes / f"M_{number}.parquet"):
        yield number
        number += 1


def _is_recorded(folder: RunFolder, number: int, path: Path) -> bool:
    return check_recorded(folder, f"probe-M_{number}", path)


def _json_lines(path: Path) -> Iterator[JsonObject]:
    """Yield the objects of a JSONL file; a last line that is still being written is left out."""
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))


def _rejected(path: Path) -> tuple[Rejected, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[JsonObject]] = {}
    for row in _json_lines(path):
        key = (row["source"], row["reason"])
        counts[key] += 1
        kept = examples.setdefault(key, [])
        if len(kept) < EXAMPLES:
            kept.append(row)
    return tuple(
        Rejected(source=source, reason=reason, count=n, examples=tuple(examples[source, reason]))
        for (source, reason), n in counts.most_common()
    )
