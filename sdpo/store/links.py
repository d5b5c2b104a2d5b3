"""Share a node's files between runs by link: no bytes are copied or changed.

A published file is never written again: what is new takes its name by rename. So two runs may have
one file. Hard links keep it whole whatever becomes of the other run; where the file system has none
(another disk, another owner) a symbolic link says where it is, and that run must stay.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from sdpo.store.records import Record
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import file_digest, publish_file, temporary_path


def adopt(
    run: RunFolder, node: str, origin: RunFolder, record: Record, *, symbolic: bool = False
) -> list[str]:
    """Make the complete node of ``origin`` one of ``run`` too; its record says from where.

    Every file is linked under a temporary name and verified there, so that what is published is
    what was verified. Returns what is wrong with the origin's files; then nothing was published.
    """
    linked: dict[Path, Path] = {}
    faults: list[str] = []
    is_symbolic = False
    try:
        for name, digest in record.files.items():
            source, target = origin.path / name, run.path / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                faults.append(f"{name} is outside the run")
            elif not source.is_file():
                faults.append(f"{name} is missing")
            else:
                temporary = linked[target] = temporary_path(target)
                is_symbolic |= not _link(source.resolve(), temporary, hard=not symbolic)
                if file_digest(temporary) != digest:
                    faults.append(f"{name} was changed")
        if faults:
            return faults
        for target, temporary in linked.items():
            temporary.replace(target)
    finally:
        for temporary in linked.values():
            temporary.unlink(missing_ok=True)
    written = origin.read_record(node)
    if written is None:
        return [f"{origin.record_path(node)} is gone"]
    source_record = file_digest(origin.record_path(node))
    links = "symbolic" if is_symbolic else "hard"
    shared = {"run": origin.name, "record": source_record, "links": links}
    run.publish_record(node, {**written, "shared_from": shared})
    return []


def link(source: Path, target: Path) -> None:
    """Publish ``target`` as a link to the published file ``source``."""
    temporary = temporary_path(target)
    _link(source.resolve(), temporary, hard=True)
    temporary.replace(target)


def _link(source: Path, target: Path, *, hard: bool) -> bool:
    """Link ``target`` to ``source``, and return whether the link is a hard one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if hard:
        with suppress(OSError):  # another file system, or another owner
            os.link(source, target)
            return True
    target.symlink_to(source)
    return False


def detach(path: Path) -> None:
    """Give a file bytes of its own before it is written in place; remove a link to nothing."""
    if path.is_symlink() and not path.exists():
        path.unlink()
    elif path.is_file() and (path.is_symlink() or path.stat().st_nlink > 1):
        with publish_file(path) as temporary:
            shutil.copyfile(path, temporary)
