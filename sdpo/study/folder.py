"""A study's folder knows where everything of a study is: it lies beside the runs.

In it are its runs, as in any folder of runs, and ``results/``: what a comparison needs of each run,
which stays when the run goes. ``study.json`` says what kind of study it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.config import RunConfig
from sdpo.config.load import check_run_name
from sdpo.errors import ForeignFolderError, IntegrityError, UserError
from sdpo.events import Listener
from sdpo.hooks import unheard
from sdpo.store.records import first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.system import ownership
from sdpo.system.files import read_json, write_json
from sdpo.system.locks import hold

StudyKind = Literal["compare", "sweep"]
RESULTS = "results"


class StudyFile(BaseModel):
    """This is what study.json says: what the study is, and the recipe's name that it is of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: StudyKind
    recipe: str


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """A study folder gives the paths of one study."""

    path: Path

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.path.name

    @property
    def file(self) -> Path:
        """Return study.json."""
        return self.path / "study.json"

    @property
    def page(self) -> Path:
        """Return the path of the comparison, or of the sweep, as a page."""
        return self.path / "comparison.html"

    @property
    def numbers(self) -> Path:
        """Return the path of the same as JSON."""
        return self.path / "comparison.json"

    @property
    def best(self) -> Path:
        """Return the path of the best recipe of a sweep."""
        return self.path / "best.yaml"

    @property
    def journal(self) -> Path:
        """Return the path of Optuna's journal, where a sweep is a search."""
        return self.path / "optuna.journal"

    def run(self, trial: str) -> RunFolder:
        """Return the folder of a trial's run."""
        return RunFolder(self.path / trial)

    def result(self, trial: str) -> Path:
        """Return the file of what came of a trial."""
        return self.path / RESULTS / f"{trial}.json"

    def values(self, trial: str) -> Path:
        """Return the table of a trial's values by reserved pair."""
        return self.path / RESULTS / f"{trial}.parquet"

    def scores(self, trial: str) -> Path:
        """Return the table of what a trial's model scored, by document and prompt."""
        return self.path / RESULTS / f"{trial}.scores.parquet"

    def check(self, kind: StudyKind) -> None:
        """Check that the folder is a study of this ``kind``, or free to become one.

        Raises:
            ForeignFolderError: something else is there.
            UserError: it is a study of another kind.
            IntegrityError: study.json is damaged.
        """
        ownership.check(self.path, "study", proof=lambda _: False)
        found = self.read()
        if found is not None and found.kind != kind:
            raise UserError(
                f"{self.path} is a {found.kind} of {found.recipe}, and not a {kind}: give this one "
                "another name (--name)"
            )
        for name in (RESULTS,):
            if (folder := self.path / name).is_symlink():
                raise ForeignFolderError(
                    f"{folder} is a link: what a study writes stays in its own folder. Put a "
                    "folder in the link's place"
                )

    def read(self) -> StudyFile | None:
        """Return what study.json says; None before the study has begun.

        Raises:
            IntegrityError: it is damaged.
        """
        if not self.file.is_file():
            return None
        try:
            return StudyFile.model_validate(read_json(self.file))
        except ValidationError as error:
            raise IntegrityError(
                f"{self.file} has a form that this version does not know: {first_fault(error)}"
            ) from error

    @contextmanager
    def held(
        self, said: StudyFile, *, wait: bool = False, listen: Listener = unheard
    ) -> Iterator[int]:
        """Make the folder or take it up, and hold the study for this process.

        Yields the lock's file descriptor: a child that has it holds the study too.

        Raises:
            ForeignFolderError, UserError, IntegrityError: as :meth:`check`.
            InUseError: another process works on the study, and ``wait`` is false.
        """
        self.check(said.kind)
        ownership.claim(self.path, "study", proof=lambda _: False)
        lock = self.path / ownership.LOCK
        with hold(lock, what=f"study {self.name}", wait=wait, listen=listen) as handle:
            if self.read() is None:
                write_json(self.file, said.model_dump(mode="json"))
            yield handle


def study_of(config: RunConfig, *, kind: StudyKind, name: str = "") -> StudyFolder:
    """Return the folder of a study of a recipe: ``name``, or the recipe's with the kind behind it.

    Raises:
        ConfigError: it cannot be the name of a folder.
    """
    named = check_run_name(name or f"{config.name}-{kind}")
    return StudyFolder(Path(config.store.runs_dir).absolute() / named)
