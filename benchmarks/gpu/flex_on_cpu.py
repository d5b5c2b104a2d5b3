"""Use FlexAttention on a CPU, where this project has another kernel: it is what a GPU computes.

It is slow there. torch refuses its backward pass on a CPU, where it cannot be compiled; uncompiled
it gives the gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sdpo.model.layouts import attention


@contextmanager
def flex_on_cpu() -> Iterator[None]:
    """Let attention over rows of several sequences be FlexAttention within it, on a CPU too.

    Rows have to be laid out as for a GPU, in whole blocks.
    """
    from torch.nn.attention import flex_attention as flex

    def on_cpu(
        query: Any, key: Any, value: Any, segments: Any, scale: Any, _dropout: Any, window: Any
    ) -> Any:
        return attention._flex(query, key, value, segments, scale, window).transpose(1, 2)

    with (
        patch.object(flex, "_validate_device", lambda *_: None),
        patch.object(attention, "_compiled_flex", lambda: flex.flex_attention),
        patch.object(attention, "_on_cpu", on_cpu),
    ):
        yield
