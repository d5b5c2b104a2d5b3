"""Lay the prompt out once for all its completions: each sees the prompt and itself alone.

A pair's tokens go from 2P + C + R to P + C + R. The row holds the first completion from its end to
its beginning, the prompt, then the second: so what each token may see is one run of keys, and
attention needs no copies. Each completion's positions go on from the prompt's, as in a row of its
own.
"""

from collections.abc import Sequence

import numpy as np

from sdpo.model.layouts.batch import Batch, PromptGroup
from sdpo.model.layouts.row import Row


def collate(groups: Sequence[PromptGroup], *, pad_token_id: int, device: str) -> Batch:
    """Put group after group into one row; a group has one completion or two."""
    row = Row()
    for group in groups:
        row.begin_group()
        length = len(group.prompt)
        start = row.tokens
        *before, after = group.completions
        for side in before:
            row.add(side, position=length, part=1, backwards=True)
        prompt = row.tokens
        row.add(group.prompt, position=0, part=0, sequences=len(group.completions))
        row.add(after, position=length, part=2)
        row.see(prompt, prompt + length, prompt, prompt + length)
        last = prompt + length - 1  # predicts the first token of each completion
        if before:
            row.see(start, prompt, start, prompt + length)
            row.predict(np.concatenate([[last], np.arange(prompt - 1, start, -1)]))
        row.see(prompt + length, row.tokens, prompt, row.tokens)
        row.predict(np.arange(last, row.tokens - 1))
    return row.batch(groups, pad_token_id=pad_token_id, device=device)
