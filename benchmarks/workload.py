"""Make a workload on disk: a model, pairs as text, what a step's stage reads.

The model has random weights and the pairs are drawn, or both are those of a folder and a file.

As a program (``python -m benchmarks.workload SETTINGS``) it makes one; the process that starts the
measured programs only reads the facts.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import LENGTHS, SHAPES, Lengths, Shape, shape_of

CLOCK = datetime(2024, 1, 2, tzinfo=UTC)
"""Chat templates see this as the present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings say what to make: ``steps`` partitions of ``pairs`` pairs each.

    ``weights``: the folder of a real model, in place of random weights; ``rows``: a JSONL file of
    ``prompt``, ``chosen`` and ``rejected``, whose first pairs that fit are taken, in place of drawn
    ones. ``model`` and ``lengths`` are then names alone.
    """

    folder: str
    model: str = "5M"
    lengths: str = "ultrafeedback"
    pairs: int = 128
    steps: int = 1
    batch_size: int = 8
    max_length: int = 1024
    seed: int = 42
    prepared: bool = True
    """This says whether to tokenise and plan as well; else only model and pairs are made."""
    dtype: str = "float32"
    device: str = "cpu"
    weights: str = ""
    rows: str = ""

    @property
    def path(self) -> Path:
        """Return the folder, as a path."""
        return Path(self.folder)

    def to_json(self) -> str:
        """Return the settings as JSON, for the command line."""
        return json.dumps(asdict(self))

    @property
    def shape(self) -> Shape:
        """Return the model's shape."""
        return shape_of(Path(self.weights)) if self.weights else SHAPES[self.model]

    @property
    def distribution(self) -> Lengths:
        """Return how long the pairs are."""
        return LENGTHS[self.lengths]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload was made with these settings; ``facts`` are its digests and lengths."""

    settings: Settings
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Return the folder of the workload."""
        return self.settings.path

    @property
    def model(self) -> Path:
        """Return the folder of S."""
        return self.folder / "model"

    @property
    def run(self) -> Path:
        """Return the folder of a run with pairs, usable rows and plan, to be copied."""
        return self.folder / "run"

    @property
    def tokens(self) -> Path:
        """Return the file with the token ids of all pairs."""
        return self.folder / "tokens.arrow"

    def source(self, step: int) -> Path:
        """Return the file with the pairs of a step, as a user could bring it."""
        return self.folder / f"step-{step}.jsonl"

    def ordered(self, step: int) -> Path:
        """Return the file with the same pairs in the order in which the first epoch sees them."""
        return self.folder / f"step-{step}.ordered.jsonl"

    @property
    def forward_flops(self) -> int:
        """Return the useful operations of one forward over the pairs of step 1."""
        shape = self.settings.shape
        return sum(shape.forward_flops(*row) for row in self.facts["lengths"])

    @property
    def flops(self) -> int:
        """Return those of scoring (a forward) and training (a forward, a backward of twice it)."""
        return 4 * self.forward_flops

    @property
    def sequence_tokens(self) -> int:
        """Return the tokens of step 1, each pair's prompt counted once."""
        return int(np.sum(self.facts["lengths"]))


def read_workload(folder: Path) -> Workload:
    """Return the workload that was made in ``folder``."""
    content = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return Workload(Settings(**content.pop("settings")), content)


def make(settings: Settings) -> Workload:
    """Write everything below ``settings.folder``."""
    folder = settings.path
    folder.mkdir(parents=True, exist_ok=True)
    rows, end_token = (_real if settings.weights else _drawn)(settings, folder / "model")
    workload = Workload(settings, {})
    for step in range(1, settings.steps + 1):
        part = rows[(step - 1) * settings.pairs : step * settings.pairs]
        write_lines(workload.source(step), part)
    facts = _prepare(workload, end_token=end_token) if settings.prepared else {}
    content = {"settings": asdict(settings), **facts}
    (folder / "workload.json").write_text(json.dumps(content), encoding="utf-8")
    return Workload(settings, facts)


def _drawn(settings: Settings, model: Path) -> tuple[list[dict[str, Any]], int]:
    """Write a model of random weights; return drawn pairs, and the id that ends a completion."""
    # This process alone needs a tokenizer and torch.
    from benchmarks.text import Writer, make_tokenizer, word_costs, write_rows, write_tokenizer

    model.mkdir()
    writer = Writer(seed=settings.seed)
    # The text needs no more than a small vocabulary, however large the model's is.
    tokenizer = make_tokenizer(writer, vocabulary=min(2048, settings.shape.vocabulary))
    special = write_tokenizer(tokenizer, model, max_length=settings.max_length)
    _write_model(settings, model, special)
    lengths = settings.distribution.sample(
        settings.pairs * settings.steps, seed=settings.seed, max_length=settings.max_length
    )
    rows = write_rows(lengths, writer, cost=word_costs(writer, tokenizer))
    return rows, special["eos_token_id"]


