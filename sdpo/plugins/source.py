"""Import packages from the text of their source, over which their digest is.

Python runs a cached ``.pyc`` in place of a source of the same size that was written in the same
second, and an unchecked one whatever the source says: that would be other code than was digested.
"""

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType


def import_from_source(modules: Iterable[str]) -> None:
    """Import the packages that these modules are in from their source, now and later."""
    _finder.packages.update(name.partition(".")[0] for name in modules)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Finder(MetaPathFinder):
    """It takes what the other finders find, with another loader."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _FromSource(spec.loader.name, spec.loader.path)
        return spec


_finder = _Finder()
