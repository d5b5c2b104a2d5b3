"""What a stage (a child process) is told to do: a JSON file, checked on both sides."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sdpo.config import (
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    ProbeConfig,
    SupervisedConfig,
    TrackingConfig,
    TrainingConfig,
)


class Spec(BaseModel):
    """Common to all stages. ``name`` is that of its log and event files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    run: Path
    model: ModelConfig
    launch: LaunchConfig

    @property
    def log(self) -> Path:
        """Where the stage's own output goes."""
        return self.run / "logs" / f"{self.name}.log"

    @property
    def events(self) -> Path:
        """Where the stage's events go."""
        return self.run / "logs" / f"{self.name}.events.jsonl"


class TokeniseSpec(Spec):
    """Turn pairs (and supervised examples) into token ids."""

    kind: Literal["tokenise"] = "tokenise"
    tokenizer: Path
    pairs: Path
    out: Path
    supervised: Path | None = None
    supervised_out: Path | None = None
    max_length: int
    clock: str
    end_token_ids: list[int]


class StepSpec(Spec):
    """Measure a model, train a step from it, publish and measure the result; or a part of that.

    ``step`` 0 is the supervised stage. ``input_model`` is M_{t-1}: reference and initial target.
    """

    kind: Literal["step"] = "step"
    step: int
    task: Literal["preference", "supervised", "none"]
    input_model: Path
    input_digest: str
    input_name: str
    base: Path
    """Folder of S's tokenizer."""
    tokens: Path
    pairs: Path
    usable: Path
    plan: Path | None = None
    supervised_tokens: Path | None = None
    supervised: SupervisedConfig = SupervisedConfig()
    cache: Path
    training: TrainingConfig
    evaluation: EvaluationConfig
    probe: ProbeConfig
    tracking: TrackingConfig
    measure_input: bool = False
    measure_output: bool = False
    references: list[int] = []
    """Steps whose objective reads log-probs of the model before it on their whole partition: that
    model is measured on all of it, for the values are needed anyway; else on its sample."""
    score_everything: bool = False
    """Score every usable pair under the input model: a feature that the partition needs."""
    identity: dict[str, Any] = {}
    inputs: dict[str, str] = {}


class ViewSpec(Spec):
    """Decode one pair for a person."""

    kind: Literal["view"] = "view"
    tokenizer: Path
    tokens: Path
    row: int


class ExportSpec(Spec):
    """Write a copy of a published model in another precision."""

    kind: Literal["export"] = "export"
    source: Path
    out: Path
    dtype: Literal["float32", "bfloat16", "float16"]


AnySpec = Annotated[TokeniseSpec | ViewSpec | StepSpec | ExportSpec, Field(discriminator="kind")]


def read_spec(path: Path) -> TokeniseSpec | ViewSpec | StepSpec | ExportSpec:
    """The spec in a file."""
    adapter: TypeAdapter[TokeniseSpec | ViewSpec | StepSpec | ExportSpec] = TypeAdapter(AnySpec)
    return adapter.validate_json(path.read_text(encoding="utf-8"))
