"""A sequence has one log-prob, whatever is beside it: neighbours, its other side, place, padding.

In every layout that the layout's check lets an architecture have, and in the rows that a GPU gets,
through FlexAttention. The ten most used architectures are tried always, the others with the slow
tests.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex

from benchmarks.small_models import MOST_USED, VOCABULARY, names, small_model
from sdpo.errors import ModelError
from sdpo.model.layouts import LAYOUTS, PromptGroup, attention
from sdpo.model.layouts.check import agrees
from sdpo.model.policy import switch_off
from sdpo.model.prepare import prepare
from sdpo.model.sequence_scorer import SequenceScorer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
CPU = torch.device("cpu")
PADDED_ALONE = {"gemma2", "falcon", "phi3+longrope"}
"""Of the most used: attention that rows of several sequences do not have, or other frequencies."""
FLEX = {"flex packed": "packed", "flex shared": "shared"}
TRIED = settings(max_examples=8, deadline=None, derandomize=True)

lengths = st.tuples(*[st.integers(1, 40)] * 3)
neighbours = st.lists(lengths, max_size=3)


@lru_cache(maxsize=2)
def scorer_of(name: str) -> SequenceScorer | str:
    """The small model of this name as a run has it; why it is refused, if it is."""
    try:
        model = small_model(name)
        switch_off(model)
        prepare(model, device=CPU)
    except ModelError as error:
        return str(error)
    return SequenceScorer(model).eval()


@lru_cache(maxsize=8)
def layouts_of(name: str) -> tuple[str, ...]:
    """The layouts that the check lets it have."""
    scorer = scorer_of(name)
    assert isinstance(scorer, SequenceScorer)
    if scorer.by_length:
        return ("padded",)  # its sequences of other frequencies are forwards of their own
    if scorer.attention == "eager":
        return ("padded",)  # no other one has that kernel
    rng = np.random.default_rng(0)
    groups = [PromptGroup(ids(rng, 20), (ids(rng, 30), ids(rng, 9))) for _ in range(2)]
    options = {"pad_token_id": 0, "device": CPU, "gradients": True}
    served = [each for each in LAYOUTS if not agrees(scorer, groups, layout=each, **options)]
    return (*served, *(flex for flex, layout in FLEX.items() if layout in served))


def ids(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(3, VOCABULARY, count).astype(np.int32)


@contextmanager
def kernel_of(layout: str) -> Iterator[None]:
    """Within it a CPU computes segments by FlexAttention where ``layout`` says so."""
    if layout not in FLEX:
        yield
        return

    def flex(query, key, value, segments, scale, _dropout, window):
        return attention._flex(query, key, value, segments, scale, window).transpose(1, 2)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow when it is not compiled
        patch.setattr(attention, "_compiled_flex", lambda: torch_flex.flex_attention)
        patch.setattr(attention, "_on_cpu", flex)
        yield


@torch.no_grad()
def logps(scorer: SequenceScorer, layout: str, groups: list[PromptGroup]) -> torch.Tensor:
    """Log-probs of all sides, ``[groups, sides]``."""
    device = "cuda" if layout in FLEX else "cpu"
    collate = LAYOUTS[FLEX.get(layout, layout)].collate
    with kernel_of(layout):
        found = scorer(collate(groups, pad_token_id=int(groups[0].prompt[0]), device=device))
    return found.view(len(groups), -1)


def check_one_value(name: str, layout: str) -> None:
    scorer = scorer_of(name)
    assert isinstance(scorer, SequenceScorer)

    @TRIED
    @given(own=lengths, others=neighbours, place=st.integers(0, 3), seed=st.integers(0, 9))
    def holds(own, others, place, seed):
        rng = np.random.default_rng(seed)
        prompt, side, other = (ids(rng, count) for count in own)
        beside = [
            PromptGroup(ids(rng, p), (ids(rng, first), ids(rng, second)))
            for p, first, second in others
        ]
        alone = float(logps(scorer, "padded", [PromptGroup(prompt, (side,))]))
        for at in (0, 1):
            sides = (side, other) if at == 0 else (other, side)
            groups = list(beside)
            groups.insert(min(place, len(beside)), PromptGroup(prompt, sides))
            found = logps(scorer, layout, groups)[min(place, len(beside)), at]
            assert abs(float(found) - alone) <= 1e-4 + 1e-6 * abs(alone)

    holds()


@pytest.mark.parametrize("layout", [*LAYOUTS, *FLEX])
@pytest.mark.parametrize("name", MOST_USED)
def test_a_sequence_of_the_most_used_architectures_has_one_value(name, layout):
    served = layouts_of(name)
    assert set(served) == ({"padded"} if name in PADDED_ALONE else {*LAYOUTS, *FLEX})
    if layout in served:
        check_one_value(name, layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in MOST_USED])
def test_a_sequence_of_every_other_architecture_has_one_value_or_the_model_is_refused(name):
    scorer = scorer_of(name)
    if isinstance(scorer, str):
        assert type(small_model(name)).__name__ in scorer, "by its name, with the reason"
        return
    for layout in layouts_of(name):
        check_one_value(name, layout)


def test_the_property_sees_a_model_that_mixes_its_rows():
    scorer = scorer_of("llama")
    assert isinstance(scorer, SequenceScorer)
    hook = scorer.model.get_decoder().register_forward_hook(
        lambda module, inputs, found: found.__setitem__(
            "last_hidden_state", found.last_hidden_state + found.last_hidden_state.mean() * 1e-2
        )
    )
    try:
        with pytest.raises(AssertionError):
            check_one_value("llama", "shared")
    finally:
        hook.remove()
