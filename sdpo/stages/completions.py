"""Have a model answer reserved prompts, for win rates. One process on one device."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.config.sampler import Sampler
from sdpo.data.reserved_prompts import ReservedRow, reserved_rows
from sdpo.data.schema import MESSAGES
from sdpo.events import EventWriter
from sdpo.model.by_length import changes_itself
from sdpo.model.policy import load_policy
from sdpo.processes.judging_specs import CompletionsSpec
from sdpo.processes.stage_results import CompletionsResult
from sdpo.scoring.probes import end_tokens
from sdpo.scoring.sampling import Completion, Prompt, sample
from sdpo.store.win_rates import COMPLETIONS
from sdpo.system.files import publish_folder
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.token_file import TokenFile

_TO_LOAD = "answering takes 4 bytes for each weight and the keys and values of a batch"


def run(spec: CompletionsSpec, events: EventWriter) -> CompletionsResult:
    """Publish ``completions.parquet`` in the folder ``spec.out``."""
    torch.set_num_threads(spec.launch.threads)
    device, win = torch.device(spec.launch.device), spec.win_rate
    events.phase("load", detail=f"{spec.policy.name} from {spec.policy.folder}")
    with short_memory_named(f"loading {spec.policy.name}", remedy=_TO_LOAD):
        policy = load_policy(spec.policy.folder, model=spec.model, digest=spec.policy.digest)
        policy = policy.to(device).eval().requires_grad_(False)
    tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    positions = int(getattr(policy.config.get_text_config(), "max_position_embeddings", 0) or 0)
    prompts, rows = _prompts(spec, positions)
    budget = micro_batch_tokens(spec.micro_batch_tokens, device=device.type)

    def answers(those: Sequence[Prompt], on_batch: Callable[[int], None]) -> list[Completion]:
        return sample(
            policy,
            those,
            sampler=Sampler(name="win_rate", temperature=win.temperature),
            seed=win.seed,
            max_new_tokens=win.max_new_tokens,
            positions=positions,
            ends=end_tokens(policy, tokenizer),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            device=device,
            micro_batch_tokens=1 if changes_itself(policy) else budget,
            on_batch=on_batch,
        )

    phase = f"answers of {spec.policy.name}"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.bf16):
        written: list[Completion] = []
        # On a CPU bits depend on what is computed together: there it is one prompt's answers.
        size = win.samples if device.type == "cpu" else len(prompts)
        for start in range(0, len(prompts), size or 1):
            written += answers(
                prompts[start : start + size],
                lambda done, start=start: events.progress(  # type: ignore[misc]
                    phase, start + done, len(prompts), unit="answers"
                ),
            )
    texts = [tokenizer.decode(done.ids, skip_special_tokens=True) for done in written]
    with publish_folder(spec.out) as temporary:
        pq.write_table(_table(prompts, rows, written, texts, spec), temporary / COMPLETIONS)
    return CompletionsResult(answers=len(written))


def _prompts(spec: CompletionsSpec, positions: int) -> tuple[list[Prompt], list[ReservedRow]]:
    """Return reserved prompts that leave room for an answer, once for each sample."""
    tokens, prompts, rows = TokenFile.open(spec.tokens), list[Prompt](), list[ReservedRow]()
    for row in reserved_rows(pq.read_table(spec.plan), count=spec.win_rate.prompts):
        ids = tokens.row(row["token_row"]).prompt_ids
        if positions and len(ids) >= positions:
            continue
        for number in range(spec.win_rate.samples):
            prompts.append(Prompt(key=row["prompt_key"], ids=ids, sample=number))
            rows.append(row)
    return prompts, rows


def _table(
    prompts: Sequence[Prompt],
    rows: Sequence[ReservedRow],
    written: Sequence[Completion],
    texts: Sequence[str],
    spec: CompletionsSpec,
) -> pa.Table:
    wanted = sorted({row["pair_id"] for row in rows})
    pairs = pq.read_table(
        spec.pairs, columns=["pair_id", "prompt"], filters=[("pair_id", "in", wanted)]
    ).to_pylist()
    messages = {pair["pair_id"]: pair["prompt"] for pair in pairs}
    return pa.table(
        {
            "prompt_key": pa.array([prompt.key for prompt in prompts], pa.string()),
            "source": pa.array([row["source"] for row in rows], pa.string()),
            "sample": pa.array([prompt.sample for prompt in prompts], pa.int32()),
            "prompt": pa.array([messages[row["pair_id"]] for row in rows], MESSAGES),
            "text": pa.array(texts, pa.string()),
            "token_ids": pa.array(
                [done.ids.astype(np.int32) for done in written], pa.list_(pa.int32())
            ),
            "finished": pa.array([done.finished for done in written], pa.bool_()),
        }
    )
