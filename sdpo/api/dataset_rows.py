"""Write rows of `datasets.Dataset` objects as Parquet files of the run, named by their digest.

The same rows give the same bytes whatever object holds them: one that was shuffled and sorted
again, cut into other chunks, loaded or made in memory. So a run knows its data again, and goes
on without the object.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from partitions import PartitionError
from sdpo.config import RunConfig
from sdpo.errors import ConfigError, DataError, UserError
from sdpo.events import Listener
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.system.files import file_digest, publish_file, remove, temporary_folder
from sdpo.system.privacy import withheld, withheld_by_folder, withholding

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1024
"""A row group has so many rows, so that the bytes do not depend on how an object is cut."""


@contextmanager
def rows_written(
    config: RunConfig,
    datasets: Mapping[str, "Dataset"],
    *,
    listen: Listener = lambda event: None,
    wait: bool = False,
) -> Iterator[RunConfig]:
    """Yield ``config`` with a file of the run for each path that ``datasets`` names.

    Where the block ends in a mistake of the user, files that no run was made from are removed.
    With ``wait``, waits for another process that works on the run.

    Raises:
        UserError: the run's folder is something else's or in use, or rows cannot be written.
    """
    if not datasets:
        yield config
        return
    if not config.name:
        raise ConfigError("the run has no name: give the recipe one (name)")
    run = RunFolder(Path(config.store.runs_dir).absolute() / config.name)
    run.check_own()
    was_there, before = run.path.exists(), set(run.sources.glob("*"))
    try:
        paths = _write_all(run, datasets, listen=listen, wait=wait)
        yield _with_paths(config, paths)
    except (UserError, PartitionError):
        _take_back(run, before, was_there=was_there)
        raise


def _write_all(
    run: RunFolder, datasets: Mapping[str, "Dataset"], *, listen: Listener, wait: bool
) -> dict[str, str]:
    """Write what is not there yet; returns the file of each name."""
    files = [Path(file["filename"]) for rows in datasets.values() for file in rows.cache_files]
    run.path.parent.mkdir(parents=True, exist_ok=True)  # it holds other runs too
    bits = withheld(files, place=run.path) | withheld_by_folder(run.path)
    with withholding(bits):
        run.claim()
        with run_lock(run, wait=wait, listen=listen):
            run.claim()  # again: who had the lock may have given the name up
            run.sources.mkdir(exist_ok=True)
            return {name: str(_write(run, name, rows)) for name, rows in datasets.items()}


def _write(run: RunFolder, name: str, rows: "Dataset") -> Path:
    with temporary_folder(run.sources) as scratch:
        written = scratch / "rows.parquet"
        _write_rows(written, name.removeprefix("dataset:"), rows)
        path = run.sources / f"{file_digest(written)}.parquet"
        if not path.is_file() or file_digest(path) != path.stem:
            with publish_file(path) as temporary:
                written.replace(temporary)
    return path


def _write_rows(path: Path, name: str, rows: "Dataset") -> None:
    if not len(rows):
        raise DataError(f"data source {name}: the data set has no rows")
    try:
        tables = rows.with_format("arrow").iter(batch_size=_ROWS)
        schema = pa.schema(
            [
                pa.field(field.name, _plain(field.type))
                for field in _sorted(rows.features.arrow_schema)
            ]
        )
        with pq.ParquetWriter(path, schema, store_schema=False) as writer:
            for table in tables:
                writer.write_table(pa.Table.from_pylist(table.to_pylist(), schema=schema))
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"data source {name}: its rows cannot be written as Parquet: {error}. Keep only the "
            "columns that are needed (select_columns)"
        ) from error


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type that does not depend on the object: fields sorted, no large variants."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _plain(f.type)) for f in _sorted(kind)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _sorted(fields: Iterable[pa.Field]) -> list[pa.Field]:
    return sorted(fields, key=lambda field: str(field.name))


def _with_paths(config: RunConfig, paths: Mapping[str, str]) -> RunConfig:
    values = config.model_dump()
    for group in (values["supervised"], *values["data"]["sources"]):
        group["path"] = paths.get(group["path"], group["path"])
    return RunConfig.model_validate(values)


def _take_back(run: RunFolder, before: Set[Path], *, was_there: bool) -> None:
    """Remove the files that were not there before, unless a run goes on from them."""
    if not run.path.is_dir():
        return
    with suppress(UserError), run_lock(run):
        known = run.run_file.read_text(encoding="utf-8") if run.run_file.is_file() else ""
        for path in set(run.sources.glob("*.parquet")) - before:
            if path.stem not in known:
                remove(path)
        with suppress(OSError):  # it holds others
            run.sources.rmdir()
        if not was_there and not known:
            run.clear(keep=set())
