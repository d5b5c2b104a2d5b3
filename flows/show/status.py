"""Say in words where a run is."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from rich.text import Text

from sdpo.config import StoreConfig
from sdpo.processes.pace import in_words
from sdpo.store.kl_cache import NOT_CACHED
from sdpo.store.run_status import RunStatus, Word

_BRIEF = 60
_MADE = ("data", "tokens", "reserve", "plan", "step-", "guide-", "generate-", "judge-")
_STYLE = {"failed": "red", "killed": "red", "interrupted": "yellow", "waiting": "yellow"}


def in_short(status: RunStatus) -> str:
    """Return a run's state on one line."""
    steps = f"{status.steps} of {status.planned or '?'} steps"
    told = [status.state or "?", steps, doing(status), *status.damaged]
    return ", ".join(filter(None, told))


def doing(status: RunStatus) -> str:
    """Return in short what a run does, or what keeps it from going on; empty where it is done."""
    word = status.word
    if word is None or status.state == "done":
        return ""
    match status.state:
        case "running":
            return _at(word)
        case "waiting":
            return _brief(word.waits_for.removeprefix("waiting "))
        case "interrupted":
            return _saved(word)
        case "failed":
            return _brief(word.why)
        case _:
            at = _at(word, with_left=False)
            return _brief(word.waits_for or (at and f"at {at}"))


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _BRIEF else f"{line[: _BRIEF - 1]}…"


def _at(word: Word, *, with_left: bool = True) -> str:
    where = word.node
    if word.phase:
        where = f"{where}: {word.phase}" if word.node else word.phase
    if word.done is not None:
        where += f" {word.done}/{word.total if word.total is not None else '?'} {word.unit}"
    left = in_words(_left_s(word)) if with_left else ""
    return ", ".join(filter(None, [where, left]))


def _left_s(word: Word) -> float | None:
    """Return the seconds that were left at the last word, less the time since; at least 1."""
    if word.left_s is None:
        return None
    return max(1.0, word.left_s - (datetime.now(UTC) - word.updated).total_seconds())


def _saved(word: Word) -> str:
    saved = [f"{step} at optimizer step {n} of {of}" for step, (n, of) in word.saved.items()]
    return f"saved: {', '.join(saved)}" if saved else ""


def in_detail(status: RunStatus) -> Text:
    """Return a run's state with all that is known of it, and what can be done."""
    return Text("\n").join(
        Text(line, style=_STYLE.get(status.state or "", "") if number == 0 else "")
        for number, line in enumerate([*_lines(status), *_again(status), *_evaluated(status)])
    )


def _evaluated(status: RunStatus) -> list[str]:
    counted = (f"{model} ({tasks})" for model, tasks in status.evaluated.items())
    return [f"evaluated by suites, tasks in brackets: {', '.join(counted)}"] * bool(
        status.evaluated
    )


def _again(status: RunStatus) -> list[str]:
    """Say of each step that was made once more why; views follow from what they show.

    What only has to be there again for another stands last, as it is the cause of none.
    """
    found = status.word.again if status.word else {}
    causes_first = sorted(found.items(), key=lambda item: NOT_CACHED in item[1])
    return [
        f"{n} was made{'' if NOT_CACHED in why else ' again'}: {why}"
        for n, why in causes_first
        if n.startswith(_MADE)
    ]


def _lines(status: RunStatus) -> list[str]:
    word, state = status.word, status.state
    if state is None:
        return list(status.damaged)
    if word is None:
        return [state] if state in ("done", "running") else [state, _go_on(status)]
    since = f"since {word.since:%Y-%m-%d %H:%M:%S %Z}"
    match state:
        case "running":
            return [f"running by {_by(word)} {since}", *_progress(word)]
        case "waiting":
            return [f"waiting, {_by(word)} {since}", word.waits_for]
        case "done":
            return ["done"]
        case "killed":
            ending = "; the stage that it had started is still ending" if status.ends else ""
            at = word.waits_for or f"at {_at(word, with_left=False) or 'its start'}"
            last = f"its last word, of {word.updated:%Y-%m-%d %H:%M:%S %Z}: {at}"
            return [f"killed: {_by(word)} is gone{ending}", last, *_rest(status, word)]
        case _:
            why = f": {word.why}" if word.why else ""
            return [f"{state} at {word.updated:%Y-%m-%d %H:%M:%S %Z}{why}", *_rest(status, word)]


def _progress(word: Word) -> list[str]:
    at = _at(word)
    percent = f" ({word.percent:.0f}% of the stage {word.stage})" if word.percent else ""
    return [f"{at}{percent}"] if at else []


def _rest(status: RunStatus, word: Word) -> list[str]:
    return [*filter(None, [_saved(word)]), _go_on(status)]


def _by(word: Word) -> str:
    by = word.by
    flow = f", flow run {by.flow_run}" if by.flow_run else ""
    return f"process {by.pid} of {by.user} on host {by.host}{flow}"


def _go_on(status: RunStatus) -> str:
    return how_to_go_on(status.run, runs_dir=str(Path(status.path).parent))


def how_to_go_on(run: str, *, runs_dir: str) -> str:
    """Return the command by which a run goes on, in words."""
    elsewhere = Path(runs_dir).absolute() != Path(StoreConfig().runs_dir).absolute()
    where = f" --runs-dir {shlex.quote(runs_dir)}" if elsewhere else ""
    return f"go on with: sdpo resume {run}{where}"
