"""Make a checked :class:`~sdpo.config.RunConfig` of a recipe file and overrides.

A recipe may build on another: `extends: other.yaml` (beside it, or a preset by name) takes that
recipe's settings and lays its own over them, group by group; lists are replaced whole.

Relative paths are relative to the working folder, in a recipe as on the command line; `extends` is
relative to the recipe, and a chat template is also looked for beside it. What a name or path stands
for (a folder, a hub commit, the machine's devices) is :mod:`sdpo.inputs.resolve`.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sdpo.config import RunConfig
from sdpo.config.elsewhere import ELSEWHERE
from sdpo.config.misplaced import group_at, group_type, misplaced
from sdpo.config.reference_choice import REFUSED_KEYS
from sdpo.errors import ConfigError
from sdpo.system.bounded_yaml import MalformedError, load_yaml
from sdpo.system.nearby import did_you_mean

_Settings = TypeVar("_Settings", bound=BaseModel)
_OF_STEP = re.compile(r"step-(?P<step>[1-9]\d{0,3})\.(?P<rest>.+)")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_LARGEST_BYTES = 2**18
_LONGEST_CHAIN = 50
_DEEPEST = 10
_DIGITS = 4
_MOST_NEW = 100
_MOST_SHOWN = 200
_MOST_NAMED = 10
"""These limits are more than anybody writes: of a recipe's file, of recipes that extend one
another, of a setting's path, of a position in a list, of entries that one override may add to it,
of characters that a message quotes, of files that it names."""


class _Loader(yaml.SafeLoader):
    """This loader reads 5e-7 as a number (YAML 1.1 wants a dot) and takes only true and false for
    booleans (not no, on, off: they are names)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$"),
    list("-+0123456789"),
)


def load_recipe(
    path: Path, *, overrides: Sequence[str] = (), presets: Path | None = None
) -> RunConfig:
    """Read a YAML recipe, apply ``key=value`` overrides and check it.

    ``presets`` is a folder whose recipes ``extends`` may name.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is not possible.
    """
    values = read_recipe(path, presets=presets)
    values.setdefault("name", path.stem)
    return make_config(values, overrides=overrides)


def read_recipe(path: Path, *, presets: Path | None = None) -> dict[str, Any]:
    """Read the settings that a recipe gives, with those that it takes from others; unchecked.

    Raises:
        ConfigError: a file is missing or not YAML, or recipes extend each other in a circle.
    """
    return _read_chain(path, presets=presets, extending=())


def _read_chain(path: Path, *, presets: Path | None, extending: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in extending:
        chain = " -> ".join(p.name for p in (*extending, path))
        raise ConfigError(f"recipes extend each other in a circle: {chain}")
    if len(extending) > _LONGEST_CHAIN:
        raise ConfigError(
            f"{extending[0]} extends a recipe that extends a recipe, and so on, "
            f"{_LONGEST_CHAIN} times: write out what they say"
        )
    values = _read_file(path, is_own=not extending)
    _find_chat_template(values, path.parent)
    if "extends" not in values:
        return values
    base = _base_of(path, values.pop("extends"), presets=presets)
    below = _read_chain(base, presets=presets, extending=(*extending, path.resolve()))
    below.pop("name", None)
    return _laid_over(below, values)


def _base_of(path: Path, name: object, *, presets: Path | None) -> Path:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path}: extends: name one recipe, got {name!r}")
    candidates = [path.parent / name]
    if presets and "/" not in name:
        candidates.append(presets / f"{name}.yaml")
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        known = [preset.stem for preset in presets.glob("[!_]*.yaml")] if presets else []
        raise ConfigError(
            f"{path}: extends: `{name}` is neither a file beside it nor a preset (`sdpo recipes` "
            f"lists the presets){did_you_mean(path.parent / name, extra=known)}"
        )
    return found


def _find_chat_template(values: dict[str, Any], folder: Path) -> None:
    model = values.get("model")
    if not isinstance(model, dict):
        return
    template = model.get("chat_template")
    if isinstance(template, str) and template and not Path(template).is_file():
        beside = folder / template
        if beside.is_file():
            model["chat_template"] = str(beside.absolute())


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _laid_over(old, value)
        else:
            merged[key] = value
    return merged


def _read_file(path: Path, *, is_own: bool) -> dict[str, Any]:
    """Read a recipe's own settings.

    Messages quote nothing of a file that another one extends, which may be any file: they say where
    the mistake is."""
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.suffix in (".yaml", ".yml"))
        within = f": name the recipe in it ({', '.join(names[:_MOST_NAMED])})" if names else ""
        raise ConfigError(f"{path.absolute()} is a folder and no recipe{within}")
    if not path.is_file():
        raise ConfigError(f"no recipe at {path.absolute()}{did_you_mean(path)}")
    if path.stat().st_size > _LARGEST_BYTES:
        raise ConfigError(f"{path} is no recipe: it has {path.stat().st_size} bytes")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: no UTF-8 at byte {error.start}") from error
    except MalformedError as error:
        what = str(error) if is_own else error.where
        raise ConfigError(f"{path} is not YAML: {what}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of groups (model, data, training ...)")
    return values


