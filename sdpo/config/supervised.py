"""Define the settings of the supervised stage before step 1."""

from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import (
    BY_CONTENT,
    NO_UNIT,
    SHARE,
    InTraining,
    NotIdentity,
    ReadIf,
    SpelledOut,
    Unit,
)
from sdpo.config.group import Group
from sdpo.config.training import IN_SHARES, OF_COSINE_WITH_MIN_LR, Schedule
from sdpo.config.variables import Variables

_NOT_OF_DATA = NotIdentity("examples are prepared before any are trained on", of=("data",))
_OF_THE_EXAMPLES = NotIdentity("the digest of the examples tells it", of=("supervised",))
_FROM_THE_FIRST = SpelledOut(of=("supervised",))
_ON_ITS_SOURCE = ReadIf(settings=("from_source",), otherwise=": supervised.examples is `chosen`")


class SupervisedColumnsConfig(Group):
    """Supervised data keeps its fields at these dotted paths; an empty one is recognised."""

    messages: str = Field("", description="Column of a whole dialogue; its last turn is trained.")
    prompt: str = Field("", description="Column of the prompt (text or messages).")
    completion: str = Field("", description="Column of the answer (text or messages).")
    system: str = Field("", description="Column of the system message.")


class SupervisedConfig(Group):
    """Supervised fine-tuning comes before the first step; its output is S = M_0."""

    main_setting = "path"

    enabled: Annotated[
        bool,
        NotIdentity(
            "what is off has no identity, and what it reads tells that it is on",
            of=("data", "supervised"),
        ),
    ] = Field(False, description="Run the supervised stage (step 0).")
    examples: Annotated[Literal["chosen", "source"], _NOT_OF_DATA, _FROM_THE_FIRST] = Field(
        "chosen", description="Train on the chosen sides of all sources, or on `path`."
    )
    path: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="File, folder or hub name with `messages`, or `prompt` and `completion`; "
        "or `demo:<name>`. Used when `examples` is `source`.",
    )
    revision: Annotated[str, NotIdentity(BY_CONTENT), _ON_ITS_SOURCE] = Field(
        "", description="Branch, tag or commit of a hub data set."
    )
    subset: Annotated[str, _OF_THE_EXAMPLES, _ON_ITS_SOURCE] = Field(
        "", description="Configuration name of a hub data set."
    )
    split: Annotated[str, _OF_THE_EXAMPLES, _ON_ITS_SOURCE] = Field(
        "train", description="Split of a hub data set or saved folder."
    )
    format: Annotated[Literal["auto", "chat", "text"], _OF_THE_EXAMPLES, _ON_ITS_SOURCE] = Field(
        "auto", description="As for a preference source."
    )
    columns: Annotated[SupervisedColumnsConfig, _OF_THE_EXAMPLES, _ON_ITS_SOURCE] = Field(
        SupervisedColumnsConfig(),
        description="Where the fields of `path` are, if they are not found by themselves.",
    )
    chat_template_kwargs: Annotated[Variables, _OF_THE_EXAMPLES, _ON_ITS_SOURCE] = Field(
        {},
        title="Variables of the chat template",
        description="As for a preference source.",
    )
    fraction: Annotated[float, Unit(SHARE), _NOT_OF_DATA, _FROM_THE_FIRST] = Field(
        1.0, gt=0, le=1, description="Share of the examples to train on, drawn by the seed."
    )
    learning_rate: Annotated[float, Unit(NO_UNIT), _NOT_OF_DATA, InTraining()] = Field(
        6e-6, gt=0, description="Peak learning rate."
    )
    lr_schedule: Annotated[Schedule, _NOT_OF_DATA, InTraining()] = Field(
        "linear", title="Learning rate schedule", description="Learning rate after the warmup."
    )
    min_lr_rate: Annotated[
        float, Unit(SHARE), _NOT_OF_DATA, InTraining(), OF_COSINE_WITH_MIN_LR
    ] = Field(
        0.1,
        title="Lowest learning rate",
        ge=0,
        lt=1,
        description="Share of the peak at which `cosine_with_min_lr` ends.",
    )
    warmup_ratio: Annotated[float, Unit(SHARE), _NOT_OF_DATA, InTraining(), IN_SHARES] = Field(
        0.1, ge=0, lt=1, description="Share of the steps with warmup."
    )
    warmup_steps: Annotated[int, Unit("optimizer steps"), _NOT_OF_DATA, InTraining()] = Field(
        0, ge=0, description="Optimizer steps with linear warmup; 0: by `warmup_ratio`."
    )
    batch_size: Annotated[int, Unit("examples"), _NOT_OF_DATA, InTraining()] = Field(
        32, ge=1, description="Examples per optimizer step, all processes."
    )
    epochs: Annotated[int, Unit("passes"), _NOT_OF_DATA, InTraining()] = Field(
        1, ge=1, description="Passes over the examples."
    )
    max_steps: Annotated[int, Unit("optimizer steps"), _NOT_OF_DATA, InTraining()] = Field(
        0, ge=0, description="Optimizer steps at most; 0: as `epochs` says."
    )

    @property
    def from_source(self) -> bool:
        """Return whether the stage is enabled and trains on data of its own."""
        return self.enabled and self.examples == "source"
