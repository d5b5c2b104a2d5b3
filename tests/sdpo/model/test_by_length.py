import numpy as np
import pytest
import torch

from sdpo.model.by_length import changes_itself, one_set_of_frequencies
from sdpo.model.layouts import PromptGroup
from sdpo.model.sequence_scorer import SequenceScorer

from ..training_helpers.layouts import VOCABULARY, batch, small_model
from ..training_helpers.models import tiny_llama

BORDER = 16
KINDS = {
    "longrope": lambda: small_model(
        "phi3",
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=BORDER,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.5, 3.0, 6.0, 12.0],
            "original_max_position_embeddings": BORDER,
        },
    ),
    "dynamic": lambda: small_model(
        "llama",
        max_position_embeddings=BORDER,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    ),
}


def random_pairs(seed: int, *, lengths: tuple[int, ...]) -> list[PromptGroup]:
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, count).astype(np.int32)

    each = iter(lengths)
    return [PromptGroup(ids(next(each)), (ids(next(each)), ids(next(each)))) for _ in range(4)]


def alone(model, group: PromptGroup, side: int) -> float:
    """What the model's own logits say of one sequence, asked for nothing before."""
    ids = np.concatenate([group.prompt, group.completions[side]])
    logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
    taken = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]
    return float(taken[len(group.prompt) - 1 :].sum())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sequences_on_both_sides_of_the_border_are_what_they_are_alone(kind):
    groups = random_pairs(1, lengths=(4, 5, 30, 9, 7, 8, 20, 3, 14, 12, 4, 5))
    expected = [alone(KINDS[kind](), g, side) for g in groups for side in (0, 1)]
    scorer = SequenceScorer(KINDS[kind]())
    assert scorer.by_length
    for _ in range(2):  # the second time it remembers the longest of the first
        found = scorer(batch("padded", groups))
        np.testing.assert_allclose(found, expected, atol=2e-4)
    backwards = scorer(batch("padded", groups[::-1])).view(-1, 2).flip(0).flatten()
    np.testing.assert_allclose(backwards, expected, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_sequences_alone(kind):
    groups = random_pairs(2, lengths=(4, 5, 30, 9, 7, 8, 20, 3, 14, 12, 4, 5))
    weights, gradients = torch.linspace(1, -1, 8), []
    for parts in ([groups], [[PromptGroup(g.prompt, (s,))] for g in groups for s in g.completions]):
        scorer = SequenceScorer(KINDS[kind]())
        logps = torch.cat([scorer(batch("padded", part)) for part in parts])
        (logps * weights).sum().backward()
        gradients.append([p.grad for p in scorer.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "lengths", "one"),
    [
        ("longrope", (3, 16), True),
        ("longrope", (17, 60), True),
        ("longrope", (16, 17), False),
        ("dynamic", (3, 16), True),
        ("dynamic", (17, 18), False),
        ("dynamic", (17, 17), True),
    ],
)
def test_lengths_that_have_the_same_frequencies(kind, lengths, one):
    assert one_set_of_frequencies(KINDS[kind](), np.array(lengths)) is one


def test_a_model_of_fixed_frequencies_has_one_set_for_all():
    assert one_set_of_frequencies(tiny_llama(), np.array([1, 100_000]))


def test_rotary_frequencies_that_follow_the_length_are_written_by_every_forward():
    fixed = {"rope_type": "default", "rope_theta": 10000.0}
    assert not changes_itself(tiny_llama(rope_parameters=fixed))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert changes_itself(tiny_llama(rope_parameters=dynamic))
