"""Make a loaded model ready to score and to train, or refuse it in this project's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.errors import ModelError, SdpoError
from sdpo.model.compared import was_compared
from sdpo.model.fused_ops import fuse
from sdpo.model.last_block import prune
from sdpo.model.randomness import check_training_mode
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate, inner_model
from sdpo.model.shares import whole
from sdpo.system.out_of_memory import first_line, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(
    policy: "PreTrainedModel",
    *,
    device: torch.device,
    fused: bool | None = None,
    scorer: SequenceScorer | None = None,
) -> list[str]:
    """Let ``policy`` use what is faster where it gives the same; return the names of what it uses.

    Call it under the training's autocast: a kernel may take no other dtype. ``fused``: whether
    anything faster may stand in for the model's own code; None: where the architecture is one that
    was compared. ``scorer``: that of ``policy``, where ranks share its weights; each calls this.

    Raises:
        ModelError: the log-probs computed here are not the model's own, it is another model in
            training, or its forward is of an unknown kind.
    """
    policy = inner_model(policy)  # adapters stand in its modules
    scorer = scorer or SequenceScorer(policy)
    with forwards_known(policy), whole(scorer):
        applied: list[str] = []
        if was_compared(policy) if fused is None else fused:
            applied = fuse(policy)
            applied += ["last block"] if prune(policy) else []
        vocabulary = policy.config.get_text_config().vocab_size
        scorer.check_head(vocabulary=vocabulary, device=device)
        check_training_mode(scorer, device=device)
    return applied


def unreached(scorer: SequenceScorer, *, device: torch.device) -> list[str]:
    """Return the parameters that train of which the log-prob of a few tokens does not depend.

    Parts for images are among them, and an indexer whose scores are only ranked: processes that add
    up gradients have to be told, or wait for them. So are adapters of a module whose weight the
    model's code reads past the module.
    """
    ids = np.arange(8, dtype=np.int32) * 7 % scorer.model.config.get_text_config().vocab_size
    batch = collate([TokenSequence(ids, 1)], pad_token_id=0).to(device)
    trained = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
    mode = scorer.training
    scorer.eval()
    with torch.enable_grad():
        found = torch.autograd.grad(scorer(batch).sum(), list(trained.values()), allow_unused=True)
    scorer.train(mode)
    return [name for name, gradient in zip(trained, found, strict=True) if gradient is None]


@contextmanager
def forwards_known(policy: "PreTrainedModel") -> Iterator[None]:
    """Turn whatever an architecture's own code raises within into one message.

    Raises:
        ModelError: something was raised that is neither this project's nor lack of memory.
    """
    try:
        yield
    except SdpoError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {first_line(error)}"
        name = type(policy).__name__
        if "BFloat16" in said and torch.is_autocast_enabled(policy.device.type):
            raise ModelError(
                f"{name} cannot be used in bf16: its own code mixes it with fp32 ({said}). Set "
                "training.precision: fp32"
            ) from error
        raise ModelError(
            f"{name} cannot be used: its forward is not one of a causal language model as it is "
            f"known here ({said})"
        ) from error
