"""Follow a run: does every record follow from run.yaml and from the records before it?

The chain's own nodes say what each identity should be; nothing is executed and nothing written.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sdpo.chain.context import Context
from sdpo.chain.node import EVERYTHING, Cached, Errand, Expansion, Look, Node, Part
from sdpo.chain.run_chain import chain
from sdpo.errors import SdpoError
from sdpo.history.faults import Findings
from sdpo.hooks import Host
from sdpo.identity.adapter_folder import ADAPTER
from sdpo.identity.model_digest import model_digest
from sdpo.identity.payloads import changes
from sdpo.identity.ranks import same_result
from sdpo.identity.tokenizer_digest import has_chat_template
from sdpo.inputs.named_models import stored_references
from sdpo.inputs.resolve import Resolved
from sdpo.model_names import NamedModel
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import Stored


def _is_of_rules(change: str) -> bool:
    """Return whether a change is only one of a version of this project's rules."""
    return change.partition(":")[0].endswith("_version")


class _NotDone(Exception):
    """The run has not got further, or cannot be followed further."""


@dataclass(slots=True)
class Walk:
    """A walk goes through a chain without executing it, and checks that every record follows."""

    context: Context
    findings: Findings
    stopped_at: str = ""

    def go_through(self, parts: Sequence[Part]) -> None:
        """Compare the records of these parts, up to the first that is not there."""
        for part in parts:
            match part:
                case Node():
                    self._compare(part)
                case Cached():
                    if part.fault():
                        self.findings.note(
                            f"without the {part.name}, which records follow from them is not told"
                        )
                        raise _NotDone(part.name)
                case Look():
                    part.look()
                case Expansion():
                    self.go_through(part.expand())
                case Errand():
                    pass

    def _compare(self, node: Node) -> None:
        run = self.context.run
        record = None if run.is_damaged(node.name) else run.find(node.name)
        if record is None:
            self.stopped_at = node.name
            raise _NotDone(node.name)
        # The report's identity covers all records, each of which is compared by itself.
        if EVERYTHING in node.inputs:
            return
        identity = node.identity()
        if not same_result(record.identity, identity):
            name = str(run.record_path(node.name).relative_to(run.path))
            found = changes(record.identity, identity)
            if all(_is_of_rules(change) for change in found):
                self.findings.note(
                    f"{name} was made by the rules of an earlier version ({'; '.join(found)}): its "
                    "files are checked, and whether other records follow from it is not"
                )
                raise _NotDone(node.name)
            self.findings.fault(name, f"was made from something else: {'; '.join(found)}")


def follow(run: RunFolder, stored: Stored, cache: Path, findings: Findings) -> None:
    """Follow the chain through the records of a run, adding to ``findings``."""
    base = Path(stored.config.model.name_or_path)
    if not any(os.access(base / name, os.R_OK) for name in ("config.json", ADAPTER)):
        findings.note(
            f"the base model is not at {base}, or cannot be read: whether records follow from "
            "run.yaml is not checked"
        )
        return
    _check_base(base, stored, findings)
    references = stored_references(stored.config, stored.inputs)
    for reference in references.values():
        _check_given(reference, findings, precision=stored.config.model.base_precision)
    context = Context(
        run=run,
        resolved=Resolved(
            config=stored.config,
            model=base,
            inputs=stored.inputs,
            has_template=bool(stored.config.model.chat_template) or has_chat_template(base),
            references=references,
        ),
        cache=cache,
        clock=stored.clock,
        host=Host(),
        origin=stored.origin,
        carried=stored.carried,
    )
    walk = Walk(context, findings)
    try:
        walk.go_through(chain(context))
    except _NotDone:
        if not findings.faults and walk.stopped_at:
            findings.note(f"the run is complete up to {walk.stopped_at}, which is not done yet")
    except (SdpoError, OSError, pa.ArrowException, AssertionError, KeyError, ValueError) as error:
        if not findings.faults:
            findings.fault("run.yaml", f"the chain cannot be followed: {error}")


def _check_given(reference: NamedModel, findings: Findings, *, precision: str) -> None:
    """Check a reference that the recipe names by its folder; a hub model is known by its commit."""
    folder = reference.folder
    if not folder.is_absolute():
        return
    try:
        found = model_digest(folder, precision=precision)
    except (SdpoError, OSError):
        findings.note(f"the reference model is not at {folder}, or cannot be read")
        return
    if found != reference.digest:
        findings.fault(
            str(folder),
            f"is another reference model now: its digest is {found[:16]}, and the run was made "
            f"with {reference.digest[:16]}",
            "put the original back: the run can be neither resumed nor replayed with this one",
        )


def _check_base(base: Path, stored: Stored, findings: Findings) -> None:
    try:
        found = model_digest(base, precision=stored.config.model.base_precision)
    except (SdpoError, OSError) as error:
        findings.fault(str(base), str(error), "put the base model back")
        return
    if found != stored.inputs["model"]:
        findings.fault(
            str(base),
            f"is another base model now: its digest is {found[:16]}, and the run was made with "
            f"{stored.inputs['model'][:16]}",
            "put the original back: the run can be neither resumed nor replayed from this one",
        )
