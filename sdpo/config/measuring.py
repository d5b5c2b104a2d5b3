"""What is measured while a step trains, and of every model afterwards."""

from pydantic import Field

from sdpo.config.group import Group


class EvaluationConfig(Group):
    """Evaluation on the reserve while a step trains."""

    every: int = Field(
        0, ge=0, description="Optimizer steps between evaluations; 0: only at the end of a step."
    )


class ProbeConfig(Group):
    """What is measured of every model M_0..M_T."""

    max_pairs: int = Field(
        512, ge=1, description="Pairs of each partition on which every model is measured."
    )
    bootstrap_resamples: int = Field(
        2000, ge=100, description="Resamples of the prompt-clustered bootstrap intervals."
    )
    completions: int = Field(
        5,
        ge=0,
        description="Reserved prompts that every model completes, greedily, for the report.",
    )
    completion_tokens: int = Field(96, ge=1, description="Tokens of such a completion, at most.")
    kl_prompts: int = Field(
        0,
        ge=0,
        description="Reserved prompts on which KL(M_t||M_{t-1}) and KL(M_t||S) are measured after "
        "every step; 0: not at all. Holds two models at a time, 8 bytes per parameter.",
    )
    kl_samples: int = Field(1, ge=1, description="Completions sampled of each of these prompts.")
    kl_tokens: int = Field(256, ge=1, description="Tokens of such a completion, at most.")
    kl_paper_mode: bool = Field(
        False,
        description="Measure beside it what arXiv 2502.01237 plots: temperature 0.9, top-k 40, "
        "mean log-ratio per token.",
    )
    seed: int = Field(
        42, ge=0, description="Seed of the probe's sample, of the KL samples and of the bootstrap."
    )
