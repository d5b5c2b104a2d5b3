"""Read what a run's folder says of the recipe and the inputs that it was made from."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from sdpo.config import RunConfig, StoreConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError
from sdpo.plugins.recorded import check_present
from sdpo.store.kept_files import read_remote
from sdpo.store.run_file import Carried, Origin, misfit
from sdpo.store.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """This is what run.yaml says, checked.

    ``clock`` is the time that chat templates see; ``plugins`` the distributions that plug-ins were
    of, by their names in ``inputs``.
    """

    created: str
    clock: str
    identity: dict[str, JsonValue]
    inputs: dict[str, str]
    config: RunConfig
    versions: dict[str, str]
    plugins: dict[str, str]
    origin: Origin | None
    carried: Carried | None

    @property
    def data_inputs(self) -> dict[str, str]:
        """Return the digests of the data alone: pairs, examples, and prompts."""
        kinds = ("data.", "prompts.")
        return {name: digest for name, digest in self.inputs.items() if name.startswith(kinds)}


def read_stored(run: RunFolder) -> Stored:
    """Read a run's run.yaml; its folders are where the run is now.

    Raises:
        PluginError: it was made with a plug-in that is not installed.
        UserError: there is no such run, or another version of this project wrote it.
        IntegrityError: run.yaml is not what was written.
    """
    content = run.read_run()
    check_present(content.inputs, content.plugins, run.name)
    try:
        config = make_config(content.config)
    except ConfigError as error:
        raise misfit(run.run_file, content.versions, str(error)) from error
    where = {"name": run.path.name, "store": _store_now(config.store, run)}
    return Stored(
        created=content.created,
        clock=content.clock or content.created,
        identity=content.identity,
        inputs=content.inputs,
        config=_with_own_sources(config.model_copy(update=where), run),
        versions=content.versions,
        plugins=content.plugins,
        origin=content.origin,
        carried=content.carried,
    )


def stored_recipe(run: RunFolder, *, processes: int = 0) -> RunConfig:
    """Return the recipe of a run to go on with; by so many ``processes`` where they are given.

    Raises:
        ConfigError: what the run's strategy does cannot be done by so many.
        UserError: as :func:`read_stored`.
    """
    config = read_stored(run).config
    if not processes or processes == config.launch.processes:
        return config
    if config.launch.strategy == "single":
        raise ConfigError(
            f"run {config.name} was begun by one process alone (launch.strategy single), and what "
            "several share has other last bits: it goes on with one. For several, give a run of "
            f"another name launch.processes {processes}"
        )
    return make_config(config.model_dump(), overrides=[f"launch.processes={processes}"])


def _store_now(store: StoreConfig, run: RunFolder) -> StoreConfig:
    """Return where runs and caches are now.

    Of a run that was received, the folder of caches is another machine's: what it names here is not
    written to.
    """
    update = {"runs_dir": str(run.path.absolute().parent)}
    if said := read_remote(run):
        update |= {"remote": said.url} | ({"cache_dir": ""} if said.received else {})
    return store.model_copy(update=update)


def _with_own_sources(config: RunConfig, run: RunFolder) -> RunConfig:
    """Return ``config`` with the run's own rows where the run is now: it may have been moved.

    Their names are digests, so they are the same rows."""

    def moved(path: str) -> str:
        here = run.sources.absolute() / Path(path).name
        is_own = Path(path).parent.name == run.sources.name and not Path(path).exists()
        return str(here) if is_own and here.is_file() else path

    data, supervised = config.data, config.supervised
    sources = [s.model_copy(update={"path": moved(s.path)}) for s in data.sources]
    return config.model_copy(
        update={
            "data": data.model_copy(update={"sources": sources}),
            "supervised": supervised.model_copy(update={"path": moved(supervised.path)}),
        }
    )
