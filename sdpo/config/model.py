"""The base model and its tokenizer."""

from typing import Literal

from pydantic import Field

from sdpo.config.group import Group


class ModelConfig(Group):
    """The base model: M_0 where there is no supervised stage."""

    name_or_path: str = Field(
        "",
        description="Folder of a model with its tokenizer, a Hugging Face hub name, or "
        "`demo:tiny-llama` for the tiny random model of the demo.",
    )
    revision: str = Field(
        "", description="Branch, tag or commit of a hub model; empty: its default branch."
    )
    chat_template: str = Field(
        "",
        description="Path of a Jinja chat template to use instead of the tokenizer's own; "
        "empty: the tokenizer's.",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel, for scoring and training alike."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you trust it."
    )
