"""Make a recipe of what another tool was set to, and say what does not carry over.

Scripts are read as text and never run; nothing of the other tool has to be installed.
"""

from sdpo.migration.trl import from_trl
from sdpo.migration.written import Migrated, recipe_text

__all__ = ["Migrated", "from_trl", "recipe_text"]
