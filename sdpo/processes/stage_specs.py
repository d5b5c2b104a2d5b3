"""Define what a stage (a child process) is told to do: a JSON file, checked on both sides."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

from sdpo.config import (
    EvaluationConfig,
    ProbeConfig,
    SupervisedConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.config.precision import TorchName
from sdpo.data.planned import Planned, StepData
from sdpo.errors import Fault
from sdpo.model_names import NamedModel
from sdpo.processes.judging_specs import (
    CompletionsSpec,
    EvaluateSpec,
    GenerateSpec,
    ImplicitSpec,
    JudgeSpec,
    ScoreSpec,
    SuitesSpec,
)
from sdpo.processes.spec import Spec
from sdpo.store.budget import Budget


class TokeniseSpec(Spec):
    """Turn pairs (and supervised examples) into token ids."""

    kind: Literal["tokenise"] = "tokenise"
    tokenizer: Path
    pairs: Path
    out: Path
    supervised: Path | None = None
    supervised_out: Path | None = None
    max_length: int
    max_prompt_length: int = 0
    clock: str
    end_token_ids: list[int]


class ReferenceSpec(BaseModel):
    """A reference that is not the model a step starts from has its log-probs in the cache already.

    ``tokens``: the pairs as its own tokenizer cuts them, where that is not the run's: those of the
    run, then those that steps have of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    tokens: tuple[Path, ...] = ()


Phase = Literal[
    "score_everything",
    "score_as_reference",
    "reference",
    "measure",
    "measure_own",
    "preference",
    "supervised",
]
"""A phase is what a stage does with the model that it has loaded.

``score_everything``: score every usable pair, a feature that the partition needs.
``score_as_reference``: score D_step and the reserve as the reference that another stage will read,
and check the cache. ``reference``: read D_step under the stage's own reference from the cache, and
score what is missing. ``measure``: publish the probe of the model in memory, which after training
is M_step. ``measure_own``: publish its probe on what D_step has of its own. ``preference``,
``supervised``: train on D_step or on examples, and publish.
"""


class StepSpec(Spec):
    """Measure a model, train a step from it, publish and measure the result, or do a part of that.

    ``phases`` says what is done, in order. ``step`` 0 is the supervised stage. ``input_model`` is
    the initial target, and the reference too unless ``reference`` names another.
    """

    uses_device: ClassVar[bool] = True
    in_processes: ClassVar[bool] = True
    kind: Literal["step"] = "step"
    step: int
    phases: tuple[Phase, ...]
    input_model: Path
    input_digest: str
    input_name: str
    base: Path
    """The tokenizer is in this folder: the base model's, or that of a reference which is scored."""
    tokens: Path
    pairs: Path
    usable: Path
    plan: Path | None = None
    own: tuple[StepData, ...] = ()
    """Steps up to this one have these pairs of their own beside those of the run."""
    supervised_tokens: Path | None = None
    supervised: SupervisedConfig = SupervisedConfig()
    cache: Path
    training: TrainingConfig
    evaluation: EvaluationConfig
    probe: ProbeConfig
    tracking: TrackingConfig
    reference: ReferenceSpec | None = None
    models: dict[str, dict[str, str]] = Field(default_factory=dict)
    """The record tells these choices of reference and target, and what they stand for."""
    references: list[int] = Field(default_factory=list)
    """These steps read log-probs of the model before them on their whole partition.

    Such a model is measured on all of that partition, since the values are needed anyway; others
    are measured on its sample.
    """
    identity: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    budget: Budget | None = None
    """The replayed run had settled so many tokens in a micro-batch; None: it had settled none."""

    @model_validator(mode="after")
    def _phases_follow(self) -> Self:
        training = [phase for phase in self.phases if phase in ("preference", "supervised")]
        if len(training) > 1:
            raise ValueError("a stage trains once")
        if "preference" in training and "reference" not in self.before:
            raise ValueError("what is compared is scored before it is trained")
        return self

    @property
    def trains(self) -> Literal["preference", "supervised"] | None:
        """Return how the stage trains; None where it does not."""
        kinds: tuple[Literal["preference", "supervised"], ...] = ("preference", "supervised")
        return next((kind for kind in kinds if kind in self.phases), None)

    @property
    def before(self) -> tuple[Phase, ...]:
        """Return the phases that see the input model."""
        return self.phases[: self.phases.index(self.trains)] if self.trains else self.phases

    @property
    def after(self) -> tuple[Phase, ...]:
        """Return the phases that see the model that the stage publishes."""
        return self.phases[len(self.before) + 1 :]

    @property
    def planned(self) -> Planned:
        """Return the plan with what steps have of their own, for a stage that cannot do without.

        Raises:
            Fault: it was told of none.
        """
        if self.plan is None:
            raise Fault(f"{self.name} is to work by a plan and was told of none")
        return Planned(plan=self.plan, pairs=self.pairs, own=self.own)

    @property
    def token_files(self) -> tuple[Path, ...]:
        """Return the token files, whose rows together are numbered as in :attr:`planned`."""
        return (self.tokens, *(data.tokens for data in self.own))

    @property
    def needed_supervised_tokens(self) -> Path:
        """Return the token ids of the supervised source, for a stage that cannot do without.

        Raises:
            Fault: it was told of none.
        """
        if self.supervised_tokens is None:
            raise Fault(f"{self.name} is to train on a source and was told of no tokens of it")
        return self.supervised_tokens

    @property
    def folder(self) -> Path:
        """Return the folder in which a stage that trains publishes (``step-2``, ``guide-2``)."""
        return self.run / self.name


