"""What a run would do, found by walking the chain itself where nothing may be executed.

The walk happens in a scratch folder whose nodes are links to those of the origin. A node that would
have to be done is stood in for by the origin's, so that what comes after it can be asked too: it
has to be done if it changes by itself, and otherwise only if an earlier output comes out different.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sdpo.chain import step as steps
from sdpo.chain.context import Context
from sdpo.chain.run_chain import walk
from sdpo.chain.score_reference import reference_tokens, why_score
from sdpo.chain.tokens import token_paths, tokenise, tokens_path
from sdpo.config import RunConfig
from sdpo.errors import IntegrityError
from sdpo.events import Event
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.processes.stage_specs import Spec
from sdpo.store.links import adopt
from sdpo.store.origin import Carried, Origin, origin_chain
from sdpo.store.reuse import matching
from sdpo.store.run_folder import Record, RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.store.token_cache import token_fault

T = TypeVar("T")
Action = Literal["REUSE", "RUN", "RUN IF"]

IF_DIFFERENT = "an earlier output differs"
_MEASUREMENTS = ("probe-", "gamma-", "kl-", "reference-")
"""Nodes that change no step: what a step reads of them is keyed by the model and the rows."""
_TRIALS = ("adapters", "objectives")
"""Stages that refuse what a step could not be trained with, and give nothing."""


@dataclass(frozen=True, slots=True)
class NodeLine:
    """What would become of a node. ``is_changed``: its own settings or inputs are others."""

    node: str
    action: Action
    reason: str = ""
    is_changed: bool = False


class _Unknown(Exception):
    """What comes next depends on something that is not there."""


@dataclass(slots=True, kw_only=True)
class DryRun(Context):
    """A context that executes nothing and keeps a line for each node."""

    lines: list[NodeLine] = field(default_factory=list)

    def is_uncertain(self, node: str) -> bool:
        """Whether a node that this one depends on would have to be done: one before it."""
        names = [line.node for line in self.lines]
        earlier = self.lines[: names.index(node)] if node in names else self.lines
        if not node.startswith((*_MEASUREMENTS, "report")):
            earlier = [line for line in earlier if not line.node.startswith(_MEASUREMENTS)]
        return any(line.action != "REUSE" for line in earlier)

    def done(self, node: str, identity: Mapping[str, Any]) -> Record | None:
        """The node's record, or one that stands in for it."""
        record, reason = self.find(node, identity)
        if record:
            uncertain = self.is_uncertain(node)
            line = NodeLine(node, "RUN IF", IF_DIFFERENT) if uncertain else NodeLine(node, "REUSE")
            self.lines.append(line)
            return record
        whole = [matching(origin, node, identity).record for origin in self.origins]
        self.lines.append(NodeLine(node, "RUN", reason, is_changed=not any(whole)))
        return self._stand_in(node)

    def _stand_in(self, node: str) -> Record:
        for origin in self.origins:
            try:
                record = origin.read_record(node)
            except IntegrityError:
                continue
            if record and not adopt(self.run, node, origin, record):
                return record
        if node.startswith(_MEASUREMENTS):
            return {}  # nothing that comes after reads it
        raise _Unknown(node)

    def settle(self, node: str, record: Record) -> None:
        """Nothing is written."""

    def stage(self, spec: Spec, *locks: int) -> dict[str, Any]:
        """Nothing is executed: a model that would be measured again was measured in the origin."""
        if spec.name not in _TRIALS and not self._stand_in(spec.name):
            raise _Unknown(spec.name)
        return {}

    def ask_reference(self, step: int) -> None:
        """A line for scoring the reference of a step that would train against another model."""
        training = steps.resolved_training(self, step)
        models = steps.step_models(self, step, training)
        index = [line.node for line in self.lines].index(f"step-{step}")
        action = self.lines[index].action
        if models.reference is None or models.agree or action == "REUSE":
            return
        own = reference_tokens(self, models.reference, step)
        reason = own and token_fault(own.out)
        if not reason:
            tokens = own.out if own else tokens_path(self)
            reason = why_score(self, models.reference, tokens, step, training)
        is_given = models.reference.digest in self.resolved.inputs.values()
        if not reason:
            is_certain = is_given or not self.is_uncertain(f"step-{step}")
            action, reason = ("REUSE", "") if is_certain else ("RUN IF", IF_DIFFERENT)
        self.lines.insert(index, NodeLine(f"reference-{step}", action, reason))


@contextmanager
def dry_context(config: RunConfig, *, origin: Origin, carried: Carried | None) -> Iterator[DryRun]:
    """A dry run of a new run with this origin."""
    there = RunFolder(Path(origin.path))
    stored = read_stored(there)
    resolved = resolve(config, known=stored.data_inputs)
    with tempfile.TemporaryDirectory(prefix="sdpo-") as folder:
        run = RunFolder(Path(folder) / config.name)
        run.path.mkdir()
        origins, _ = origin_chain(run, origin)
        lines: list[NodeLine] = []

        def listen(event: Event) -> None:
            if event["event"] == "node":
                action: Action = "REUSE" if event["status"] == "reuse" else "RUN"
                lines.append(NodeLine(event["node"], action, event["reason"]))

        yield DryRun(
            run=run,
            resolved=resolved,
            cache=cache_dir(config),
            clock=stored.clock,
            listen=listen,
            origin=origin,
            carried=carried,
            origins=tuple(origins),
            lines=lines,
        )


def dry_run(context: DryRun) -> list[NodeLine]:
    """A line for each node, in order."""
    try:
        walk(context, call=_ask)
    except _Unknown:
        known = {line.node for line in context.lines}
        context.lines.extend(
            NodeLine(node, "RUN IF", IF_DIFFERENT)
            for node in _remaining(context)
            if node not in known
        )
    return context.lines


def _ask(_name: str, function: Callable[..., T], /, *args: Any) -> T:
    """Call a node, but for tokenising what is not cached, which would write to the cache; after a
    step, ask about its reference."""
    context = args[0]
    if function is tokenise and isinstance(context, DryRun):
        faults = [fault for path in token_paths(context) if (fault := token_fault(path))]
        if faults:
            context.lines.append(NodeLine("tokens", "RUN", faults[0]))
            raise _Unknown("tokens")
    result = function(*args)
    if function is steps.align_step and isinstance(context, DryRun):
        context.ask_reference(args[1])
    return result


def _remaining(context: DryRun) -> list[str]:
    """Nodes that the walk may not have reached, as far as the origin's plan tells."""
    for origin in context.origins:
        plan = None if origin.is_damaged("plan") else origin.read_record("plan")
        if plan:
            last = context.last_step
            wanted = range(1, (plan["outputs"]["steps"] if last is None else last) + 1)
            return ["reserve", "plan", *(f"step-{n}" for n in wanted), "report"]
    return []
