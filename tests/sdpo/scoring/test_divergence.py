"""KL by its definition: against enumeration of every completion in float64, and against itself."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from sdpo.config.sampler import EXACT, PAPER, SAMPLERS
from sdpo.model.sequence_scorer import TokenSequence
from sdpo.scoring.divergence import chunk_rows, divergence
from sdpo.scoring.sampling import Prompt, pick, sample, uniforms
from sdpo.stats.kl import Estimate, kl_view

WORDS = 5
"""A vocabulary small enough to write down every completion of two tokens."""
PROMPT = np.array([3, 1, 4], dtype=np.int32)


def tiny(seed: int, *, words: int = WORDS, spread: float = 0.6) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def conditional(model, ids) -> np.ndarray:
    """log P(. | ids), float64, by the model's own logits."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return torch.log_softmax(logits, -1).numpy()


def enumerated(policy, other) -> tuple[float, dict[tuple[int, int], float]]:
    """KL of the distributions over all completions of two tokens; log-probs under the policy."""
    total, logps = 0.0, {}
    first = conditional(policy, PROMPT.tolist()), conditional(other, PROMPT.tolist())
    for word in range(WORDS):
        ids = [*PROMPT.tolist(), word]
        second = conditional(policy, ids), conditional(other, ids)
        for following in range(WORDS):
            p, q = (one[word] + two[following] for one, two in zip(first, second, strict=True))
            logps[word, following] = p
            total += np.exp(p) * (p - q)
    return float(total), logps


def measured(policy, other, completions, **options):
    sequences = [
        TokenSequence(np.concatenate([PROMPT, np.array(ids, dtype=np.int32)]), len(PROMPT))
        for ids in completions
    ]
    return divergence(
        policy,
        other,
        sequences,
        pad_token_id=0,
        device=torch.device("cpu"),
        micro_batch_tokens=64,
        **options,
    )


@pytest.mark.parametrize("seeds", [(1, 2), (7, 3)])
def test_every_estimators_expectation_is_the_enumerated_kl(seeds):
    """Weighted by the policy's probability of each completion: no sampling, hence no noise."""
    policy, other = (tiny(seed) for seed in seeds)
    truth, logps = enumerated(policy, other)
    completions = list(itertools.product(range(WORDS), repeat=2))
    found = measured(policy, other, completions)
    weights = np.exp([logps[completion] for completion in completions])
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert truth > 0.1
    for name in ("kl", "k1", "k3"):
        assert weights @ getattr(found, name) == pytest.approx(truth, rel=1e-5), name


def test_the_exact_terms_vary_less_than_the_log_ratio():
    policy, other = tiny(1), tiny(2)
    _, logps = enumerated(policy, other)
    completions = list(itertools.product(range(WORDS), repeat=2))
    found = measured(policy, other, completions)
    weights = np.exp([logps[completion] for completion in completions])

    def variance(values):
        return weights @ (values - weights @ values) ** 2

    assert variance(found.kl) < 0.25 * variance(found.k1)
    assert (found.kl > 0).all()
    assert (found.k3 >= 0).all()
    assert (found.k1 < 0).any(), "a log-ratio alone may be negative"


def test_a_model_does_not_differ_from_itself():
    policy = tiny(1)
    found = measured(policy, policy, [(0, 1), (2, 3, 4), (1,)])
    for values in (found.kl, found.k1, found.k3):
        assert values.tolist() == [0.0, 0.0, 0.0]
    assert found.tokens.tolist() == [2, 3, 1]


def test_what_is_skipped_is_left_out_of_sums_and_counts():
    policy, other = tiny(1), tiny(2)
    whole = measured(policy, other, [(2, 3, 4)])
    rest = measured(policy, other, [(2, 3, 4)], skip=1)
    first = measured(policy, other, [(2,)])
    assert rest.tokens.tolist() == [2]
    assert rest.k1 == pytest.approx(whole.k1 - first.k1, abs=1e-5)


