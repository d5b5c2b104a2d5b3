"""Define the rules of this project: small, exact, and of no use as a judge of real answers.

They serve demos and tests. Only ``length`` is satisfied by length alone.
"""

import re

from sdpo.judges.facts import Turns, rule

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_LEAST_LETTERS = 4
"""Shorter words of a prompt (the, what, do) say nothing of its topic."""
_LEAST_WORDS = 3
"""A question has so many words, so that a question mark alone is none."""


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _variety(words: list[str]) -> float:
    """Return the share of the words that are not there for another time."""
    return len(set(words)) / len(words) if words else 0.0


@rule(description="share of the prompt's longer words that the answer takes up, less what repeats")
def on_topic(prompt: Turns, answer: str) -> float:
    """Return 0 to 1: the share of the last user turn's words of 4 letters or more that the answer
    has, times the share of the answer's words that do not repeat."""
    asked = next((turn["content"] for turn in reversed(prompt) if turn["role"] != "assistant"), "")
    topic = {word for word in _words(asked) if len(word) >= _LEAST_LETTERS}
    said = _words(answer)
    return len(topic & set(said)) / len(topic) * _variety(said) if topic else 0.0


@rule(description="whether the answer ends by a question to the person, less what repeats")
def asks_back(prompt: Turns, answer: str) -> float:
    """Return 0 to 1: the share of the answer's words that do not repeat where its last sentence is
    a question of three words or more, else 0."""
    sentences = [each.strip() for each in _SENTENCE.findall(answer) if each.strip()]
    is_question = bool(sentences) and sentences[-1].endswith("?")
    if not is_question or len(_words(sentences[-1])) < _LEAST_WORDS:
        return 0.0
    return _variety(_words(answer))


@rule(description="the number of characters: a bad judge, to see what length control does")
def length(prompt: Turns, answer: str) -> float:
    """Return the number of characters of the answer."""
    return float(len(answer))
