"""Define the settings of the base model and its tokenizer."""

from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import BY_CONTENT, NotIdentity, SpelledOut, Unit
from sdpo.config.group import Group
from sdpo.config.variables import Variables


class ModelConfig(Group):
    """The base model is M_0 where there is no supervised stage."""

    main_setting = "name_or_path"

    name_or_path: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        title="Name or path",
        description="Folder of a model with its tokenizer, a Hugging Face hub name, or "
        "`demo:tiny-llama` for the tiny random model of the demo.",
    )
    revision: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "", description="Branch, tag or commit of a hub model; empty: its default branch."
    )
    chat_template: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="Path of a Jinja chat template to use instead of the tokenizer's own, or the "
        "name of one of those that the tokenizer has; empty: its default.",
    )
    chat_template_kwargs: Annotated[
        Variables, NotIdentity("the tokens have what was printed with them", of=("step",))
    ] = Field(
        {},
        title="Variables of the chat template",
        description="Variables that the chat template is given (`enable_thinking: false`), for "
        "all sources; a source's and a row's own win.",
    )
    attention: Annotated[
        Literal["sdpa", "eager", "flash_attention_2"], SpelledOut(of=("step",))
    ] = Field("sdpa", description="Attention kernel, for scoring and training alike.")
    base_precision: Literal["fp32", "bf16", "int8", "nf4"] = Field(
        "fp32",
        description="Precision in which the linear layers of the base under adapters are held; "
        "int8 and nf4 by bitsandbytes. M_0 is then the rounded model.",
    )
    max_shard_size: Annotated[
        float, Unit("GB"), NotIdentity("the same tensors, in one file or in several")
    ] = Field(
        50.0,
        title="Largest file of weights",
        gt=0,
        description="M_t is published in safetensors files of at most this size, with an index "
        "where there are several.",
    )
    trust_remote_code: Annotated[
        bool,
        NotIdentity("a model is known by its content; this is of how it is loaded", of=("step",)),
    ] = Field(
        False, description="Run Python code that comes with the model. Off unless you trust it."
    )
