"""Read settings of another tool one by one, and keep count of what became of each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sdpo.config.elsewhere import ELSEWHERE
from sdpo.errors import ConfigError
from sdpo.system.json_values import Json

_LONGEST_SHOWN = 80
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_TRUE = {"true", "yes", "y", "1", "t"}
_FALSE = {"false", "no", "n", "0", "f"}


@dataclass(frozen=True, slots=True)
class Computed:
    """A script computes this value when it runs: ``text`` is the expression, on line ``line``."""

    text: str
    line: int


Value: TypeAlias = "Json | Computed"


@dataclass(slots=True)
class Notes:
    """Notes say what a person has to know of a recipe that was made of another tool's settings."""

    to_fill_in: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)


class Reading:
    """A reading takes settings by name, with the tool's own defaults, and builds a recipe of them.

    Args:
        settings: what was said, by the tool's names.
        tool: the tool's name, for messages.
        defaults: of the tool, by its names; a setting that has none here is None.
        overridden: paths of this project's settings that the user gives, such as `training.beta`.
    """

    def __init__(
        self,
        settings: Mapping[str, Value],
        *,
        tool: str,
        defaults: Mapping[str, Json],
        overridden: frozenset[str] = frozenset(),
    ) -> None:
        self.tool = tool
        self.notes = Notes()
        self.tree: dict[str, Any] = {}
        self._settings = settings
        self._defaults = dict(defaults)
        self._overridden = overridden
        self._read: set[str] = set()
        self._unknown: list[str] = []

    def said(self, name: str) -> bool:
        """Return whether ``name`` was said, and is not null."""
        return self._settings.get(name) is not None

    def nulled(self, name: str) -> bool:
        """Return whether ``name`` was said to be null."""
        return name in self._settings and self._settings[name] is None

    def default(self, name: str, value: Json) -> None:
        """Let ``value`` be the tool's default of ``name``, where that depends on other settings."""
        self._defaults[name] = value

    def gives(self, path: str) -> bool:
        """Return whether the user gives the setting of this project at ``path``."""
        return path in self._overridden

    def get(self, name: str) -> Json:
        """Return what was said of ``name``, else the tool's default; null counts as not said."""
        self._read.add(name)
        value = self._settings.get(name)
        if value is None or isinstance(value, Computed):
            return self._defaults.get(name)
        return value

    def number(self, name: str) -> float:
        """Return a number, which text may spell, as the tool itself reads it.

        Raises:
            ConfigError: it is none.
        """
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._wrong(name, "a number")
        try:
            found = float(value)
        except ValueError as error:
            raise self._wrong(name, "a number") from error
        if not math.isfinite(found):
            raise self._wrong(name, "a finite number")
        return int(found) if found.is_integer() and abs(found) >= 1 else found

    def whole(self, name: str) -> int:
        """Return a whole number.

        Raises:
            ConfigError: it is none.
        """
        found = self.number(name)
        if found != int(found):
            raise self._wrong(name, "a whole number")
        return int(found)

    def flag(self, name: str) -> bool:
        """Return whether ``name`` is on; null is off.

        Raises:
            ConfigError: it is neither true nor false.
        """
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        if (word := str(value).lower()) in _TRUE | _FALSE:
            return word in _TRUE
        raise self._wrong(name, "true or false")

    def text(self, name: str) -> str:
        """Return a text; null is the empty one.

        Raises:
            ConfigError: it is a list or a mapping.
        """
        value = self.get(name)
        if isinstance(value, str | int | float):
            return str(value)
        if value is None:
            return ""
        raise self._wrong(name, "a text")

    def texts(self, name: str) -> list[str]:
        """Return a list of texts, of which one may stand alone; null is the empty list.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return []
        if isinstance(value, str):
            return [each.strip() for each in value.split(",") if each.strip()]
        if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
            return [str(each) for each in value]
        raise self._wrong(name, "a list of names")

    def put(self, path: str, value: Json, *names: str) -> None:
        """Set the recipe's setting at ``path``, which comes of the settings ``names`` of the tool.

        Where one of them is computed by the script, the user has to give the setting.
        """
        if path in self._overridden:
            return
        computed = [(name, self._settings.get(name)) for name in names]
        for name, how in computed:
            if isinstance(how, Computed):
                self._unknown.append(f"{name} (line {how.line}: {how.text}): --set {path}=…")
                return
        node = self.tree
        *groups, last = path.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
        if names and not any(self.said(name) for name in names):
            self.notes.defaults.append(f"{names[0]} {shown(value)} ({path})")

    def differ(self, text: str) -> None:
        """Note something that has another meaning here."""
        self.notes.differs.append(text)

    def lack(self, name: str, reason: str) -> None:
        """Note that the setting ``name`` has no counterpart, for ``reason``."""
        self._read.add(name)
        self.notes.absent.append(f"{self.told(name)}: {reason}")

    def told(self, name: str) -> str:
        """Return the setting ``name`` with what was said of it, for a note."""
        return f"{name}: {shown(self._settings.get(name))}"

    def name_run(self, *names: str) -> None:
        """Name the run as the first of the settings ``names`` that is a text does."""
        found = [self.get(name) for name in names]
        for value in found:
            if isinstance(value, str) and (
                name := _NO_NAME.sub("-", value.rstrip("/").split("/")[-1]).strip("-._")[:100]
            ):
                self.tree = {"name": name, **self.tree}
                return

    def finish(self) -> None:
        """Note every setting that was said and not read.

        Raises:
            ConfigError: a setting that counts is computed by the script.
        """
        if self._unknown:
            raise ConfigError(
                "the script computes these settings when it runs; give each one yourself:\n"
                + "\n".join(f"  {each}" for each in self._unknown)
            )
        for name, value in self._settings.items():
            off = value is None or value is False or value in ("", "no", "none", [], {})
            if name not in self._read and not off:
                unknown = "this project has no such setting"
                self.lack(name, ELSEWHERE.get(name, unknown))

    def _wrong(self, name: str, wanted: str) -> ConfigError:
        said = shown(self.get(name))
        return ConfigError(f"{name} is {said}, where {self.tool} has {wanted}")


def shown(value: object) -> str:
    """Return a value for a note, in one line and cut where it is long."""
    text = value.text if isinstance(value, Computed) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} …"
