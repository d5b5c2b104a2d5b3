"""Compare answers by an OpenAI-compatible endpoint: both orders, within a ceiling of tokens.

Every word that it says is kept (:mod:`sdpo.evaluation.verdict_file`), and what was asked once is
not asked again: a judge that fails in the middle has lost nothing.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sdpo.data.schema import Message
from sdpo.errors import UserError
from sdpo.evaluation.chat import Chat, Reply
from sdpo.evaluation.judging import Comparison, Pairwise, Progress, Verdict, silent
from sdpo.evaluation.verdict_file import Said, VerdictFile
from sdpo.identity.canonical import digest_of
from sdpo.inputs.judges import LocatedJudge

_VERDICT = re.compile(r"\W*(a|b|tie)\W*", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_ATTEMPTS = 2
"""An answer that holds no verdict is asked for so often in all."""
_MOST_MISSING = 0.1
"""More comparisons without a verdict say that the judge is none."""
_OVERHEAD = 256
"""What a server's own template may add to a message, in tokens."""
_BYTES_PER_TOKEN = 3.0
"""What text takes at least, for the estimate; one token has one byte at worst."""


@dataclass(frozen=True, slots=True)
class _Request:
    key: str
    content: str

    @property
    def most(self) -> int:
        """Return the tokens that reading it can take at most: a token has at least a byte."""
        return len(self.content.encode("utf-8", "surrogatepass")) + _OVERHEAD

    @property
    def likely(self) -> float:
        return len(self.content.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN


class _Ceiling:
    """What may be spent is set aside before a request, and what it took is spent after it."""

    def __init__(self, most: int, spent: int) -> None:
        self.most, self.spent = most, spent
        self._aside, self._changed = 0, threading.Condition()

    @contextmanager
    def room(self, tokens: int) -> Iterator[None]:
        """Wait for room for a request that takes ``tokens`` at most.

        Raises:
            UserError: there is none, and nothing is under way that could leave any.
        """
        with self._changed:
            while self._aside and self.spent + self._aside + tokens > self.most:
                self._changed.wait()
            if self.spent + tokens > self.most:
                raise UserError(
                    f"the judge's ceiling is reached: {self.spent} of max_tokens_total "
                    f"{self.most} are spent, and the next request may take {tokens}. What it said "
                    "is kept: raise max_tokens_total to go on from there"
                )
            self._aside += tokens
        try:
            yield
        finally:
            with self._changed:
                self._aside -= tokens
                self._changed.notify_all()

    def spend(self, tokens: int) -> None:
        with self._changed:
            self.spent += tokens


class Endpoint(Pairwise):
    """A judge behind an address."""

    def __init__(
        self, located: LocatedJudge, *, kept: Path, label: str, warn: Callable[[str], None]
    ) -> None:
        self._located, self._label, self._warn = located, label, warn
        self._config = located.config
        self.file = VerdictFile(kept)
        self._stop = threading.Event()

    def verdicts(self, asked: Sequence[Comparison], *, on_done: Progress = silent) -> list[Verdict]:
        """Return a verdict in each order on every comparison; equal answers tie without a request.

        Raises:
            UserError: the server does not serve, the ceiling is reached or would be, or more than
                a tenth of the comparisons got no verdict. What was said is kept.
        """
        pairs = [self._requests(each) for each in asked]
        every = {request.key: request for pair in pairs for request in pair}
        todo = [request for request in every.values() if not self._is_settled(request)]
        ceiling = _Ceiling(self._config.max_tokens_total, self.file.spent(self._label))
        self._check_estimate(todo, ceiling)
        self._ask_all(todo, ceiling, done=len(every) - len(todo), on_done=on_done)
        found = [
            Verdict(0.5, 0.5)
            if each.first == each.second
            else Verdict(*(self._won(request, as_b) for as_b, request in enumerate(pair)))
            for each, pair in zip(asked, pairs, strict=True)
        ]
        self._check_missing(found, pairs)
        return found

    def _requests(self, each: Comparison) -> tuple[_Request, ...]:
        """Return what is asked: with the first answer as A, and as B."""
        if each.first == each.second:
            return ()
        orders = ((each.first, each.second), (each.second, each.first))
        return tuple(
            _Request(digest_of([conversation(each.prompt), a, b]), self._content(each.prompt, a, b))
            for a, b in orders
        )

    def _content(self, prompt: Sequence[Message], a: str, b: str) -> str:
        values = {"{prompt}": conversation(prompt), "{answer_a}": a, "{answer_b}": b}
        # At once, so that a placeholder that an answer spells is not filled in.
        pattern = "|".join(map(re.escape, values))
        return re.sub(pattern, lambda found: values[found[0]], self._located.prompt)

    def _is_settled(self, request: _Request) -> bool:
        said = self.file.of(request.key)
        return len(said) >= _ATTEMPTS or any(each.verdict for each in said)

    def _won(self, request: _Request, shown_as_b: int) -> float | None:
        """Return what the first answer won in a request, in which it stands as A or as B."""
        verdict = next((each.verdict for each in self.file.of(request.key) if each.verdict), None)
        if verdict is None:
            return None
        return 0.5 if verdict == "tie" else float(verdict == "AB"[shown_as_b])

    def _check_estimate(self, todo: Sequence[_Request], ceiling: _Ceiling) -> None:
        """Refuse before the first request what cannot fit in the ceiling."""
        likely = sum(each.likely for each in todo) + len(todo)
        if todo and ceiling.spent + likely > ceiling.most:
            raise UserError(
                f"{len(todo)} verdicts of {self._located.title} would take about {likely:.0f} "
                f"tokens or more, {ceiling.spent} are spent, and max_tokens_total is "
                f"{ceiling.most}: raise it, or compare fewer answers. Nothing was sent"
            )

    def _ask_all(
        self, todo: Sequence[_Request], ceiling: _Ceiling, *, done: int, on_done: Progress
    ) -> None:
        chat = Chat(self._config, stopped=self._stop.is_set, warn=self._warn)
        self._stop.clear()
        pool = ThreadPoolExecutor(self._config.parallel)
        finished, lock = [done], threading.Lock()
        errors: list[BaseException] = []

        def ask(request: _Request) -> None:
            try:
                self._settle(request, chat, ceiling)
            except BaseException as error:
                errors.append(error)
                self._stop.set()  # nobody else begins a request
                raise
            with lock:
                finished[0] += 1
                on_done(finished[0] // 2)

        try:
            futures = [pool.submit(ask, request) for request in todo]
            wait(futures, return_when=FIRST_EXCEPTION)
            if errors:
                raise errors[0]
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            chat.close()

    def _settle(self, request: _Request, chat: Chat, ceiling: _Ceiling) -> None:
        """Ask until there is a verdict, or it was asked often enough."""
        most = request.most + self._config.answer_tokens
        while not self._is_settled(request) and not self._stop.is_set():
            with ceiling.room(most):
                reply = chat.ask(request.content, tokens=self._config.answer_tokens)
                tokens = reply.tokens or most
                ceiling.spend(tokens)
                self.file.add(
                    Said(
                        key=request.key,
                        verdict=verdict_in(reply),
                        text=reply.refusal or reply.text,
                        refused=bool(reply.refusal),
                        tokens=tokens,
                        spent_for=self._label,
                        model=reply.model,
                        at=datetime.now(UTC).isoformat(timespec="seconds"),
                    )
                )

    def _check_missing(
        self, found: Sequence[Verdict], pairs: Sequence[tuple[_Request, ...]]
    ) -> None:
        missing = [pair for each, pair in zip(found, pairs, strict=True) if each.value is None]
        if len(missing) <= _MOST_MISSING * len(found):
            return
        last = [[self.file.of(request.key)[-1] for request in pair] for pair in missing]
        unheard = [[said for said in pair if not said.verdict] for pair in last]
        refused = [said for pair in unheard for said in pair[:1] if said.refused]
        count = f"{len(missing)} of {len(found)} comparisons"
        none = f"{self._located.title} gave no verdict on {count}"
        if refused:
            raise UserError(
                f"{none}, and refused {len(refused)} of them, for example with "
                f"{refused[0].text[:300]!r}. What it said is kept. Take a judge that answers such "
                "texts, or compare answers to other prompts"
            )
        raise UserError(
            f"{none}; it answered, for example, {unheard[0][0].text[:200]!r} where A, B or tie was "
            "due. What it said is kept. Take another model, a larger answer_tokens (one that "
            "thinks first needs it), or ask in words of your own (prompt_file)"
        )


def conversation(prompt: Sequence[Message]) -> str:
    """Return a prompt as a judge reads it: the text of a single turn, or all turns with roles."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def verdict_in(reply: Reply) -> str | None:
    """Return A, B or tie where a reply is that word and nothing else but thoughts before it."""
    found = _VERDICT.fullmatch(_THOUGHT.sub("", reply.text).strip())
    if found is None or reply.refusal:
        return None
    return "tie" if found[1].lower() == "tie" else found[1].upper()
