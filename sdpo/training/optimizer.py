"""Make a stage's optimizer, and give its learning rate as a pure function of the step."""

import math
from typing import Any

import torch

from sdpo.config import TrainingConfig
from sdpo.config.training import IN_8_BITS


def learning_rate(step: int, *, total: int, training: TrainingConfig) -> float:
    """Return the rate of step ``step`` (from 0): linear warmup, then the schedule, as in HF."""
    warmup = training.warmup_steps or math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return training.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    match training.lr_schedule:
        case "linear":
            factor = max(0.0, 1.0 - progress)
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_min_lr":
            least = training.min_lr_rate
            factor = least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            factor = 1.0
    return training.learning_rate * factor


def make_optimizer(model: torch.nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer of what trains; vectors (biases, norms) have no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [len(getattr(p, "ds_shape", p.shape)) > 1 for p in trained]  # ZeRO-3 flattens shares
    groups = [
        {
            "params": [p for p, is_matrix in zip(trained, matrices, strict=True) if is_matrix],
            "weight_decay": training.weight_decay,
        },
        {
            "params": [p for p, is_matrix in zip(trained, matrices, strict=True) if not is_matrix],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=training.learning_rate, eps=training.adam_epsilon)
    if training.optimizer in IN_8_BITS:
        return _in_8_bits(groups, training)
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def _in_8_bits(groups: list[dict[str, Any]], training: TrainingConfig) -> torch.optim.Optimizer:
    """Make bitsandbytes' AdamW, whose moments are bytes by blocks of 256 (arXiv 2110.02861).

    Tensors of fewer than 4096 elements keep moments in fp32, as its own default has it.
    """
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    is_paged = training.optimizer == "paged_adamw_8bit"
    made: torch.optim.Optimizer = (PagedAdamW8bit if is_paged else AdamW8bit)(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )
    return made
