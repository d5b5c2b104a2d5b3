"""Define what a stage's last event tells of its work: a model for each kind of stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sdpo.store.evaluations import Suites
from sdpo.store.records import ScoredRows
from sdpo.tokens.report import TokenReport
from sdpo.tokens.view import ExampleView, PairView


class StageResult(BaseModel):
    """All results of stages are of this kind."""

    model_config = ConfigDict(frozen=True)


class TokeniseResult(StageResult):
    """Tokenising the pairs found this."""

    pairs: TokenReport


class PairViewResult(StageResult):
    """A pair is shown decoded."""

    pair: PairView


class ExampleViewResult(StageResult):
    """A supervised example is shown decoded."""

    example: ExampleView


class TrialResult(StageResult):
    """A trial lists the steps whose settings were tried."""

    steps: list[int]


class ExportResult(StageResult):
    """An export says where the copy is, and its precision."""

    out: str
    dtype: str


class StepResult(StageResult):
    """A step's stage tells what it scored and published, and how long it took.

    ``scored_rows``: only of a stage that scored every pair. ``model``: the digest of what was
    published, empty where nothing was. ``timings_s``: seconds of each phase.
    """

    scored_rows: ScoredRows | None = None
    model: str
    timings_s: dict[str, float]


class MergeResult(StageResult):
    """An average of models has this digest."""

    model: str


class KlResult(StageResult):
    """A measurement of KL tells the seconds of each phase."""

    timings_s: dict[str, float]


class Served(StageResult):
    """Samples came from a server that calls itself ``name`` and ``version``.

    ``identity``: why it was the model that it was to be: its ``log-probs`` of ``compared_tokens``
    tokens are the model's, to ``mean_difference_nats`` in the mean; or ``weak``: it tells none, and
    was started on the model's folder. Such samples are not bitwise repeatable.
    """

    name: str = ""
    version: str = ""
    identity: Literal["log-probs", "weak"] = "weak"
    compared_tokens: int = 0
    mean_difference_nats: float | None = None
    prompts_as: Literal["token ids", "text"] = "token ids"
    bitwise_repeatable: Literal[False] = False

    @property
    def title(self) -> str:
        """Return what a sample is marked with."""
        return f"{self.name} {self.version}, not bitwise repeatable"


class GenerateResult(StageResult):
    """A round of samples tells of how many prompts it has some, and the seconds of each phase.

    ``no_tokens`` and ``no_room`` are prompts without: they cannot be used as tokens, or leave no
    position for an answer. ``served``: a server wrote them.
    """

    prompts: int
    no_tokens: int
    no_room: int
    tokens: int
    served: Served | None = None
    timings_s: dict[str, float]


class ScoresResult(StageResult):
    """A scoring of samples tells the seconds of each phase."""

    timings_s: dict[str, float]


class SuitesResult(StageResult):
    """A look for tasks found these."""

    suites: Suites


class EvaluateResult(StageResult):
    """An evaluation tells the seconds of each task."""

    timings_s: dict[str, float]


class CompletionsResult(StageResult):
    """A stage that had a model answer prompts tells how many answers there are."""

    answers: int


class TrackResult(StageResult):
    """A stage that fed trackers names them."""

    tools: list[str]


class JudgeResult(StageResult):
    """A stage that judged tells how many comparisons there are."""

    comparisons: int
