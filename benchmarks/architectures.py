"""Check every causal architecture in tiny form against plain transformers, in a Markdown table.

    python -m benchmarks.architectures [--only llama,qwen3] [--json FILE]

Each makes two steps of DPO: reference, first loss, training, publication, the next step from what
was published. The oracle is plain Hugging Face code: one sequence a forward, fp32, log-softmax in
float64, and a training loop of its own over the same pairs. See :mod:`benchmarks.small_models`.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.small_models import VOCABULARY, names, small_model
from sdpo.config import ModelConfig, TrainingConfig
from sdpo.config.automatic import resolve_layout
from sdpo.errors import ModelError, SdpoError
from sdpo.model.batching import global_batch
from sdpo.model.by_length import one_set_of_frequencies
from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.layouts.check import agrees, not_alone
from sdpo.model.policy import load_policy, save_policy
from sdpo.model.prepare import forwards_known, prepare
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.training.optimizer import make_optimizer
from sdpo.training.tasks import PreferenceTask
from sdpo.training.trainer import Trainer

MOST_NATS = 2e-4
"""A log-prob, a sum of up to a hundred nats and more, may be off by so much."""
_CPU = torch.device("cpu")
_BETA = 0.1
# An epsilon of the gradients' size: else Adam makes a whole step of a gradient that is rounding.
TRAINING = TrainingConfig(
    beta=_BETA,
    learning_rate=1e-4,
    adam_epsilon=1e-2,
    batch_size=3,
    max_grad_norm=0.0,
    warmup_ratio=0.0,
    lr_schedule="constant",
    precision="fp32",
    seed=3,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A finding is what two steps of a model showed: numbers, or ``refused`` with the reason.

    ``difference``: the largest of a log-prob from the oracle's, in nats; ``moved``: the largest by
    which one moves with its neighbours, its other side, its place and the padding; ``first_loss``:
    the largest distance of a step's first loss from ln 2.
    """

    name: str
    attention: str = ""
    layout: str = ""
    applied: tuple[str, ...] = ()
    difference: float = 0.0
    moved: float = 0.0
    first_loss: float = 0.0
    refused: str = ""

    @property
    def right(self) -> bool:
        """Return whether the model is refused, or its numbers are within what is allowed."""
        return bool(self.refused) or (
            self.difference <= MOST_NATS and self.moved <= MOST_NATS and self.first_loss <= 1e-6
        )


def measure(name: str, folder: Path) -> Found:
    """Make two steps of the model of this name, with its files below ``folder``.

    What fails otherwise than by a refusal has an infinite ``difference``, and the error as layout.
    """
    (folder / "M_0").mkdir(parents=True)
    attention = "sdpa"
    try:
        small_model(name).save_pretrained(folder / "M_0")
        try:
            load_policy(folder / "M_0", model=ModelConfig())
        except ModelError as error:
            if "Set model.attention: eager" not in str(error):
                raise
            attention = "eager"
        steps = [_step(folder, step, attention) for step in (1, 2)]
    except SdpoError as error:
        said = str(error).partition("\n")[0].replace(str(folder), "").replace("|", " ")
        return Found(name=name, attention=attention, refused=said)
    except Exception as error:  # noqa: BLE001 - it is one line of a table, and wrong
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Found(name=name, attention=attention, layout=said, difference=math.inf)
    return Found(
        name=name,
        attention=attention,
        layout=steps[0].layout,
        applied=steps[0].applied,
        difference=max(step.difference for step in steps),
        moved=max(step.moved for step in steps),
        first_loss=max(step.first_loss for step in steps),
    )


