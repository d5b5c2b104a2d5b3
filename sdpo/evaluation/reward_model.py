"""Score answers by a reward model: a sequence classifier with one output.

A conversation is printed by the reward model's own chat template and cut by its own tokenizer, so
it need not share those of the policy. Its template sees one fixed date, so that a score does not
depend on the day.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdpo.errors import ModelError
from sdpo.evaluation.judging import Answered, Pointwise, Progress, silent
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import read_config, refusals, view_of
from sdpo.inputs.judges import LocatedJudge
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.render import Refused, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CLOCK = datetime(2026, 1, 1, tzinfo=UTC)
_BATCH_TOKENS = 16_384


class RewardModel(Pointwise):
    """A reward model judges; on a CPU every answer by itself, so no score depends on others."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        folder: Path,
        device: str,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._folder, self._device = folder, torch.device(device)
        self._renderer = Renderer(tokenizer, clock=_CLOCK)
        text = model.config.get_text_config()
        self._vocabulary = int(text.vocab_size)
        self._positions = int(getattr(text, "max_position_embeddings", 0) or 0)

    @classmethod
    def load(cls, located: LocatedJudge, *, device: str) -> "RewardModel":
        """Load it in fp32 from exactly the files that are digested.

        Raises:
            ModelError: it is another model than was located, no classifier with one output, or has
                no chat template.
        """
        from transformers import AutoModelForSequenceClassification

        folder = located.folder
        assert folder is not None, "a reward model was located"
        with refusals(f"the reward model in {folder}"), view_of(folder) as view:
            if (found := model_digest(folder)) != located.digest:
                raise ModelError(
                    f"{folder} is not the reward model that was found: its digest is {found}, not "
                    f"{located.digest}: start again"
                )
            if not any("Classification" in str(n) for n in _architectures(folder)):
                raise ModelError(
                    f"{folder} is no reward model but {', '.join(_architectures(folder))}: give a "
                    "sequence classifier (...ForSequenceClassification) with one output"
                )
            model, info = AutoModelForSequenceClassification.from_pretrained(
                view,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"the weights in {folder} lack {', '.join(missing[:3])}: its scores would be random"
            )
        if model.config.num_labels != 1:
            raise ModelError(
                f"{folder} is a classifier with {model.config.num_labels} outputs; a reward model "
                "has one (num_labels: 1)"
            )
        tokenizer = load_tokenizer(folder)
        if not tokenizer.chat_template:
            raise ModelError(
                f"the reward model in {folder} has no chat template, so it cannot be told how it "
                "reads a conversation: put the chat_template.jinja that it was trained with there"
            )
        model = model.to(device).eval().requires_grad_(False)
        return cls(model, tokenizer, folder=folder, device=device)

    def scores(self, asked: Sequence[Answered], *, on_done: Progress = silent) -> list[list[float]]:
        """Return the reward of every answer.

        Raises:
            ModelError: a conversation is longer than its context, cannot be printed, or the
                tokenizer is another model's; names it.
        """
        ids = self._ids(asked)
        order = sorted(range(len(ids)), key=lambda item: len(ids[item]))
        rewards, done = [math.nan] * len(ids), 0
        for batch in self._batches([len(ids[item]) for item in order]):
            items = [order[place] for place in batch]
            given = torch.tensor([ids[item] for item in items], device=self._device)
            with torch.no_grad():
                found = self._model(input_ids=given, attention_mask=torch.ones_like(given)).logits
            for item, reward in zip(items, found[:, 0].float().tolist(), strict=True):
                rewards[item] = reward
            done += len(items)
            on_done(done)
        if not all(map(math.isfinite, rewards)):
            raise ModelError(f"the reward model in {self._folder} gives a reward that is no number")
        each = iter(rewards)
        return [[next(each) for _ in item.answers] for item in asked]

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return batches of places with equal length: nothing is padded."""
        alone = self._device.type == "cpu"
        batches: list[list[int]] = []
        for place, length in enumerate(lengths):
            last = batches[-1] if batches else []
            fits = last and lengths[last[0]] == length and (len(last) + 1) * length <= _BATCH_TOKENS
            if fits and not alone:
                last.append(place)
            else:
                batches.append([place])
        return batches

    def _ids(self, asked: Sequence[Answered]) -> list[list[int]]:
        conversations = [
            [
                # A prompt that is plain text is what the person says.
                *({"role": _role(t.role), "content": t.content} for t in each.prompt),
                {"role": "assistant", "content": answer},
            ]
            for each in asked
            for answer in each.answers
        ]
        rows = [{"template_inputs": ""}] * len(conversations)
        texts = self._renderer.render(conversations, rows=rows, generation_prompt=False)
        found = []
        for text, each in zip(texts, (a for a in asked for _ in a.answers), strict=True):
            if isinstance(text, Refused):
                raise ModelError(f"the reward model cannot read prompt {each.key}: {text.words}")
            ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            self._check(ids, each.key)
            found.append(ids)
        return found

    def _check(self, ids: Sequence[int], key: str) -> None:
        if not ids:
            raise ModelError(
                f"the chat template of the reward model in {self._folder} prints nothing for an "
                f"answer to prompt {key}"
            )
        if max(ids) >= self._vocabulary:
            raise ModelError(
                f"the tokenizer in {self._folder} gives the token {max(ids)}, and the reward model "
                f"knows {self._vocabulary} tokens: it is another model's. Put the tokenizer that "
                "the reward model was trained with beside it"
            )
        if self._positions and len(ids) > self._positions:
            raise ModelError(
                f"prompt {key} with its answer has {len(ids)} tokens, and the reward model in "
                f"{self._folder} reads {self._positions}: let answers be shorter, or take another"
            )


def _role(role: str) -> str:
    return "user" if role == "text" else role


def _architectures(folder: Path) -> list[str]:
    found = read_config(folder).get("architectures")
    return [str(each) for each in found] if isinstance(found, list) else []
