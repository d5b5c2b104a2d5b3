"""What flash-attn is given of a packed row, by transformers' own code.

Its kernel, which only a GPU has, is stood in for by one that refuses what it refuses and computes
what it computes.
"""

from functools import wraps
from typing import Any

import flash_stub
import numpy as np
import pytest
import torch
from transformers import modeling_flash_attention_utils as flash_utils

from sdpo.model.last_block import prune
from sdpo.model.layouts import LAYOUTS
from sdpo.model.sequence_scorer import SequenceScorer

from ...training_helpers.layouts import batch, pairs, small_model

Call = dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the kernel was called with."""
    found: list[Call] = []

    @wraps(flash_stub.varlen)  # transformers looks at what it takes
    def varlen(*args: Any, **options: Any) -> torch.Tensor:
        starts, longest = options["cu_seqlens_q"], options["max_seqlen_q"]
        found.append({"cu_seqlens": starts, "max_seqlen": longest})
        return flash_stub.varlen(*args, **options)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a packed row goes to the kernel for sequences of other lengths")

    kernels = (never, varlen, None, never, never)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    return found


def flash_scorer(model: Any = None) -> SequenceScorer:
    model = model or small_model("llama")
    # Whether the package is installed is asked where it is set in the usual way.
    model.config._attn_implementation = model._sdpo_attention = "flash_attention_2"
    return SequenceScorer(model)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_kernel_is_told_where_each_sequence_begins_and_how_long_the_longest_is(
    calls: list[Call], device: str, sides: int
) -> None:
    given = pairs(5, sides=sides)
    row = LAYOUTS["packed"].collate(given, pad_token_id=0, device=device)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        flash_scorer()(row)
    lengths = [len(group.prompt) + len(side) for group in given for side in group.completions]
    if padding := row.input_ids.shape[1] - sum(lengths):
        assert device == "cuda", "rows are filled up to whole blocks there"
        lengths.append(padding)
    starts = np.cumsum([0, *lengths]).tolist()
    assert len(calls) == 2, "of two layers"
    for call in calls:
        assert call["cu_seqlens"].tolist() == starts
        assert call["max_seqlen"] == max(lengths)


def test_transformers_does_not_look_for_the_sequences_in_positions(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> bool:
        raise AssertionError("a device is waited for where positions are looked at")

    monkeypatch.setattr(flash_utils, "_is_packed_sequence", looked)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        flash_scorer()(batch("packed", pairs(3)))
    assert calls


def test_log_probs_and_gradients_of_a_packed_row_are_those_of_padded_rows(
    calls: list[Call],
) -> None:
    given = pairs(4)
    plain, flash = SequenceScorer(small_model("llama")), flash_scorer()
    found = []
    for scorer, layout in ((plain, "padded"), (flash, "packed")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logps = scorer(batch(layout, given))
        (logps * torch.linspace(1, -1, len(logps))).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in scorer.parameters()])
        found.append((logps.detach(), gradient))
    assert calls
    (of_padded, plain_gradient), (of_packed, gradient) = found
    torch.testing.assert_close(of_packed, of_padded, rtol=2e-2, atol=0.3)
    assert (gradient - plain_gradient).norm() < 0.05 * plain_gradient.norm()


def test_the_block_whose_feed_forward_part_is_cut_hands_them_on_too(calls: list[Call]) -> None:
    rows, found = batch("packed", pairs(3)), []
    for cut in (False, True):
        model = small_model("llama")
        assert not cut or prune(model)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            found.append(flash_scorer(model)(rows))
    assert len(calls) == 4, "of two layers, twice"
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=0.3)