def _step(folder: Path, step: int, attention: str) -> Found:
    """Make one step from M_{step-1}, which is there, to M_step, which is published."""
    source, target = folder / f"M_{step - 1}", folder / f"M_{step}"
    task = _task(step)
    policy = load_policy(source, model=ModelConfig(attention=attention))
    applied = prepare(policy, device=_CPU, fused=True)
    plain = _plain(source, attention)
    with forwards_known(policy):
        layout = _layout(policy, task, attention)
        scorer = SequenceScorer(policy)
        every = np.arange(len(task.ids))
        with torch.no_grad():
            alone = np.concatenate([_scored(scorer, [g], layout) for g in task.groups(every)])
            moved = _moved(scorer, task, layout, alone)
        reference = np.array([_plain_logps(plain, task, item) for item in every])
        differences = [np.abs(alone - reference).max()]
        task.reference[:] = alone
        trainer = _trainer(policy, layout)
        losses: list[float] = []
        trainer.train(task, on_step=lambda number, total, found: losses.append(found["loss"]))
        with torch.no_grad():
            after = np.concatenate([_scored(scorer, [g], layout) for g in task.groups(every)])
    target.mkdir()
    save_policy(policy, target, tokenizer=source)
    published = _plain(target, attention)
    differences += [np.abs(after - [_plain_logps(published, task, i) for i in every]).max()]
    _train_plainly(plain, task, reference)
    differences += [np.abs(after - [_plain_logps(plain, task, i) for i in every]).max()]
    return Found(
        name="",
        layout=layout,
        applied=tuple(applied),
        difference=float(max(differences)),
        moved=moved,
        first_loss=abs(losses[0] - math.log(2)),
    )


def _task(step: int) -> PreferenceTask:
    """Return six pairs with sequences of 7 to 58 tokens, others at every step, and no reference."""
    rng = np.random.default_rng(step)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, int(rng.integers(low, high))).astype(np.int32)

    bounds = [(3, 8), (20, 30), (8, 20), (3, 8), (16, 24), (3, 12)]
    return PreferenceTask(
        ids=[f"pair {number}" for number in range(6)],
        prompts=[ids(4, 30) for _ in range(6)],
        chosen=[ids(*bound) for bound in bounds],
        rejected=[ids(*bound) for bound in reversed(bounds)],
        reference=np.zeros((6, 2), dtype=np.float32),
        objective="dpo",
        settings={"beta": _BETA},
    )


def _layout(policy: Any, task: PreferenceTask, attention: str) -> str:
    """Return the layout that a run would have.

    Raises:
        ModelError: even in padded rows a side's log-prob depends on its neighbours.
    """
    layout = resolve_layout("auto", attention=attention)
    lengths = np.concatenate([task.prompt_tokens + side for side in task.completion_tokens.T])
    if not one_set_of_frequencies(policy, lengths):
        layout = "padded"
    groups, scorer = task.groups(np.array([1, 4, 0])), SequenceScorer(policy)
    options: dict[str, Any] = {"pad_token_id": 0, "device": _CPU, "gradients": True}
    if layout != "padded" and agrees(scorer, groups, layout=layout, **options):
        layout = "padded"
    if layout == "padded" and (problem := agrees(scorer, groups, layout=layout, **options)):
        raise ModelError(not_alone(type(policy).__name__, problem))
    return layout


def _scored(scorer: SequenceScorer, groups: Sequence[PromptGroup], layout: str) -> np.ndarray:
    """Return the log-probs of both sides of ``groups``, fp32 ``[groups, 2]``, as a run has them."""
    scorer.eval()
    parts: list[Sequence[PromptGroup]] = [groups]
    if layout != "shared":
        parts = [[PromptGroup(g.prompt, (side,))] for g in groups for side in g.completions]
    collate = LAYOUTS[layout].collate
    found = [scorer(collate(part, pad_token_id=0, device="cpu")) for part in parts]
    scored: np.ndarray = torch.cat(found).numpy().reshape(-1, 2)
    return scored


