"""UltraFeedback as it was published (arXiv 2310.01377): four answers to an instruction, scored."""

import math
from collections.abc import Mapping
from typing import Any

from sdpo.layouts.readers import layout


@layout(
    description="openbmb/UltraFeedback: the answer with the best overall score against the worst",
    reads=("instruction", "completions"),
)
def ultrafeedback(row: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """Pair the best answer with the worst by ``overall_score``.

    Of several at the best score the first is taken, at the worst the last.
    """
    scored = [
        (float(answer["overall_score"]), answer["response"])
        for answer in row["completions"] or []
        if _is_score(answer.get("overall_score"))
    ]
    if len(scored) < 2:
        return "fewer than two of its answers have an overall score"
    best = max(scored, key=lambda answer: answer[0])
    worst = min(reversed(scored), key=lambda answer: answer[0])
    return {
        "prompt": row["instruction"],
        "chosen": best[1],
        "rejected": worst[1],
        "chosen_score": best[0],
        "rejected_score": worst[0],
    }


def _is_score(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(float(value))  # type: ignore[arg-type]
