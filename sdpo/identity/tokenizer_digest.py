"""Digest a tokenizer: how it cuts text, its template and its special tokens.

A save by transformers rewrites file names, key order, versions and paths; none of that counts here.
Neither transformers nor tokenizers is needed.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdpo.errors import Fault, ModelError
from sdpo.identity.adapter_folder import of_base, read_object
from sdpo.identity.canonical import digest_of
from sdpo.system.json_values import Json
from sdpo.system.nearby import did_you_mean

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_ADDITIONAL = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens")
_PATCHES = ("fix_mistral_regex",)
"""These settings change ids in every class, besides those flags."""

_HARMLESS = frozenset(
    {
        # of decoding, and of offsets
        *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors"),
        *("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",),
        "trim_offsets",
        # of padding and truncation, which nothing here uses
        *("model_max_length", "max_len", "max_length", "padding_side", "truncation_side"),
        *("stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"),
        *("model_input_names", "return_token_type_ids", "verbose"),
        # of origin
        *("name_or_path", "_name_or_path", "tokenizer_class", "transformers_version", "backend"),
        *("processor_class", "auto_map", "is_local", "local_files_only", "_commit_hash"),
        *("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
        *("files_loaded", "fast_tokenizer_files", "use_fast"),
        # of messages
        *("chat_template", "use_default_system_prompt", "response_template", "response_schema"),
        "chat_control_tokens",
        # told by the tokens themselves
        *("added_tokens_decoder", "model_specific_special_tokens"),
    }
)
"""These settings do not change ids, whatever class reads them."""

_DEFAULTS = {"legacy": False, "sp_model_kwargs": {}}
"""Some files spell these settings out at their default: then they do not count."""

_NOT_IDENTITY = {"version", "truncation", "padding"}
"""These keys of tokenizer.json do not count: nothing uses its truncation and padding."""

_FILE = "tokenizer.json"
_DEFAULT_CLASS = "TokenizersBackend"
MODELS_WITH_A_CLASS = frozenset(
    {
        *("hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"),
        *("qwen4_exp", "siglip2"),
    }
)
"""For these types of models transformers takes their own class though their files name the plain
one."""

_CLASS_ALIASES = {"PreTrainedTokenizer": _DEFAULT_CLASS, "": _DEFAULT_CLASS}
"""transformers 5 names the plain tokenizer anew; ``Fast`` at the end of a class says nothing."""


def tokenizer_digest(folder: Path) -> str:
    """Return the sha256 over what the tokenizer in ``folder`` does; a save does not change it.

    It covers ``tokenizer.json``, the chat template, the class, the special tokens and the settings
    that change ids: all that are not known to change none; and the type of the model in
    ``config.json`` where transformers chooses the class by it.

    Raises:
        ModelError: the folder has no tokenizer, or one whose files have an unknown form.
    """
    with _known_form(folder):
        content = {k: v for k, v in _tokenizer_json(folder).items() if k not in _NOT_IDENTITY}
        content["model"] = _one_form_of_merges(content["model"])
        config = _config(folder)
        identity = {
            "tokenizer": _without_nulls(content),
            "class": _class_name(config),
            "special_tokens": _special_tokens(folder, config),
            "flags": {name: config[name] for name in _FLAGS if config.get(name) is not None},
            "chat_template": _templates(folder, config),
        }
        if settings := _settings(config):
            identity["settings"] = settings
        if more := _more_tokens(folder, config, content):
            identity["more_tokens"] = more
        if deciding := _deciding_model(folder, config):
            identity["model"] = deciding
        return digest_of(identity)


def vocabulary_digest(folder: Path) -> str:
    """Return the sha256 over which token each id stands for, and nothing else.

    Two models whose tokenizers agree in this can score the same ids, whatever their chat templates
    and special tokens.

    Raises:
        ModelError: the folder has no tokenizer, or one whose files have an unknown form.
    """
    with _known_form(folder):
        content = _tokenizer_json(folder)
        vocabulary = content["model"].get("vocab") or {}
        if isinstance(vocabulary, dict):
            tokens = {int(number): token for token, number in vocabulary.items()}
        else:  # Unigram: [token, score] by position
            tokens = {number: entry[0] for number, entry in enumerate(vocabulary)}
        added = content.get("added_tokens") or []
        tokens |= {int(entry["id"]): entry["content"] for entry in added}
        more = _more_tokens(folder, _config(folder), content)
        listed = [[number, tokens[number]] for number in sorted(tokens)]
        return digest_of([*listed, more] if more else listed)


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of the tokenizer in ``folder`` by name.

    `default` is the one that is used where none is named.

    Raises:
        ModelError: a file has an unknown form.
    """
    with _known_form(folder):
        return _templates(folder, _config(folder))


