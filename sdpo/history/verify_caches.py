"""Verify what a run reads of the caches: is it still what the run was made from?

What is not there is no fault: it is computed again when it is needed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.planned import Planned
from sdpo.errors import SdpoError
from sdpo.history.faults import Findings
from sdpo.identity.canonical import digest_of
from sdpo.identity.scoring import scoring_identities
from sdpo.store.evaluations import evaluation_fault
from sdpo.store.kl_cache import cached_fault
from sdpo.store.logp_cache import LogpCache, part_is_whole, read_note
from sdpo.store.records import NodeRecord, StepRecord, scoring_key_of
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import data_node, files_of
from sdpo.store.stored_run import Stored
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.system.files import file_digest, read_json
from sdpo.tokens.token_file import Digests, TokenFile

_AGAIN = "what is missing is computed again when it is needed"
_REMEDY = f"delete it (`sdpo gc`): {_AGAIN}"
Key = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class _Checked:
    """A run is given with its caches, its records and the findings to add to."""

    run: RunFolder
    stored: Stored
    cache: Path
    records: Mapping[str, NodeRecord | StepRecord]
    findings: Findings

    def cached_tokens(self, record: StepRecord | None = None) -> list[Path]:
        """Return the cached token file of the run's pairs, or the reference's own if it has some.

        ``record`` is that of the step whose reference is meant.
        """
        reserve = self.records.get("reserve")
        said = record.models.get("reference") if record else None
        names = list(said.token_files if said else [])
        if not names and reserve:
            names = [str(reserve.identity["tokens"])]
        return [cached_tokens(self.cache, name) for name in names]

    def planned(self, step: int) -> Planned:
        """Return the plan with what steps up to ``step`` have of their own, by whole records."""
        own = (files_of(self.run, number) for number in range(1, step + 1))
        there = tuple(data for data in own if data_node(data.step) in self.records)
        return Planned(plan=self.run.plan, pairs=self.run.pairs, own=there)

    def token_files(self, record: StepRecord) -> list[Path]:
        """Return the token files of a step's rows, as :meth:`planned` has them; none: not whole."""
        cached = self.cached_tokens(record)
        if not cached or any(map(token_fault, cached)):
            return []
        own = self.planned(record.step).own[len(cached) - 1 :]
        if any(self.run.damage(self.records[data_node(data.step)]) for data in own):
            return []
        return [*cached, *(data.tokens for data in own)]

    def against(self) -> Iterator[tuple[str, StepRecord]]:
        """Yield steps and guides that were trained against a reference."""
        for node, record in self.records.items():
            if isinstance(record, StepRecord) and "reference_logps" in record.inputs:
                yield node, record

    def keys(self, record: StepRecord) -> list[Key]:
        """Return the keys under which the log-probs of a step's reference may be cached."""
        return scoring_identities(
            record.inputs["reference"],
            training=self.stored.config.training_of(record.step),
            launch=self.stored.config.launch,
            model=self.stored.config.model,
        )


def check_cached(
    run: RunFolder,
    stored: Stored,
    cache: Path,
    records: Mapping[str, NodeRecord | StepRecord],
    findings: Findings,
) -> None:
    """Check what a run has in the caches: tokens, log-probs, KL and scores.

    ``reference.parquet`` of its steps, which came from there, is checked too.
    """
    checked = _Checked(run, stored, cache, records, findings)
    _check_tokens(checked)
    for node, record in checked.against():
        _check_reference(checked, node, record)
    _check_logps(checked)
    for measured in records.values():
        name = measured.outputs.get("cached")
        for kind, fault_of in (
            *((kind, cached_fault) for kind in ("kl", "completions", "win_rates")),
            ("evaluations", evaluation_fault),
        ):
            folder = cache / kind / str(name)
            if name and folder.is_dir() and (fault := fault_of(folder)):
                findings.fault(str(folder), fault, _REMEDY)


