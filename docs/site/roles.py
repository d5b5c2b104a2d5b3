"""Take Sphinx's roles out of docstrings that mkdocstrings shows: it knows none."""

import re
from typing import Any

import griffe


class PlainRoles(griffe.Extension):
    """It leaves of ``:class:`Name` `` the name, as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:class|func|meth|mod):(?=`)", "", obj.docstring.value)
