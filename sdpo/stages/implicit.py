"""Score samples by the implicit reward: beta log(M_{t-1}/S), DICE (arXiv 2406.09760), eq. 5.

Each process of the launch holds both models and scores its share of the samples. On a CPU a forward
is one sequence, so that no score depends on other samples.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.events import EventWriter
from sdpo.model.policy import load_policy
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, inner_model
from sdpo.model.share import join
from sdpo.model_names import NamedModel
from sdpo.processes.judging_specs import ImplicitSpec
from sdpo.processes.stage_results import ScoresResult
from sdpo.scoring.divergence import divergence
from sdpo.stages.shared_rows import publish_together
from sdpo.stages.timings import Timings
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TO_LOAD = "the implicit reward takes two models at a time, 8 bytes for each weight of one"
_PART = 64


def run(spec: ImplicitSpec, events: EventWriter) -> ScoresResult:
    """Publish the table ``spec.out``: ``prompt_key``, ``sample``, ``score`` and ``kl`` of each."""
    share, device = join(spec.launch)
    timings, models = Timings(), []
    with timings.of("load"):
        for named in (spec.policy, spec.start):
            models.append(_load(spec, named, device, events))
        tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    samples = pq.read_table(spec.samples)
    at = range(share.rank, samples.num_rows, share.count)
    table = samples.take(pa.array(at, pa.int64()))
    sequences = [
        TokenSequence(np.array([*prompt, *ids], dtype=np.int32), len(prompt))
        for prompt, ids in zip(
            table["prompt_ids"].to_pylist(), table["token_ids"].to_pylist(), strict=True
        )
    ]
    ratios, kls = [], []
    bf16 = spec.training.precision == "bf16"
    with timings.of("score"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(sequences), _PART):
            found = divergence(
                models[0],
                models[1],
                sequences[start : start + _PART],
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
                device=device,
                micro_batch_tokens=micro_batch_tokens(
                    spec.training.micro_batch_tokens, device=device.type
                ),
            )
            ratios.append(found.k1)
            kls.append(found.kl)
            done = min(start + _PART, len(sequences))
            phase, note = f"implicit reward of {spec.policy.name}", share.told
            events.progress(phase, done, len(sequences), unit="samples", note=note)
    scores = spec.beta * np.concatenate([*ratios, np.empty(0)])
    columns = {
        "prompt_key": table["prompt_key"],
        "sample": table["sample"],
        "score": pa.array(scores, pa.float64()),
        "kl": pa.array(np.concatenate([*kls, np.empty(0)]), pa.float64()),
    }
    publish_together(share, pa.table(columns), at, folder=spec.kept, out=spec.out)
    return ScoresResult(timings_s=timings.rounded())


def _load(
    spec: ImplicitSpec, named: NamedModel, device: torch.device, events: EventWriter
) -> "PreTrainedModel":
    """Return a model, known by its digest, with a head whose log-probs were checked.

    Raises:
        ModelError: it is another model, or treats its logits in an unknown way.
    """
    events.phase("load", detail=f"{named.name} from {named.folder}")
    with short_memory_named(f"loading {named.name}", remedy=_TO_LOAD):
        policy = load_policy(named.folder, model=spec.model, digest=named.digest).to(device)
    policy = policy.eval().requires_grad_(False)
    vocabulary = policy.config.get_text_config().vocab_size
    SequenceScorer(policy).check_head(vocabulary=vocabulary, device=device)
    return inner_model(policy)
