"""Find how short and how long the sequences are that a run may compute."""

import numpy as np

from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile


def ends_of_lengths(tokens: TokenFile, supervised: SupervisedTokenFile | None) -> list[int]:
    """Return the tokens of the shortest and longest sequence, of pairs, then of examples."""
    found: list[int] = []
    if len(prompts := tokens.prompt_lengths[tokens.usable]):
        sides = tokens.chosen_lengths[tokens.usable], tokens.rejected_lengths[tokens.usable]
        found += [int((prompts + np.minimum(*sides)).min())]
        found += [int((prompts + np.maximum(*sides)).max())]
    if supervised is not None:
        lengths = (supervised.prompt_lengths + supervised.completion_lengths)[supervised.usable]
        found += [int(lengths.min()), int(lengths.max())] if len(lengths) else []
    return found
