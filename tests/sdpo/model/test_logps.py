import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from sdpo.errors import ModelError
from sdpo.model.chunked_head import _logsumexp, target_logps
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate

ROWS, WIDTH, VOCABULARY = 23, 16, 64
TRANSFORMS = [
    pytest.param(1.0, 0.0, id="plain"),
    pytest.param(0.25, 0.0, id="scale"),
    pytest.param(1.0, 5.0, id="softcap"),
    pytest.param(0.5, 3.0, id="both"),
]


class Head:
    """Random inputs of a head, and its log-probs in full in float64."""

    def __init__(self, *, with_bias: bool = True, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

        self.hidden, self.weight = normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH)
        self.bias = normal(VOCABULARY) if with_bias else None
        self.targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
        self.slopes = torch.randn(ROWS, generator=generator)

    def leaves(self) -> list[torch.Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def ours(self, **transform: float) -> torch.Tensor:
        return target_logps(self.hidden, self.weight, self.targets, bias=self.bias, **transform)

    def exact(self, *, scale: float = 1.0, softcap: float = 0.0):
        """float64 log-probs and the gradients of ``(logps * slopes).sum()``."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves()]
        logits = leaves[0] @ leaves[1].T + (leaves[2] if self.bias is not None else 0.0)
        logits = logits * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        logps = torch.log_softmax(logits, -1).gather(1, self.targets[:, None]).squeeze(1)
        return logps.detach(), torch.autograd.grad((logps * self.slopes.double()).sum(), leaves)


@pytest.fixture(params=[1, 7, ROWS, 1000])
def rows_at_a_time(request, monkeypatch):
    monkeypatch.setattr("sdpo.model.chunked_head._rows", lambda vocabulary, device: request.param)
    return request.param


@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_chunked_head_is_log_softmax_whatever_the_chunk(
    rows_at_a_time, scale, softcap, with_bias
):
    head = Head(with_bias=with_bias)
    logps = head.ours(scale=scale, softcap=softcap)
    exact, _ = head.exact(scale=scale, softcap=softcap)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_its_gradients_are_those_of_autograd(rows_at_a_time, scale, softcap, with_bias):
    head = Head(with_bias=with_bias)
    (head.ours(scale=scale, softcap=softcap) * head.slopes).sum().backward()
    _, exact = head.exact(scale=scale, softcap=softcap)
    for leaf, gradient in zip(head.leaves(), exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-5, atol=1e-5)


def test_a_weight_that_does_not_train_gets_no_gradient_and_hidden_states_still_do():
    head = Head()
    _, (gradient, *_) = head.exact()
    head.weight.requires_grad_(False)
    assert head.bias is not None
    head.bias.requires_grad_(False)
    (head.ours() * head.slopes).sum().backward()
    assert head.weight.grad is None
    torch.testing.assert_close(head.hidden.grad.double(), gradient, rtol=1e-5, atol=1e-5)


def test_logits_are_not_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr("sdpo.model.chunked_head._rows", lambda vocabulary, device: 2)
    head, kept = Head(), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head.ours()
    assert kept
    assert max(kept) <= max(ROWS * WIDTH, VOCABULARY * WIDTH) < ROWS * VOCABULARY


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (3, 1000), (170, 49_152), (5, 100_003)])
def test_logits_that_are_overwritten_have_torchs_own_logsumexp_to_the_bit(rows, vocabulary, size):
    torch.manual_seed(rows)
    logits = torch.randn(rows, vocabulary) * size
    expected = torch.logsumexp(logits, -1)
    assert torch.equal(_logsumexp(logits), expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_no_number_among_logits_is_none_in_their_sum_as_torchs(value):
    logits = torch.tensor([[0.0, value, 1.0], [value, value, value], [0.0, 1.0, 2.0]])
    expected = torch.logsumexp(logits, -1)
    torch.testing.assert_close(_logsumexp(logits), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize("under", ["fp32", "autocast", "bf16"])
def test_chunks_that_share_a_place_have_the_bits_of_chunks_of_their_own(
    scale, softcap, under, monkeypatch
):
    monkeypatch.setattr("sdpo.model.chunked_head._rows", lambda vocabulary, device: 3)
    monkeypatch.setattr("sdpo.model.chunked_head._ADDED", 5)
    found = []
    for own in (False, True):
        if own:
            monkeypatch.setattr("sdpo.model.chunked_head._room", lambda rows, kernel: None)
        head = Head(with_bias=True)
        if under == "bf16":
            head.hidden = head.hidden.detach().bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=under != "fp32"):
            logps = head.ours(scale=scale, softcap=softcap)
        (logps * head.slopes).sum().backward()
        found.append([logps.detach(), *(leaf.grad for leaf in head.leaves())])
    assert all(torch.equal(shared, alone) for shared, alone in zip(*found, strict=True))


def test_bf16_hidden_states_over_fp32_weights_stay_within_bf16_rounding():
    head = Head()
    low = head.hidden.detach().bfloat16().requires_grad_()
    logps = target_logps(low, head.weight, head.targets, bias=head.bias)
    (logps * head.slopes).sum().backward()
    exact, gradients = head.exact()
    assert logps.dtype == torch.float32
    assert head.weight.grad.dtype == torch.float32
    # A logit of up to 16 is rounded to 8 bits.
    torch.testing.assert_close(logps.double(), exact, rtol=0, atol=16 * 2**-7)
    for grad, gradient in zip((low.grad, head.weight.grad), gradients, strict=False):
        error = (grad.double() - gradient).norm() / gradient.norm()
        assert error < 0.02


def sequence(*ids: int, prompt: int) -> TokenSequence:
    return TokenSequence(np.array(ids, dtype=np.int32), prompt)


def test_a_batch_by_hand():
    batch = collate([sequence(5, 6, 7, prompt=1), sequence(8, 9, prompt=1)], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.predictors.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.scored.tolist() == [2, 1]


def test_sequences_of_one_length_need_no_mask():
    assert collate([sequence(5, 6, prompt=1)] * 2, pad_token_id=0).attention_mask is None


def test_a_pad_token_inside_a_completion_is_scored():
    batch = collate([sequence(5, 0, 0, prompt=1), sequence(5, 6, 7, 8, prompt=2)], pad_token_id=0)
    assert batch.targets.tolist() == [0, 0, 7, 8]


def draw(*lengths: int, seed: int = 0) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    return [
        TokenSequence(rng.integers(0, VOCABULARY, length).astype(np.int32), max(1, length // 3))
        for length in lengths
    ]


def own_logps(model: torch.nn.Module, sequences: list[TokenSequence]) -> torch.Tensor:
    """Each sequence alone through the model's own logits, summed in float64."""
    sums = []
    for item in sequences:
        ids = torch.from_numpy(item.ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, item.prompt - 1 : -1].double()
        targets = ids[0, item.prompt :, None]
        sums.append(torch.log_softmax(logits, -1).gather(1, targets).sum())
    return torch.stack(sums)


def build(kind: type, config: type, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(config(**(common | settings))).eval()


TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, TINY),
    "llama tied": (LlamaForCausalLM, LlamaConfig, TINY | {"tie_word_embeddings": True}),
    "llama eager": (LlamaForCausalLM, LlamaConfig, TINY | {"attn_implementation": "eager"}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        TINY | {"head_dim": 4, "final_logit_softcapping": 2.0, "sliding_window": 8},
    ),
    "cohere": (CohereForCausalLM, CohereConfig, TINY | {"logit_scale": 0.25}),
    "granite": (GraniteForCausalLM, GraniteConfig, TINY | {"logits_scaling": 3.0}),
    "phi (bias)": (PhiForCausalLM, PhiConfig, TINY),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    ),
}


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    kind, config, settings = ARCHITECTURES[request.param]
    model = build(kind, config, **settings)
    if request.param == "phi (bias)":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def test_a_padded_batch_gives_what_the_model_itself_gives_each_sequence(model):
    sequences = draw(3, 11, 7, 30)
    with torch.no_grad():
        ours = SequenceScorer(model)(collate(sequences, pad_token_id=0))
        own = own_logps(model, sequences)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), own, rtol=1e-6, atol=1e-4)


