"""The stage that turns text into token ids."""

import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sdpo.events import EventWriter
from sdpo.processes.stage_specs import TokeniseSpec, ViewSpec
from sdpo.system import machine
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.reasons import NOT_AS_GIVEN, NOTES
from sdpo.tokens.token_file import TokenFile, TokenReport
from sdpo.tokens.tokenise import tokenise_pairs, tokenise_supervised
from sdpo.tokens.view import render_pair


def run(spec: TokeniseSpec, events: EventWriter) -> dict[str, Any]:
    """Tokenise the run's pairs, and its supervised examples if it has any."""
    # The work is divided among processes; threads within them would only contend.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = _tokenizer(spec)
    options: dict[str, Any] = {
        "processes": machine.cores(),
        "max_length": spec.max_length,
        "clock": datetime.fromisoformat(spec.clock),
        "end_token_ids": spec.end_token_ids,
    }

    def progress(done: int, total: int) -> None:
        events.progress("tokenise", done, total, unit="rows")

    report = tokenise_pairs(spec.pairs, tokenizer, out=spec.out, on_progress=progress, **options)
    _warn(report, events, of="pairs")
    if spec.supervised and spec.supervised_out:
        examples = tokenise_supervised(
            spec.supervised, tokenizer, out=spec.supervised_out, on_progress=progress, **options
        )
        _warn(examples, events, of="supervised examples")
    return {"pairs": asdict(report)}


def _warn(report: TokenReport, events: EventWriter, *, of: str) -> None:
    """Say what a person should know of rows that are used, and which are not for a reason of the
    template."""
    if report.end_appended:
        events.warning(
            f"{report.end_appended} completions got an end token: the template closes with none"
        )
    for note, what in NOTES.items():
        if count := report.notes.get(note):
            events.warning(f"{count} {of}: {what} (first: {report.examples[note]})")
    for reason in NOT_AS_GIVEN:
        if count := report.reasons.get(reason):
            events.warning(
                f"{count} {of} are not used ({reason}), as their tokens would not hold what was "
                f"given. {report.examples[reason]}"
            )


def view(spec: ViewSpec) -> dict[str, Any]:
    """One stored pair, decoded."""
    row = TokenFile.open(spec.tokens).row(spec.row)
    return {"pair": asdict(render_pair(row, _tokenizer(spec)))}


def _tokenizer(spec: TokeniseSpec | ViewSpec) -> Any:
    """The tokenizer with the recipe's template, if it gives one."""
    tokenizer = load_tokenizer(spec.tokenizer, code=spec.model.trust_remote_code)
    if spec.model.chat_template:
        tokenizer.chat_template = Path(spec.model.chat_template).read_text(encoding="utf-8")
    return tokenizer
