"""Retrain: the model in use gets a step over new pairs, and is replaced if the gate agrees.

Read :func:`retrain` from top to bottom. It can be called again at any time, by a schedule or by
hand: what was made stands, an interrupted run is continued, and pairs that a run was made from and
judged by the same rules make no second one. The decision with its numbers is in ``promotion.json``
of the new run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sdpo.config.load import make_config
from sdpo.errors import ConfigError, Fault, IntegrityError, UserError
from sdpo.events import Listener
from sdpo.history.extend import effective_overrides, extend_run, new_pairs_of
from sdpo.history.target import Checkpoint
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.promotion.judge import GateSettings, Judgement, judge
from sdpo.promotion.versions import (
    RegisteredModel,
    Version,
    checked_digest,
    current,
    default_name,
    last_step,
    promote,
    read_registry,
    rollback,
)
from sdpo.store.records import first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.files import read_json, write_json
from sdpo.system.locks import hold
from sdpo.system.privacy import withheld_by_folder, withholding

DECISION = "promotion.json"
"""This file of a run holds what was decided about it."""

Status = Literal[
    "nothing new",
    "promoted",
    "refused",
    "too few to tell",
    "rejected",
    "rolled back",
    "unanswered",
    "waiting",
]
_FINAL = ("promoted", "refused", "too few to tell", "rejected", "rolled back")
"""After these the same pairs are not tried again under the same rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer is what a person said; ``approved`` is None where nobody answered in time.

    ``roll_back``: neither model is wanted, but the version that the one in use replaced.
    """

    approved: bool | None
    why: str = ""
    roll_back: bool = False


Ask = Callable[[Judgement, RunFolder], Answer]
"""It asks a person whether a run that passed the gate is to be promoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """A retraining had this outcome; ``run`` is the new run, None where nothing was new."""

    name: str
    status: Status
    reason: str
    new_pairs: int
    run: Path | None = None
    judgement: Judgement | None = None
    version: Version | None = None


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    overrides: list[str]


class _Decision(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    run: str
    status: str
    reason: str
    start: dict[str, JsonValue] = Field(alias="from")
    rules: _Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """An attempt is a new run of a name: what it starts from, and the rules that judge it."""

    name: str
    start: Version
    run: RunFolder
    rules: dict[str, Any]


def retrain(
    name: str,
    sources: Sequence[str],
    *,
    runs_dir: Path,
    overrides: Sequence[str] = (),
    min_new_pairs: int = 1,
    gate: GateSettings = GateSettings(),
    ask: Ask | None = None,
    host: Host = Host(),
    wait: bool = False,
) -> Retrained:
    """Make the pairs of ``sources`` that the model ``name`` has not seen its next step, and promote
    the result if the gate, and ``ask`` where it is given, agree.

    ``name``: a name of the registry, or a run that was promoted. ``overrides`` of ``training`` are
    those of the new step. Pairs count as new that neither the current model's run has, nor a run
    that was made from it and judged by the same rules.

    One call at a time lets a model grow; ``wait`` is to wait for the other one.

    Raises:
        InUseError: another call is at work, or asks a person, and ``wait`` is not set.
        UserError: nothing was promoted under that name, the data cannot be read, or an override
            would change what is carried over.
        Fault: a stage failed, or a model is not what its record says; `current` stays.
    """
    with _alone(name, runs_dir=runs_dir, wait=wait, listen=host.listen) as named:
        start = named.in_use
        run = _checked_start(named, runs_dir)
        settings = effective_overrides(run, overrides)
        _check_suites(run, overrides, gate)
        rules = {"overrides": settings, "gate": gate.rules(), "asked": ask is not None}
        found = new_pairs_of(run, sources, overrides=overrides)
        tried = list(_tried(named, run, rules, runs_dir))
        fresh = found.difference(*(ids for _, ids in tried))
        if len(fresh) < max(1, min_new_pairs):
            return Retrained(
                name=named.name,
                status="nothing new",
                reason=_nothing_new(named, len(fresh), min_new_pairs, [past for past, _ in tried]),
                new_pairs=len(fresh),
            )
        key = {"from": start.digest, "pairs": sorted(found), "overrides": settings}
        new_name = f"{named.name}-{start.step + 1}-{digest_of(key)[:8]}"
        if out := _taken_out(named, new_name):
            return Retrained(
                name=named.name,
                status="refused",
                reason=f"run {new_name}, which these pairs make, {out}. `sdpo promote {new_name} "
                f"--name {named.name}` puts it back",
                new_pairs=len(fresh),
                run=runs_dir / new_name,
            )
        extension = extend_run(
            run,
            sources,
            overrides=overrides,
            name=new_name,
            host=host,
            wait=wait,
        )
        if extension.chain is None:
            raise UserError("the data changed while it was read: call it again")
        attempt = _Attempt(
            name=named.name, start=start, run=RunFolder(extension.chain.run), rules=rules
        )
        return _decide(attempt, found, gate, runs_dir=runs_dir, ask=ask, host=host)


def find_named(name: str, *, runs_dir: Path) -> RegisteredModel:
    """Find what ``name`` stands for: a name of the registry, or a run that belongs to one.

    Raises:
        UserError: nothing was promoted yet; says how to.
    """
    if not name:
        raise ConfigError("which model is to grow? Give the name that a run was promoted under")
    names, run = read_registry(runs_dir), RunFolder(runs_dir / name)
    if name not in names and run.run_file.is_file():
        known = default_name(run, runs_dir=runs_dir)
        if known in names:
            return names[known]
        raise UserError(
            f"run {name} was not promoted yet, so there is no current model to go on from: "
            f"`sdpo promote {name}` makes it the first one"
        )
    return current(name, runs_dir=runs_dir)


@contextmanager
def _alone(name: str, *, runs_dir: Path, wait: bool, listen: Listener) -> Iterator[RegisteredModel]:
    """Hold the model that gets a step, so that nobody else gives it one meanwhile.

    The lock is the kernel's, not a scheduler's: it lasts exactly as long as this process, whatever
    becomes of a server, also while a person is asked for a day.
    """
    known = find_named(name, runs_dir=runs_dir).name
    lock = runs_dir / f".{known}.retrain.lock"
    with hold(lock, what=f"the lineage {known}", wait=wait, listen=listen):
        yield find_named(known, runs_dir=runs_dir)


def _check_suites(run: RunFolder, overrides: Sequence[str], gate: GateSettings) -> None:
    """Refuse a gate that asks for suites by which the new model would not be judged.

    Raises:
        ConfigError: the recipe names no suites; said before anything is trained.
    """
    if not gate.evaluations:
        return
    config = make_config(read_stored(run).config.model_dump(), overrides=overrides)
    if not config.evaluation.suites:
        names = ", ".join(gate.evaluations)
        raise ConfigError(
            f"gate.evaluations asks for {names}, and the run's recipe names no suites: add "
            f"--set evaluation.suites=[{names}]"
        )


def _checked_start(named: RegisteredModel, runs_dir: Path) -> RunFolder:
    """Return the run of the current model, checked to be the last of its run and unchanged."""
    start = named.in_use
    run = RunFolder(runs_dir / start.run)
    last = last_step(run)
    if start.step != last:
        raise UserError(
            f"{named.name} is at M_{start.step} of run {start.run}, which has {last} steps, and a "
            "chain grows from its end: run it with that many steps under another name and promote "
            f"that, or promote M_{last}"
        )
    if checked_digest(run, last) != start.digest:
        raise UserError(
            f"run {start.run} is another one than when it was promoted as {named.name}: promote it "
            f"again (`sdpo promote {start.run} --name {named.name}`), or roll back"
        )
    return run


def _tried(
    named: RegisteredModel, run: RunFolder, rules: dict[str, Any], runs_dir: Path
) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Yield decisions about runs from the current model by the same rules, and their pairs."""
    for path in sorted(runs_dir.glob(f"*/{DECISION}")):
        if not RunFolder(path.parent).is_own:
            continue
        decision = _read_decision(path)
        same = decision["name"] == named.name and _effective(decision["rules"], run) == rules
        if same and decision["from"] == _start(named.in_use) and decision["status"] in _FINAL:
            pairs = path.parent / "pairs.parquet"
            yield decision, set(pq.read_table(pairs, columns=["pair_id"])["pair_id"].to_pylist())


def _read_decision(path: Path) -> dict[str, Any]:
    """Return what was decided about a run.

    Raises:
        IntegrityError: the file is something else.
    """
    try:
        return _Decision.model_validate(read_json(path)).model_dump(by_alias=True)
    except ValidationError as error:
        raise IntegrityError(
            f"{path} is no decision of a retraining ({first_fault(error)}): move it away, or put "
            "the original back"
        ) from error


def _effective(rules: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """Spell the overrides of rules alike; those from before 0.2 are left as they were given."""
    with suppress(ConfigError):
        return rules | {"overrides": effective_overrides(run, rules["overrides"])}
    return rules


def _start(version: Version) -> dict[str, Any]:
    return {"run": version.run, "step": version.step, "digest": version.digest}


def _nothing_new(
    named: RegisteredModel, fresh: int, wanted: int, tried: Sequence[dict[str, Any]]
) -> str:
    what = f"{fresh} new pairs" if fresh else "nothing new"
    few = f", and {wanted} are wanted" if fresh else ""
    past = "".join(
        f". Run {decision['run']} was made from what came before and "
        + (
            _taken_out(named, decision["run"])
            or f"is not in use ({decision['status']}: {decision['reason']})"
        )
        for decision in tried
    )
    return f"{what} for {named.name}, which is at version {named.current}{few}{past}"


def _taken_out(named: RegisteredModel, run: str) -> str:
    """Say what became of a run that was in use under the name and no longer is; else ""."""
    found = next((v for v in reversed(named.versions) if v.run == run), None)
    if found is None or found.version == named.current:
        return ""
    move = next(m for m in reversed(named.moves) if m.from_version == found.version)
    return f"was version {found.version} of {named.name} and was taken out of use ({move.why})"


def _was_in_use(name: str, digest: str, runs_dir: Path) -> str:
    """Say why a model is not put back automatically: it was in use, and somebody took it out."""
    named = find_named(name, runs_dir=runs_dir)
    same = [version for version in named.versions if version.digest == digest]
    if not same or named.in_use in same:
        return ""
    return f"its digest is that of run {same[-1].run}, which {_taken_out(named, same[-1].run)}"


def _decide(
    attempt: _Attempt,
    pairs: frozenset[str],
    gate: GateSettings,
    *,
    runs_dir: Path,
    ask: Ask | None,
    host: Host,
) -> Retrained:
    run, step = attempt.run, attempt.start.step + 1
    probe = read_stored(run).config.probe
    if checked_digest(run, step - 1) != attempt.start.digest:
        raise Fault(
            f"M_{step - 1} of run {run.name} is not the model that {attempt.name} stands for, "
            "although it was carried over: see `sdpo diff`"
        )

    def judged() -> Judgement:
        return judge(run, new=step, current=step - 1, settings=gate, probe=probe)

    def moved(why: str) -> RegisteredModel:
        return promote(
            Checkpoint(run, step),
            runs_dir=runs_dir,
            name=attempt.name,
            why=why,
            expected=attempt.start.version,
            listen=host.listen,
        )

    def rolled_back(why: str) -> RegisteredModel:
        return rollback(
            attempt.name,
            runs_dir=runs_dir,
            why=why,
            expected=attempt.start.version,
            listen=host.listen,
        )

    def ended(status: Status, reason: str, version: Version | None = None) -> Retrained:
        _write(attempt, found, status, reason)
        return Retrained(
            name=attempt.name,
            status=status,
            reason=reason,
            new_pairs=len(pairs),
            run=run.path,
            judgement=found,
            version=version,
        )

    found = host.call("gate", judged)
    if out := _was_in_use(attempt.name, checked_digest(run, step), runs_dir):
        return ended("refused", out)
    if found.outcome != "passed":
        return ended(found.outcome, found.reason)
    why = f"gate: {found.reason}"
    if ask:
        _write(attempt, found, "waiting", "the gate agrees; a person is asked")
        answer = ask(found, run)
        if answer.approved is None:
            return ended("unanswered", answer.why or "nobody answered")
        said = f": {answer.why}" if answer.why else ""
        if answer.roll_back:
            back = host.call("roll back", rolled_back, f"a person rolled it back{said}")
            return ended("rolled back", f"a person rolled {attempt.name} back{said}", back.in_use)
        if not answer.approved:
            return ended("rejected", f"a person rejected it{said}")
        why = f"approved by a person{said}; {why}"
    named = host.call("promote", moved, why)
    return ended("promoted", why, named.in_use)


def _write(attempt: _Attempt, found: Judgement, status: Status, reason: str) -> None:
    content = {
        "name": attempt.name,
        "run": attempt.run.name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": status,
        "reason": reason,
        "from": _start(attempt.start),
        "rules": attempt.rules,
        "judgement": asdict(found),
    }
    with withholding(withheld_by_folder(attempt.run.path)):
        write_json(attempt.run.path / DECISION, content)