def test_a_long_completion_is_summed_without_losing_digits(make_llama):
    model = make_llama(max_position_embeddings=4096)
    (sequence,) = draw(4000)
    with torch.no_grad():
        ours = SequenceScorer(model)(collate([sequence], pad_token_id=0))
        own = own_logps(model, [sequence])
    # One ulp of fp32 at -13,000 nats is 1e-3; 2,667 fp32 additions in a row lose many of them.
    torch.testing.assert_close(ours.double(), own, rtol=1e-7, atol=0)


def test_its_gradients_are_those_of_the_models_own_logits(make_llama):
    sequences = draw(5, 9, 12)
    gradients = []
    for logps in (
        lambda m: SequenceScorer(m)(collate(sequences, pad_token_id=0)),
        lambda m: own_logps(m, sequences),
    ):
        model = make_llama(tie_word_embeddings=True)
        (logps(model) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    ours, own = gradients
    assert ours.keys() == own.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], own[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_and_neighbours_do_not_change_a_row(make_llama, attention):
    scorer = SequenceScorer(make_llama(attn_implementation=attention))
    row, *others = draw(9, 40, 9, 17)
    with torch.no_grad():
        alone = scorer(collate([row], pad_token_id=0))
        for neighbours in ([others[0]], [others[1]], others, others[::-1]):
            beside = scorer(collate([*neighbours, row], pad_token_id=0))[-1:]
            torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)


def test_the_pad_token_does_not_matter(make_llama):
    scorer, sequences = SequenceScorer(make_llama()), draw(4, 9)
    with torch.no_grad():
        one, other = (scorer(collate(sequences, pad_token_id=pad)) for pad in (0, 2))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_prompt_is_context_and_not_scored(make_llama):
    scorer = SequenceScorer(make_llama())
    ids = draw(10)[0].ids
    with torch.no_grad():
        whole, later = (
            scorer(collate([TokenSequence(ids, prompt)], pad_token_id=0)) for prompt in (1, 4)
        )
        middle = scorer(collate([TokenSequence(ids[:4], 1)], pad_token_id=0))
    torch.testing.assert_close(whole, middle + later)


def test_bf16_autocast_stays_within_the_gates_tolerance(make_llama):
    model, sequences = make_llama(), draw(8, 20, 33)
    scored = torch.tensor([s.scored for s in sequences])
    with torch.no_grad():
        exact = own_logps(model, sequences)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = SequenceScorer(model)(collate(sequences, pad_token_id=0))
            own = own_logps(model, sequences)
    assert ours.dtype == torch.float32
    assert ((ours - own).abs() <= 0.05 * scored.sqrt()).all()
    assert ((ours - exact).abs() <= 0.1 * scored.sqrt()).all()


def test_the_head_of_known_architectures_passes_the_check(model):
    SequenceScorer(model).check_head(vocabulary=VOCABULARY, device=torch.device("cpu"))


class Louder(LlamaForCausalLM):
    """Does to its logits what no configuration says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


def test_a_model_that_does_something_else_to_its_logits_is_refused():
    scorer = SequenceScorer(build(Louder, LlamaConfig, **TINY))
    with pytest.raises(ModelError, match="Louder treats its logits in a way that is not known"):
        scorer.check_head(vocabulary=VOCABULARY, device=torch.device("cpu"))
