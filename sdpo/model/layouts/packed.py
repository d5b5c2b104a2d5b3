"""Lay many sequences out in one row, the prompt in each, nothing padded."""

from collections.abc import Sequence

import numpy as np

from sdpo.model.layouts.batch import Batch, PromptGroup
from sdpo.model.layouts.row import Row


def collate(groups: Sequence[PromptGroup], *, pad_token_id: int, device: str) -> Batch:
    """Put sequence after sequence into one row; each sees only itself."""
    row = Row()
    for group in groups:
        for side in group.completions:
            row.begin_group()
            start = row.tokens
            row.add(group.prompt, position=0, part=0)
            row.add(side, position=len(group.prompt), part=0)
            row.see(start, row.tokens, start, row.tokens)
            first = start + len(group.prompt) - 1
            row.predict(np.arange(first, first + len(side)))
    return row.batch(groups, pad_token_id=pad_token_id, device=device)
