"""Hold what the parts of a step's stage share."""

from dataclasses import dataclass
from pathlib import Path

from sdpo.events import EventWriter
from sdpo.processes.stage_specs import StepSpec
from sdpo.stages.session import Session
from sdpo.stages.timings import Timings
from sdpo.store.resume_states import SavedState
from sdpo.tokens.token_file import TokenFile


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFiles:
    """The training of a step works with these; ``saved`` is the state that it goes on from."""

    session: Session
    tokens: TokenFile
    events: EventWriter
    timings: Timings
    saved: SavedState | None = None

    @property
    def spec(self) -> StepSpec:
        """Return the stage's spec."""
        return self.session.spec

    @property
    def folder(self) -> Path:
        """Return the folder in which this stage publishes."""
        return self.spec.folder
