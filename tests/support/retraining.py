"""The parameters of a retraining of the finished run."""

from typing import Any

from bench import Bench, Values
from histories import write_new_pairs


def parameters(bench: Bench, **groups: Any) -> Values:
    """Plain values, as a schedule or the form gives them: 20 new pairs, and a lenient gate."""
    news = write_new_pairs(bench.folder / "new.jsonl", *range(20))
    return {
        "lineage": {"name": "tiny", "runs_dir": str(bench.runs)},
        "data": {"sources": [str(news)], "min_new_pairs": 10},
        "step": {"overrides": ["training.max_steps=1", "training.warmup_ratio=0"]},
        "gate": {
            "when_too_few": "estimate",
            "accuracy_tolerance": 1,
            "margin_tolerance_nats": 1000,
            "gamma_change_min_nats": -1000,
        },
    } | groups
