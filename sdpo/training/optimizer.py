"""Make a stage's optimizer, and give its learning rate as a pure function of the step."""

import math

import torch

from sdpo.config import TrainingConfig


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
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
