"""Try whether a model works in the recipe's layout, before anything is scored or trained.

The trial takes some forward and backward passes of single pairs. Its result depends on the
architecture, the code, the kernels and the lengths, not on what the weights have learned: a passed
trial is noted in the cache, and neither the next step nor the next run makes it again. The gate
still compares what is trained at every step.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache

from sdpo.errors import ConfigError, ModelError
from sdpo.events import EventWriter
from sdpo.model.by_length import one_set_of_frequencies, other_frequencies
from sdpo.model.compared import was_compared
from sdpo.model.layouts import PromptGroup
from sdpo.model.layouts.check import (
    SHORT_PARTS,
    agrees,
    length_matters,
    not_alone,
    shortened,
    tried_pairs,
)
from sdpo.model.layouts.conditions import conditions
from sdpo.model.prepare import forwards_known
from sdpo.model.sequence_scorer import SequenceScorer, inner_model
from sdpo.stages.ranks import fault_of_any
from sdpo.stages.session import Session
from sdpo.store.trials import note_passed, passed_with
from sdpo.system.out_of_memory import is_out_of_memory
from sdpo.tokens.lengths import ends_of_lengths
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def settle_layout(
    session: Session, tokens: TokenFile, rows: np.ndarray, events: EventWriter
) -> None:
    """Try the layout on some pairs of ``rows``; take the plain one where it does not work.

    All ranks take the plain one where it does not work on one of them. A sharded model is tried
    without gradients: only its engine may run a backward pass.

    Raises:
        ModelError: not even the plain one works.
        ConfigError: sequences have to be computed apart by length, which ranks
            that share weights cannot.
    """
    supervised = session.spec.supervised_tokens
    examples = None if supervised is None else SupervisedTokenFile.open(supervised)
    lengths = np.array(ends_of_lengths(tokens, examples))
    if not one_set_of_frequencies(session.policy, lengths):
        _compute_by_length(session, events)
    if not len(rows):
        return
    module = session.engine()[0] if session.is_sharded else SequenceScorer(session.policy)
    groups = _tried_groups(session.policy, tokens, rows)
    kind = type(session.policy).__name__
    with session.arithmetic(), forwards_known(session.policy):
        problem = "" if session.layout == "padded" else _fault(session, module, groups)
        if problem:
            events.warning(
                f"layout {session.layout} does not suit {kind}: {problem}. "
                "Pairs are computed in two padded rows"
            )
            session.pad()
        # In bf16 rounding is too large to refuse a model for it: the gate measures it.
        if session.layout == "padded" and session.spec.training.precision != "bf16":
            problem = _fault(session, module, groups)
            if problem:
                raise ModelError(not_alone(kind, problem))


def _tried_groups(
    policy: "PreTrainedModel", tokens: TokenFile, rows: np.ndarray
) -> list[PromptGroup]:
    """Return the pairs of ``rows`` that are tried, whole where their length matters."""
    matters, known = length_matters(policy.config), was_compared(inner_model(policy))
    chosen = tried_pairs(tokens, rows, longest=2 if matters or not known else 1)
    pairs = [tokens.row(row) for row in chosen]
    groups = [PromptGroup(p.prompt_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs]
    if matters:
        return groups
    return shortened(groups, SHORT_PARTS) if known else shortened(groups)


def _compute_by_length(session: Session, events: EventWriter) -> None:
    """Compute sequences with other rotary frequencies in forwards of their own."""
    kind = type(session.policy).__name__
    if session.spec.launch.shares_weights:
        raise ConfigError(other_frequencies(kind, session.spec.launch.strategy))
    events.note(
        f"{kind} has other rotary frequencies for long sequences than for short ones: "
        "they are computed apart, in padded rows",
    )
    session.pad()


def _fault(session: Session, module: torch.nn.Module, groups: Sequence[PromptGroup]) -> str:
    """Return what is wrong with the session's layout on any rank; empty: nothing.

    A trial that was passed is not made again.
    """
    key = conditions(
        session.policy,
        layout=session.layout,
        precision=session.spec.training.precision,
        device=session.device,
        gradients=not session.is_sharded,
    )
    longest = max(len(g.prompt) + max(map(len, g.completions)) for g in groups)
    known = key is not None and passed_with(session.spec.cache, key) >= longest
    if not fault_of_any(session.accelerator, "" if known else "not tried"):
        print(f"layout {session.layout}: tried before, under the same conditions", file=sys.stderr)
        return ""
    problem, is_whole = _tried(session, module, groups)
    problem = fault_of_any(session.accelerator, problem)
    if not problem and is_whole and key is not None and session.accelerator.is_main_process:
        note_passed(session.spec.cache, key, longest)
    return problem


def _tried(
    session: Session, module: torch.nn.Module, groups: Sequence[PromptGroup]
) -> tuple[str, bool]:
    """Return what is wrong with the layout on this rank, and whether gradients were compared.

    They are left out where memory does not hold them. Those of a sharded model count as compared.
    """
    tried = partial(
        agrees,
        module,
        groups,
        layout=session.layout,
        pad_token_id=session.pad_token_id,
        device=session.device,
    )
    try:
        return tried(gradients=not session.is_sharded), True
    except RuntimeError as error:
        if session.is_sharded or not is_out_of_memory(error):
            raise
    clear_device_cache(garbage_collection=True)
    return tried(gradients=False), False
