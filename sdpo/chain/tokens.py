"""Turn pairs into token files, and say where those lie in the cache."""

from collections.abc import Sequence
from pathlib import Path

from sdpo.chain.context import Context
from sdpo.chain.execute import execute
from sdpo.chain.node import Cached, Expansion, Look
from sdpo.data.prompts import Rejection
from sdpo.errors import ModelError
from sdpo.events import WarningEvent
from sdpo.identity.adapter_folder import of_base, read_object
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_folder import read_config, text_config
from sdpo.identity.payloads import Payload, tokens_identity
from sdpo.identity.tokenizer_digest import given_template
from sdpo.processes.stage_specs import TokeniseSpec
from sdpo.store.records import DataOutputs
from sdpo.store.step_data import step_data
from sdpo.store.token_cache import cached_tokens, token_fault
from sdpo.system.files import seal
from sdpo.tokens.report import TokenReport
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile


def tokens_path(context: Context, kind: str = "pairs") -> Path:
    """Return where the token ids of the run's pairs (or ``supervised`` examples) are cached."""
    data = context.run.record("data").read_outputs(DataOutputs)
    examples = data.supervised if kind == "supervised" else None
    return tokens_of(context, examples.digest if examples else data.digest)


def tokens_of(context: Context, content: str) -> Path:
    """Return where the token ids of pairs (or examples) with this digest are cached."""
    return cached_tokens(context.cache, digest_of(rule_of_tokens(context, content))[:32])


def token_files_up_to(context: Context, step: int) -> list[Path]:
    """Return the token files of what steps up to ``step`` are made of, the run's first."""
    own = step_data(context.run, last=step)
    return [tokens_path(context), *(data.tokens for data in own)]


def rule_of_tokens(context: Context, content: str = "") -> Payload:
    """Return what the run's token ids depend on, including the digest ``content`` of the pairs."""
    return tokens_identity(
        context.config,
        content=content,
        tokenizer=context.resolved.inputs["tokenizer"],
        clock=context.clock if template_uses_clock(context) else "",
        ends=end_token_ids(context.resolved.model),
    )


def template_uses_clock(context: Context) -> bool:
    """Return whether the chat template may print the date: tokens then depend on the clock."""
    model, given = context.resolved.model, context.config.model.chat_template
    if Path(given).is_absolute() and not Path(given).is_file():
        return False  # a run that is verified where its template is not
    if given:
        return "strftime_now" in given_template(model, given)
    named = model / "additional_chat_templates"
    files = [*model.glob("*.jinja"), *named.glob("*.jinja"), model / "tokenizer_config.json"]
    return any(
        "strftime_now" in path.read_text(encoding="utf-8", errors="replace")
        for path in files
        if path.is_file()
    )


_IDS_END = 2**31
_MOST_SHOWN = 100


def end_token_ids(folder: Path) -> list[int]:
    """Return the tokens at which generation stops, by ``generation_config.json``.

    Raises:
        ModelError: the file has something else there than token ids.
    """
    path = of_base(folder, "generation_config.json")
    ends = read_object(path).get("eos_token_id") if path.is_file() else None
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(type(end) is not int or not 0 <= end < _IDS_END for end in listed):
        raise ModelError(
            f"{path}: eos_token_id is {str(ends)[:_MOST_SHOWN]}, and a token id is a number from 0"
        )
    return list(listed)


def tokenise(context: Context) -> Expansion:
    """Return the part that makes the token ids of every pair, where they are not cached."""

    def spec() -> TokeniseSpec:
        pairs, *examples = token_paths(context)
        own = {
            "supervised": context.run.path / "supervised.parquet" if examples else None,
            "supervised_out": examples[0] if examples else None,
        }
        return tokenise_spec(context, context.run.pairs, out=pairs).model_copy(update=own)

    return Expansion(
        title="tokenise",
        expand=lambda: [
            token_files(context, spec(), name="tokens", inputs=("data",)),
            Look(look=lambda: _look_at_tokens(context)),
        ],
        foreseen=lambda: ("tokens",),
    )


def rejected_as_tokens(context: Context, pairs: Path, digest: str) -> dict[int, Rejection]:
    """Return the rows of a file of pairs whose tokens cannot be used; the tokens stay cached."""
    spec = tokenise_spec(context, pairs, out=tokens_of(context, digest))
    execute(context, [token_files(context, spec, name="tokens")])
    rejected = TokenFile.open(spec.out).rejected()
    return {row: Rejection(reason, detail) for row, reason, detail in rejected}


def tokenise_spec(
    context: Context, pairs: Path, *, out: Path, name: str = "tokenise"
) -> TokeniseSpec:
    """Return what the stage is told that cuts the pairs of a file as the run's are cut."""
    return TokeniseSpec(
        name=name,
        run=context.run.path,
        model=context.config.model,
        launch=context.config.launch,
        tokenizer=context.resolved.model,
        pairs=pairs,
        out=out,
        max_length=context.config.data.max_length,
        max_prompt_length=context.config.data.max_prompt_length,
        clock=context.clock,
        end_token_ids=end_token_ids(context.resolved.model),
    )


def _look_at_tokens(context: Context) -> None:
    for report, what in reports(context):
        for message in report.warnings(what):
            context.listen(WarningEvent(message=message))
    _check_positions(context, TokenFile.open(tokens_path(context)))


def reports(context: Context) -> list[tuple[TokenReport, str]]:
    """Return what tokenising found in each of the run's token files, with what their rows are."""
    pairs, *examples = token_paths(context)
    found = [(TokenFile.open(pairs).report, "pairs")]
    return found + [(SupervisedTokenFile.open(e).report, "supervised examples") for e in examples]


def token_files(
    context: Context, spec: TokeniseSpec, *, name: str, inputs: tuple[str, ...] = ()
) -> Cached:
    """Return the part that gets the token files that ``spec`` makes into the cache, whole."""
    wanted = [spec.out, *filter(None, [spec.supervised_out])]

    def fault() -> str:
        return next(filter(None, map(token_fault, wanted)), "")

    def make(locks: Sequence[int]) -> None:
        context.stage(spec, *locks)
        for path in wanted:
            seal(path)

    return Cached(
        name=name,
        inputs=inputs,
        fault=fault,
        make=make,
        lock=spec.out.with_name(f".{spec.out.stem}.lock"),
        what=f"the token file {spec.out.name}",
    )


def token_paths(context: Context) -> list[Path]:
    """Return the token files that the run needs: of its pairs, and of its supervised examples."""
    from_source = context.config.supervised.from_source and not context.carried  # S is carried too
    return [tokens_path(context), *([tokens_path(context, "supervised")] if from_source else [])]


def _check_positions(context: Context, tokens: TokenFile) -> None:
    """Refuse sequences longer than the positions the model was trained on."""
    config = read_config(context.resolved.model)
    positions = text_config(config).get("max_position_embeddings")
    longest = int(tokens.sequence_lengths.max(initial=0))
    if isinstance(positions, int) and 0 < positions < longest:
        raise ModelError(
            f"the longest sequence has {longest} tokens and the model has {positions} positions: "
            f"set data.max_length to {positions} or less"
        )
