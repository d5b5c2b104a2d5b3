"""Following a run: does every record follow from run.yaml and from the records before it?

The chain itself computes what each identity should be, in a context that executes nothing and
writes nothing.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from sdpo.chain.context import Context
from sdpo.chain.run_chain import walk
from sdpo.chain.tokens import token_paths, tokenise
from sdpo.errors import SdpoError
from sdpo.history.faults import Findings
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_digest import model_digest
from sdpo.identity.payloads import changes
from sdpo.identity.tokenizer_digest import has_chat_template
from sdpo.inputs.named_models import ReferenceModel, stored_references
from sdpo.inputs.resolve import Resolved
from sdpo.processes.stage_specs import Spec
from sdpo.store.run_folder import Record, RunFolder
from sdpo.store.stored_run import Stored
from sdpo.store.token_cache import token_fault

T = TypeVar("T")


def _is_of_rules(change: str) -> bool:
    """Whether a change is that of a version of this project's rules, and of nothing in the run."""
    return change.partition(":")[0].endswith("_version")


class _NotDone(Exception):
    """The run has not got further, or cannot be followed further."""


@dataclass(slots=True, kw_only=True)
class Walk(Context):
    """A context that executes nothing and compares every record with what it should be."""

    findings: Findings
    stopped_at: str = field(default="", init=False)

    def done(self, node: str, identity: Mapping[str, Any]) -> Record | None:
        """The node's record, its identity compared."""
        record, _ = self.find(node, identity)
        if record is None:
            self.stopped_at = node
            raise _NotDone(node)
        return record

    def find(self, node: str, identity: Mapping[str, Any]) -> tuple[Record | None, str]:
        """As ``done`` for a node that may be missing."""
        if self.run.is_damaged(node):
            return None, ""
        record = self.run.read_record(node)
        if record is None:
            return None, ""
        if node != "report" and digest_of(record["identity"]) != digest_of(dict(identity)):
            name = str(self.run.record_path(node).relative_to(self.run.path))
            found = changes(record["identity"], identity)
            if all(_is_of_rules(change) for change in found):
                self.findings.note(
                    f"{name} was made by the rules of an earlier version ({'; '.join(found)}): its "
                    "files are checked, and whether other records follow from it is not"
                )
                raise _NotDone(node)
            self.findings.fault(name, f"was made from something else: {'; '.join(found)}")
        return record, ""

    def settle(self, node: str, record: Record) -> None:
        """Nothing is written."""

    def stage(self, spec: Spec, *locks: int) -> dict[str, Any]:
        """Nothing is executed."""
        self.stopped_at = spec.name
        raise _NotDone(spec.name)


def follow(run: RunFolder, stored: Stored, cache: Path, findings: Findings) -> None:
    """Follow the chain through the records of a run, adding to ``findings``."""
    base = Path(stored.config.model.name_or_path)
    if not os.access(base / "config.json", os.R_OK):
        findings.note(
            f"the base model is not at {base}, or cannot be read: whether records follow from "
            "run.yaml is not checked"
        )
        return
    _check_base(base, stored, findings)
    references = stored_references(stored.config, stored.inputs)
    for reference in references.values():
        _check_given(reference, findings)
    context = Walk(
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
        listen=lambda event: None,
        origin=stored.origin,
        carried=stored.carried,
        findings=findings,
    )
    try:
        walk(context, call=_read_only)
    except _NotDone:
        if not findings.faults and context.stopped_at:
            findings.note(f"the run is complete up to {context.stopped_at}, which is not done yet")
    except (SdpoError, OSError, pa.ArrowException, AssertionError, KeyError, ValueError) as error:
        if not findings.faults:
            findings.fault("run.yaml", f"the chain cannot be followed: {error}")


def _read_only(_name: str, function: Callable[..., T], /, *args: object) -> T:
    """Call a node, but for tokenising what is not cached, which would write to the cache."""
    context = args[0]
    if isinstance(context, Walk) and _is_tokenising(function) and _tokens_fail(context):
        context.findings.note("without the tokens, which records follow from them is not told")
        raise _NotDone("tokens")
    return function(*args)


def _is_tokenising(function: Callable[..., Any]) -> bool:
    """Whether a node is the one that makes tokens."""
    return function is tokenise


def _tokens_fail(context: Context) -> bool:
    return any(map(token_fault, token_paths(context)))


def _check_given(reference: ReferenceModel, findings: Findings) -> None:
    """A reference that the recipe names by its folder; one of the hub is known by its commit."""
    folder = reference.folder
    if not folder.is_absolute():
        return
    try:
        found = model_digest(folder)
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
        found = model_digest(base)
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