def _check_tokens(checked: _Checked) -> None:
    own = [path for _, record in checked.against() for path in checked.cached_tokens(record)]
    for path in dict.fromkeys([*checked.cached_tokens(), *own]):
        if not path.is_file():
            checked.findings.note(
                f"the tokens are not in the cache ({path}): they are made again when needed"
            )
        elif token_fault(path):
            what = "was changed, or its .sha256 is gone"
            checked.findings.fault(str(path), what, f"delete the file: {_AGAIN}")


def _check_reference(checked: _Checked, node: str, record: StepRecord) -> None:
    """Check ``reference.parquet`` against its record, its pairs, and the cache it came from."""
    path = checked.run.path / node / "reference.parquet"
    name = str(path.relative_to(checked.run.path))
    if path.is_file() and file_digest(path) != record.inputs["reference_logps"]:
        checked.findings.fault(name, "is not what the step was trained against")
        return
    plan, table = _read(checked.planned(record.step).table), _read(lambda: pq.read_table(path))
    if table is None or plan is None:
        return
    members = plan.filter(pa.array(plan["step"].to_numpy() == record.step))
    if table["pair_id"].to_pylist() != members["pair_id"].to_pylist():
        checked.findings.fault(name, f"has not the pairs of D_{record.step}")
    elif tokens := checked.token_files(record):
        by_file = zip(tokens, checked.planned(record.step).rows_by_file(record.step), strict=True)
        rows = np.concatenate([TokenFile.open(path).digests(rows) for path, rows in by_file])
        caches = [LogpCache(checked.cache, key) for key in checked.keys(record)]
        agreeing = [_agrees(checked, node, cache, rows, table) for cache in caches]
        if False in agreeing and True not in agreeing:
            other = caches[agreeing.index(False)].folder
            what = f"and the cache have other log-probs for the same pairs (in {other})"
            checked.findings.fault(name, what, f"delete {other}: {_AGAIN}")


def _agrees(
    checked: _Checked, node: str, cache: LogpCache, rows: Digests, table: pa.Table
) -> bool | None:
    """Return whether the cache has the values that the step was trained against; None: no cache."""
    if not cache.folder.is_dir():
        return None
    try:
        found = cache.lookup(rows)
    except (SdpoError, OSError, pa.ArrowException) as error:
        checked.findings.note(f"{node}: the cached log-probs cannot be read: {error}")
        return None
    stored = [table[f"reference_{side}_logps"].to_numpy() for side in ("chosen", "rejected")]
    return all(
        bool((mine[found.present] == theirs[found.present]).all())
        for mine, theirs in zip(stored, (found.chosen, found.rejected), strict=True)
    )


def _check_logps(checked: _Checked) -> None:
    """Check cached log-probs under the run's models and references: parts, notes and keys."""
    records = checked.records.items()
    keys = [scoring_key_of(r) for n, r in records if n.startswith("probe-")]
    for _, record in checked.against():
        keys += checked.keys(record)
    for folder in {LogpCache(checked.cache, key).folder for key in keys}:
        if not folder.is_dir():
            continue
        for part in sorted(folder.glob("[!.]*.parquet")):
            if not part_is_whole(part):
                checked.findings.fault(str(part), "was changed", _REMEDY)
        for note in sorted(folder.glob("checked-*.json")):
            if read_note(note) is None:
                checked.findings.fault(str(note), "was changed", _REMEDY)
        if not _is_key(folder):
            remedy = "delete it: it is written again, and says to a person what the rows are of"
            checked.findings.fault(str(folder / "key.json"), "is not the folder's key", remedy)


def _is_key(folder: Path) -> bool:
    try:
        return digest_of(read_json(folder / "key.json"))[:32] == folder.name
    except (SdpoError, OSError):
        return False


def _read(read: Callable[[], pa.Table]) -> pa.Table | None:
    try:
        return read()
    except (OSError, pa.ArrowException):
        return None  # its own digest says that it is damaged