class MergeSpec(Spec):
    """Publish the average of models' weights in the folder ``out``; ``base``: S's tokenizer."""

    kind: Literal["merge"] = "merge"
    models: list[NamedModel]
    base: Path
    out: Path


class KlSpec(Spec):
    """Sample from a model, and measure KL to others along the samples."""

    uses_device: ClassVar[bool] = True
    kind: Literal["kl"] = "kl"
    policy: NamedModel
    others: list[NamedModel]
    base: Path
    """This is the folder of the base model, whose tokenizer is used."""
    tokens: Path
    plan: Path
    training: TrainingConfig
    probe: ProbeConfig
    samplers: list[str]
    out: Path

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return the folder of what was measured."""
        return (self.out,)


class ViewSpec(Spec):
    """Decode one pair, or one supervised example, for a person."""

    kind: Literal["view"] = "view"
    tokenizer: Path
    tokens: Path
    row: int
    supervised: bool = False


class ModulesSpec(Spec):
    """Try what steps ask of the model's modules, before anything is trained.

    ``lengths``: tokens of the shortest and of the longest sequence that will be computed.
    """

    kind: Literal["modules"] = "modules"
    source: Path
    trainings: dict[int, TrainingConfig]
    lengths: list[int]


class ObjectivesSpec(Spec):
    """Try the objectives of plug-ins on a few numbers, before anything is trained."""

    kind: Literal["objectives"] = "objectives"
    trainings: dict[int, TrainingConfig]


class ExportSpec(Spec):
    """Write a copy of a published model in another precision.

    ``as_adapter``: copy the adapter that was published as it is; else it is merged into its base.
    ``onto_original``: into the base as it was before its layers were held in fewer bits; what that
    changes is measured on pairs of ``usable`` with their ``tokens``, where both are given.
    """

    kind: Literal["export"] = "export"
    source: Path
    digest: str = ""
    """The source must have this digest, where it is known which model it has to be."""
    out: Path
    dtype: TorchName
    as_adapter: bool = False
    onto_original: bool = False
    usable: Path | None = None
    tokens: Path | None = None

    @property
    def output(self) -> Path:
        """Return the new folder: the run itself is only read."""
        return self.out


class TrackSpec(Spec):
    """Tell trackers what the chain measured.

    ``scalars``: numbers of M_t by t; ``summary``: the report in short, Markdown; ``report``: the
    page that goes along as an artifact, or None.
    """

    kind: Literal["track"] = "track"
    tracking: TrackingConfig
    settings: dict[str, JsonValue]
    scalars: dict[int, dict[str, float]]
    summary: str
    report: Path | None


StageSpec = (
    TokeniseSpec
    | ViewSpec
    | ModulesSpec
    | ObjectivesSpec
    | StepSpec
    | MergeSpec
    | KlSpec
    | GenerateSpec
    | ScoreSpec
    | ImplicitSpec
    | SuitesSpec
    | EvaluateSpec
    | CompletionsSpec
    | JudgeSpec
    | ExportSpec
    | TrackSpec
)
AnySpec = Annotated[StageSpec, Field(discriminator="kind")]


def read_spec(path: Path) -> StageSpec:
    """Return the spec in a file."""
    adapter: TypeAdapter[StageSpec] = TypeAdapter(AnySpec)
    return adapter.validate_json(path.read_text(encoding="utf-8"))