def test_small_chunks_change_nothing(monkeypatch):
    policy, other = tiny(1), tiny(2)
    completions = [(0, 1, 2, 3), (4, 3), (1, 1, 1)]
    whole = measured(policy, other, completions)
    monkeypatch.setattr("sdpo.scoring.divergence.CHUNK_BYTES", 1)
    rows = measured(policy, other, completions)
    np.testing.assert_allclose(rows.kl, whole.kl, rtol=1e-6)
    np.testing.assert_allclose(rows.k1, whole.k1, rtol=1e-5, atol=1e-6)


class Casts(TorchDispatchMode):
    """The shapes of what is cast to another dtype within it."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_in_bf16_each_head_is_cast_once_for_all_chunks_of_a_forward(monkeypatch):
    policy, other = (tiny(seed, words=37).requires_grad_(False) for seed in (1, 2))
    monkeypatch.setattr("sdpo.scoring.divergence.CHUNK_BYTES", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        measured(policy, other, [(0, 1, 2, 3)])
    assert casts.shapes.count(tuple(policy.lm_head.weight.shape)) == 2, "once of each model"


def test_on_a_gpu_a_chunk_has_rows_enough_to_hide_that_the_head_is_read():
    assert chunk_rows(128256, device="cpu") == 5
    assert chunk_rows(128256, device="cuda") == 174


# --- samples


def prompts(count: int, *, words: int = 40) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [
        Prompt(
            key=f"{number:032x}",
            ids=rng.integers(1, words, int(rng.integers(2, 9))).astype(np.int32),
            sample=0,
        )
        for number in range(count)
    ]


def sampled(policy, asked, *, budget: int, sampler=EXACT, tokens: int = 8, ends=(0,), **options):
    settings = {"seed": 3, "positions": 32} | options
    written = sample(
        policy,
        asked,
        sampler=SAMPLERS[sampler],
        max_new_tokens=tokens,
        ends=ends,
        pad_token_id=0,
        device=torch.device("cpu"),
        micro_batch_tokens=budget,
        **settings,
    )
    return [completion.ids.tolist() for completion in written]


def test_a_sample_depends_on_prompt_and_seed_and_not_on_its_batch():
    policy, asked = tiny(1, words=40), prompts(12)
    alone = sampled(policy, asked, budget=1)
    assert sampled(policy, asked, budget=1000) == alone
    assert sampled(policy, asked[::-1], budget=60) == alone[::-1]
    assert sampled(policy, asked, budget=1, seed=4) != alone
    other = [Prompt(key=p.key, ids=p.ids, sample=1) for p in asked]
    assert sampled(policy, other, budget=1) != alone


def test_a_completion_ends_with_its_end_token_or_at_the_limit():
    written = sampled(tiny(1, words=40), prompts(12), budget=200, ends=(0, 5, 6, 7, 8, 9))
    ended = [ids for ids in written if ids[-1] in (0, 5, 6, 7, 8, 9)]
    assert 0 < len(ended) < 12
    assert all(not {0, 5, 6, 7, 8, 9} & set(ids[:-1]) for ids in written)
    assert {len(ids) for ids in written if ids not in ended} == {8}


def test_no_sequence_goes_past_the_models_positions():
    asked = prompts(6)
    written = sampled(tiny(1, words=40), asked, budget=500, ends=(), positions=12)
    assert [len(ids) for ids in written] == [min(8, 12 - len(p.ids)) for p in asked]


@torch.no_grad()
def test_what_the_model_generates_with_otherwise_is_left_aside():
    policy, asked = tiny(1, words=40), prompts(6)
    plain = sampled(policy, asked, budget=1)
    policy.generation_config.repetition_penalty = 5.0
    policy.generation_config.bad_words_ids = [[number] for number in range(1, 38)]
    assert sampled(policy, asked, budget=1) == plain
    assert policy.generation_config.repetition_penalty == 5.0


def test_tokens_are_drawn_with_their_probabilities():
    torch.manual_seed(0)
    scores = torch.randn(1, 6) * 2
    numbers = torch.linspace(0, 1, 100_001)[:-1]
    drawn = pick(scores.expand(len(numbers), -1), numbers, SAMPLERS[EXACT])
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=2e-5, rtol=0)


def test_the_papers_way_draws_from_the_tempered_forty_best():
    torch.manual_seed(0)
    scores = torch.randn(1, 100)
    numbers = torch.linspace(0, 1, 100_001)[:-1]
    drawn = pick(scores.expand(len(numbers), -1), numbers, SAMPLERS[PAPER])
    best = scores[0].topk(40).indices
    expected = torch.zeros(100)
    expected[best] = (scores[0][best] / 0.9).softmax(-1)
    shares = torch.bincount(drawn, minlength=100) / len(drawn)
    torch.testing.assert_close(shares, expected, atol=2e-5, rtol=0)


def test_a_token_without_probability_is_never_drawn():
    scores = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).expand(3, -1)
    numbers = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert set(pick(scores, numbers, SAMPLERS[EXACT]).tolist()) <= {0, 2}


def test_the_numbers_of_a_prompt_are_the_same_however_many_are_asked_for():
    prompt = prompts(1)[0]
    assert (uniforms(prompt, seed=1, tokens=4) == uniforms(prompt, seed=1, tokens=9)[:4]).all()


def test_the_average_over_samples_nears_the_enumerated_kl():
    policy, other = tiny(1), tiny(2)
    truth, _ = enumerated(policy, other)
    asked = [Prompt(key="0" * 32, ids=PROMPT, sample=number) for number in range(1500)]
    written = sampled(policy, asked, budget=2000, tokens=2, ends=())
    found = measured(policy, other, written)
    for name in ("kl", "k1", "k3"):
        values = getattr(found, name)
        error = values.std() / len(values) ** 0.5
        assert values.mean() == pytest.approx(truth, abs=4 * error), name


# --- the view


def table_of(kl, tokens, keys):
    import pyarrow as pa

    n = len(kl)
    return pa.table(
        {
            "prompt_key": keys,
            "sampler": [EXACT] * n,
            "against": ["M_0"] * n,
            "tokens": tokens,
            "finished": [True] * (n - 1) + [False],
            "kl": kl,
            "k1": [value + 1 for value in kl],
            "k3": [value / 2 for value in kl],
        }
    )


def test_the_view_gives_means_per_sequence_and_per_token_by_hand():
    table = table_of([1.0, 2.0, 6.0, 3.0], [10, 20, 60, 30], ["a", "a", "b", "c"])
    (entry,) = kl_view(table, model="M_1", resamples=200, seed=1)
    assert (entry.model, entry.against, entry.sampler) == ("M_1", "M_0", EXACT)
    assert (entry.prompts, entry.sequences, entry.tokens) == (3, 4, 120)
    assert entry.unfinished_share == 0.25
    assert entry.per_sequence["kl"].mean == 3.0
    assert entry.per_token["kl"].mean == pytest.approx(12 / 120)
    assert entry.per_sequence["k1"].mean == 4.0
    assert entry.per_sequence["k3"].mean == 1.5
    # Every sequence has the same KL per token, whichever prompts are drawn.
    assert entry.per_token["kl"].low == pytest.approx(entry.per_token["kl"].high)
    low, high = entry.per_sequence["kl"].low, entry.per_sequence["kl"].high
    assert 1.5 <= low < 3.0 < high <= 6.0


def test_with_one_prompt_there_is_no_interval():
    (entry,) = kl_view(table_of([1.0, 2.0], [5, 5], ["a", "a"]), model="M", resamples=100, seed=1)
    assert entry.per_sequence["kl"] == Estimate(mean=1.5, low=None, high=None)
