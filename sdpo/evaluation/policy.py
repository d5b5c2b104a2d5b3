"""Put a model of a run before the harness: its requests answered once, counted, and kept.

Of several processes each answers the requests of its own documents, and then all read what the
others have written. So every one of them scores the same answers as one process alone would.

The model is loaded by this project, and computed by the harness's own ``HFLM``, so that every
number is the harness's. What is added: answers are written down as they come, so that a task goes
on where it was; requests that are longer than the model's context, of which the harness drops the
beginning with a line in a log, are counted.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from sdpo.errors import UserError
from sdpo.identity.canonical import digest_of
from sdpo.model.share import Share
from sdpo.store.evaluations import RESPONSES, responses_in
from sdpo.system.files import write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], None]


def _key(kind: str, arguments: Sequence[Any]) -> str:
    return digest_of([kind, *arguments])


class Responses:
    """The answers to a task's requests, in a file that only grows; ``on_answer`` hears of each.

    ``folder`` has a file of each process that has answered any; this one's adds to its own.
    """

    def __init__(self, folder: Path, on_answer: Progress, *, share: Share = Share()) -> None:
        self.path, self.on_answer = folder / share.named(RESPONSES), on_answer
        self.values: dict[str, Any] = {}
        self.cut: set[str] = set()
        self._answered = 0
        if self.path.is_file():
            self._read(self.path)
            # What comes next is not to be added to a line that was cut short.
            write_text(self.path, "".join(map(self._line, self.values)))
        self.read_others()

    def read_others(self, share: Share = Share()) -> None:
        """Know what other processes have answered by now, those of ``share`` all of it."""
        theirs = share.seen_by_all([self.path] if self.path.is_file() else [])
        for path in sorted({*responses_in(self.path.parent), *theirs}):
            if path != self.path:
                self._read(path)

    def _read(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, value, cut = entry["key"], entry["value"], entry["cut"]
        except (ValueError, KeyError, TypeError):
            return
        self.values[key] = value
        self.cut |= {key} if cut else set()

    def _line(self, key: str) -> str:
        entry = {"key": key, "value": self.values[key], "cut": key in self.cut}
        return json.dumps(entry) + "\n"

    def known(self, kind: str, arguments: Sequence[Any]) -> Any:
        """Return the answer that there is, or None."""
        value = self.values.get(_key(kind, arguments))
        if value is not None:
            self.count()
        return tuple(value) if isinstance(value, list) else value

    def count(self) -> None:
        """Count an answer."""
        self._answered += 1
        self.on_answer(self._answered)

    def add_partial(self, kind: str, arguments: Sequence[Any], value: Any) -> None:
        """Keep an answer: the harness calls this as answers come."""
        self.count()
        if kind == "generate_until" and arguments[1].get("do_sample"):
            return  # every sample of a prompt is another
        key = _key(kind, arguments)
        self.values[key] = list(value) if isinstance(value, tuple) else value
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(key))

    def is_cut(self, kind: str, arguments: Sequence[Any]) -> bool:
        """Return whether the request was longer than the model's context."""
        return _key(kind, arguments) in self.cut


class Policy(HFLM):  # type: ignore[misc]
    """The model under test, as the harness sees it; ``responses`` are those of the task."""

    responses: Responses

    def __init__(
        self,
        policy: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int,
        autocast: "torch.dtype | None",
        share: Share = Share(),
    ) -> None:
        self.share = share
        super().__init__(
            pretrained=policy,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            mixed_precision_dtype=autocast,
        )

    def begin(self, responses: Responses) -> None:
        """Answer the requests of another task from here on."""
        self.responses = responses
        self.set_cache_hook(responses)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (log-prob in nats, is greedy) of each continuation."""
        return self._answers("loglikelihood", requests, super().loglikelihood)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-prob of each text in nats, over windows where it is long."""
        return self._answers("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context."""
        return self._answers("generate_until", requests, super().generate_until)

    def _answers(
        self, kind: str, requests: list[Instance], compute: Callable[..., list[Any]]
    ) -> list[Any]:
        found = [self.responses.known(kind, request.args) for request in requests]
        mine = [
            known is None and self._is_mine(r) for r, known in zip(requests, found, strict=True)
        ]
        asked = [request for request, is_mine in zip(requests, mine, strict=True) if is_mine]
        for request in asked if kind == "generate_until" else ():
            self._mark_cut(request)
        computed = iter(compute(asked, disable_tqdm=True) if asked else ())
        if self.share.count > 1:
            self.responses.read_others(self.share)
        return [
            next(computed)
            if is_mine
            else self.responses.known(kind, request.args)
            if known is None
            else known
            for request, known, is_mine in zip(requests, found, mine, strict=True)
        ]

    def _is_mine(self, request: Instance) -> bool:
        """Return whether this process answers a request; drawn texts are not kept, so all do."""
        is_drawn = request.request_type == "generate_until" and request.args[1].get("do_sample")
        return bool(is_drawn) or self.share.has(int(request.doc_id or 0))

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Any]:
        for arguments, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, and the model's context has "
                    f"{self.max_length}: the task cannot be scored with this model"
                )
            # The last token is predicted and not read.
            if arguments and len(context) + len(continuation) > self.max_length + 1:
                self.responses.cut.add(_key("loglikelihood", arguments))
        return list(super()._loglikelihood_tokens(requests, disable_tqdm, override_bs))

    def _mark_cut(self, request: Instance) -> None:
        """Mark a request for text whose context is longer than the room that its text leaves."""
        context, options = request.args
        asked = int(normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"])
        room = self.max_length - asked
        if room <= 0:
            raise UserError(
                f"the task asks for {asked} tokens of text, and the model's context has "
                f"{self.max_length}: it cannot be scored with this model"
            )
        if len(self.tok_encode(context)) > room:
            self.responses.cut.add(_key("generate_until", request.args))
