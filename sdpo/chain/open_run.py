"""Open a run: make its folder or take it up again, resolve its recipe, hold its lock."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from partitions import PartitionError
from sdpo.chain.context import Context
from sdpo.chain.remote import kept
from sdpo.chain.telling import telling
from sdpo.config import RunConfig, settings_without_effect
from sdpo.config.load import check_run_name
from sdpo.errors import ConfigError, RunExistsError, UserError
from sdpo.events import InterruptedEvent, WarningEvent
from sdpo.hooks import Host
from sdpo.identity.differences import differences
from sdpo.identity.payloads import run_identity
from sdpo.identity.ranks import without_ranks
from sdpo.inputs.cache_folder import check_beside, check_cache, claim_cache
from sdpo.inputs.devices import idle_hint
from sdpo.inputs.plugins import named_plugins
from sdpo.inputs.resolve import Resolved, cache_dir, resolve, restore_machine
from sdpo.plugins.recorded import check_unchanged
from sdpo.processes.nodes.rendezvous import listening
from sdpo.store.origin import origin_chain
from sdpo.store.run_file import Carried, Origin, RunFile
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.store.stored_run import Stored, read_stored
from sdpo.system import machine
from sdpo.system.files import checksum_path, remove, temporaries
from sdpo.system.locks import share
from sdpo.system.ownership import LOCK
from sdpo.system.privacy import withheld, withheld_by_folder, withholding

_UNVOUCHED = "run.yaml.sha256 is missing, so that a change of run.yaml would not be noticed"


@contextmanager
def open_run(
    config: RunConfig,
    *,
    host: Host = Host(),
    origin: Origin | None = None,
    carried: Carried | None = None,
    wait: bool = False,
) -> Iterator[Context]:
    """Resolve ``config``, create its run folder or take it up again, and hold its lock.

    ``origin`` and ``carried`` are for a new run; an existing one knows its own. A new run that ends
    in a mistake of the user before a step is complete leaves nothing behind: its name is free for
    the corrected recipe.

    Raises:
        RunExistsError: the run was made from another recipe or other inputs; names the fields.
        ForeignFolderError: what has the run's name, or the cache's, is something else.
        UserError: something that the recipe names is not there, or the run is in use.
    """
    listen, run = host.listen, run_folder_of(config)
    run.check_own()
    check_cache(cache_dir(config))
    check_beside(cache_dir(config), run=run.path)
    if run.run_file.is_file():
        stored = read_stored(run)
        check_unchanged(stored.inputs, stored.plugins, run.name)
        config = restore_machine(config, stored.config)
        known = _known_data(stored.origin, stored)
    else:
        known = _known_data(origin)
    resolved = resolve(config, known=known)
    cache = cache_dir(config)
    there = set(run.path.glob("*")) if run.path.is_dir() else set()
    run.path.parent.mkdir(parents=True, exist_ok=True)  # it holds other runs too
    with ExitStack() as held:
        held.enter_context(withholding(withheld_for(run, resolved, origin)))
        claim_cache(cache)
        run.claim()
        lock = held.enter_context(run_lock(run, wait=wait, listen=listen))
        run.claim()  # again: who had the lock may have given the name up
        shared = share(cache / LOCK, what=f"the cache {cache}", listen=listen)
        cache_lock = held.enter_context(shared)
        for path in temporaries(run.path):
            remove(path)
        new = not run.run_file.is_file()
        if new:
            if hint := idle_hint(resolved.config.launch):
                listen(WarningEvent(message=hint))
            run.write_run(_run_file(run, resolved, origin, carried).as_json())
        stored = read_stored(run)
        _check_same(run, stored, resolved, origin)
        if not new and not run.record_path("report").is_file():
            listen(InterruptedEvent(run=run.name, complete=run.complete_steps()))
        origins, missing = origin_chain(run, stored.origin)
        unvouched = [] if checksum_path(run.run_file).is_file() else [_UNVOUCHED]
        for line in [*unvouched, *settings_without_effect(config), *missing]:
            listen(WarningEvent(message=line))
        context = Context(
            run=run,
            resolved=resolved,
            cache=cache,
            clock=stored.clock,
            host=host,
            locks=(lock, cache_lock),
            rendezvous=held.enter_context(listening(resolved.config.launch)),
            origin=stored.origin,
            carried=stored.carried,
            origins=tuple(origins),
        )
        try:
            with (
                telling(run, host) as heard,
                kept(run, config.store, host=heard, cache=cache, wait=wait) as keeping,
            ):
                yield replace(context, host=keeping)
        except Exception as error:
            context.check_in_place()
            if isinstance(error, UserError | PartitionError) and new and not run.complete_steps():
                run.clear(keep=there)
            raise


def withheld_for(run: RunFolder, resolved: Resolved, origin: Origin | None = None) -> int:
    """Return the permission bits that nothing made by a run may have.

    They are those that its data, its model, its folder or a run that it comes from withhold from
    somebody.
    """
    config, model = resolved.config, resolved.model
    paths = [source.path or source.generate.prompts for source in config.data.sources]
    paths += [config.supervised.path if config.supervised.from_source else ""]
    template = config.model.chat_template
    paths += [template if Path(template).is_absolute() else ""]
    bits = withheld([Path(path) for path in paths if path], place=run.path)
    for folder in (run.path, model, *([Path(origin.path)] if origin else [])):
        bits |= withheld_by_folder(folder)
    return bits


def _known_data(origin: Origin | None, stored: Stored | None = None) -> dict[str, str]:
    """Return the digests of the origin's data: its normalised pairs stay, its files may change.

    An arm of a study may have other data than the one before it. ``stored``: the run itself, where
    it is there already.
    """
    if origin is None or origin.kind == "arm":
        return {}
    return (stored or read_stored(RunFolder(Path(origin.path)))).data_inputs


def _run_file(
    run: RunFolder, resolved: Resolved, origin: Origin | None, carried: Carried | None
) -> RunFile:
    told = RunFile(
        name=run.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=run_identity(resolved.config, dict(resolved.inputs)),
        inputs=dict(resolved.inputs),
        config=resolved.config.model_dump(),
        versions=machine.versions(),
    )
    more: dict[str, object] = {}
    if plugins := named_plugins(resolved.config):
        more["plugins"] = {key: f"{p.distribution} {p.version}" for key, p in plugins.items()}
    if origin:
        # A template that prints the date must print the origin's, or its tokens are not shared.
        more |= {"clock": read_stored(RunFolder(Path(origin.path))).clock, "origin": origin}
    if carried:
        more["carried"] = carried
    return told.model_copy(update=more)


def run_folder_of(config: RunConfig) -> RunFolder:
    """Return the folder of the run that ``config`` names, whether it exists or not.

    Raises:
        UserError: it has no name, or one that cannot be the name of a folder.
    """
    if not config.name:
        raise ConfigError("the run has no name: set `name` (or --name)")
    return RunFolder(Path(config.store.runs_dir).absolute() / check_run_name(config.name))


def objection(run: RunFolder, resolved: Resolved) -> str:
    """Return what `sdpo run` would object to this recipe under the name of ``run``; "": nothing.

    Raises:
        ForeignFolderError: what has the name is no run.
    """
    run.check_own()
    if not run.run_file.is_file():
        return ""
    stored = read_stored(run)
    there = replace(resolved, config=restore_machine(resolved.config, stored.config))
    try:
        _check_same(run, stored, there, stored.origin)
    except RunExistsError as error:
        return str(error)
    return ""


def _check_same(run: RunFolder, stored: Stored, resolved: Resolved, origin: Origin | None) -> None:
    """Refuse a recipe, or an origin, that the run was not made from."""
    identity = run_identity(resolved.config, dict(resolved.inputs))
    changed = differences(without_ranks(stored.identity), without_ranks(identity))
    settings = differences(stored.config.model_dump(), resolved.config.model_dump())
    lines = _named(changed, settings)
    if origin:
        given, there = (o.model_dump() if o else {} for o in (origin, stored.origin))
        lines += differences(there, given, "origin")
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise RunExistsError(
            f"run {run.name} exists and was made from something else:\n{listed}\n"
            "give this one another name (--name), or undo the change"
        )


def _named(changed: list[str], settings: list[str]) -> list[str]:
    """Return the lines of ``settings`` that belong to a changed identity, then the changed inputs.

    ``settings`` compares whole recipes, so that defaults are shown too.
    """
    prefix = "settings."
    bearing = [c.removeprefix(prefix).split(":")[0] for c in changed if c.startswith(prefix)]

    def bears(line: str) -> bool:
        field = line.split(":", maxsplit=1)[0]
        return any(f"{field}.".startswith(f"{group}.") for group in bearing)

    return [*filter(bears, settings), *(c for c in changed if not c.startswith(prefix))]
