"""Judge answers: the interface that all judges have, and the rules.

Every judge can be asked both ways. A rule and a reward model give each answer a score, and of two
answers the one with more wins. An endpoint compares two answers in both orders, and an answer's
score is the share of its comparisons with the prompt's other answers that it wins.

.. code-block:: python

    located = locate_judge(config, where="evaluation.win_rate.judge", cache=cache)  # any process
    judge = make_judge(located, device="cpu", kept=folder, label="run tiny", warn=print)  # a stage
    judge.scores([Answered("key", prompt, ("one", "another"))])    # [[0.5, 0.0]]
    judge.verdicts([Comparison("key", prompt, "one", "another")])  # [Verdict(1.0, 1.0)]
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from sdpo.data.schema import Message
from sdpo.errors import ConfigError
from sdpo.inputs.judges import LocatedJudge
from sdpo.judges import rule_of

Progress = Callable[[int], None]
"""It hears how many answers, or comparisons, are judged."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt has several answers; ``key`` is its prompt key."""

    key: str
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt are compared; ``key`` is its prompt key."""

    key: str
    prompt: tuple[Message, ...]
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first answer won, shown as A (``forward``) and shown as B (``backward``).

    1: it is better, 0: the other one is, 0.5: a tie; None: the judge gave no verdict.
    """

    forward: float | None
    backward: float | None

    @property
    def value(self) -> float | None:
        """Return the mean of both orders; None where one is missing, as one alone would favour a
        place."""
        if self.forward is None or self.backward is None:
            return None
        return (self.forward + self.backward) / 2


def silent(_done: int) -> None:
    """Hear nothing."""


class Judge(ABC):
    """A judge scores answers, and compares two of them."""

    @abstractmethod
    def scores(self, asked: Sequence[Answered], *, on_done: Progress = silent) -> list[list[float]]:
        """Return a score for every answer of every prompt: more is better.

        A score is NaN where a judge that compares gave no verdict on the answer.

        Raises:
            SdpoError: the judge cannot serve; what it has said is kept.
        """

    @abstractmethod
    def verdicts(self, asked: Sequence[Comparison], *, on_done: Progress = silent) -> list[Verdict]:
        """Return a verdict on every comparison.

        Raises:
            SdpoError: the judge cannot serve; what it has said is kept.
        """


class Pointwise(Judge):
    """A judge by scores: of two answers the one with more wins, and equal ones tie."""

    def verdicts(self, asked: Sequence[Comparison], *, on_done: Progress = silent) -> list[Verdict]:
        """Return verdicts by the scores of both answers; the order in which they are shown counts
        for nothing."""
        pairs = [Answered(each.key, each.prompt, (each.first, each.second)) for each in asked]
        found = self.scores(pairs, on_done=lambda done: on_done(done // 2))
        return [Verdict(won, won) for first, second in found for won in [better(first, second)]]


class Pairwise(Judge):
    """A judge by comparisons: an answer's score is the share that it wins of its own."""

    def scores(self, asked: Sequence[Answered], *, on_done: Progress = silent) -> list[list[float]]:
        """Return the mean of each answer's verdicts against the prompt's other answers.

        n answers take n (n - 1) requests.
        """
        places = [
            (item, first, second)
            for item, each in enumerate(asked)
            for first, second in combinations(range(len(each.answers)), 2)
        ]
        comparisons = [
            Comparison(
                asked[item].key,
                asked[item].prompt,
                asked[item].answers[first],
                asked[item].answers[second],
            )
            for item, first, second in places
        ]
        won: list[list[list[float]]] = [[[] for _ in each.answers] for each in asked]
        found = self.verdicts(comparisons, on_done=on_done)
        for (item, first, second), verdict in zip(places, found, strict=True):
            if (value := verdict.value) is not None:
                won[item][first].append(value)
                won[item][second].append(1 - value)
        return [[_mean(values) for values in answers] for answers in won]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def better(first: float, second: float) -> float:
    """Return 1 where ``first`` is more, 0 where it is less, 0.5 where both are equal."""
    return 0.5 if first == second else float(first > second)


class RuleJudge(Pointwise):
    """An installed rule judges; it sees each answer by itself."""

    def __init__(self, name: str) -> None:
        self._rule = rule_of(name)

    def scores(self, asked: Sequence[Answered], *, on_done: Progress = silent) -> list[list[float]]:
        """Return what the rule gives every answer."""
        found, done = list[list[float]](), 0
        for each in asked:
            turns = [{"role": turn.role, "content": turn.content} for turn in each.prompt]
            found.append([self._rule(turns, answer) for answer in each.answers])
            done += len(each.answers)
            on_done(done)
        return found


def make_judge(
    located: LocatedJudge, *, device: str, kept: Path, label: str, warn: Callable[[str], None]
) -> Judge:
    """Return a judge that can be asked, for a stage; ``warn`` hears what a person should know.

    ``kept`` is the folder in which an endpoint's verdicts are kept, and found again; ``label`` is
    for whom they are asked: its ceiling of tokens counts what was spent under it. One process at a
    time asks with the same folder: the caller holds its lock.

    Raises:
        ModelError: a reward model cannot be used.
        PluginError: a rule cannot be imported.
    """
    config = located.config
    match config.kind:
        case "rule":
            return RuleJudge(config.rule)
        case "reward_model":
            from sdpo.evaluation.reward_model import RewardModel

            return RewardModel.load(located, device=device)
        case "endpoint":
            from sdpo.evaluation.endpoint import Endpoint

            return Endpoint(located, kept=kept, label=label, warn=warn)
        case _:
            raise ConfigError("no judge is named: give it a rule, a reward_model or an endpoint")
