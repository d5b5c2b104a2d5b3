"""Replay a checkpoint: make it again, as it was or with one thing changed, in a new run.

The new run has the old one for its origin: what has the same identity is shared, the step that is
replayed is executed even though the origin has it, and the later steps follow where their reference
changed. The origin is only read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.chain.run_chain import ChainResult, run_chain
from sdpo.config import RunConfig
from sdpo.config.load import by_position, check_run_name, make_config
from sdpo.errors import ConfigError, ModelError, RunExistsError, UserError
from sdpo.history.dryrun import NodeLine, dry_context, dry_run
from sdpo.history.results import Comparison, compare_step
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.inputs.named_models import stored_references
from sdpo.inputs.resolve import Resolved, resolve
from sdpo.plugins.recorded import check_unchanged
from sdpo.store.run_file import Carried, Origin
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import data_node, nodes_of_data
from sdpo.store.stored_run import Stored, read_stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay is planned and possible, as far as can be told without a look at the files."""

    run: RunFolder
    stored: Stored
    config: RunConfig
    origin: Origin

    @property
    def step(self) -> int:
        """Return the step that is executed again."""
        return self.origin.step

    @property
    def carried(self) -> Carried | None:
        """Return what the origin itself carried over from a run that it extends."""
        return self.stored.carried


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """A finished replay has the chain of its run, and how its step compares with the origin's."""

    chain: ChainResult
    comparison: Comparison


def plan_replay(
    run: RunFolder,
    *,
    step: int,
    overrides: Sequence[str] = (),
    only: bool = False,
    name: str = "",
) -> Replay:
    """Decide what the new run is.

    ``overrides``: ``group.key=value``; ``training.key`` applies to step ``step`` alone.

    Raises:
        UserError: the step was never finished, an override is not possible, or the name is taken.
    """
    stored = read_stored(run)
    if not run.record_path(f"step-{step}").is_file():
        done = ", ".join(map(str, run.complete_steps())) or "none"
        raise UserError(
            f"run {run.name} has no complete step {step} to replay (complete: {done}): finish the "
            "run first, or name another step"
        )
    if step == 0 and stored.carried:
        raise UserError(
            f"S of run {run.name} is that of run {stored.carried.run}, which it extends: replay "
            "step 0 there"
        )
    origin = Origin(
        kind="replay",
        run=run.name,
        path=str(run.path.absolute()),
        identity=digest_of(stored.identity),
        step=step,
        overrides=list(overrides),
        only=only,
    )
    values = stored.config.model_dump() | {"name": name or free_name(run, f"replay-{step}")}
    config = make_config(values, overrides=[of_step(o, step) for o in overrides])
    check_new(RunFolder(run.path.absolute().parent / config.name), origin)
    return Replay(run=run, stored=stored, config=config, origin=origin)


def of_step(override: str, step: int) -> str:
    """Return an override of ``training`` as one of step ``step``, and any other as it is."""
    group, dot, rest = override.strip().partition(".")
    is_training = group == "training" and dot and step > 0
    return f"steps.{step - 1}.{rest}" if is_training else override


def free_name(run: RunFolder, suffix: str) -> str:
    """Return a name for a new run beside ``run`` that is not taken."""
    base, number = f"{run.name}-{suffix}", 1
    while (run.path.absolute().parent / _numbered(base, number)).exists():
        number += 1
    return check_run_name(_numbered(base, number))


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"


def check_new(run: RunFolder, origin: Origin) -> None:
    """Refuse a name that another run has; the same run, while its step is not finished, may go on.

    Raises:
        RunExistsError: another run has the name, or the same one is finished.
        ForeignFolderError: something that is no run has the name.
    """
    run.check_own()
    if not run.run_file.is_file():
        return
    is_same = read_stored(run).origin == origin
    if is_same and run.read_record(f"step-{origin.step}") is None:
        return
    what = f"made step {origin.step} already" if is_same else "is another run"
    raise RunExistsError(f"{run.name} exists and {what}: give the new run another name (--name)")


def look(replay: Replay) -> list[NodeLine]:
    """Return a line for each node: whether it would be shared or executed, and why."""
    with dry_context(replay.config, origin=replay.origin, carried=replay.carried) as context:
        return dry_run(context)


def check(replay: Replay, lines: Sequence[NodeLine]) -> None:
    """Refuse overrides that change what came before the step.

    Raises:
        ConfigError: names what they would change.
    """
    names = [line.node for line in lines]
    step = f"step-{replay.step}"
    judged = {name for n in range(1, replay.step) for name in nodes_of_data(n)}
    earlier = lines[: names.index(step)] if step in names else lines
    for line in earlier:
        # What earlier steps have of their own says whether a rule has changed it.
        is_same_plan = line.node == "plan" and all(
            change.startswith(("probe.", "generated.")) for change in line.reason.split("; ")
        )
        bears = line.node in ("carried", "data", "reserve", "plan")
        bears |= line.node.startswith(("step-", "data-")) and line.node != data_node(replay.step)
        bears |= line.node in judged
        if line.is_changed and bears and not is_same_plan:
            raise ConfigError(
                f"this would change what came before step {replay.step} ({line.node}: "
                f"{line.reason}), so it would not be a replay of that step: replay from an earlier "
                "step, or run the recipe under a new name (it shares the cache)"
            )


def check_models_of(stored: Stored, resolved: Resolved, name: str) -> None:
    """Refuse a base model, a reference or a plug-in that run ``name`` was not made with.

    Raises:
        ModelError, PluginError: names the digests.
    """
    check_unchanged(stored.inputs, stored.plugins, name)
    for what in ("model", "tokenizer"):
        was, found = stored.inputs[what], resolved.inputs[what]
        if found != was:
            raise ModelError(
                f"the base {what} at {resolved.config.model.name_or_path} has changed since run "
                f"{name} was made: its digest is {found}, not {was}. Put the original back, or "
                "name its folder with --set model.name_or_path=FOLDER"
            )
    known = stored_references(stored.config, stored.inputs)
    for key, reference in resolved.references.items():
        was = known[key].digest if key in known else reference.digest
        if reference.digest != was:
            raise ModelError(
                f"the reference model at {reference.folder} has changed since run {name} was made: "
                f"its digest is {reference.digest}, not {was}. Put the original back, or name "
                "another folder (reference_model)"
            )


def replay_step(
    replay: Replay,
    *,
    host: Host = Host(),
    wait: bool = False,
) -> ReplayResult:
    """Execute the step in the new run, let the later ones follow, and compare it with the origin's.

    Raises:
        UserError: an override changes what came before the step, or the base model has changed.
        Fault: a stage failed; what was published stands.
    """
    resolved = resolve(replay.config, known=replay.stored.data_inputs)
    check_models_of(replay.stored, resolved, replay.run.name)
    if any(not _concerns(override, replay.step) for override in replay.origin.overrides):
        check(replay, look(replay))
    chain = run_chain(
        replay.config,
        host=host,
        origin=replay.origin,
        carried=replay.carried,
        wait=wait,
    )
    return ReplayResult(
        chain=chain, comparison=compare_step(replay.run, RunFolder(chain.run), replay.step)
    )


def _concerns(override: str, step: int) -> bool:
    """Return whether an override alone shows that it changes nothing before the step."""
    key = of_step(override, step).partition("=")[0].strip()
    parts = by_position(key).split(".")
    if parts[0] == "steps" and len(parts) > 1 and parts[1].isdigit():
        return int(parts[1]) + 1 >= step
    return parts[0] in ("tracking", "store")
