"""A finished run that is in use, and the parameters of its retraining."""

from typing import Any

from bench import Bench, Values
from histories import origin, write_new_pairs

from sdpo.history.checkpoint import Checkpoint
from sdpo.registry import promote


def parameters(bench: Bench, **groups: Any) -> Values:
    """Parameters of a lenient retraining of the finished run over new pairs."""
    promote(Checkpoint(origin(bench)), runs_dir=bench.runs)
    news = write_new_pairs(bench.folder / "new.jsonl", *range(20))
    return {
        "lineage": {"name": "tiny", "runs_dir": str(bench.runs)},
        "data": {"sources": [str(news)], "min_new_pairs": 10},
        "step": {"overrides": ["training.max_steps=1"]},
        "gate": {
            "when_too_few": "estimate",
            "accuracy_tolerance": 1,
            "margin_tolerance_nats": 1000,
            "gamma_change_min_nats": -1000,
        },
    } | groups
