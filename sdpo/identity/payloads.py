"""State in full what a node's result depends on: records keep these payloads and their hashes.

They hold settings that change the result, digests of contents and versions of this code, never
paths, host names or the time. A setting at its default is left out, so that a setting which comes
later keeps old results valid.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from sdpo.config import (
    LaunchConfig,
    ModelConfig,
    RunConfig,
    SupervisedConfig,
    TrainingConfig,
    unread_settings,
)
from sdpo.config.annotations import (
    InTraining,
    Node,
    OfFormula,
    counts,
    is_spelled_out,
    marked,
)
from sdpo.config.automatic import micro_batch_tokens
from sdpo.identity.differences import differences
from sdpo.identity.ranks import in_common_terms
from sdpo.system.json_values import Json, JsonObject

TRAINER_VERSION = 3
"""This is raised when a change of this project's code changes what a step publishes."""
BF16_ON_CPU_VERSION = 2
"""This is raised when a change of code changes what a step in bf16 on a CPU publishes, and no
other: 2 computes the gradients of attention in fp32."""
DATA_VERSION = 2
"""This is raised when a change of code changes which pairs come out of the same files."""
TOKENS_VERSION = 2
"""This is raised when a change of code changes the token ids that come out of the same text."""

Payload = dict[str, Json]

_CHUNK_ROWS = 4096
_OF_DATA = ("data.", "plugin.layouts.")
"""How the inputs of a run begin that its pairs are made from."""


def changed_settings(group: BaseModel, node: Node | None = None) -> Payload:
    """Return the settings that count for the identity of ``node``, or of the run, and are not at
    their default.

    The same goes for groups within. The settings themselves declare which do not count, and which
    are stated at their default as well.
    """
    payload: Payload = {}
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        is_told = value != field.default or is_spelled_out(field, node)
        if not counts(field, node) or not is_told:
            continue
        if isinstance(value, BaseModel):
            payload |= {name: inner} if (inner := changed_settings(value, node)) else {}
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            payload[name] = [changed_settings(item, node) for item in value]
        else:
            payload[name] = value
    return payload


def changes(old: JsonObject, new: JsonObject) -> list[str]:
    """Return where two identities differ, one line each; the number of ranks is no difference.

    A training setting that one of them leaves out is shown as the default that it stands for."""
    old, new = in_common_terms(old, new)
    return differences(_spelled_out(old, new), _spelled_out(new, old))


def _spelled_out(identity: JsonObject, other: JsonObject) -> JsonObject:
    mine, theirs = identity.get("training"), other.get("training")
    if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
        return identity
    fields = TrainingConfig.model_fields
    defaults = {name: fields[name].default for name in theirs.keys() - mine if name in fields}
    return {**identity, "training": {**defaults, **mine}}


def run_identity(config: RunConfig, inputs: dict[str, str]) -> Payload:
    """Return the identity by which a run of the same name is known to be the same."""
    sources = [source.name for source in config.data.sources]
    settings = changed_settings(config)
    return {"settings": settings, "sources": sources, "inputs": inputs}


def data_identity(config: RunConfig, inputs: dict[str, str], *, default_format: str) -> Payload:
    """Return the identity of the normalised pairs."""
    data = config.data.as_given
    return {
        "data_version": DATA_VERSION,
        "data": changed_settings(data, "data"),
        "names": [source.name for source in data.sources],
        "format": default_format,
        "strata": [name for name in config.partition.strata if name != "source"],
        "inputs": {name: inputs[name] for name in inputs if name.startswith(_OF_DATA)},
        **_supervised_reading(config.supervised),
    }


def _supervised_reading(supervised: SupervisedConfig) -> Payload:
    """Return how the supervised source is read, where that is not by default."""
    if not supervised.from_source:
        return {}
    read = changed_settings(supervised, "data")
    return {"supervised": read} if read else {}


def tokens_identity(
    config: RunConfig,
    *,
    content: str,
    tokenizer: str,
    clock: str,
    ends: Sequence[int],
) -> Payload:
    """Return the identity of token ids; ``content`` is the digest of the pairs or examples."""
    return {
        "tokens_version": TOKENS_VERSION,
        "content": content,
        "tokenizer": tokenizer,
        **changed_settings(config.data, "tokens"),
        **_variables(config.model),
        "clock": clock,
        "end_token_ids": list(ends),
    }


def _variables(model: ModelConfig) -> Payload:
    """Return the variables that the template gets for all rows; the content has the others."""
    variables = model.chat_template_kwargs
    return {"chat_template_kwargs": variables} if variables else {}


def step_identity(
    training: TrainingConfig,
    *,
    launch: LaunchConfig,
    model: ModelConfig,
    inputs: dict[str, str],
) -> Payload:
    """Return the identity of a step's model; ``inputs``: digests of reference, target,
    partition."""
    arithmetic = changed_settings(model, "step") | changed_settings(launch, "step")
    if training.precision == "bf16" and launch.device == "cpu":
        arithmetic["bf16_on_cpu_version"] = BF16_ON_CPU_VERSION
    return {
        "trainer_version": TRAINER_VERSION,
        "inputs": inputs,
        "training": _training_read(training, launch),
        "arithmetic": dict(sorted(arithmetic.items())),
    }


def _training_read(training: TrainingConfig, launch: LaunchConfig) -> Payload:
    """Return the settings that the training reads."""
    unread = unread_settings(training)
    read = {k: v for k, v in changed_settings(training, "step").items() if k not in unread}
    # What a GPU has room for is an outcome: it is in the record, not in the identity.
    tokens = training.micro_batch_tokens
    if launch.device == "cpu":
        tokens = micro_batch_tokens(tokens, device="cpu")
    return read | {"micro_batch_tokens": tokens}


def supervised_identity(
    supervised: SupervisedConfig,
    training: TrainingConfig,
    *,
    launch: LaunchConfig,
    model: ModelConfig,
    inputs: dict[str, str],
) -> Payload:
    """Return the identity of S; ``training`` are the settings of the supervised stage."""
    payload = step_identity(training, launch=launch, model=model, inputs=inputs)
    fields = type(training).model_fields
    of_pairs = marked(type(training), OfFormula)
    read = {
        name: value
        for name, value in _training_read(training, launch).items()
        if name not in of_pairs and counts(fields[name], "supervised")
    }
    in_training = marked(type(supervised), InTraining)
    own = changed_settings(supervised, "supervised")
    return payload | {
        "training": read,
        "supervised": {name: value for name, value in own.items() if name not in in_training},
    }


def rows_digest(row_digests: np.ndarray) -> str:
    """Return the digest of a set of token rows, ``S16`` ``[rows]``, in the order given."""
    # That of the JSON list of their hex digits, without making the list.
    total = hashlib.sha256(b"[")
    for start in range(0, len(row_digests), _CHUNK_ROWS):
        digits = row_digests[start : start + _CHUNK_ROWS].tobytes().hex()
        listed = ",".join(f'"{digits[at : at + 32]}"' for at in range(0, len(digits), 32))
        total.update(f"{',' if start else ''}{listed}".encode())
    total.update(b"]")
    return total.hexdigest()
