"""Compute how varied texts are."""

from collections.abc import Sequence


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct n-grams of words among all of them (Li et al., 1510.03055)."""
    words = [text.split() for text in texts]
    grams = [tuple(of[at : at + n]) for of in words for at in range(len(of) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
