"""Read the file of another tool's settings: YAML or JSON, as that tool itself reads it."""

from collections.abc import Mapping
from pathlib import Path

from sdpo.config.elsewhere import ELSEWHERE
from sdpo.errors import ConfigError
from sdpo.migration.reading import Value
from sdpo.system.bounded_yaml import MalformedError, load_yaml
from sdpo.system.nearby import did_you_mean

_LARGEST_BYTES = 2**20


def text_of(path: Path) -> str:
    """Return the text of a file of settings.

    Raises:
        ConfigError: there is none, it is larger than any, or it is no text.
    """
    if path.is_dir():
        raise ConfigError(f"{path.absolute()} is a folder: name the file with the settings")
    if not path.is_file():
        raise ConfigError(f"no file at {path.absolute()}{did_you_mean(path)}")
    if (size := path.stat().st_size) > _LARGEST_BYTES:
        raise ConfigError(f"{path} has {size} bytes: no file of settings is so large")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: no UTF-8 at byte {error.start}") from error


def settings_of(path: Path) -> Mapping[str, Value]:
    """Return the settings of a YAML or JSON file by name.

    Raises:
        ConfigError: it is neither, or holds something else than a mapping of names.
    """
    try:
        values = load_yaml(text_of(path))
    except MalformedError as error:
        raise ConfigError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path} holds no settings: a mapping of names to values is wanted")
    return values


def check_some_known(
    settings: Mapping[str, Value], known: frozenset[str], *, path: Path, tool: str
) -> None:
    """Refuse a file of which no setting is one that any of the tools has.

    Raises:
        ConfigError: none of the ``settings`` is among the ``known``, or told of in ``ELSEWHERE``.
    """
    if not (known | ELSEWHERE.keys()) & settings.keys():
        few = ", ".join(sorted(known)[:5])
        raise ConfigError(f"{path} has none of the settings of {tool} ({few} …)")
