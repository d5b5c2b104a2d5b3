"""Write copies of published models: in another precision, merged, or the adapter alone."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.show.console import RunConsole
from sdpo.config import LaunchConfig, ModelConfig, RunConfig
from sdpo.config.precision import TORCH_NAMES, TorchName, torch_name
from sdpo.errors import Interrupted, SdpoError, UserError
from sdpo.history.target import locate
from sdpo.identity.adapter_folder import is_adapter
from sdpo.inputs.resolve import cache_dir
from sdpo.processes.stage_specs import ExportSpec
from sdpo.processes.supervisor import run_stage
from sdpo.promotion.versions import checked_digest
from sdpo.store.recorded import of_known_form, whole_steps
from sdpo.store.run_folder import RunFolder
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.system.files import remove
from sdpo.system.privacy import withheld_by_folder, withholding


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A copy has this form: its precision as it was given, and whether it is the adapter alone.

    ``original``: the adapter is merged onto its base as that was before it was held in fewer bits.
    """

    dtype: str = ""
    adapter: bool = False
    merge: bool = False
    original: bool = False

    def precision(self) -> TorchName:
        """Return the precision that is meant.

        Raises:
            UserError: there is none of that name, or the options contradict each other.
        """
        if self.adapter and self.merge:
            raise UserError("--adapter and --merge: a copy is the adapter alone, or merged weights")
        if self.adapter and self.original:
            raise UserError(
                "--adapter and --original-base: a copy is the adapter alone, or merged weights"
            )
        name = torch_name(self.dtype or ("float32" if self.adapter else "bfloat16"))
        if name is None:
            raise UserError(f"--dtype {self.dtype}: known are {', '.join(TORCH_NAMES)}")
        if self.adapter and name != "float32":
            raise UserError(
                f"--adapter --dtype {self.dtype}: an adapter is copied as it was published, in "
                "float32; leave out --dtype, or merge it (--merge)"
            )
        return name

    def check(self, model: Path, *, what: str) -> None:
        """Refuse what the model in the folder ``model`` has no form of.

        Raises:
            UserError: it is no adapter, and one of the options is for adapters.
        """
        named = {"--adapter": self.adapter, "--merge": self.merge, "--original-base": self.original}
        given = [option for option, is_set in named.items() if is_set]
        if not is_adapter(model) and given:
            option = given[0]
            raise UserError(
                f"{option}: {what} is weights, not an adapter: leave the option out. Steps publish "
                "adapters with training.lora_handoff: continue"
            )


def export_model(
    target: str, folder: Path, *, step: int | None, form: Form, runs_dir: Path, console: Console
) -> None:
    """Write the model of a run's step, without ``step`` the last, to a new ``folder`` in ``form``.

    Raises:
        UserError: there is no such step, precision or adapter, or the new folder exists.
        IntegrityError: the step's folder does not hold exactly what was published.
    """
    name = form.precision()
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: name a new folder")
    stored, number = exported_step(target, step=step, runs_dir=runs_dir)
    run = stored.path
    with of_known_form(run):
        config = RunConfig.model_validate(stored.read_run().config)
    with of_known_form(run):
        digest = checked_digest(stored, number)
    form.check(stored.model(number), what=f"M_{number} of run {stored.name}")
    if form.original and config.model.base_precision == "fp32":
        raise UserError(
            f"--original-base: the base of run {stored.name} was held as it is "
            "(model.base_precision: fp32), so there is no other one: leave the option out"
        )
    tokens = _tokens_of(stored, config) if form.original else None
    private = withholding(withheld_by_folder(run))
    with _scratch_logs() as logs, private, RunConsole(console) as listen:
        run_stage(
            ExportSpec(
                name=f"export-{number}",
                run=logs,
                model=ModelConfig(
                    trust_remote_code=config.model.trust_remote_code,
                    base_precision=config.model.base_precision,
                ),
                launch=LaunchConfig(device="cpu", strategy="single", threads=1),
                source=stored.model(number).absolute(),
                digest=digest,
                out=folder.absolute(),
                dtype=name,
                as_adapter=form.adapter,
                onto_original=form.original,
                usable=stored.usable.absolute() if tokens else None,
                tokens=tokens,
            ),
            listen=listen,
        )
    what = f"the adapter of M_{number}" if form.adapter else f"M_{number}"
    console.print(f"{what} in {name}: {escape(str(folder))}", highlight=False, soft_wrap=True)


def _tokens_of(run: RunFolder, config: RunConfig) -> Path | None:
    """Return the file of the run's pairs as tokens; None where it is no longer in the cache."""
    name = str(run.record("reserve").identity.get("tokens"))
    path = cached_tokens(cache_dir(config), name)
    return None if token_fault(path) else path


def exported_step(target: str, *, step: int | None, runs_dir: Path) -> tuple[RunFolder, int]:
    """Return the run that ``target`` names and the step that is meant, without ``step`` the last.

    Raises:
        UserError: there is no such run, or no such complete step.
    """
    found = locate(target, runs_dir=runs_dir, step=step)
    stored = found.run
    with of_known_form(stored.path):
        RunConfig.model_validate(stored.read_run().config)
    done = whole_steps(stored)
    number = found.step if found.step is not None else (done[-1] if done else -1)
    if number in done:
        return stored, number
    if not done:
        raise UserError(f"run {stored.name} has no complete step yet: there is no model to export")
    listed = ", ".join(map(str, done))
    raise UserError(f"run {stored.name} has no complete step {number}; complete: {listed}")


@contextmanager
def _scratch_logs() -> Iterator[Path]:
    """Give a stage that only reads a run a folder for its log, since the run may be read-only.

    The folder is kept where the stage failed, since the message names it.
    """
    folder = Path(tempfile.mkdtemp(prefix="sdpo-export-"))
    try:
        yield folder
    except (UserError, Interrupted, KeyboardInterrupt):
        remove(folder)
        raise
    except SdpoError:
        raise
    remove(folder)