def _real(settings: Settings, model: Path) -> tuple[list[dict[str, Any]], int]:
    """Copy a real model; return the first pairs of the file that fit, and the id of its end.

    Raises:
        SystemExit: too few pairs fit, with the remedy.
    """
    from transformers import AutoTokenizer

    shutil.copytree(settings.weights, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    wanted, rows = settings.pairs * settings.steps, []
    with Path(settings.rows).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            turn = [{"role": "user", "content": row["prompt"]}]
            sides = {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
            texts = [row[side].strip() for side in sides]
            ids = (tokenizer.apply_chat_template([*turn, *s])["input_ids"] for s in sides.values())
            if all(texts) and len(set(texts)) == 2 and max(map(len, ids)) <= settings.max_length:
                rows.append({"prompt": turn, **sides})
            if len(rows) == wanted:
                return rows, int(tokenizer.eos_token_id)
    raise SystemExit(
        f"{settings.rows} has {len(rows)} pairs of at most {settings.max_length} tokens, and "
        f"{wanted} are wanted: take fewer (--pairs) or longer ones (--max-length)"
    )


def first_epoch(step_of: Iterable[tuple[int, int]], step: int, *, seed: int) -> list[int]:
    """Return the rows of a step in the order in which its first epoch sees them.

    ``step_of``: rows and steps in the plan's order, over which an epoch's order is drawn.
    """
    from sdpo.model.batching import epoch_order

    members = [row for row, number in step_of if number == step]
    return [members[index] for index in epoch_order(len(members), seed=seed, epoch=0)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_model(settings: Settings, folder: Path, special: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = settings.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=max(2048, settings.max_length),
        tie_word_embeddings=shape.tied,
        **special,
    )
    torch.manual_seed(settings.seed)
    torch.set_default_dtype(getattr(torch, settings.dtype))
    with torch.device(settings.device):
        model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    model.save_pretrained(folder)


def _prepare(workload: Workload, *, end_token: int) -> dict[str, Any]:
    """Make pairs, tokens and a plan by the project's own means, and write rows in training order.

    Return the facts: the model's digest, the id that ends a completion, of step 1 the lengths int
    ``[pairs, 3]`` and the digest of its token ids.
    """
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from sdpo.config import DataConfig, SourceConfig
    from sdpo.data.prepare import prepare_pairs
    from sdpo.identity.model_digest import model_digest
    from sdpo.store.run_folder import RunFolder
    from sdpo.tokens.token_file import TokenFile
    from sdpo.tokens.tokenise import tokenise_pairs

    settings = workload.settings
    steps = range(1, settings.steps + 1)
    sources = [SourceConfig(name=f"D_{k}", path=str(workload.source(k))) for k in steps]
    data = DataConfig(sources=sources, max_length=settings.max_length)
    run = RunFolder(workload.run)
    prepare_pairs(data, default_format="chat", strata=["source"], out=run.path)
    tokenise_pairs(
        run.pairs,
        AutoTokenizer.from_pretrained(workload.model),
        max_length=settings.max_length,
        clock=CLOCK,
        out=workload.tokens,
        end_token_ids=[end_token],
    )
    tokens = TokenFile.open(workload.tokens)
    assert tokens.usable.all(), f"rows of the workload were refused: {tokens.report}"
    step_of = write_plan(run)
    messages = pq.read_table(run.pairs, columns=["prompt", "chosen", "rejected"]).to_pylist()
    lengths: list[list[int]] = []
    for step in steps:
        ordered = first_epoch(step_of, step, seed=settings.seed)
        write_lines(workload.ordered(step), [messages[row] for row in ordered])
        if step == 1:
            pairs = [tokens.row(row) for row in ordered]
            sides = [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs]
            lengths = [[len(ids) for ids in row] for row in sides]
            ids_digest = tokens_digest(sides)
    return {
        "digest": model_digest(workload.model),
        "end_token": end_token,
        "lengths": lengths,
        "tokens": ids_digest,
    }


def tokens_digest(rows: Iterable[Sequence[Any]]) -> str:
    """Return the SHA-256 over ids of prompt, chosen, rejected, in order, to compare both sides."""
    digest = hashlib.sha256()
    for row in rows:
        for ids in row:
            digest.update(np.array([len(ids), *ids], dtype="<i4").tobytes())
    return digest.hexdigest()


def write_plan(run: Any) -> list[tuple[int, int]]:
    """Write ``usable.parquet`` and ``plan.parquet`` of natural steps; return rows and steps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(run.pairs, columns=["pair_id", "prompt_key", "source"])
    names = table["source"].cast(pa.string())
    steps = [int(name.removeprefix("D_")) for name in names.to_pylist()]
    table = table.set_column(2, "source", names)
    table = table.append_column("token_row", pa.array(np.arange(table.num_rows)))
    nobody = pa.array(np.zeros(table.num_rows, dtype=np.bool_))
    pq.write_table(table.append_column("reserved", nobody).sort_by("pair_id"), run.usable)
    plan = table.append_column("step", pa.array(np.array(steps, dtype=np.int32)))
    plan = plan.append_column("sampled", nobody).sort_by("pair_id")
    pq.write_table(plan, run.plan)
    return list(zip(plan["token_row"].to_pylist(), plan["step"].to_pylist(), strict=True))


if __name__ == "__main__":
    make(Settings(**json.loads(sys.argv[1])))
