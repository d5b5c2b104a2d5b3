"""Find the task files of the harness that names stand for, without reading all 14,000 of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo.errors import ConfigError
from sdpo.system.nearby import near_name

_NAME = re.compile(rb"^(task|group):[ \t]*['\"]?([\w.:+-]+)['\"]?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_TAGS = re.compile(rb"^tag:[ \t]*(.*)\r?\n((?:[ \t]*-[ \t]*.+\r?\n)*)", re.MULTILINE)
_WORD = re.compile(rb"\w[\w.:+-]*")


@dataclass(slots=True)
class TaskFiles:
    """The files of a folder of tasks, by the names that they define."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    tags: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def in_folder(cls, root: Path) -> "TaskFiles":
        """Return the names that files below ``root`` define, by a look at their lines."""
        found = cls(root)
        for path in sorted(root.rglob("*.yaml")):
            text = path.read_bytes()
            named = [match[2].decode() for match in _NAME.finditer(text)]
            for name in named:
                found.files.setdefault(name, path)
            for match in _TAGS.finditer(text):
                for tag in _WORD.findall(match[1] + b"\n" + match[2]):
                    found.tags.setdefault(tag.decode(), set()).update(named)
        return found

    @property
    def names(self) -> list[str]:
        """Return every name that can be asked for."""
        return sorted({*self.files, *self.tags})

    def folders(self, names: list[str]) -> list[Path]:
        """Return the folders, directly below the root, that names and what they name are in."""
        wanted, seen = list(names), set[str]()
        folders: dict[Path, None] = {}
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            wanted += self.tags.get(name, set())
            path = self.files.get(name)
            if path is None:
                continue
            below = path.relative_to(self.root).parts
            folders[self.root / below[0] if len(below) > 1 else self.root] = None
            wanted += _members(path)
        return sorted(folders)


def _members(path: Path) -> Iterator[str]:
    """Yield the tasks and groups that a group's file names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    def each(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from (value[key] for key in ("task", "group") if isinstance(value.get(key), str))
            if isinstance(value.get("task"), list):
                yield from each(value["task"])
        elif isinstance(value, list):
            for item in value:
                yield from each(item)

    members = load_yaml(path, resolve_func=False).get("task")
    if isinstance(members, list):
        yield from each(members)


def check_known(names: list[str], known: list[str]) -> None:
    """Refuse a name that no task has.

    Raises:
        ConfigError: names it, and the nearest that there is.
    """
    for name in names:
        if name not in known:
            near = near_name(name, known)
            hint = f"did you mean {near}?" if near else "`lm_eval ls tasks` lists them"
            raise ConfigError(
                f"evaluation.suites: lm-evaluation-harness has no task or group `{name}`, and no "
                f"task file of your own defines it ({hint})"
            )