def has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer has a chat template for conversations without tools."""
    return "default" in chat_templates(folder)


def given_template(folder: Path, given: str) -> str:
    """Return the text of a chat template that a resolved recipe gives.

    The recipe gives a file by its absolute path, or one of the templates in ``folder`` by name.

    Raises:
        ModelError: it is not there.
    """
    if Path(given).is_absolute():
        if not Path(given).is_file():
            raise ModelError(f"model.chat_template: no file at {given}{did_you_mean(Path(given))}")
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template: {given} cannot be read: {error}") from error
    known = chat_templates(folder)
    if given not in known:
        raise ModelError(
            f"model.chat_template: no file at {Path(given).absolute()}, and the tokenizer has no "
            f"template of that name (it has {', '.join(sorted(known)) or 'none'})"
            f"{did_you_mean(Path(given), extra=known)}"
        )
    return known[given]


@contextmanager
def _known_form(folder: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, Fault) as error:
        raise ModelError(
            f"the tokenizer in {folder} cannot be read: one of its files has a form that is not "
            f"known ({type(error).__name__}: {error})"
        ) from error


def _tokenizer_json(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json: a model folder needs its tokenizer in that form "
            "(load it with AutoTokenizer and save it with save_pretrained)"
        )
    content = read_object(path)
    if not isinstance(content.get("model"), dict):
        raise ModelError(f"{path} is not a tokenizer: it has no model")
    return content


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config = read_object(path) if path.is_file() else {}
    listed = config.get("fast_tokenizer_files") or []
    if not isinstance(listed, list):
        raise TypeError("fast_tokenizer_files is no list")
    if others := [name for name in listed if name != _FILE]:
        raise ModelError(
            f"{path} leaves it to transformers to read another file than {_FILE} "
            f"(fast_tokenizer_files: {others[0]}): remove the key, or save the tokenizer again "
            "with AutoTokenizer"
        )
    return config


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return chat templates by name; where there are files, they alone count, as in
    transformers."""
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {file.stem: file for file in named}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    in_config = config.get("chat_template")
    if isinstance(in_config, str):
        return {"default": in_config}
    return {entry["name"]: entry["template"] for entry in in_config or []}


def _more_tokens(
    folder: Path, config: dict[str, Any], content: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return, by id or name, the tokens that transformers adds to those of tokenizer.json.

    Other files list them, and that file lacks them or has them with other properties. Where all
    agree, as after a save, there are none."""
    listed = config.get("added_tokens_decoder")
    legacy = folder / "added_tokens.json"
    if listed is None and legacy.is_file():
        listed = {str(number): {"content": text} for text, number in read_object(legacy).items()}
    own = {str(entry["id"]): entry for entry in content.get("added_tokens") or []}
    more = {
        number: entry
        for number, entry in (listed or {}).items()
        if any(own.get(number, {}).get(name) != value for name, value in entry.items())
    }
    known = {entry["content"] for entry in own.values()}
    named = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
    return more | {
        name: {"content": text}
        for name, text in named.items()
        if name not in _SPECIAL_TOKENS and text not in known
    }


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    path = folder / "special_tokens_map.json"
    known = {**(read_object(path) if path.is_file() else {}), **config}
    named = {name: _text(known[name]) for name in _SPECIAL_TOKENS if known.get(name) is not None}
    if path.is_file() and "added_tokens_decoder" not in config:
        # Then transformers takes what the map says where both files name a token.
        said = read_object(path)
        named |= {name: _text(said[name]) for name in named if said.get(name) is not None}
    additional: set[str] = set()
    for key in _ADDITIONAL:
        tokens = known.get(key) or []
        additional.update(map(_text, tokens.values() if isinstance(tokens, dict) else tokens))
    return {**named, "additional": sorted(additional)}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that change ids.

    The plain class takes tokenizer.json as it is; others rebuild the tokenizer from its vocabulary
    by settings of their own, all of which count unless known to be harmless."""
    is_plain = _class_name(config) == _DEFAULT_CLASS and config.get("tokenizer_class")
    counted = {
        name: value
        for name, value in config.items()
        if (name in _PATCHES if is_plain else name not in _HARMLESS)
        and not name.endswith(("_token", "_tokens"))
        and name not in _FLAGS
    }
    return {k: v for k, v in counted.items() if v is not None and v != _DEFAULTS.get(k)}


def _deciding_model(folder: Path, config: dict[str, Any]) -> dict[str, Json]:
    """Return what config.json says that may decide how transformers builds the tokenizer.

    It is nothing where the class that tokenizer_config.json names is taken as it is: the plain one,
    or the one named like the type of the model."""
    path = of_base(folder, "config.json")
    model = read_object(path) if path.is_file() else {}
    of_model = model.get("model_type")
    deciding = {n: model[n] for n in ("model_type", "model_name") if model.get(n) is not None}
    if config.get("fix_mistral_regex"):
        return {**deciding, "version": model.get("transformers_version")}
    if not config.get("tokenizer_class"):
        return {**deciding, "class": model.get("tokenizer_class")} if deciding else {}
    named = _class_name(config)
    if named == _DEFAULT_CLASS:
        return deciding if of_model in MODELS_WITH_A_CLASS or "model_name" in deciding else {}
    alike = re.sub(r"[_-]", "", str(of_model)) == named.removesuffix("Tokenizer").lower()
    return {} if alike and "model_name" not in deciding else deciding


def _text(token: Json) -> str:
    if isinstance(token, Mapping):
        return str(token["content"])
    if not isinstance(token, str):
        raise TypeError(f"{token!r} is no token")
    return token


def _class_name(config: dict[str, Any]) -> str:
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    return _CLASS_ALIASES.get(name, name)


def _one_form_of_merges(model: dict[str, Any]) -> dict[str, Any]:
    """Spell merges alike: older files hold one as ``"a b"``, newer ones as ``["a", "b"]``."""
    merges = model.get("merges")
    if not merges or not isinstance(merges[0], str):
        return model
    return {**model, "merges": [merge.split(" ", 1) for merge in merges]}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
