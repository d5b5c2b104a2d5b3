"""Find the pairs of new sources that an origin does not have."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.config import DataConfig
from sdpo.data.collect import SourceCounts, rejection_line
from sdpo.data.keys import pair_id
from sdpo.data.pairs_file import iter_row_groups, messages_from_row
from sdpo.data.prepare import PreparedPairs, RejectedAsTokens, prepare_pairs
from sdpo.data.prompts import Rejection
from sdpo.data.schema import Format
from sdpo.errors import IntegrityError
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import data_node, step_data


class NewRow(TypedDict):
    """A row of ``pairs.parquet`` is read here with these columns."""

    pair_id: str
    source: str
    row: int
    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]
    template_inputs: str | None


@dataclass(frozen=True, slots=True)
class Origin:
    """An origin is known by the name of the run and the ids of its pairs."""

    name: str
    pairs: frozenset[str]

    @classmethod
    def of(cls, name: str, files: Sequence[Path]) -> "Origin":
        """Return the origin whose pairs are in these ``files``."""
        return cls(name, frozenset(pair for path in files for pair in read_column(path, "pair_id")))

    def known(self, row: NewRow) -> Rejection | None:
        """Return why a pair is not a new one; None where it is new."""
        prompt, chosen, rejected = (
            messages_from_row(row[side]) for side in ("prompt", "chosen", "rejected")
        )
        swapped = pair_id(
            prompt,
            chosen=rejected,
            rejected=chosen,
            template_inputs=row["template_inputs"] or "",
        )
        if row["pair_id"] in self.pairs:
            return Rejection("duplicate", f"run {self.name} has the same pair")
        if swapped in self.pairs:
            detail = f"run {self.name} has the same pair with its sides swapped"
            return Rejection("contradictory", detail)
        return None


class NewPairs:
    """The pairs of new sources are filtered by what the origin has, and the others are counted.

    ``dropped`` counts reasons by source, ``lines`` are those of the list of rejected rows, ``kept``
    is the number of pairs that stay. All three grow while :meth:`tables` is read.
    """

    def __init__(self, prepared: PreparedPairs, origin: Origin) -> None:
        self.prepared = prepared
        self._origin = origin
        self.dropped: dict[str, Counter[str]] = {}
        self.lines: list[str] = []
        self.kept = 0

    def tables(self) -> Iterator[pa.Table]:
        """Yield the pairs that stay, a row group at a time; counts and lines grow with it."""
        for group in iter_row_groups(self.prepared.path):
            keep = [self._is_new(row) for row in _rows(group)]
            table = group.filter(pa.array(keep, pa.bool_()))
            self.kept += table.num_rows
            yield table

    def _is_new(self, row: NewRow) -> bool:
        found = self._origin.known(row)
        if found is None:
            return True
        self.dropped.setdefault(row["source"], Counter())[found.reason] += 1
        self.lines.append(rejection_line(row["source"], row["row"], found))
        return False

    def counts(self) -> list[SourceCounts]:
        """Return what became of each new source's rows."""
        found = []
        for source in self.prepared.sources:
            dropped = self.dropped.get(source.name, Counter())
            rejected = dict(sorted((Counter(source.rejected) + dropped).items()))
            kept = source.kept - dropped.total()
            found.append(replace(source, kept=kept, rejected=rejected))
        return found


def _check_whole(origin: RunFolder) -> None:
    """Refuse an origin whose pairs or plan cannot be read, or are not those that were written."""
    own = [(data_node(data.step), data.pairs) for data in step_data(origin)]
    for node, path in (("data", origin.pairs), ("plan", origin.plan), *own):
        record = origin.find(node)
        damage = ["it has no record"] if record is None else origin.damage(record)
        faults = [
            fault for fault in damage if record is None or fault.startswith(_below(origin, path))
        ]
        if faults:
            raise IntegrityError(
                f"{path} cannot be believed ({', '.join(faults)}), so what is new to run "
                f"{origin.name} is not known: `sdpo resume {origin.name}` makes it again"
            )


def _below(origin: RunFolder, path: Path) -> str:
    return str(path.relative_to(origin.path))


def _rows(table: pa.Table) -> list[NewRow]:
    columns = ["pair_id", "source", "row", "prompt", "chosen", "rejected", "template_inputs"]
    rows: list[NewRow] = table.select(columns).to_pylist()
    return rows


def read_column(path: Path, name: str) -> list[str]:
    """Return the texts of one column of a Parquet file, row by row."""
    values: list[str] = pq.read_table(path, columns=[name])[name].to_pylist()
    return values


def read_new(
    data: DataConfig,
    files: Sequence[Path],
    *,
    default_format: Format,
    strata: list[str],
    scratch: Path,
    origin: str,
    rejected_as_tokens: RejectedAsTokens | None = None,
) -> NewPairs:
    """Return the pairs of ``data`` that the run ``origin``, whose pairs are in ``files``, has not.

    ``data.limit`` draws from those that are new, and with ``rejected_as_tokens`` from those whose
    tokens can be used, as it does in a run without an origin.

    Raises:
        DataError: a source cannot be read, or nothing of it can be used.
    """
    known = Origin.of(origin, files)

    def read(settings: DataConfig, where: Path, rejected: RejectedAsTokens | None) -> NewPairs:
        prepared = prepare_pairs(
            settings,
            default_format=default_format,
            strata=strata,
            out=where,
            rejected_as_tokens=rejected,
        )
        return NewPairs(prepared, known)

    every = read(data.model_copy(update={"limit": 0}), scratch / "all", None)
    if not data.limit or not any(table.num_rows for table in every.tables()):
        return NewPairs(every.prepared, known)

    def rejected(pairs: Path, digest: str) -> dict[int, Rejection]:
        rows = [row for group in iter_row_groups(pairs) for row in _rows(group)]
        found = {i: why for i, row in enumerate(rows) if (why := known.known(row))}
        return {**(rejected_as_tokens(pairs, digest) if rejected_as_tokens else {}), **found}

    return read(data, scratch / "drawn", rejected)


def find_new_pairs(
    data: DataConfig, origin: RunFolder, *, default_format: Format, strata: list[str]
) -> frozenset[str]:
    """Return the ids of the pairs of ``data`` that are new to the origin and could be trained on.

    This is told from their text; their tokens may still be unusable. Pairs of prompts that the
    origin has reserved stay reserved, so they are left out.

    Raises:
        IntegrityError: what the origin knows its own pairs by is not what was written.
    """
    _check_whole(origin)
    plan = pq.read_table(origin.plan, columns=["prompt_key", "step"])
    reserved = set(plan.filter(pa.array(plan["step"].to_numpy() == 0))["prompt_key"].to_pylist())
    with tempfile.TemporaryDirectory(prefix="sdpo-") as scratch:
        new = read_new(
            data,
            [origin.pairs, *(own.pairs for own in step_data(origin))],
            default_format=default_format,
            strata=strata,
            scratch=Path(scratch),
            origin=origin.name,
        )
        rows = [
            row
            for table in new.tables()
            for row in table.select(["pair_id", "prompt_key"]).to_pylist()
        ]
    return frozenset(row["pair_id"] for row in rows if row["prompt_key"] not in reserved)
