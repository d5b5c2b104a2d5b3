"""Check files of a run against the records that name them, before they are shown or handed on.

Where a record is not complete, nothing is known of its files: a run that is not finished is looked
at too. Where it is, the files are those that were written, or nothing is shown.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from partitions import PartitionError
from sdpo.errors import IntegrityError, SdpoError
from sdpo.store.records import NodeRecord, Record, first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import file_digest, read_json

R = TypeVar("R", bound=BaseModel)


def check_recorded(run: RunFolder, node: str, path: Path) -> bool:
    """Return whether the record of ``node`` has the file.

    Raises:
        IntegrityError: it has, and the file is another one now; or the record is damaged.
    """
    record, name = run.find_any(node), str(path.relative_to(run.path))
    wanted = record.files.get(name) if record else None
    if wanted and (not path.is_file() or file_digest(path) != wanted):
        raise IntegrityError(
            f"{path} is not what the run wrote there, so that nobody measured what it shows: "
            f"`sdpo verify {run.name}` says more, and `sdpo run` with the run's recipe makes it "
            "again"
        )
    return bool(wanted)


@contextmanager
def of_known_form(where: Path) -> Iterator[None]:
    """Report what has not the form of this version while a run is shown or checked in the block.

    A run may come from somebody else, with digests that fit whatever they wrote. For what makes a
    run this would hide a fault of this project; what only reads one has nothing to lose.

    Raises:
        IntegrityError: something in the run at ``where`` has another form.
    """
    try:
        yield
    except (SdpoError, PartitionError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} {str(error).splitlines()[:1]}".removesuffix(" []")
        raise IntegrityError(
            f"something in {where} has a form that this version does not know ({what} at "
            f"{Path(last.filename).name}:{last.lineno}): take the run from where it was made once "
            "more, or look at it with the version that made it (run.yaml, versions)"
        ) from error


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Return the rows of a JSON file, which are of this ``kind``; none where it is not there.

    Raises:
        IntegrityError: one has another form.
    """
    if not path.is_file():
        return []
    rows: TypeAdapter[list[R]] = TypeAdapter(list[kind])  # type: ignore[valid-type]
    try:
        return rows.validate_python(read_json(path))
    except ValidationError as error:
        raise IntegrityError(
            f"{path} has a form that this version does not know: {first_fault(error)}"
        ) from error


def whole_steps(run: RunFolder) -> list[int]:
    """Return the numbers of the steps that are complete, in order, to take the last of them.

    Raises:
        IntegrityError: the record of a step is damaged: without it another would be the last.
    """
    return [n for n in run.step_numbers() if run.find_step(f"step-{n}") is not None]


def damage_beside_weights(run: RunFolder, record: Record, folder: Path) -> list[str]:
    """Return what is wrong with the recorded files of a model's ``folder`` other than its weights.

    The weights have a digest of their own, of the tensors."""
    beside = {
        name: digest
        for name, digest in record.files.items()
        if (run.path / name).is_relative_to(folder) and not name.endswith(".safetensors")
    }
    return run.damage(Record(files=beside))


def recorded_tables(
    run: RunFolder, prefix: str, kind: type[R], *, checked: bool
) -> Iterator[tuple[NodeRecord, R, Path]]:
    """Yield each complete node whose name begins with ``prefix``: its record, what came of it, and
    the table that it wrote.

    Raises:
        IntegrityError: a table is not what was written; only where ``checked``.
    """
    for node in run.nodes():
        if not node.startswith(prefix) or (record := run.find(node)) is None:
            continue
        outputs = record.read_outputs(kind)
        table = run.path / next(iter(record.files))
        if checked:
            check_recorded(run, node, table)
        yield record, outputs, table
