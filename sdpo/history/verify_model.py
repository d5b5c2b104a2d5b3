"""Verify a model folder that stands alone: an export, or a copy of what was published."""

import json
from pathlib import Path

from sdpo.errors import UserError
from sdpo.history.faults import Findings
from sdpo.history.lineage import lineage_of
from sdpo.history.target import by_lineage, read_lineage
from sdpo.store.model_card import card_files, exported
from sdpo.system.files import json_text

_REMEDY = "export the model again, or take the copy from where it was whole"


def verify_model(folder: Path, *, runs_dir: Path) -> Findings:
    """Return everything that is wrong with a model folder that has a lineage.

    Its tensors are compared with the digest that its lineage has, and card and lineage with those
    that follow from the run that made it, where ``runs_dir`` has that run.

    Raises:
        UserError: it has no lineage.
    """
    findings = Findings()
    copy = read_lineage(folder).export
    for fault in lineage_of(str(folder), runs_dir=runs_dir).faults:
        findings.fault(folder.name, fault, _REMEDY)
    findings.files = sum(path.is_file() for path in folder.rglob("*"))
    try:
        found = by_lineage(folder, runs_dir)
    except UserError as error:
        findings.note(f"{error}; card and lineage cannot be compared with its records")
        return findings
    step = found.step if found.step is not None else 0
    record = found.run.step_record(f"step-{step}")
    wanted = card_files(found.run, record, name=f"M_{step}", folder=found.run.model(step))
    if copy and copy.hub:  # its card has the hub's metadata, and is known by its digest
        facts = json.loads(wanted["lineage.json"])
        wanted = {"lineage.json": json_text({**facts, "export": copy.model_dump(mode="json")})}
    elif copy:
        wanted = exported(wanted, dtype=copy.dtype, model=copy.model)
    for name, text in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            what = "was changed" if path.is_file() else "is missing"
            findings.fault(
                f"{folder.name}/{name}", f"{what}, by the records of {found.run.name}", _REMEDY
            )
    return findings
