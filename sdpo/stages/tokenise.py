"""Turn text into token ids, as a stage."""

import os
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from sdpo.events import EventWriter
from sdpo.identity.tokenizer_digest import given_template
from sdpo.processes.stage_results import ExampleViewResult, PairViewResult, TokeniseResult
from sdpo.processes.stage_specs import TokeniseSpec, ViewSpec
from sdpo.system import machine
from sdpo.system.json_values import JsonObject
from sdpo.tokens.load import load_tokenizer
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile
from sdpo.tokens.tokenise import tokenise_pairs, tokenise_supervised
from sdpo.tokens.view import render_example, render_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Options(TypedDict):
    """Texts are cut with these options, pairs and supervised examples alike."""

    processes: int
    max_length: int
    max_prompt_length: int
    clock: datetime
    end_token_ids: list[int]
    variables: JsonObject


def run(spec: TokeniseSpec, events: EventWriter) -> TokeniseResult:
    """Tokenise the run's pairs, and its supervised examples if it has any."""
    # The work is divided among processes; threads within them would only contend.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = _tokenizer(spec)
    options = _Options(
        processes=machine.cores(),
        max_length=spec.max_length,
        max_prompt_length=spec.max_prompt_length,
        clock=datetime.fromisoformat(spec.clock),
        end_token_ids=spec.end_token_ids,
        variables=spec.model.chat_template_kwargs,
    )

    def progress(done: int, total: int) -> None:
        events.progress("tokenise", done, total, unit="rows")

    report = tokenise_pairs(spec.pairs, tokenizer, out=spec.out, on_progress=progress, **options)
    if spec.supervised and spec.supervised_out:
        tokenise_supervised(
            spec.supervised, tokenizer, out=spec.supervised_out, on_progress=progress, **options
        )
    return TokeniseResult(pairs=report)


def view(spec: ViewSpec) -> PairViewResult | ExampleViewResult:
    """Return one stored pair or supervised example, decoded."""
    if spec.supervised:
        example = SupervisedTokenFile.open(spec.tokens).row(spec.row)
        return ExampleViewResult(example=render_example(example, _tokenizer(spec)))
    row = TokenFile.open(spec.tokens).row(spec.row)
    return PairViewResult(pair=render_pair(row, _tokenizer(spec)))


def _tokenizer(spec: TokeniseSpec | ViewSpec) -> "PreTrainedTokenizerBase":
    """Return the tokenizer with the recipe's template, if it gives one."""
    tokenizer = load_tokenizer(spec.tokenizer, code=spec.model.trust_remote_code)
    if spec.model.chat_template:
        tokenizer.chat_template = given_template(spec.tokenizer, spec.model.chat_template)
    return tokenizer
