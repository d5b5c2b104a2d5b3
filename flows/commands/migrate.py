"""Print a recipe that is made of another tool's settings."""

from rich.console import Console
from rich.markup import escape

from sdpo.migration import Migrated, recipe_text
from sdpo.system.words import counted, noun


def print_recipe(made: Migrated, *, origin: str, console: Console) -> None:
    """Print the recipe to standard output, for a file, and to ``console`` what it came to."""
    print(recipe_text(made, origin=origin), end="")
    notes = made.notes
    console.print(
        escape(
            f"{counted(len(notes.absent), 'setting')} of {made.tool} "
            f"{noun(len(notes.absent), 'has', 'have')} no counterpart, {len(notes.differs)} "
            f"{noun(len(notes.differs), 'means', 'mean')} something else here: read the "
            "recipe's first lines"
        )
    )
    for each in notes.to_fill_in:
        console.print(escape(f"fill in: {each}"))
