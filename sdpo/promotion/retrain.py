"""Retrain: the model in use gets a step over what is new, and is replaced if the gate agrees.

What is new are pairs, or prompts that the model answers itself: a round of its own.

Read :func:`retrain` from top to bottom. It can be called again at any time, by a schedule or by
hand: what was made stands, an interrupted run is continued, and pairs that a run was made from and
judged by the same rules make no second one. The decision with its numbers is in ``promotion.json``
of the new run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdpo.config.load import make_config
from sdpo.errors import ConfigError, Fault, UserError
from sdpo.events import Listener
from sdpo.history.extend import effective_overrides, extend_run, new_pairs_of
from sdpo.history.new_prompts import NewRound
from sdpo.history.target import Checkpoint
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.promotion.decisions import (
    Attempt,
    Decision,
    Status,
    taken_out,
    tried_before,
    write_decision,
)
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
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.json_values import Json, JsonObject
from sdpo.system.locks import hold

_COMPLETIONS = "probe.completions"
READ_BY_A_PERSON = 10
"""A person who judges a new model reads its answers to so many reserved prompts."""


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
    """A retraining had this outcome; ``run`` is the new run, None where nothing was new.

    ``new_pairs`` counts prompts where the step is a round.
    """

    name: str
    status: Status
    reason: str
    new_pairs: int
    run: Path | None = None
    judgement: Judgement | None = None
    version: Version | None = None


def retrain(
    name: str,
    sources: Sequence[str],
    *,
    runs_dir: Path,
    overrides: Sequence[str] = (),
    min_new_pairs: int = 1,
    made: NewRound | None = None,
    gate: GateSettings = GateSettings(),
    ask: Ask | None = None,
    host: Host = Host(),
    wait: bool = False,
) -> Retrained:
    """Make the pairs of ``sources`` that the model ``name`` has not seen its next step, and promote
    the result if the gate, and ``ask`` where it is given, agree.

    With ``made``, in place of sources, the step is a round: the model answers prompts that no step
    has answered. ``name``: a name of the registry, or a run that was promoted. ``overrides`` of
    ``training`` are those of the new step. Pairs, or prompts, count as new that neither the current
    model's run has, nor a run that was made from it and judged by the same rules.

    One call at a time lets a model grow; ``wait`` is to wait for the other one.

    Raises:
        InUseError: another call is at work, or asks a person, and ``wait`` is not set.
        UserError: nothing was promoted under that name, the data cannot be read, or an override
            would change what is carried over.
        Fault: a stage failed, or a model is not what its record says; `current` stays.
    """
    with _alone(name, runs_dir=runs_dir, wait=wait, listen=host.listen) as named:
        run = _checked_start(named, runs_dir)
        _check_suites(run, overrides, gate)
        settings = effective_overrides(run, overrides)
        rules: JsonObject = {
            "overrides": settings,
            "gate": gate.rules(),
            "asked": ask is not None,
            **({"round": list(made.settings)} if made else {}),
        }
        more = _more_to_read(run, overrides, ask)
        news = _news(named, run, new_pairs_of(run, sources, overrides=overrides, made=made), rules)
        new_name = _name_of(named, news, settings=[*settings, *more], made=made)
        is_tried = any(past.run == new_name for past in news.tried)
        if is_tried or len(news.fresh) < max(1, min_new_pairs):
            fresh = 0 if is_tried else len(news.fresh)
            reason = _nothing_new(named, fresh, min_new_pairs, news.tried, is_round=bool(made))
            return Retrained(name=named.name, status="nothing new", reason=reason, new_pairs=fresh)
        if out := taken_out(named, new_name):
            return Retrained(
                name=named.name,
                status="refused",
                reason=f"run {new_name}, which these pairs make, {out}. `sdpo promote {new_name} "
                f"--name {named.name}` puts it back",
                new_pairs=len(news.fresh),
                run=runs_dir / new_name,
            )
        extension = extend_run(
            run,
            sources,
            overrides=[*overrides, *more],
            name=new_name,
            made=made,
            host=host,
            wait=wait,
        )
        if extension.chain is None:
            raise UserError("the data changed while it was read: call it again")
        attempt = Attempt(
            name=named.name, start=named.in_use, run=RunFolder(extension.chain.run), rules=rules
        )
        return _decide(attempt, news.found, gate, runs_dir=runs_dir, ask=ask, host=host)


@dataclass(frozen=True, slots=True)
class _News:
    """These pairs, or prompts, were ``found`` new to a run; ``fresh`` are those not ``tried``."""

    found: frozenset[str]
    fresh: frozenset[str]
    tried: tuple[Decision, ...]


def _news(
    named: RegisteredModel, run: RunFolder, found: frozenset[str], rules: JsonObject
) -> _News:
    tried = list(tried_before(named, run, rules, run.path.parent))
    fresh = found.difference(*(ids for _, ids in tried))
    return _News(found, fresh, tuple(decision for decision, _ in tried))


def _name_of(
    named: RegisteredModel, news: _News, *, settings: Sequence[str], made: NewRound | None
) -> str:
    """Return the name of the run that this makes: the same of the same."""
    start = named.in_use
    key: dict[str, Json] = {
        "from": start.digest,
        "pairs": sorted(news.found),
        "overrides": [*settings],
        **({"round": list(made.settings)} if made else {}),
    }
    return f"{named.name}-{start.step + 1}-{digest_of(key)[:8]}"


def _more_to_read(run: RunFolder, overrides: Sequence[str], ask: Ask | None) -> list[str]:
    """Return the override by which a person who is asked has enough answers to read.

    A recipe that makes no completions, and overrides that name their number, are obeyed.
    """
    said = any(each.partition("=")[0].strip() == _COMPLETIONS for each in overrides)
    made = read_stored(run).config.probe.completions
    if ask is None or said or not 0 < made < READ_BY_A_PERSON:
        return []
    return [f"{_COMPLETIONS}={READ_BY_A_PERSON}"]


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


def _nothing_new(
    named: RegisteredModel, fresh: int, wanted: int, tried: Sequence[Decision], *, is_round: bool
) -> str:
    what = f"{fresh} new {'prompts' if is_round else 'pairs'}" if fresh else "nothing new"
    few = f", and {wanted} are wanted" if fresh else ""
    past = "".join(
        f". Run {decision.run} was made from what came before and "
        + (
            taken_out(named, decision.run)
            or f"is not in use ({decision.status}: {decision.reason})"
        )
        for decision in tried
    )
    return f"{what} for {named.name}, which is at version {named.current}{few}{past}"


def _was_in_use(name: str, digest: str, runs_dir: Path) -> str:
    """Say why a model is not put back automatically: it was in use, and somebody took it out."""
    named = find_named(name, runs_dir=runs_dir)
    same = [version for version in named.versions if version.digest == digest]
    if not same or named.in_use in same:
        return ""
    return f"its digest is that of run {same[-1].run}, which {taken_out(named, same[-1].run)}"


def _decide(
    attempt: Attempt,
    pairs: frozenset[str],
    gate: GateSettings,
    *,
    runs_dir: Path,
    ask: Ask | None,
    host: Host,
) -> Retrained:
    run, step = attempt.run, attempt.start.step + 1
    config = read_stored(run).config
    if checked_digest(run, step - 1) != attempt.start.digest:
        raise Fault(
            f"M_{step - 1} of run {run.name} is not the model that {attempt.name} stands for, "
            "although it was carried over: see `sdpo diff`"
        )

    def judged() -> Judgement:
        return judge(
            run,
            new=step,
            current=step - 1,
            settings=gate,
            probe=config.probe,
            reserve=config.data.reserve,
        )

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
        write_decision(attempt, found, status, reason)
        return Retrained(
            name=attempt.name,
            status=status,
            reason=reason,
            new_pairs=len(pairs),
            run=run.path,
            judgement=found,
            version=version,
        )

    if checked_digest(run, step) == attempt.start.digest:
        found = judged()
        return ended(
            "refused",
            f"the step changed nothing: M_{step} is M_{step - 1}, weight for weight. Its pairs "
            "made one optimizer step, and warmup begins at rate 0: set training.warmup_ratio=0, a "
            "smaller training.batch_size, or wait for more pairs (data.min_new_pairs)",
        )
    found = host.call("gate", judged)
    if out := _was_in_use(attempt.name, checked_digest(run, step), runs_dir):
        return ended("refused", out)
    if found.outcome != "passed":
        return ended(found.outcome, found.reason)
    why = f"gate: {found.reason}"
    if ask:
        write_decision(attempt, found, "waiting", "the gate agrees; a person is asked")
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
