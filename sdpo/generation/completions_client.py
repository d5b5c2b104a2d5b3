"""Ask an OpenAI-compatible server for completions, by the protocol of ``/v1/completions``.

A prompt is sent as token ids, so that the server's template has no part in it; a server that takes
text alone gets a text that it cuts into the same ids. What a server offers beside the protocol, the
ids of what it wrote and log-probs, is taken where it is there.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdpo.errors import Fault, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP = 5
"""Log-probs of so many of the likeliest tokens are asked for, the most that the protocol has."""
_BUSY = {408, 409, 425, 429, 502, 503, 504}
_TRIES = 6
_PAUSE_S = 0.5
_TIMEOUT_S = 600.0
_SHOWN = 300


class _Logprobs(BaseModel):
    model_config = ConfigDict(frozen=True)

    top_logprobs: list[dict[str, float] | None] = Field(default_factory=list)


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True)

    text: str
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)

    choices: list[_Choice] = Field(min_length=1)


class Listed(BaseModel):
    """A server serves a model under the name ``id``; ``root``: where it was loaded from."""

    model_config = ConfigDict(frozen=True)

    id: str
    owned_by: str = ""
    root: str | None = None


class Models(BaseModel):
    """A server lists the models that it serves."""

    model_config = ConfigDict(frozen=True)

    data: list[Listed]


@dataclass(frozen=True, slots=True)
class Written:
    """A server wrote ``text`` and ended by itself, or not.

    ``ids``: its tokens, where the server tells them. ``top``: log-probs in nats of the likeliest
    first tokens by their text, where it tells them.
    """

    text: str
    finished: bool
    ids: tuple[int, ...] | None
    top: dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A completion is drawn like this."""

    tokens: int
    temperature: float
    top_p: float
    seed: int


GREEDY = Draw(tokens=1, temperature=0.0, top_p=1.0, seed=0)


@dataclass(frozen=True, slots=True)
class Form:
    """A server understands requests of this form."""

    as_ids: bool
    tells_ids: bool = False
    tells_logprobs: bool = False


_FORMS = (
    Form(as_ids=True, tells_ids=True, tells_logprobs=True),
    Form(as_ids=True, tells_logprobs=True),
    Form(as_ids=True),
    Form(as_ids=False, tells_logprobs=True),
    Form(as_ids=False),
)
"""Requests of these forms are tried in turn: servers refuse what they do not know."""


class CompletionsClient:
    """A connection to a server that serves ``model``, for several threads.

    ``why_gone`` says, after a request has failed, why there is no server any more, or "".
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        why_gone: Callable[[], str],
    ) -> None:
        self.form = Form(as_ids=True)
        self._model, self._tokenizer, self._why_gone = model, tokenizer, why_gone
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def settle_form(self, ids: Sequence[int]) -> None:
        """Find out how the server is to be asked, by one token after this prompt.

        Raises:
            UserError: it takes no form of request; names its last answer.
        """
        reply: httpx.Response | None = None
        for form in _FORMS:
            reply = self._post(self._request(ids, GREEDY, form))
            if reply.status_code == httpx.codes.OK:
                told = _read(reply)
                self.form = Form(
                    as_ids=form.as_ids,
                    tells_ids=form.tells_ids and told.ids is not None,
                    tells_logprobs=form.tells_logprobs and told.top is not None,
                )
                return
        assert reply is not None
        raise UserError(
            "the server that generate.serve starts takes no request for completions: it answers "
            f"{reply.status_code} ({_shown(reply)}). It has to have /v1/completions"
        )

    def next_token(self, ids: Sequence[int]) -> Written:
        """Return the likeliest token after a prompt, with log-probs where the server tells them."""
        return self._ask(self._request(ids, GREEDY, self.form))

    def complete(self, ids: Sequence[int], draw: Draw) -> Written:
        """Return a completion of a prompt's token ids.

        Raises:
            Fault: the server is gone, or answers with a fault of its own.
            UserError: it refuses the request, or answers in another protocol.
        """
        form = Form(as_ids=self.form.as_ids, tells_ids=self.form.tells_ids)
        return self._ask(self._request(ids, draw, form))

    def _request(self, ids: Sequence[int], draw: Draw, form: Form) -> dict[str, object]:
        ids = [int(each) for each in ids]
        return {
            "model": self._model,
            "prompt": ids if form.as_ids else self._as_text(ids),
            "max_tokens": draw.tokens,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "seed": draw.seed,
            **({"logprobs": TOP} if form.tells_logprobs else {}),
            **({"return_token_ids": True} if form.tells_ids else {}),
        }

    def _as_text(self, ids: list[int]) -> str:
        """Return a text that the model's tokenizer cuts into these ids.

        Raises:
            UserError: there is none.
        """
        for start in range(2):  # a tokenizer may put its first token before any text
            text: str = self._tokenizer.decode(ids[start:], skip_special_tokens=False)
            if list(self._tokenizer(text)["input_ids"]) == ids:
                return text
        raise UserError(
            "the server takes prompts as text alone, and no text gives the tokens of a prompt "
            f"({self._tokenizer.decode(ids)[:_SHOWN]!r}): take a server that takes token ids, or "
            "generate.engine transformers"
        )

    def _ask(self, request: dict[str, object]) -> Written:
        reply = self._post(request)
        if reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Fault(f"the server answers {reply.status_code} ({_shown(reply)})")
        if reply.status_code != httpx.codes.OK:
            raise UserError(f"the server answers {reply.status_code} ({_shown(reply)})")
        return _read(reply)

    def _post(self, request: dict[str, object]) -> httpx.Response:
        """Return the answer to a request, asked again where the server is busy."""
        for left in reversed(range(_TRIES)):
            try:
                reply = self._client.post("completions", json=request)
            except httpx.HTTPError as error:
                why = self._why_gone() or f"it gives no answer ({type(error).__name__}: {error})"
                raise Fault(
                    f"the server of the model is gone: {why}. The samples of whole prompts are "
                    "kept: run the same again to go on from there"
                ) from error
            if reply.status_code not in _BUSY or not left:
                return reply
            time.sleep(_PAUSE_S * (_TRIES - left))
        raise AssertionError("the last try returns")


def _read(reply: httpx.Response) -> Written:
    try:
        choice = _Body.model_validate_json(reply.content).choices[0]
    except ValidationError as error:
        raise UserError(
            "the server that generate.serve starts does not speak the protocol of OpenAI's "
            f"completions: it answers {_shown(reply)}"
        ) from error
    tops = choice.logprobs.top_logprobs if choice.logprobs else []
    return Written(
        text=choice.text,
        finished=choice.finish_reason == "stop",
        ids=None if choice.token_ids is None else tuple(choice.token_ids),
        top=tops[0] if tops else None,
    )


def _shown(reply: httpx.Response) -> str:
    return " ".join(reply.text.split())[:_SHOWN]


def as_ids(
    written: Written, tokenizer: "PreTrainedTokenizerBase", *, ends: Sequence[int]
) -> np.ndarray:
    """Return the token ids of a completion, int32, its end token among them.

    A server that does not tell them wrote a text, which is cut into tokens here.
    """
    if written.ids is not None:
        ids = list(written.ids)
    else:
        ids = tokenizer(written.text, add_special_tokens=False)["input_ids"]
    if written.finished and ends and (not ids or ids[-1] not in ends):
        ids = [*ids, ends[0]]
    return np.array(ids, dtype=np.int32)
