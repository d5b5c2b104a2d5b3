"""Every layout gives the log-probs and gradients of plain rows; no side sees the other."""

import numpy as np
import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.small_models import small_model as tiny_one
from sdpo.model.fused_ops import fuse, gated_mlp, rms_norm, rotate, silu_gate
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.layouts.check import agrees, length_matters, tried_pairs
from sdpo.model.sequence_scorer import SequenceScorer, plain_attention

from ...training_helpers.layouts import SMALL, VOCABULARY, batch, pairs, small_model
from ...training_helpers.models import preference_task, write_tokens

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
MODELS = {
    "grouped heads": {"kind": "llama"},
    "equal heads": {"kind": "llama", "num_key_value_heads": 4},
    "one key head": {"kind": "llama", "num_key_value_heads": 1},
    "norms on heads": {"kind": "qwen3", "head_dim": 16},
    "sliding window": {"kind": "mistral", "sliding_window": 7},
    "learned positions": {"kind": "gpt2"},
}


def model(name: str = "grouped heads") -> torch.nn.Module:
    return small_model(**MODELS[name])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("sides", [1, 2])
def test_values_and_gradients_are_those_of_padded_rows(name, layout, sides):
    policy = model(name)
    scorer = SequenceScorer(policy).double()
    weights = torch.linspace(1, -1, 3 * sides, dtype=torch.float64)
    found = []
    for how in ("padded", layout):
        policy.zero_grad()
        logps = scorer(batch(how, pairs(sides=sides)))
        (logps.double() * weights).sum().backward()
        found.append((logps.detach(), [p.grad.clone() for p in policy.parameters()]))
    (plain, plain_gradients), (ours, own_gradients) = found
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-5)
    for own, expected in zip(own_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_one_side_does_not_see_the_other():
    scorer = SequenceScorer(model())
    (group,) = pairs(1)
    chosen, rejected = group.completions
    changed = PromptGroup(group.prompt, ((chosen + 1) % VOCABULARY, rejected))
    with torch.no_grad():
        before, after = (scorer(batch("shared", [g])) for g in (group, changed))
    assert before[1] == after[1]
    assert before[0] != after[0]


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_rule_that_a_gpu_gets_says_the_same_as_the_segments(layout):
    segments = batch(layout, pairs(2)).segments
    tokens = len(segments.positions)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for part in segments.parts:
        queries = segments.positions[part.first : part.last, None]
        keys = segments.positions[None, part.first_key : part.last_key]
        seen[part.first : part.last, part.first_key : part.last_key] |= keys <= queries
    assert torch.equal(seen, segments.allowed())


def test_tokens_are_counted_as_they_are_laid_out():
    groups = pairs(4)
    prompts = np.array([len(group.prompt) for group in groups])
    sides = np.array([[len(side) for side in group.completions] for group in groups])
    for layout in ("packed", "shared"):
        counted = LAYOUTS[layout].tokens(prompts, sides).sum()
        assert batch(layout, groups).input_ids.numel() == counted


def test_generation_after_scoring_uses_the_models_own_attention():
    policy = model()
    prompt = torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    before = policy.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    with torch.no_grad():
        SequenceScorer(policy)(batch("shared", pairs()))
    plain_attention(policy)
    after = policy.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(before, after)


def trial(policy: torch.nn.Module) -> str:
    return agrees(
        SequenceScorer(policy),
        pairs(),
        layout="shared",
        pad_token_id=0,
        device=torch.device("cpu"),
        gradients=True,
    )


def test_a_model_that_can_share_prompts_passes_the_trial():
    assert trial(model()) == ""


def test_a_model_whose_tokens_mix_outside_attention_fails_the_trial():
    class Mixing(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            own = self.model.layers[0].mlp.forward
            self.model.layers[0].mlp.forward = lambda x: own(x) + own(x).roll(1, dims=1)

    torch.manual_seed(3)
    assert "differ" in trial(Mixing(LlamaConfig(**SMALL)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["jamba", "lfm3", "mamba2", "qwen3_next"])
def test_a_state_that_goes_on_from_row_to_row_shows_whatever_the_lengths_of_the_prompts(name):
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, count).astype(np.int32)

    policy = tiny_one(name)
    groups = [PromptGroup(ids(60), (ids(30), ids(9))) for _ in range(2)]
    options = {"pad_token_id": 0, "device": torch.device("cpu"), "gradients": False}
    assert "differ" in agrees(SequenceScorer(policy), groups, layout="packed", **options)


class Peeking(LlamaForCausalLM):
    """What a token sees depends a little on the last token of the row, so short pairs leak."""

    def __init__(self, config, *, share: float) -> None:
        super().__init__(config)
        own = self.model.layers[0].mlp.forward
        self.model.layers[0].mlp.forward = lambda x: own(x) + share * x[:, -1:]


def test_a_side_that_moves_with_the_tokens_of_another_fails_the_trial(monkeypatch):
    torch.manual_seed(3)
    policy = Peeking(LlamaConfig(**SMALL), share=0.02)
    # Even where the comparison with padded rows lets it pass, as it may in bf16.
    monkeypatch.setattr("sdpo.model.layouts.check._differ", lambda *_, **__: "")
    assert "moves by" in trial(policy)
    assert trial(model()) == ""


def test_in_a_trial_only_what_is_compared_costs_gradients(monkeypatch):
    """Matrices want gradients before and after, and also where the trial ends in an error."""
    policy, wanted = model(), []
    policy.lm_head.weight.requires_grad_(False)
    before = [p.requires_grad for p in policy.parameters()]
    own = torch.autograd.grad

    def grad(outputs, inputs, **options):
        wanted.append({p.dim() for p in policy.parameters() if p.requires_grad})
        if len(wanted) > 9:
            raise MemoryError
        return own(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    assert trial(policy) == ""
    assert wanted == [{1}] * len(wanted)
    assert [p.requires_grad for p in policy.parameters()] == before
    with pytest.raises(MemoryError):
        trial(policy)
    assert [p.requires_grad for p in policy.parameters()] == before


def test_parts_that_text_does_not_reach_do_not_end_the_trial():
    policy = model()
    policy.register_parameter("for_images", torch.nn.Parameter(torch.ones(4)))
    assert trial(policy) == ""


def test_a_compiler_that_fails_is_a_reason_for_plain_rows(monkeypatch):
    def broken(*_, **__):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C compiler"), None)

    monkeypatch.setattr("sdpo.model.layouts.attention._on_cpu", broken)
    assert "BackendCompilerFailed" in trial(model())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory")])
def test_short_memory_is_no_reason_against_a_layout(monkeypatch, error):
    def short(*_, **__):
        raise error

    monkeypatch.setattr("sdpo.model.layouts.attention._on_cpu", short)
    with pytest.raises(torch.OutOfMemoryError):
        trial(model())


@pytest.mark.parametrize(
    ("kind", "settings", "matters"),
    [
        ("llama", {}, False),
        ("qwen2", {}, False),
        ("mistral", {"sliding_window": 7}, True),
        ("gemma3_text", {"head_dim": 8}, True),
        ("llama", {"rope_parameters": DYNAMIC}, True),
    ],
)
def test_long_rows_are_tried_where_length_changes_what_a_model_does(kind, settings, matters):
    assert length_matters(small_model(kind, **settings).config) is matters


def test_the_longest_and_the_shortest_pairs_are_tried(tmp_path):
    tokens = write_tokens(tmp_path / "tokens.arrow", preference_task(9))
    rows = np.arange(9)
    lengths = tokens.prompt_lengths + tokens.chosen_lengths + tokens.rejected_lengths
    tried = tried_pairs(tokens, rows)
    assert {int(lengths.argmax()), int(lengths.argmin())} <= set(tried)
    assert len(tried) == 3
    assert tried_pairs(tokens, rows[:1]) == [0]


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_fused_functions_have_the_gradients_of_their_formulas():
    torch.manual_seed(0)
    angle = torch.rand(1, 1, 3, 8, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    assert torch.autograd.gradcheck(
        lambda x, w: rms_norm(x, w, 1e-6), (doubles(2, 3, 8), doubles(8))
    )
    assert torch.autograd.gradcheck(silu_gate, (doubles(3, 4), doubles(3, 4)))
    weights = (doubles(6, 4), doubles(6, 4), doubles(5, 6))
    assert torch.autograd.gradcheck(gated_mlp, (doubles(2, 3, 4), *weights))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (doubles(1, 2, 3, 8),))


@pytest.mark.parametrize("name", ["grouped heads", "norms on heads", "sliding window"])
def test_a_fused_model_gives_what_it_gave(name):
    policy = model(name)
    ids = torch.arange(12)[None] % VOCABULARY
    found = []
    for done in ([], ["norm", "gate", "rotary"]):
        if done:
            assert fuse(policy) == done
        policy.zero_grad()
        logits = policy(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
        found.append((logits.detach(), [p.grad.clone() for p in policy.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
