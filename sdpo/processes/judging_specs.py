"""Define what stages are told that draw samples of models and judge them."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from sdpo.config import TrainingConfig, WinRateConfig
from sdpo.inputs.judges import LocatedJudge
from sdpo.model_names import NamedModel
from sdpo.processes.spec import Spec
from sdpo.store.evaluations import TaskFacts


class ServeSpec(BaseModel):
    """A server is started by ``command``, and asked for ``parallel`` samples at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: tuple[str, ...]
    ready_s: float
    parallel: int


class GenerateSpec(Spec):
    """Let a model answer prompts: ``n`` samples of each.

    ``prompts`` has a pair for every prompt, ``tokens`` its token ids row by row; ``rows``: these
    alone are answered. ``so_far``: samples that were drawn already; ``out``: the table of all.
    ``serve``: a server draws them.
    """

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["generate"] = "generate"
    policy: NamedModel
    base: Path
    """This is the folder of the base model, whose tokenizer is used."""
    prompts: Path
    tokens: Path
    rows: tuple[int, ...] | None = None
    training: TrainingConfig
    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    max_tokens_total: int
    max_minutes: float
    serve: ServeSpec | None
    so_far: Path
    out: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return where the samples are, and those so far."""
        return (self.so_far, self.out)


class ScoreSpec(Spec):
    """Let a judge score samples.

    ``prompts`` has a pair for every prompt, ``samples`` their answers; ``kept``: the folder of an
    endpoint's verdicts, or of what processes have scored, so far; ``out``: the table of scores.
    """

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["score"] = "score"
    judge: LocatedJudge
    prompts: Path
    samples: Path
    kept: Path
    out: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return where the scores are, and an endpoint's words."""
        return (self.kept, self.out)


class ImplicitSpec(Spec):
    """Score samples by log(policy/start), and measure KL(policy||start) along them.

    ``kept``: the folder of what processes have scored so far.
    """

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["implicit"] = "implicit"
    policy: NamedModel
    start: NamedModel
    base: Path
    samples: Path
    training: TrainingConfig
    beta: float
    kept: Path
    out: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return where the scores are."""
        return (self.out,)


class Asked(BaseModel):
    """What suites are asked for, and how: the same for every model that they judge.

    ``names`` as in the recipe; ``task_files``: a folder of own task files, or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str]
    task_files: str
    limit: int
    chat_template: bool
    batch_size: int
    seed: int


class SuitesSpec(Spec):
    """Find the tasks that names stand for, and what their results depend on."""

    kind: Literal["suites"] = "suites"
    asked: Asked


class TaskToDo(BaseModel):
    """A task that a model is to be scored on: its facts, the result's identity and its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: TaskFacts
    identity: dict[str, JsonValue]
    out: Path


class EvaluateSpec(Spec):
    """Score a model on tasks; ``base``: the folder of the tokenizer."""

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["evaluate"] = "evaluate"
    policy: NamedModel
    base: Path
    bf16: bool
    asked: Asked
    tasks: list[TaskToDo]

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return the folders of the tasks' scores."""
        return tuple(task.out for task in self.tasks)


class CompletionsSpec(Spec):
    """Have a model answer prompts; ``base``: the folder of the tokenizer.

    ``prompts`` is a table with a row for each: ``prompt_key``, ``source``, ``prompt`` (messages),
    ``prompt_ids``. ``out`` is the folder of the answers, and of those so far.
    """

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["completions"] = "completions"
    policy: NamedModel
    base: Path
    prompts: Path
    bf16: bool
    micro_batch_tokens: int
    win_rate: WinRateConfig
    out: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return the folder of the answers."""
        return (self.out,)


class ToJudge(BaseModel):
    """The answers in ``first`` are to be compared with those in ``second``, into ``out``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: str
    first: Path
    second: Path
    identity: dict[str, JsonValue]
    out: Path


class JudgeSpec(Spec):
    """Have a judge compare answers; ``kept``: the folder of what an endpoint says."""

    uses_device: ClassVar[bool] = True
    kind: Literal["judge"] = "judge"
    judge: LocatedJudge
    todo: list[ToJudge]
    kept: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return the folders of the verdicts, and that of an endpoint's words."""
        return (*(each.out for each in self.todo), self.kept)
