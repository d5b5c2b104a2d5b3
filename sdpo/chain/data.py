"""Make pairs out of sources, as a node that runs in this process and without a model."""

from dataclasses import asdict
from functools import partial

from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.tokens import rejected_as_tokens, rule_of_tokens
from sdpo.data.prepare import PreparedPairs, prepare_pairs
from sdpo.data.schema import Format
from sdpo.data.supervised import prepare_supervised
from sdpo.errors import DataError
from sdpo.events import ProgressEvent, WarningEvent
from sdpo.identity.payloads import data_identity
from sdpo.inputs.resolve import data_digests
from sdpo.system.json_values import Json


def prepare_data(context: Context) -> Node:
    """Return the node that makes ``pairs.parquet``, the rejected rows and the supervised examples.

    The supervised source's examples are made only where the recipe names such a source.
    """
    default_format: Format = "chat" if context.resolved.has_template else "text"
    supervised = context.config.supervised
    from_source = supervised.from_source

    def progress(source: str, done: int, total: int | None) -> None:
        phase = f"read {source}"
        context.listen(ProgressEvent(phase=phase, done=done, total=total, unit="rows"))

    def identity() -> Identity:
        inputs = dict(context.resolved.inputs)
        own = data_identity(context.config, inputs, default_format=default_format)
        return own | ({"fits": rule_of_tokens(context)} if context.config.data.limit else {})

    def make(_find: Find) -> Made:
        check_sources(context, source_names(context))
        out = context.run.path
        prepared = prepare_pairs(
            context.config.data.as_given,
            default_format=default_format,
            strata=context.config.partition.strata,
            out=out,
            on_progress=progress,
            rejected_as_tokens=partial(rejected_as_tokens, context),
        )
        tell_notes(context, prepared)
        rejected = context.run.rejected_data
        rejected.parent.mkdir(exist_ok=True)
        prepared.rejected_path.replace(rejected)
        files = [prepared.path, rejected]
        outputs: dict[str, Json] = {
            "digest": prepared.digest,
            "pairs": prepared.pairs,
            "sources": [asdict(source) for source in prepared.sources],
            "repeated_prompt_share": prepared.repeated_prompt_share,
        }
        if from_source:
            examples = prepare_supervised(
                supervised, default_format=default_format, out=out, on_progress=progress
            )
            files += [examples.path, examples.rejected_path]
            outputs["supervised"] = {
                "digest": examples.digest,
                "read": examples.read,
                "kept": examples.kept,
                "rejected": examples.rejected,
            }
        return Made(outputs, files)

    return Node(name="data", title="prepare data", identity=identity, make=make)


def tell_notes(context: Context, prepared: PreparedPairs) -> None:
    """Warn of what a person should know about rows that are used."""
    for source in prepared.sources:
        for message in source.notes:
            context.listen(WarningEvent(message=message))


def check_sources(context: Context, names: list[str]) -> None:
    """Refuse sources that are not the data the run was made from.

    A run with an origin takes the digests of its data from there, so its files are looked at only
    here. ``names`` are the sources to check.

    Raises:
        DataError: a file is gone or has changed; names the digests.
    """
    inputs = context.resolved.inputs
    unread = {f"data.{s.name}": "" for s in context.config.data.given if s.name not in names}
    found = data_digests(context.config, known={name: inputs[name] for name in unread})
    for name, digest in found.items():
        if digest != inputs[name]:
            raise DataError(
                f"{name.removeprefix('data.')} is not the data that this run was made from: its "
                f"digest is {digest[:16]}, not {inputs[name][:16]}. Put the file back, or make a "
                "run of its own from it"
            )


def source_names(context: Context) -> list[str]:
    """Return the names of the sources that are read, in the recipe's order."""
    return [source.name for source in context.config.data.given]
