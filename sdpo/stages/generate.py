"""Let M_{t-1} answer prompts, of which pairs for step t are made.

Each process of the launch holds the model and answers its share of the prompts; on a CPU samples do
not depend on how many there are. Where a server answers, one process asks it: the model is looked
at before the server starts, and is not in memory while it serves.
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.config.automatic import micro_batch_tokens
from sdpo.config.sampler import Sampler
from sdpo.events import EventWriter
from sdpo.generation.answers import Drawing, draw_answers
from sdpo.generation.ceiling import Ceiling
from sdpo.generation.completions_client import CompletionsClient
from sdpo.generation.sample_log import Answer, SampleLog, samples_in
from sdpo.generation.served_answers import Asking, draw_served
from sdpo.generation.served_model import Agreement, Expected, check_served, expected
from sdpo.generation.server import Server, served
from sdpo.model.by_length import changes_itself
from sdpo.model.policy import load_policy
from sdpo.model.share import Share, join
from sdpo.processes.judging_specs import GenerateSpec, ServeSpec
from sdpo.processes.stage_results import GenerateResult, Served
from sdpo.scoring.probes import end_tokens
from sdpo.stages.timings import Timings
from sdpo.system.files import publish_file, temporary_folder, write_text
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.token_file import TokenFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TO_LOAD = "samples take one model: 4 bytes for each weight, and the keys and values of a batch"
_IDS = pa.list_(pa.int32())
Prompts = list[tuple[str, np.ndarray]]


def run(spec: GenerateSpec, events: EventWriter) -> GenerateResult:
    """Publish the table ``spec.out``: a row for each sample, by prompt."""
    share, device = join(spec.launch)
    round_ = _Round(spec, events, share, device)
    round_.draw()
    drawn, written = share.seen_by_all([round_.own]), {}
    if share.is_first:
        written = samples_in(sorted({*_logs(spec), *drawn}), n=spec.n)
        answers = [written[key] for key, _ in round_.prompts]
        with publish_file(spec.out) as temporary:
            pq.write_table(_table(round_.prompts, answers, round_.tokenizer), temporary)
    share.wait()
    return round_.result(written)


def _logs(spec: GenerateSpec) -> list[Path]:
    """Return the files of samples so far, one of each process that has drawn any."""
    return sorted(spec.so_far.parent.glob(f"{spec.so_far.stem}*.jsonl"))


class _Round:
    """A round has a model, which is loaded, and prompts that leave it room for an answer.

    ``mine`` are those that this process answers, into its log ``own``.
    """

    def __init__(
        self, spec: GenerateSpec, events: EventWriter, share: Share, device: torch.device
    ) -> None:
        self.spec, self.events, self.timings = spec, events, Timings()
        self.share, self.device = share, device
        self.tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
        self.own = spec.so_far.with_name(share.named(spec.so_far.name))
        others = [path for path in _logs(spec) if path != self.own]
        self.log = SampleLog(self.own, n=spec.n, others=others)
        self.ceiling = Ceiling(
            tokens=spec.max_tokens_total, minutes=spec.max_minutes, processes=share.count
        )
        self.served = _last_server(spec)
        with self.timings.of("load"):
            self.policy = self._load()
        self.vocabulary = int(self.policy.config.get_text_config().vocab_size)
        text_config = self.policy.config.get_text_config()
        self.positions = int(getattr(text_config, "max_position_embeddings", 0) or 0)
        self.ends = tuple(end_tokens(self.policy, self.tokenizer))
        tokens, keys = TokenFile.open(spec.tokens), _keys(spec)
        usable = spec.rows if spec.rows is not None else np.flatnonzero(tokens.usable).tolist()
        answerable = [(keys[row], tokens.row(row).prompt_ids) for row in usable]
        self.prompts: Prompts = [
            (key, ids) for key, ids in answerable if not self.positions or len(ids) < self.positions
        ]
        self.mine: Prompts = [p for at, p in enumerate(self.prompts) if share.has(at)]
        self.no_tokens = 0 if spec.rows is not None else len(keys) - len(answerable)
        self.no_room = len(answerable) - len(self.prompts)

    def _load(self) -> "PreTrainedModel":
        """Return the model that answers, known by its digest.

        Raises:
            ModelError: it is another model.
        """
        spec, named = self.spec, self.spec.policy
        self.events.phase("load", detail=f"{named.name} from {named.folder}")
        with short_memory_named(f"loading {named.name}", remedy=_TO_LOAD):
            policy = load_policy(named.folder, model=spec.model, digest=named.digest)
            return policy.to(self.device).eval().requires_grad_(False)

    def draw(self) -> None:
        """Bring the samples of every prompt into the log."""
        if self.spec.serve is None:
            with self.timings.of("sample"), self._precision():
                self._draw_here()
        elif any(key not in self.log.done for key, _ in self.prompts):
            self._draw_served(self.spec.serve)

    def _precision(self) -> torch.autocast:
        bf16 = self.spec.training.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _sampler(self) -> Sampler:
        spec = self.spec
        return Sampler(name="round", temperature=spec.temperature, top_p=spec.top_p)

    def _draw_here(self) -> None:
        spec, pad = self.spec, self.tokenizer.pad_token_id
        budget = micro_batch_tokens(spec.training.micro_batch_tokens, device=self.device.type)
        drawing = Drawing(
            sampler=self._sampler(),
            seed=spec.seed,
            n=spec.n,
            max_new_tokens=spec.max_new_tokens,
            positions=self.positions,
            ends=self.ends,
            pad_token_id=pad if pad is not None else 0,
            device=self.device,
            # One at a time where what a model gives a sequence may depend on its neighbours.
            micro_batch_tokens=1 if changes_itself(self.policy) else budget,
        )
        draw_answers(
            self.policy, self.mine, drawing=drawing, log=self.log, on_prompt=self._on_prompt
        )

    def _expected(self) -> list[Expected]:
        """Return what the model says of some prompts, and leave the device to the server."""
        with self._precision():
            found = expected(self.policy, [ids for _, ids in self.prompts], device=self.device)
        del self.policy
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _draw_served(self, serve: ServeSpec) -> None:
        spec, expect = self.spec, self._expected()
        self.events.phase("serve", detail=" ".join(serve.command))
        with (
            temporary_folder(spec.run) as scratch,
            self.timings.of("serve"),
            served(
                serve.command,
                folder=spec.policy.folder,
                ends=self.ends,
                vocabulary=self.vocabulary,
                scratch=scratch,
                ready_s=serve.ready_s,
            ) as server,
            CompletionsClient(
                server.url, model=server.model, tokenizer=self.tokenizer, why_gone=server.why_gone
            ) as client,
        ):
            client.settle_form(expect[0].prompt.tolist())
            agreement = check_served(client, expect, self.tokenizer)
            self.served = _served(server, client, agreement)
            write_text(_server_file(spec), self.served.model_dump_json())
            draw_served(
                client,
                self.prompts,
                asking=self._asking(serve),
                tokenizer=self.tokenizer,
                log=self.log,
                on_prompt=self._on_prompt,
            )

    def _asking(self, serve: ServeSpec) -> Asking:
        spec = self.spec
        return Asking(
            sampler=self._sampler(),
            seed=spec.seed,
            n=spec.n,
            max_new_tokens=spec.max_new_tokens,
            positions=self.positions,
            ends=self.ends,
            parallel=serve.parallel,
        )

    def _on_prompt(self, done: int, generated: int) -> None:
        phase, total = f"samples of {self.spec.policy.name}", len(self.mine)
        note = ", ".join(filter(None, (f"{self.spec.n} samples of each", self.share.told)))
        self.events.progress(phase, done, total, unit="prompts", note=note)
        if done < total:
            self.ceiling.check(generated)

    def result(self, written: Mapping[str, Sequence[Answer]]) -> GenerateResult:
        """Return what the round, whose samples are these, is to be known by."""
        return GenerateResult(
            prompts=len(self.prompts),
            no_tokens=self.no_tokens,
            no_room=self.no_room,
            tokens=sum(len(each.ids) for key, _ in self.prompts for each in written.get(key, ())),
            served=self.served,
            timings_s=self.timings.rounded(),
        )


def _server_file(spec: GenerateSpec) -> Path:
    """Return where it is kept which server has drawn what is there so far."""
    return spec.so_far.with_suffix(".json")


def _last_server(spec: GenerateSpec) -> Served | None:
    path = _server_file(spec)
    if spec.serve is None or not path.is_file():
        return None
    return Served.model_validate_json(path.read_text(encoding="utf-8"))


def _served(server: Server, client: CompletionsClient, agreement: Agreement | None) -> Served:
    return Served(
        name=server.name,
        version=server.version,
        identity="log-probs" if agreement else "weak",
        compared_tokens=agreement.tokens if agreement else 0,
        mean_difference_nats=agreement.mean_nats if agreement else None,
        prompts_as="token ids" if client.form.as_ids else "text",
    )


def _keys(spec: GenerateSpec) -> list[str]:
    keys: list[str] = pq.read_table(spec.prompts, columns=["prompt_key"])["prompt_key"].to_pylist()
    return keys


def _table(
    prompts: Prompts, answers: list[list[Answer]], tokenizer: "PreTrainedTokenizerBase"
) -> pa.Table:
    """Return a row for each sample: its prompt, its number, its ids and its text."""
    rows = [
        (key, number, prompt_ids, done, _text(tokenizer, prompt_ids, done))
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


def _text(tokenizer: "PreTrainedTokenizerBase", prompt: np.ndarray, answer: Answer) -> str:
    """Return the text of an answer as it stands after its prompt, with a space where one is."""
    if answer.text is not None:
        return answer.text
    ids = answer.ids
    before: str = tokenizer.decode(prompt, skip_special_tokens=True)
    whole: str = tokenizer.decode(np.concatenate([prompt, ids]), skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = tokenizer.decode(ids, skip_special_tokens=True)
    return alone
