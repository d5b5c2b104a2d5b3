"""What a stage's work came to, as its last event tells it: a model for each kind of stage."""

from pydantic import BaseModel, ConfigDict

from sdpo.store.records import ScoredRows
from sdpo.tokens.token_file import TokenReport
from sdpo.tokens.view import ExampleView, PairView


class StageResult(BaseModel):
    """Common to all results."""

    model_config = ConfigDict(frozen=True)


class TokeniseResult(StageResult):
    """What tokenising the pairs found."""

    pairs: TokenReport


class PairViewResult(StageResult):
    """A pair, decoded."""

    pair: PairView


class ExampleViewResult(StageResult):
    """A supervised example, decoded."""

    example: ExampleView


class TrialResult(StageResult):
    """The steps whose settings were tried."""

    steps: list[int]


class ExportResult(StageResult):
    """Where the copy is, and its precision."""

    out: str
    dtype: str


class StepResult(StageResult):
    """``scored_rows``: of a stage that scored every pair. ``model``: the digest of what was
    published, empty where nothing was. ``timings_s``: seconds of each phase."""

    scored_rows: ScoredRows | None = None
    model: str
    timings_s: dict[str, float]


class KlResult(StageResult):
    """Seconds of each phase of a measurement."""

    timings_s: dict[str, float]
