"""Save a training and let it go on: resume states of one step.

A state is saved at optimizer boundaries only, by minutes or steps, and when the process was asked
to stop. All ranks agree on it: they exchange a word after each step.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError

from sdpo.config import TrainingConfig
from sdpo.errors import Fault, Interrupted
from sdpo.events import EventWriter, StateEvent
from sdpo.model.share import Share, share_of
from sdpo.stages.training_state import Held, load_training, save_training
from sdpo.store import resume_states
from sdpo.store.records import StepFacts
from sdpo.store.resume_states import SavedState
from sdpo.system import interrupts, machine
from sdpo.system.files import file_digest, publish_file, publish_folder
from sdpo.system.json_values import JsonObject
from sdpo.system.seen import ExpectedFile, see
from sdpo.training.progress import Progress
from sdpo.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS = "metrics.jsonl"
_SHARE_OF_TIME = 0.05
"""Saving may take this share of the time of a training, where it goes by minutes."""
_BYTES_PER_S = 200e6
"""A state is taken to be written this fast, until one was."""


def find(
    step: Path, *, key: Mapping[str, str], accelerator: "Accelerator", events: EventWriter
) -> SavedState | None:
    """Return the state that the step can go on from, the same on all ranks; warn of faults."""
    found: SavedState | None = None
    if accelerator.is_main_process:
        found, faults = resume_states.find_state(step, key=key)
        for fault in faults:
            instead = f"optimizer step {found.optimizer_step}" if found else "its beginning"
            events.warning(f"{fault}: {step.name} goes on from {instead}")
    saved = share_of(accelerator).of_first(found)
    if saved:
        for change in _other_versions(saved):
            events.warning(f"{step.name} goes on with other software: {change}")
    return saved


def _other_versions(saved: SavedState) -> list[str]:
    now = machine.versions()
    then = saved.content.versions
    return [
        f"{name} {then.get(name)} -> {version}"
        for name, version in now.items()
        if then.get(name) != version
    ]


@dataclass(slots=True, kw_only=True)
class Checkpoints:
    """Checkpoints are the states of one training.

    ``folder`` is the step's, ``key`` the digests of what the states belong to, ``facts`` what the
    step's record will need and a resumed step does not measure again. ``wait`` waits for the other
    ranks, however long one of them writes.
    """

    trainer: Trainer
    folder: Path
    key: Mapping[str, str]
    facts: StepFacts
    timings_s: Callable[[], Mapping[str, float]]
    events: EventWriter
    held: Held
    wait: Callable[[], None] = lambda: None
    _saved_at: int = field(default=0, init=False)
    _saved_s: float = field(default_factory=time.monotonic, init=False)
    _boundary_s: float = field(default_factory=time.monotonic, init=False)
    _step_s: float = field(default=math.inf, init=False)
    _save_s: float = field(default=0.0, init=False)

    @property
    def _training(self) -> TrainingConfig:
        return self.trainer.training

    @property
    def _accelerator(self) -> "Accelerator":
        return self.trainer.accelerator

    @property
    def _share(self) -> Share:
        return share_of(self._accelerator)

    def restore(self, saved: SavedState) -> None:
        """Put the training and ``metrics.jsonl`` back to where ``saved`` was written."""
        ranks = load_training(self.trainer, saved.folder, held=self.held)
        if ranks != self._accelerator.num_processes:
            self.events.note(
                f"{self.folder.name} goes on with {self._accelerator.num_processes} processes from "
                f"a state of {ranks}: the same training, but for the last bits of its sums"
            )
        progress: Progress = self.trainer.progress
        progress.step = self._saved_at = saved.optimizer_step
        if self._accelerator.is_main_process:
            with publish_file(self.folder / METRICS) as temporary:
                shutil.copyfile(saved.folder / METRICS, temporary)
        total = saved.content.total
        self._tell("resume", saved.optimizer_step, total)

    def _tell(self, event: Literal["checkpoint", "resume"], number: int, total: int) -> None:
        name = self.folder.name
        self.events.emit(StateEvent(event=event, step=name, optimizer_step=number, total=total))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Surround the training loop: a request to stop waits for the next boundary."""
        self._saved_s = self._boundary_s = time.monotonic()
        with interrupts.deferred(self._fits):
            yield

    def after_step(self, number: int, total: int) -> None:
        """Save after optimizer step ``number`` if it is time.

        Raises:
            Interrupted: this process was asked to stop; the state is saved.
        """
        self._step_s = time.monotonic() - self._boundary_s
        stop, due = self._agreed(number)
        if number != self._saved_at and (stop or (due and number < total)):
            self._save(number, total)
        self._boundary_s = time.monotonic()
        if stop:
            raise Interrupted(f"{self.folder.name} stopped after optimizer step {number}")

    def _fits(self, seconds: float) -> bool:
        """Return whether the running optimizer step and a save are done within ``seconds``."""
        running_s = max(0.0, self._step_s - (time.monotonic() - self._boundary_s))
        return running_s + (self._save_s or self._bytes() / _BYTES_PER_S) <= seconds

    def _agreed(self, number: int) -> tuple[bool, bool]:
        """Return whether any rank was asked to stop, and whether the main rank finds a save due."""
        stop, due = bool(interrupts.requested()), self._due(number)
        if self._accelerator.num_processes == 1:
            return stop, due
        due = due and self._accelerator.is_main_process
        flags = torch.tensor([stop, due], dtype=torch.float32, device=self._accelerator.device)
        stops, dues = self._accelerator.reduce(flags, "sum").tolist()
        return stops > 0, dues > 0

    def _due(self, number: int) -> bool:
        training = self._training
        if training.checkpoint_every and number % training.checkpoint_every == 0:
            return True
        interval_s = max(training.checkpoint_minutes * 60, self._save_s / _SHARE_OF_TIME)
        waited_s = time.monotonic() - self._saved_s
        return training.checkpoint_minutes > 0 and waited_s >= interval_s

    def _save(self, number: int, total: int) -> None:
        """Publish a state; warn of what keeps it from being saved, and let the training go on."""
        start = time.monotonic()
        fault = self._publish(number, total)
        self._save_s = time.monotonic() - start
        self._saved_s = time.monotonic()
        if fault:
            self.events.warning(
                f"the resume state after optimizer step {number} could not be saved ({fault})"
            )
            return
        self._saved_at = number
        if self._accelerator.is_main_process:
            resume_states.keep_newest(self.folder, keep=self._training.checkpoints_kept)
        self._tell("checkpoint", number, total)

    def _publish(self, number: int, total: int) -> str:
        """Write a state together with the other ranks; return what went wrong on any of them."""
        fault = ""
        try:
            with ExitStack() as stack:
                folder = self._share.of_first(self._begin(stack, number))
                shares = self._shares(folder)
                if faults := [share for share in shares if isinstance(share, str)]:
                    raise _NotSaved(faults[0])
                if isinstance(folder, Path) and self._accelerator.is_main_process:
                    shutil.copyfile(self.folder / METRICS, folder / METRICS)
                    digests = {
                        n: d
                        for share in shares
                        if not isinstance(share, str)
                        for n, d in share.items()
                    }
                    digests[METRICS] = file_digest(folder / METRICS)
                    resume_states.seal(folder, self._content(number, total), digests)
        except (_NotSaved, OSError) as error:
            fault = str(error)
        self.wait()
        return self._share.of_first(fault)

    def _begin(self, stack: ExitStack, number: int) -> Path | str:
        """Return the main rank's folder that is the state once ``stack`` ends well, or why not."""
        if not self._accelerator.is_main_process:
            return ""
        try:
            target = resume_states.state_folder(self.folder, number)
            return stack.enter_context(publish_folder(target, replace=True))
        except OSError as error:
            return str(error)

    def _shares(self, folder: Path | str) -> list[dict[str, str] | str]:
        """Return every rank's file digests by name, or in place of them what went wrong."""
        share: dict[str, str] | str
        if isinstance(folder, str):
            share = folder
        else:
            try:
                see([ExpectedFile(path=folder)])
                names = save_training(self.trainer, folder, held=self.held)
                share = {name: file_digest(folder / name) for name in names}
            except (OSError, SafetensorError, Fault) as error:
                share = str(error)
        self.wait()
        return self._share.of_all(share)

    def _content(self, number: int, total: int) -> JsonObject:
        return {
            "key": dict(self.key),
            "optimizer_step": number,
            "total": total,
            "facts": self.facts.model_dump(mode="json", exclude_unset=True),
            "timings_s": dict(self.timings_s()),
            "versions": machine.versions(),
        }

    def _bytes(self) -> int:
        """Return about how many bytes a state has: trained weights with two moments in fp32."""
        trained = [p for p in self.trainer.scorer.parameters() if p.requires_grad]
        numbers: int = sum(p.numel() for p in trained)
        return 3 * 4 * numbers


class _NotSaved(Exception):
    """A rank could not write its share; the others give up theirs."""
