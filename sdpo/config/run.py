"""Define the whole recipe: the groups together, and what they rule out together."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from sdpo.config import impossible
from sdpo.config.annotations import NotIdentity
from sdpo.config.data import DataConfig
from sdpo.config.group import Group
from sdpo.config.impossible_rounds import impossible_rounds
from sdpo.config.measuring import EvaluationConfig, ProbeConfig
from sdpo.config.model import ModelConfig
from sdpo.config.partition import PartitionConfig
from sdpo.config.reference_choice import impossible_references
from sdpo.config.running import LaunchConfig, StoreConfig, TrackingConfig
from sdpo.config.supervised import SupervisedConfig
from sdpo.config.training import StepConfig, TrainingConfig


class RunConfig(Group):
    """A recipe describes a whole run, from preference data to M_T."""

    name: Annotated[str, NotIdentity("a name is for people")] = Field(
        "", description="Name of the run; empty: the recipe's file name."
    )
    model: ModelConfig = Field(ModelConfig(), description="Base model and tokenizer.")
    data: DataConfig = Field(DataConfig(), description="Preference data.")
    supervised: SupervisedConfig = Field(
        SupervisedConfig(), description="Supervised stage before step 1."
    )
    partition: PartitionConfig = Field(PartitionConfig(), description="Pairs to steps.")
    training: TrainingConfig = Field(TrainingConfig(), description="Preference training.")
    steps: list[StepConfig] = Field(  # type: ignore[valid-type]
        [], description="Per step, in order: training settings that differ from `training`."
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Evaluation.")
    probe: ProbeConfig = Field(ProbeConfig(), description="Measurements of every model.")
    launch: LaunchConfig = Field(LaunchConfig(), description="Processes and devices.")
    store: Annotated[StoreConfig, NotIdentity("where results are kept changes none of them")] = (
        Field(StoreConfig(), description="Folders.")
    )
    tracking: Annotated[
        TrackingConfig, NotIdentity("where metrics are shown changes no result")
    ] = Field(TrackingConfig(), description="Metric trackers.")

    def training_of(self, step: int) -> TrainingConfig:
        """Return the training settings of step ``step`` (from 1), overrides applied."""
        if step > len(self.steps):
            return self.training
        overrides = self.steps[step - 1].model_dump(exclude_none=True)  # type: ignore[attr-defined]
        return TrainingConfig.model_validate(self.training.model_dump() | overrides)

    @property
    def trainings(self) -> dict[str, TrainingConfig]:
        """Return the training settings of the recipe and of each listed step, by their place."""
        return {"training": self.training} | {
            f"steps.{index}": self.training_of(index + 1) for index in range(len(self.steps))
        }

    @model_validator(mode="before")
    @classmethod
    def _hands_on_over_a_rounded_base(cls, given: object) -> object:
        """Let a recipe with a base of another precision hand adapters on, where it does not say."""
        if not isinstance(given, Mapping):
            return given
        model, training = given.get("model"), given.get("training", {})
        if not isinstance(model, Mapping) or not isinstance(training, Mapping):
            return given
        if model.get("base_precision", "fp32") == "fp32" or "lora_handoff" in training:
            return given
        return {**given, "training": {**training, "lora_handoff": "continue"}}

    @model_validator(mode="after")
    def _possible(self) -> "RunConfig":
        trainings = self.trainings
        problems = [
            *impossible.impossible_sources(self.data),
            *impossible_rounds(self.data, self.partition),
            *impossible.impossible_reserve(self.data.reserve),
            *impossible.impossible_lengths(self.data),
            *impossible.impossible_lists(self.data),
            *impossible.impossible_partition(self.partition),
            *impossible.impossible_launch(self.launch, trainings),
            *impossible.impossible_precision(trainings),
            *impossible.impossible_handoff(trainings),
            *impossible.impossible_base(self.model.base_precision, trainings),
            *impossible.impossible_held_shares(self.model.base_precision, self.launch),
            *impossible_references(trainings),
            *impossible.impossible_layouts(self.model.attention, trainings),
            *impossible.impossible_nll(trainings),
            *impossible.impossible_routers(trainings),
            *impossible.impossible_supervised(self.supervised),
            *impossible.impossible_remote(self.store.remote),
        ]
        if problems:
            raise ValueError(problems[0])
        return self
