"""Ask an OpenAI-compatible server for one answer, again where it is busy, and no faster than told.

The key is in the environment (``SDPO_JUDGE_KEY``) and nowhere else; a redirect is not followed,
since it would lead to an address that nobody permitted.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from sdpo.config.judging import JudgeConfig
from sdpo.errors import UserError

KEY = "SDPO_JUDGE_KEY"
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}
_REFUSING = {400, 403, 413, 422, 446}
"""A server that does not take the text of a request answers so; 446 is a gateway's guard."""
_OF_THE_TEXT = re.compile(
    r"content[ _-]?(filter|policy|management|blocked)|usage policy|policy[ _]?violation|guardrail"
    r"|moderation|flagged|invalid_prompt|context[ _](length|size|window)|maximum model length",
    re.IGNORECASE,
)
"""An error that says this is of a request's text; others are of how it is asked, so of all."""
_TEMPERATURE, _LENGTH, _LENGTH_INSTEAD = "temperature", "max_tokens", "max_completion_tokens"
"""OpenAI's models that think refuse the first, which is always 1 there, and want the third."""
_LONGEST_WAIT_S = 60.0
_LONGEST_REPLY = 4_000_000
_SHOWN = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A server's answer: its text, why it ended, and the tokens it says it took (0: unsaid)."""

    text: str
    ended: str
    refusal: str
    model: str
    tokens: int


class Chat:
    """A connection to the endpoint of a judge, for several threads.

    A server that refuses ``max_tokens`` is asked with ``max_completion_tokens`` from then on, and
    one that refuses a temperature of 0 with its own: ``warn`` hears of that.
    """

    def __init__(
        self, config: JudgeConfig, *, stopped: Callable[[], bool], warn: Callable[[str], None]
    ) -> None:
        self._config, self._stopped, self._warn = config, stopped, warn
        self._refused: frozenset[str] = frozenset()
        self._key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)
        self._pace = threading.Lock()
        self._next = 0.0

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def ask(self, content: str, *, tokens: int) -> Reply:
        """Return the answer to one message of a person, greedy and of ``tokens`` at most.

        A server that takes other texts and not this one (a filter, a context too short) has
        refused: that is an answer too.

        Raises:
            UserError: the server cannot be reached, is silent or busy after every retry, refuses
                the request, or answers in another protocol.
        """
        failed, wait = "", 0.0
        for attempt in range(self._config.retries + 1):
            self._sleep(wait)
            self._wait_turn()
            wait = min(2.0**attempt, _LONGEST_WAIT_S)
            try:
                reply = self._post(content, tokens)
            except httpx.TimeoutException:
                failed = f"it gave no answer within {self._config.timeout_s:g} s (timeout_s)"
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failed = f"it cannot be reached ({type(error).__name__}: {error})"
                continue
            if reply.status_code not in _BUSY:
                return self._read(reply)
            failed = f"it answers {reply.status_code} ({self._shown(reply.text)})"
            wait = _asked_wait(reply.headers.get("retry-after", ""), wait)
        times = self._config.retries + 1
        raise UserError(
            f"the judge at {self._config.endpoint} was asked {times} times: {failed}. What it said "
            "before is kept: try again when it serves, or raise the judge's retries or timeout_s"
        )

    def _post(self, content: str, tokens: int) -> httpx.Response:
        """Send one request, and again where it is a parameter's name that is not taken."""
        url = f"{self._config.endpoint}/chat/completions"
        message = {"role": "user", "content": content}
        while True:
            refused = self._refused
            how: dict[str, int] = {} if _TEMPERATURE in refused else {_TEMPERATURE: 0}
            how[_LENGTH_INSTEAD if _LENGTH in refused else _LENGTH] = tokens
            body = {"model": self._config.model, "messages": [message], **how}
            reply = self._client.post(url, json=body)
            name = _unsupported(reply)
            if name not in how or name == _LENGTH_INSTEAD:
                return reply
            self._learn(name)

    def _learn(self, name: str) -> None:
        with self._pace:
            is_new = name not in self._refused
            self._refused |= {name}
        if is_new and name == _TEMPERATURE:
            self._warn(
                f"the judge's model {self._config.model} takes no temperature but its own: its "
                "verdicts are drawn, and asked anew they may be others (those it gave are kept)"
            )

    def _read(self, reply: httpx.Response) -> Reply:
        where = f"the judge at {self._config.endpoint}"
        if reply.status_code in _REFUSING and _OF_THE_TEXT.search(_error_in(reply.text)):
            return Reply(text="", ended="", refusal=self._shown(reply.text), model="", tokens=0)
        if reply.status_code != httpx.codes.OK:
            hint = {
                401: f"the key in {KEY} is missing or wrong",
                403: f"the key in {KEY} does not permit it",
                404: f"it does not know the model {self._config.model} or the address",
            }.get(reply.status_code, "it does not take the request")
            if reply.is_redirect:
                hint = "it leads elsewhere, and is not followed: give the address itself"
            raise UserError(
                f"{where} answers {reply.status_code}, {hint} ({self._shown(reply.text)}). What it "
                "said before is kept"
            )
        try:
            if len(reply.content) > _LONGEST_REPLY:
                raise ValueError(f"{len(reply.content)} bytes")
            return _parsed(reply.json())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{where} does not speak the protocol of OpenAI's chat completions "
                f"({type(error).__name__}; it answered: {self._shown(reply.text)}): is the address "
                "right? It usually ends in /v1"
            ) from error

    def _shown(self, text: str) -> str:
        short = " ".join(text.split())[:_SHOWN]
        return short.replace(self._key, "***") if self._key else short

    def _wait_turn(self) -> None:
        if not self._config.requests_per_minute:
            return
        with self._pace:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self._config.requests_per_minute
        self._sleep(turn - now)

    def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than somebody listens."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped():
            time.sleep(min(left, 0.2))
        if self._stopped():
            raise UserError(f"the judge at {self._config.endpoint} was not asked any more")


def _error_in(text: str) -> str:
    """Return what an error says of itself: its words, its code and its kind; else all there is."""
    try:
        error = json.loads(text)["error"]
        return " ".join(str(error[name]) for name in ("message", "code", "type") if name in error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return text


def _unsupported(reply: httpx.Response) -> str:
    """Return the parameter that a server does not take, or takes only as it is; empty: none."""
    if reply.status_code != httpx.codes.BAD_REQUEST:
        return ""
    try:
        error = reply.json()["error"]
        is_it = str(error["code"]) in ("unsupported_parameter", "unsupported_value")
        return str(error["param"]) if is_it else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _asked_wait(given: str, otherwise: float) -> float:
    return min(float(given), _LONGEST_WAIT_S) if given.strip().isdigit() else otherwise


def _parsed(body: Any) -> Reply:
    """Return what a body in the protocol says.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is in no such protocol.
    """
    choice = body["choices"][0]
    message, usage = choice["message"], body.get("usage") or {}
    text, refusal, total = message.get("content"), message.get("refusal"), usage.get("total_tokens")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise TypeError("the message has no text")
    ended = str(choice.get("finish_reason") or "")
    return Reply(
        text=text or "",
        ended=ended,
        refusal=refusal or ("the server's filter" if ended == "content_filter" else ""),
        model=str(body.get("model") or ""),
        tokens=total if isinstance(total, int) and total > 0 else 0,
    )
