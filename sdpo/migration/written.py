"""Check a recipe that was made of another tool's settings, and write it with its notes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.config.packages import missing_packages
from sdpo.migration.reading import Notes, Reading

_WIDTH = 96
OUTPUT, SAVED = "output_dir", "save_model"
"""A tool's settings say under these names where it writes, and a script where it saves a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """A recipe that was made of another tool's settings, and what is to be known of it."""

    config: RunConfig
    notes: Notes
    tool: str


def overridden(overrides: Sequence[str]) -> frozenset[str]:
    """Return the paths of the settings that ``overrides`` (``key=value``) give."""
    return frozenset(each.partition("=")[0].strip() for each in overrides)


def migrated(reading: Reading, *, overrides: Sequence[str] = ()) -> Migrated:
    """Return the recipe that ``reading`` came to, checked as every recipe is.

    Raises:
        ConfigError: a setting is not possible here, or the script computes it.
    """
    reading.get(SAVED)
    reading.finish()
    config = make_config(reading.tree, overrides=overrides)
    notes = reading.notes
    if not config.model.name_or_path:
        notes.to_fill_in.append("model.name_or_path: no model is named in plain text")
    if not config.data.sources:
        notes.to_fill_in.append("data.sources: no data is named in plain text")
    notes.to_fill_in += [f"the recipe wants {missing}" for missing in missing_packages(config)]
    if config.partition.strategy == "single":
        notes.differs.append(
            f"{reading.tool} trains in one step, and so does partition.strategy: single; for "
            "stepwise DPO set it to stratified, or to natural with one source a step"
        )
    notes.differs.append(
        "some pairs of each source (data.reserve) are set aside to measure every model on, and are "
        "not trained on"
    )
    if places := [reading.told(name) for name in (OUTPUT, SAVED) if reading.said(name)]:
        # A stepwise recipe ends with another step; which, its data decides.
        last = "step-1" if config.partition.strategy == "single" else "step-T"
        where = f"{config.store.runs_dir}/{config.name}/{last}/model"
        notes.differs.append(
            f"{'; '.join(places)}: a run has a folder of its own; the model will be in {where}, "
            f"and `sdpo export {config.name} FOLDER` writes it to another place"
        )
    return Migrated(config=config, notes=notes, tool=reading.tool)


def recipe_text(made: Migrated, *, origin: str) -> str:
    """Return the recipe as YAML, its notes in comments before it; ``origin`` is what it is of."""
    notes = made.notes
    parts = [
        ("To fill in before it runs", notes.to_fill_in),
        ("Means something else here", notes.differs),
        ("Has no counterpart here", notes.absent),
        (
            f"Defaults of {made.tool}, written out",
            [", ".join(notes.defaults)] * bool(notes.defaults),
        ),
    ]
    lines = [_comment(f"Made of {origin}, settings of {made.tool}.", "# ", "# ")]
    for title, said in parts:
        if said:
            lines += ["#", f"# {title}:"]
            lines += [_comment(each, "# - ", "#   ") for each in said]
    values = made.config.model_dump(exclude_unset=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(lines) + "\n\n" + text


def _comment(text: str, first: str, following: str) -> str:
    # Every line of a comment begins with #, whatever the text has: splitlines knows all breaks.
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return textwrap.fill(plain, _WIDTH, initial_indent=first, subsequent_indent=following)
