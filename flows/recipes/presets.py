"""Find the recipes that come with the project, and make each one a text to keep.

A preset's first comment says what it is; its first sentence is what the list shows. Files whose
names start with an underscore hold what several presets share, and are no presets.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdpo.config import RunConfig, describe
from sdpo.config.load import check_run_name, load_recipe, read_recipe
from sdpo.errors import ConfigError
from sdpo.system.nearby import near_name, near_path

FOLDER = Path(__file__).parent

_SUFFIXES = (".yaml", ".yml")
_PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")
_SENTENCE = re.compile(r"(.+?)\.(?=\s|$)", re.DOTALL)
_TEMPLATE = re.compile(r"^(\s*chat_template:\s*)(\S+\.jinja)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A preset is one recipe of the project; ``objectives`` are those of its steps, each once."""

    name: str
    path: Path
    summary: str
    paper: str
    objectives: tuple[str, ...]


def presets() -> list[Preset]:
    """Return all presets, sorted by name."""
    return [_preset(path) for path in sorted(FOLDER.glob("[!_]*.yaml"))]


def find(recipe: Path) -> Path:
    """Return the file of the preset that ``recipe`` names, or ``recipe`` itself where it is a path.

    Raises:
        ConfigError: there is no such preset, or a file that is missing has a preset's name.
    """
    name = str(recipe)
    if recipe.is_file() or "/" in name or (recipe.is_dir() and not _is_preset(name)):
        return recipe
    if recipe.suffix not in _SUFFIXES:
        return _path(name)
    near = near_path(recipe)
    if _is_preset(recipe.stem) and (near is None or near.stem != recipe.stem):
        raise ConfigError(
            f"no recipe at {recipe.absolute()}: did you mean the preset `{recipe.stem}`?"
        )
    return recipe


def configured(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    name: str = "",
    limit: int = 0,
    runs_dir: Path | None = None,
) -> RunConfig:
    """Return the recipe of a file or preset with what is changed in it.

    Args:
        recipe: its file, or the name of a preset.
        overrides: settings, as ``group.key=value``.
        name: of the run; empty: the recipe's.
        limit: pairs per source; 0: as the recipe says.
        runs_dir: folder of the runs; else the recipe's.

    Raises:
        ConfigError: there is no such recipe, or something in it cannot be.
    """
    settings = list(overrides)
    if name:
        settings.append(f"name={json.dumps(check_run_name(name))}")
    if limit:
        settings.append(f"data.limit={limit}")
    if runs_dir is not None:
        settings.append(f"store.runs_dir={json.dumps(str(runs_dir))}")
    return load_recipe(find(recipe), overrides=settings, presets=FOLDER)


def printed(name: str) -> str:
    """Return a preset as a recipe that stands alone, with its comments; ``name`` may have a suffix.

    Raises:
        ConfigError: there is no such preset.
    """
    path = _path(name.removesuffix(".yaml").removesuffix(".yml"))
    text = path.read_text(encoding="utf-8")
    if not re.search(r"^extends:", text, re.MULTILINE):
        return _TEMPLATE.sub(_absolute, text)
    values = {"name": path.stem, **read_recipe(path, presets=FOLDER)}
    headers = [_header(file.read_text(encoding="utf-8")) for file in _chain(path)]
    return "#\n".join(headers) + yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, width=100
    )


def _absolute(match: re.Match[str]) -> str:
    template = FOLDER / match[2]
    return match[1] + (str(template) if template.is_file() else match[2])


def _path(name: str) -> Path:
    if not _is_preset(name):
        known = [preset.stem for preset in FOLDER.glob("[!_]*.yaml")]
        file = near_path(Path(name))
        if file and not file.is_dir() and file.suffix not in _SUFFIXES:
            file = None  # no recipe
        near = str(file or "") or near_name(name, known)
        hint = f"did you mean `{near}`? " if near else ""
        raise ConfigError(
            f"no recipe at {Path(name).absolute()} and no preset named `{name}`: {hint}"
            "`sdpo recipes` lists the presets"
        )
    return FOLDER / f"{name}.yaml"


def _is_preset(name: str) -> bool:
    return "/" not in name and not name.startswith("_") and (FOLDER / f"{name}.yaml").is_file()


def _preset(path: Path) -> Preset:
    config = load_recipe(path, presets=FOLDER)
    steps = [config.training_of(number) for number in range(1, max(1, len(config.steps)) + 1)]
    headers = [_header(file.read_text(encoding="utf-8")) for file in _chain(path)]
    paper = next((found[1] for header in headers if (found := _PAPER.search(header))), "")
    return Preset(
        name=path.stem,
        path=path,
        summary=_first_sentence(headers[0]),
        paper=paper,
        objectives=tuple(dict.fromkeys(describe(step.model_dump()) for step in steps)),
    )


def _chain(path: Path) -> list[Path]:
    """Return a preset's file and those that it extends, each before the one that it extends."""
    base = re.search(r"^extends:\s*(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [path, *(_chain(path.parent / base[1]) if base else [])]


def _header(text: str) -> str:
    """Return the comment at the start of a recipe, unchanged."""
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("#"):
            break
        lines.append(line)
    return "".join(lines)


def _first_sentence(header: str) -> str:
    text = " ".join(line.lstrip("# ").rstrip() for line in header.splitlines())
    found = _SENTENCE.match(text)
    sentence = found[1] if found else text
    return re.sub(r" \(arXiv [^)]*\)", "", sentence)
