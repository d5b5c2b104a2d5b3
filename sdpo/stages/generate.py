"""Let M_{t-1} answer prompts, of which pairs for step t are made.

The stage holds one model. It runs in one process on one device, whatever the steps run on.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.config.sampler import Sampler
from sdpo.events import EventWriter
from sdpo.generation.answers import Drawing, draw_answers
from sdpo.generation.sample_log import SampleLog
from sdpo.model.by_length import changes_itself
from sdpo.model.policy import load_policy
from sdpo.processes.judging_specs import GenerateSpec
from sdpo.processes.stage_results import GenerateResult
from sdpo.scoring.probes import end_tokens
from sdpo.scoring.sampling import Completion
from sdpo.stages.timings import Timings
from sdpo.system.files import publish_file
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TO_LOAD = "samples take one model: 4 bytes for each weight, and the keys and values of a batch"
_IDS = pa.list_(pa.int32())


def run(spec: GenerateSpec, events: EventWriter) -> GenerateResult:
    """Publish the table ``spec.out``: a row for each sample, by prompt."""
    torch.set_num_threads(spec.launch.threads)
    timings, device = Timings(), torch.device(spec.launch.device)
    with timings.of("load"):
        policy = _load(spec, device, events)
        tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    text_config = policy.config.get_text_config()
    positions = int(getattr(text_config, "max_position_embeddings", 0) or 0)
    tokens, keys = TokenFile.open(spec.tokens), _keys(spec)
    usable = np.flatnonzero(tokens.usable).tolist()
    prompts = [(keys[row], tokens.row(row).prompt_ids) for row in usable]
    fitting = [(key, ids) for key, ids in prompts if not positions or len(ids) < positions]
    budget = micro_batch_tokens(spec.training.micro_batch_tokens, device=device.type)
    drawing = Drawing(
        sampler=Sampler(name="round", temperature=spec.temperature, top_p=spec.top_p),
        seed=spec.seed,
        n=spec.n,
        max_new_tokens=spec.max_new_tokens,
        positions=positions,
        ends=tuple(end_tokens(policy, tokenizer)),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        device=device,
        # One at a time where what a model gives a sequence may depend on its neighbours.
        micro_batch_tokens=1 if changes_itself(policy) else budget,
    )
    total = [0]

    def progress(done: int, generated: int) -> None:
        total[0] = generated
        phase = f"samples of {spec.policy.name}"
        events.progress(phase, done, len(fitting), unit="prompts", note=f"{spec.n} samples of each")

    bf16 = spec.training.precision == "bf16"
    log = SampleLog(spec.so_far, n=spec.n)
    with (
        timings.of("sample"),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
    ):
        answers = draw_answers(policy, fitting, drawing=drawing, log=log, on_prompt=progress)
    with publish_file(spec.out) as temporary:
        pq.write_table(_table(fitting, answers, tokenizer), temporary)
    return GenerateResult(
        prompts=len(fitting),
        no_tokens=len(keys) - len(prompts),
        no_room=len(prompts) - len(fitting),
        tokens=total[0],
        timings_s=timings.rounded(),
    )


def _load(spec: GenerateSpec, device: torch.device, events: EventWriter) -> "PreTrainedModel":
    """Return the model that answers, known by its digest.

    Raises:
        ModelError: it is another model.
    """
    named = spec.policy
    events.phase("load", detail=f"{named.name} from {named.folder}")
    with short_memory_named(f"loading {named.name}", remedy=_TO_LOAD):
        policy = load_policy(named.folder, model=spec.model, digest=named.digest).to(device)
    return policy.eval().requires_grad_(False)


def _keys(spec: GenerateSpec) -> list[str]:
    keys: list[str] = pq.read_table(spec.prompts, columns=["prompt_key"])["prompt_key"].to_pylist()
    return keys


def _table(
    prompts: list[tuple[str, np.ndarray]],
    answers: list[list[Completion]],
    tokenizer: "PreTrainedTokenizerBase",
) -> pa.Table:
    """Return a row for each sample: its prompt, its number, its ids and its text."""
    rows = [
        (key, number, prompt_ids, done, _text(tokenizer, prompt_ids, done.ids))
        for (key, prompt_ids), samples in zip(prompts, answers, strict=True)
        for number, done in enumerate(samples)
    ]
    return pa.table(
        {
            "prompt_key": pa.array([key for key, *_ in rows], pa.string()),
            "sample": pa.array([number for _, number, *_ in rows], pa.int32()),
            "prompt_ids": pa.array([ids.tolist() for _, _, ids, *_ in rows], _IDS),
            "token_ids": pa.array([done.ids.tolist() for *_, done, _ in rows], _IDS),
            "text": pa.array([text for *_, text in rows], pa.string()),
            "finished": pa.array([done.finished for *_, done, _ in rows], pa.bool_()),
        }
    )


def _text(tokenizer: "PreTrainedTokenizerBase", prompt: np.ndarray, ids: np.ndarray) -> str:
    """Return the text of an answer as it stands after its prompt, with a space where one is."""
    before: str = tokenizer.decode(prompt, skip_special_tokens=True)
    whole: str = tokenizer.decode(np.concatenate([prompt, ids]), skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = tokenizer.decode(ids, skip_special_tokens=True)
    return alone