def _moved(scorer: SequenceScorer, task: PreferenceTask, layout: str, alone: np.ndarray) -> float:
    """Return how much a side's log-prob moves at most where all but itself changes, in nats."""
    groups, collate = task.groups(np.arange(len(task.ids))), LAYOUTS[layout].collate
    most = 0.0
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 0]):
        for swapped in (False, True):
            for others in (False, True):
                arranged = []
                for at in order:
                    first, second = groups[at].completions
                    second = second[::-1].copy() if others else second
                    sides = (second, first) if swapped else (first, second)
                    arranged.append(PromptGroup(groups[at].prompt, sides))
                found = scorer(collate(arranged, pad_token_id=0, device="cpu")).view(-1, 2)
                compared = found.flip(1) if swapped else found
                kept = slice(0, 1) if others else slice(0, 2)
                distance = np.abs(compared.numpy()[:, kept] - alone[order][:, kept])
                most = max(most, float(distance.max()))
    return most


def _trainer(policy: Any, layout: str) -> Trainer:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    scorer = SequenceScorer(policy)
    scorer, optimizer = accelerator.prepare(scorer, make_optimizer(scorer, TRAINING))
    return Trainer(
        accelerator=accelerator,
        scorer=scorer,
        optimizer=optimizer,
        training=TRAINING,
        pad_token_id=0,
        layout=layout,
    )


def _plain(folder: Path, attention: str) -> Any:
    """Load the model in ``folder`` by transformers alone; in eval mode nothing is random."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


def _plain_logp(model: Any, prompt: np.ndarray, side: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, side]).astype(np.int64))
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = 0  # dynamic frequencies remember the longest so far
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
    taken = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
    return taken[len(prompt) - 1 :].sum()


@torch.no_grad()
def _plain_logps(model: Any, task: PreferenceTask, item: int) -> list[float]:
    sides = (task.chosen[item], task.rejected[item])
    return [float(_plain_logp(model, task.prompts[item], side)) for side in sides]


def _train_plainly(model: Any, task: PreferenceTask, reference: np.ndarray) -> None:
    """Train by DPO (arXiv 2305.18290, eq. 7) in a plain loop over the same batches."""
    options: dict[str, Any] = {"lr": TRAINING.learning_rate, "eps": TRAINING.adam_epsilon}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, **options)
    for step in range(len(task.ids) // TRAINING.batch_size):
        batch, _ = global_batch(
            step, items=len(task.ids), batch_size=TRAINING.batch_size, seed=TRAINING.seed
        )
        for item in batch:
            prompt, ref = task.prompts[item], reference[item]
            chosen = _plain_logp(model, prompt, task.chosen[item]) - ref[0]
            rejected = _plain_logp(model, prompt, task.rejected[item]) - ref[1]
            loss = -torch.nn.functional.logsigmoid(_BETA * (chosen - rejected))
            (loss / len(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


def table(found: Sequence[Found]) -> str:
    """Return a Markdown table, a line for each model."""
    lines = [
        "| architecture | kernel | layout | optimisations | largest difference, nats "
        "| moves with others, nats |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        if one.refused:
            lines.append(f"| {one.name} | {one.attention} | refused: {one.refused} | | | |")
        else:
            applied = ", ".join(one.applied) or "none"
            numbers = f"{one.difference:.1e} | {one.moved:.1e}"
            lines.append(f"| {one.name} | {one.attention} | {one.layout} | {applied} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure the models and print the table; return 1 where one is neither right nor refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    chosen = options.only.split(",") if options.only else names()
    found = []
    for number, name in enumerate(chosen, start=1):
        with tempfile.TemporaryDirectory(prefix="sdpo-architectures-") as folder:
            found.append(measure(name.strip(), Path(folder)))
        print(f"{number}/{len(chosen)} {name}: {found[-1]}", file=sys.stderr, flush=True)
    print(table(found))
    if options.json:
        content = {"transformers": transformers.__version__, "models": [asdict(f) for f in found]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    wrong = [one.name for one in found if not one.right]
    print(f"\n{len(found)} models, {len(wrong)} wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
