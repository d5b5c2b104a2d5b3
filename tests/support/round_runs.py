"""Tiny runs with rounds: a recipe, and what a step of one has."""

import pyarrow.parquet as pq
from bench import DemoFiles, Outcome, Values

N, TOKENS = 4, 8
"""Samples of a prompt, and tokens of each at most."""


def recipe(demo_files: DemoFiles, **generate: object) -> Values:
    """A step of questions, then rounds on prompts; the pairs of requests are not trained on."""
    common = {"n": N, "max_new_tokens": TOKENS, "unfinished": "keep", "held_out": 0}
    sources = [
        {"name": "questions", "path": str(demo_files.questions)},
        {"name": "requests", "path": str(demo_files.requests), "train": False},
        {"name": "round", "generate": {**common, **generate}},
    ]
    return {
        "data": {"sources": sources},
        "training": {"max_steps": 2},
        "probe": {"completions": 0, "max_pairs": 8},
    }


def rows(made: Outcome, step: int, name: str) -> list[Values]:
    found: list[Values] = pq.read_table(made.run.step(step) / f"{name}.parquet").to_pylist()
    return found
