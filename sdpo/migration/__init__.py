"""Make a recipe of what another tool was set to, and say what does not carry over.

Scripts are read as text and never run; nothing of the other tool has to be installed.
"""

from sdpo.migration.axolotl import from_axolotl
from sdpo.migration.llama_factory import from_llama_factory
from sdpo.migration.trl import from_trl
from sdpo.migration.written import Migrated, recipe_text

__all__ = ["Migrated", "from_axolotl", "from_llama_factory", "from_trl", "recipe_text"]
