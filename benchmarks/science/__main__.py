"""Run a campaign in parts: ``python -m benchmarks.science --model FOLDER --data FOLDER``.

The claims of sDPO (arXiv 2403.19270) are put to a real model: arms of `sdpo compare` by seeds,
each a chain of three steps over three sources, or what stands for it. The smallest effect that the
reserve can show is said, and written to campaign.json, before anything runs. What came of each part
is kept in --results, in files small enough to be committed: a part that is there is not run again,
on whichever machine. Without --model the tables of what is there are printed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.science.campaign import Prepared, check_names, prepare, run_parts
from benchmarks.science.design import Campaign, Design
from benchmarks.science.tables import page, power_table
from sdpo.errors import ConfigError, SdpoError, UserError
from sdpo.events import Event, NodeEvent, NoteEvent, ProgressEvent, WarningEvent
from sdpo.hooks import Host
from sdpo.study.arms import ARMS

RESULTS = Path(__file__).parents[1] / "results" / "science"
_SETTINGS = {
    **dict.fromkeys(("pairs", "reserve", "characters", "max_length", "seeds", "first_seed"), int),
    **dict.fromkeys(("batch_size", "lora_r", "threads", "limit", "win_prompts"), int),
    **dict.fromkeys(("learning_rate", "beta"), float),
    "rule": str,
}
MARK = "<!-- python -m benchmarks.science -->"
_EVERY_S = 60
_LISTS = ("suites", "single", "several")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return 2 where it cannot be."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except SdpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.science",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="S")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="where the files of the sources are, or the folder above `preferences`",
    )
    parser.add_argument(
        "--task-files", type=Path, metavar="FOLDER", help="tasks of --suites, in SDPO_TASK_FOLDERS"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("runs/science"), metavar="FOLDER")
    parser.add_argument("--parts", type=int, default=0, help="run so many now; 0, the default: all")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="run these parts, so that machines can share"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="say what it would be and keep the design in --results; train nothing",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help=f"write the tables into this page, in place of what follows the line `{MARK}`",
    )
    parser.add_argument("--note", action="append", metavar="TEXT", help="said beside every table")
    for name, kind in _SETTINGS.items():
        default = Design.model_fields[name].default
        text = f"of the design; {default!r}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    for name in _LISTS:
        default = ",".join(Design.model_fields[name].default)
        parser.add_argument(f"--{name}", help=f"of the design, with commas; {default or 'none'}")
    return parser


def _given(args: argparse.Namespace) -> dict[str, object]:
    given = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    for name in _LISTS:
        if (text := getattr(args, name)) is not None:
            given[name] = tuple(part.strip() for part in text.split(",") if part.strip())
            if name != "suites" and (unknown := [n for n in given[name] if n not in ARMS]):
                raise ConfigError(f"--{name}: `{unknown[0]}` is no arm: {', '.join(ARMS)}")
    if args.note:
        given["notes"] = tuple(args.note)
    return given


def _run(args: argparse.Namespace) -> int:
    if args.model is None:
        file = args.results / "campaign.json"
        if not file.is_file():
            raise UserError(f"no campaign has begun in {args.results}: begin one with --model")
        _show(Campaign.model_validate_json(file.read_bytes()), args.results, args.page)
        return 0
    prepared = prepare(
        _given(args),
        model=args.model.absolute(),
        data=args.data,
        results=args.results.absolute(),
        work=args.work.absolute(),
        task_files=args.task_files.absolute() if args.task_files else None,
    )
    only = [name.strip() for name in args.only.split(",") if name.strip()]
    check_names(prepared, only)
    _tell(prepared)
    if not args.plan:
        host = Host(listen=_Teller())
        run_parts(prepared, most=args.parts, host=host, say=_say, only=only)
        _show(prepared.campaign, args.results, args.page)
    return 0


def _tell(prepared: Prepared) -> None:
    campaign, missing = prepared.campaign, prepared.missing
    asks = campaign.design.suites or campaign.design.win_prompts
    besides = ", and more for its suites and answers" if asks else ""
    print("\n".join(power_table(campaign)))
    print(
        f"{len(prepared.trials)} parts, {len(prepared.trials) - len(missing)} are there; each "
        f"takes about {campaign.minutes:.0f} minutes of one core{besides}. Missing: "
        f"{', '.join(missing) or 'none'}"
    )


def _show(campaign: Campaign, results: Path, out: Path | None) -> None:
    text = page(campaign, results)
    if out is None:
        print(text)
        return
    before, mark, _ = out.read_text(encoding="utf-8").partition(f"{MARK}\n")
    if not mark:
        raise UserError(f"{out} has no line `{MARK}` behind which the tables would go: write one")
    out.write_text(f"{before}{mark}\n{text}", encoding="utf-8")


def _say(text: str) -> None:
    print(text, flush=True)


class _Teller:
    """A listener that prints notes and warnings, and once a minute where a part is."""

    def __init__(self) -> None:
        self._node, self._said = "", time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print one event, or not."""
        now = time.monotonic()
        if isinstance(event, NoteEvent | WarningEvent):
            print(f"  {event.message}", file=sys.stderr, flush=True)
        elif isinstance(event, NodeEvent):
            self._node = event.node
        elif isinstance(event, ProgressEvent) and now - self._said >= _EVERY_S:
            self._said = now
            where = f"{event.phase}: {event.done} of {event.total} {event.unit}"
            print(f"  {self._node}, {where}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
