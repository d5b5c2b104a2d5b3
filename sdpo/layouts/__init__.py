"""Read data layouts, one file each: turn a row as others write it into the parts of a pair.

What the columns alone tell is recognised without a setting (:mod:`sdpo.data.recognise`). Where it
takes more, a source names a layout (``data.sources[].layout``), whose reader makes ``prompt``,
``chosen`` and ``rejected`` of a row. A further layout is one more file here, or in another package,
which names it as an entry point of ``sdpo.layouts``.
"""

from sdpo.layouts.readers import (
    OWN,
    Facts,
    Reader,
    layout,
    layout_facts,
    layout_names,
    layouts_of,
    reader_of,
)

__all__ = [
    "OWN",
    "Facts",
    "Reader",
    "layout",
    "layout_facts",
    "layout_names",
    "layouts_of",
    "reader_of",
]
