"""The supervised stage before step 1."""

from typing import Literal

from pydantic import Field

from sdpo.config.group import Group


class SupervisedColumnsConfig(Group):
    """Where supervised data keeps its fields, as dotted paths; empty: recognised by itself."""

    messages: str = Field("", description="Column of a whole dialogue; its last turn is trained.")
    prompt: str = Field("", description="Column of the prompt (text or messages).")
    completion: str = Field("", description="Column of the answer (text or messages).")
    system: str = Field("", description="Column of the system message.")


class SupervisedConfig(Group):
    """Supervised fine-tuning before the first step; its output is S = M_0."""

    enabled: bool = Field(False, description="Run the supervised stage (step 0).")
    examples: Literal["chosen", "source"] = Field(
        "chosen", description="Train on the chosen sides of all sources, or on `path`."
    )
    path: str = Field(
        "",
        description="File, folder or hub name with `messages`, or `prompt` and `completion`; "
        "or `demo:<name>`. Used when `examples` is `source`.",
    )
    revision: str = Field("", description="Branch, tag or commit of a hub data set.")
    subset: str = Field("", description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set or saved folder.")
    format: Literal["auto", "chat", "text"] = Field(
        "auto", description="As for a preference source."
    )
    columns: SupervisedColumnsConfig = Field(
        SupervisedColumnsConfig(),
        description="Where the fields of `path` are, if they are not found by themselves.",
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the examples to train on, drawn by the seed."
    )
    learning_rate: float = Field(6e-6, gt=0, description="Peak learning rate.")
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after the warmup."
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps with warmup.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step, all processes.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    max_steps: int = Field(0, ge=0, description="Optimizer steps at most; 0: as `epochs` says.")

    @property
    def from_source(self) -> bool:
        """Whether the stage runs on data of its own."""
        return self.enabled and self.examples == "source"
