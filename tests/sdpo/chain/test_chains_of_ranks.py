"""A whole chain of two processes is that of one, under each strategy: all that is measured too."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench, Outcome, Values
from forked_ranks import forked_ranks

import sdpo
from sdpo.chain.run_chain import run_chain
from sdpo.config.load import make_config
from sdpo.events import Event, NodeEvent
from sdpo.hooks import Host

from ..training_helpers.runs import skip_without

SHORT: Values = {
    "data": {"limit": 16},
    "training": {"batch_size": 4, "learning_rate": 1e-3},
    "evaluation": {"every": 2},
    "probe": {
        "completions": 2,
        "completion_tokens": 6,
        "bootstrap_resamples": 100,
        "kl_prompts": 2,
        "kl_samples": 2,
        "kl_tokens": 6,
    },
}
STRATEGIES = ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
MEASURED = ["gamma.json", "kl.json"]


def chained(bench: Bench, launch: Values) -> Outcome:
    events: list[Event] = []
    config = make_config(bench.values({**SHORT, "launch": launch}))
    with forked_ranks():
        return Outcome(run_chain(config, host=Host(listen=events.append)), events)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Outcome:
    return chained(Bench(tmp_path_factory.mktemp("alone"), tiny_recipe), {})


def values(found: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All that is not a list or an object within ``found``, each with its place."""
    if isinstance(found, dict | list):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from values(value, f"{where}.{key}")
    else:
        yield where, found


def check_alike(found: Any, expected: Any) -> None:
    """Numbers may differ as far as the last bits of sums take them; all else is the same."""
    ours, theirs = dict(values(found)), dict(values(expected))
    assert ours.keys() == theirs.keys()
    for where, value in theirs.items():
        if isinstance(value, float) and math.isfinite(value):
            assert ours[where] == pytest.approx(value, rel=1e-2, abs=1e-2), where
        elif not isinstance(value, str):
            assert ours[where] == value, where


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_chain_of_two_processes_measures_what_one_does(
    bench: Bench, alone: Outcome, strategy: str
) -> None:
    skip_without(strategy)
    done = chained(bench, {"processes": 2, "strategy": strategy})
    assert done.result.executed == alone.result.executed
    for step in (1, 2):
        assert done.record(f"step-{step}")["environment"]["strategy"] == strategy
        assert done.record(f"step-{step}")["gate"]["max_abs_difference_nats"] < 1e-3
        assert (
            done.record(f"step-{step}")["scored_rows"]
            == (alone.record(f"step-{step}")["scored_rows"])
        )
        check_alike(done.metrics(step), alone.metrics(step))
        assert [line for line in done.metrics(step) if "eval_loss" in line]
        for name in MEASURED:
            check_alike(done.json(f"step-{step}/{name}"), alone.json(f"step-{step}/{name}"))
    for model in (0, 1, 2):
        name = f"probes/M_{model}.completions.json"
        assert done.json(name) == alone.json(name)
    again = chained(bench, {"processes": 3, "strategy": strategy})
    assert not again.result.executed, "three find done what two did"
    events: list[Event] = []
    with forked_ranks():
        sdpo.resume(bench.runs / "tiny", processes=4, listen=events.append)
    assert {e.status for e in events if isinstance(e, NodeEvent)} == {"reuse"}
