"""List the architectures whose optimisations were compared with transformers' own code.

They are those of the table in docs/architectures.md, which ``python -m benchmarks.architectures``
measures: the norms, gated MLPs and rotary embeddings of :mod:`sdpo.model.fused_ops` and the last
block of :mod:`sdpo.model.last_block` stand in for no others. An architecture of a newer
transformers has its own code until it is in the table, even where its formulas look the same.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = """
afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba beam biogpt bitnet bloom codegen cohere
cohere2 cohere2_moe cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32
deepseek_v4 diffllama doge dots1 dots3_note_text ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text
gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid
granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 inkling2_text jais2
jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama longcat_flash mamba mamba2 mellum
mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral
mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi
phi3 qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text
recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm youtu zamba
zamba2 zaya
"""
COMPARED = frozenset(_NAMES.split())
"""Architectures are named by transformers' ``model_type`` of the text model."""


def kind_of(policy: "PreTrainedModel") -> str:
    """Return the ``model_type`` by which transformers knows the text model of ``policy``."""
    return str(policy.config.get_text_config().model_type)


def was_compared(policy: "PreTrainedModel") -> bool:
    """Return whether the architecture of ``policy`` is in the table, and not code of its own."""
    return kind_of(policy) in COMPARED and type(policy).__module__.startswith("transformers.")