def parse_recipe(text: str) -> dict[str, Any]:
    """Return the settings of a recipe that is given as YAML text, unchecked.

    Raises:
        ConfigError: it is not YAML, or no mapping.
    """
    if len(text.encode()) > _LARGEST_BYTES:
        raise ConfigError(f"the text is no recipe: it has {len(text.encode())} bytes")
    try:
        values = _parse(text)
    except MalformedError as error:
        raise ConfigError(f"the recipe is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError("a recipe is a mapping of groups (model, data, training ...)")
    return values


def parse_value(text: str) -> Any:
    """Return the value that a text is as an override's: ``0.1``, ``true``, ``[a, b]``.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return _parse(text)
    except MalformedError as error:
        raise ConfigError(f"the value {text} is not YAML ({error})") from error


def make_config(values: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> RunConfig:
    """Check ``values`` (groups of settings) with ``key=value`` overrides applied.

    Raises:
        ConfigError: with one line per fault.
    """
    tree = _copy(values)
    for override in overrides:
        _apply(tree, override)
    config = checked(RunConfig, tree)
    if config.name:
        check_run_name(config.name)
    return config


def checked(kind: type[_Settings], value: Any, *, name: str = "") -> _Settings:
    """Return ``value`` (a mapping, or such settings already) as settings of ``kind``.

    Messages call it ``name``.

    Raises:
        ConfigError: with one line per fault.
    """
    try:
        return kind.model_validate(_copy(value))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, kind, name))) from error


def check_run_name(name: str) -> str:
    """Return ``name`` itself if it can name a run.

    Raises:
        ConfigError: it could be a path, or is not a plain name.
    """
    if not _RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"`{name}` cannot be the name of a run: use letters, digits, '.', '_' and '-' only "
            "(a name, not a path; --runs-dir says where runs are kept)"
        )
    return name


def _parse(text: str) -> Any:
    return load_yaml(text, loader=_Loader)


def _copy(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as group.key=value")
    try:
        value = _parse(text)
    except MalformedError as error:
        raise ConfigError(f"--set {override}: the value is not YAML ({error})") from error
    *parents, last = by_position(key.strip()).split(".")
    if len(parents) > _DEEPEST:
        raise ConfigError(f"--set {override[:100]}: no setting has so many parts")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _descend(node, part, override=override, following=[*parents, last][depth + 1])
    if isinstance(node, list):
        index = _index(node, last, override=override)
        node[index : index + 1] = [value if value is not None else ""]
    else:
        # `key=` empties a text field; YAML alone would make it null.
        node[last] = "" if value is None and text.strip() == "" else value


def by_position(key: str) -> str:
    """Return a setting's key with the position of its step, counted from 0, where it names the
    step: ``steps.1.beta`` for ``step-2.beta``."""
    found = _OF_STEP.fullmatch(key)
    return f"steps.{int(found['step']) - 1}.{found['rest']}" if found else key


def _descend(node: Any, part: str, *, override: str, following: str) -> Any:
    if isinstance(node, list):
        index = _index(node, part, override=override)
        node.extend({} for _ in range(index + 1 - len(node)))
        child = node[index]
    else:
        child = node.setdefault(part, [] if following.isdigit() else {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: `{part}` is a value, not a group")
    return child


def _index(node: list[Any], part: str, *, override: str) -> int:
    """Return where ``part`` points in a list: it is a number, or the name of one of its entries."""
    if part.isdecimal():
        index = int(part[:_DIGITS])
        if len(part) > _DIGITS or index > len(node) + _MOST_NEW:
            raise ConfigError(f"--set {override[:100]}: the list has {len(node)} entries")
        return index
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if part in names:
        return names.index(part)
    raise ConfigError(
        f"--set {override}: none of the list's {len(node)} entries is named `{part}` "
        "(a name or a number from 0)"
    )


def _explain(error: ValidationError, kind: type[BaseModel], name: str) -> list[str]:
    lines: list[str] = []
    for fault in error.errors():
        location = [str(part) for part in fault["loc"]]
        where = ".".join([*filter(None, [name]), *location]) or "recipe"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: {_unknown_key(location, kind)}")
        elif fault["type"] == "value_error":
            error_ = str(fault["ctx"]["error"])
            lines.append(f"{where}: {error_}" if location else error_)
        elif meant := misplaced(fault["type"], location, fault["input"], kind):
            lines.append(f"{where}: {meant}")
        else:
            lines.append(f"{where}: {fault['msg']}, got {_shown(fault['input'])}")
    return list(dict.fromkeys(lines))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _unknown_key(location: list[str], kind: type[BaseModel]) -> str:
    if reason := REFUSED_KEYS.get(location[-1]):
        return reason
    name, colon, value = location[-1].partition(":")
    if colon and value and not value.startswith(" "):
        return f"unknown key; YAML wants a space after the colon: `{name}: {value}`"
    if meant := ELSEWHERE.get(location[-1]):
        return f"unknown key; {meant}"
    group = group_at(location[:-1], kind)
    known = list(group.model_fields) if group else []
    elsewhere = [
        path
        for path in _all_keys(kind)
        if path.split(".")[-1] == location[-1] and not path.startswith("steps.")
    ]
    cutoff = 0.8 if elsewhere else 0.5
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=cutoff)
    nearest = " or ".join(f"`{name}`" for name in [*near, *elsewhere])
    hint = f"did you mean {nearest}?" if nearest else f"known here: {', '.join(known)}"
    return f"unknown key; {hint}"


def _all_keys(group: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in group.model_fields.items():
        inner = group_type(field.annotation)
        keys += _all_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys
