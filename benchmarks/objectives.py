"""Make one run per objective after the same supervised model, and print a Markdown table.

    python -m benchmarks.objectives [--limit 50] [--objectives dpo,simpo] [--set key=value ...]

Run it from the project's root, with the folder `shared` beside the project. Every objective trains
on all pairs in one step, from the same S (supervised on the chosen sides), with one learning rate;
betas are those of arXiv 2502.01237 for its 8B model where it has them, else 0.1. At two million
weights the numbers only compare the pipeline's objectives with one another.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sdpo.chain.run_chain import run_chain
from sdpo.config import RunConfig, describe
from sdpo.config.load import load_recipe
from sdpo.events import Event, WarningEvent
from sdpo.hooks import Host
from sdpo.objectives import OBJECTIVES
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json

RECIPE = Path(__file__).parents[1] / "tests" / "real" / "orca_ultrafeedback.yaml"

BETAS = {
    "dpo": 0.003,
    "ipo_sum": 0.001,
    "simpo": 1.0,
    "orpo": 0.5,
    "asft": 0.1,
    "apo_zero": 0.003,
    "nca": 3e-4,
    "cal_dpo": 3e-4,
    "dpo_norm": 5.0,
}
"""Beta is 0.1 but for these: from arXiv 2502.01237 (8B, UltraFeedback), dpo_norm from Tulu 3."""

COLUMNS = (
    "objective",
    "accuracy vs S",
    "ranking accuracy",
    "margin",
    "γ of the result",
    "change of γ from S",
    "KL to S",
    "seconds",
)


def main(arguments: Sequence[str]) -> None:
    """Make the runs that are not there yet, and print a line for each."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="sdpo-bench-") as scratch:
        runs = options.out or Path(scratch)
        common = [
            "partition.groups=[[orca, ultrafeedback]]",
            "probe.completions=0",
            f"probe.kl_prompts={options.kl_prompts}",
            f"probe.kl_tokens={options.kl_tokens}",
            f"store.runs_dir={json.dumps(str(runs))}",
            *([f"data.limit={options.limit}"] if options.limit else []),
            *options.overrides,
        ]
        print(f"`python -m benchmarks.objectives {shlex.join(arguments)}`\n")
        print(_line(COLUMNS))
        print(_line(["---", *["---:"] * (len(COLUMNS) - 1)]), flush=True)
        supervised = ""
        for name in options.objectives:
            start = _start(supervised)
            beta = BETAS.get(name, 0.1)
            settings = [f"training.objective={name}"]
            if "beta" in OBJECTIVES[name].settings:
                settings.append(f"training.beta={beta}")
            config = load_recipe(RECIPE, overrides=[*start, *common, *settings, f"name={name}"])
            run = run_chain(config, host=Host(listen=_listen)).run
            supervised = supervised or str(RunFolder(run).model(0))
            print(_line(_cells(run, config)), flush=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives")
    parser.add_argument("--limit", type=int, default=0, help="pairs per source; 0: all")
    parser.add_argument("--kl-prompts", type=int, default=32, help="reserved prompts for KL")
    parser.add_argument("--kl-tokens", type=int, default=64, help="tokens of each sample")
    parser.add_argument("--out", type=Path, help="folder to keep the runs in, and to go on from")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--objectives", type=lambda text: text.split(","), default=list(OBJECTIVES))
    options = parser.parse_args(arguments)
    if unknown := set(options.objectives) - OBJECTIVES.keys():
        parser.error(f"unknown objectives: {', '.join(sorted(unknown))}")
    return options


def _start(supervised: str) -> list[str]:
    """Return settings by which the first run makes S, and the others take it as their model."""
    if supervised:
        return [f"model.name_or_path={json.dumps(supervised)}", "supervised.enabled=false"]
    return ["supervised.enabled=true", "supervised.learning_rate=1e-4", "supervised.fraction=0.5"]


def _cells(run: Path, config: RunConfig) -> list[str]:
    data = load_run(run)
    reserve = measure_run(data).reserve[1]
    record = data.records[1]
    last = next(line for line in reversed(data.metrics[1]) if "eval_rewards/margins" in line)
    seconds = sum(record["timings_s"].values())
    return [
        describe(config.training_of(1).model_dump()),
        f"{100 * reserve['accuracy_vs_S']:.1f}%",
        f"{100 * reserve['ranking_accuracy']:.1f}%",
        f"{last['eval_rewards/margins']:+.4f}",
        f"{reserve['mean']:+.2f}",
        f"{reserve['vs_S']['mean']:+.2f}",
        _kl_to_s(run),
        f"{seconds:.0f}",
    ]


def _kl_to_s(run: Path) -> str:
    """Return KL(M_1||S) per completion in nats, with its interval; a dash: it was not measured."""
    path = run / "step-1" / "kl.json"
    if not path.is_file():
        return "–"
    (kl,) = (entry["per_sequence"]["kl"] for entry in read_json(path))
    low, mean, high = (f"{kl[name]:.3f}" for name in ("low", "mean", "high"))
    return f"{mean} [{low}, {high}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _listen(event: Event) -> None:
    if isinstance(event, WarningEvent):
        print(f"  {event.message}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
