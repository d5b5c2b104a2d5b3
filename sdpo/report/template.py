"""Fill the templates of pages: one file each, no script, nothing fetched, everything escaped.

Completions and data are other people's text. A page's content security policy allows its own style
sheet and nothing else, so that even a fault in the escaping could run or load nothing.
"""

import re
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from sdpo.report import tables

_WHOLE = re.compile(
    r"\[[^\[\]<>]{1,40}\]"  # an interval
    rf"|\b[0-9a-f]{{12}}\b(?:{tables.EQUALS}M<sub>\d+</sub>)?"  # a digest, and whose it is
)


def rendered(name: str, /, **values: object) -> str:
    """Return the page that the template ``name`` of this room makes of ``values``, with its style.

    A template may take the macros of ``parts.html.j2``: ``table``, ``drawings``.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters |= {"math": _math, "unset": _unset, "count": tables.count}
    template = environment.get_template(name)
    return template.render(style=Markup(_asset("report.css")), **values)


def _asset(name: str) -> str:
    return files("sdpo.report").joinpath(name).read_text(encoding="utf-8")


def _math(text: str) -> Markup:
    """Set M_1, D_t and γ_ref with subscripts, keep intervals and digests whole; escape the rest."""
    pattern = r"\b([MD])_(\d+|t)\b|(γ)_(ref)\b"
    set_low = re.sub(
        pattern, lambda m: f"{m[1] or m[3]}<sub>{m[2] or m[4]}</sub>", str(escape(text))
    )
    return Markup(_WHOLE.sub(r'<span class="whole">\g<0></span>', set_low))


def _unset(text: str) -> str:
    """Write D_t and γ_ref without a subscript, where there can be no markup."""
    return re.sub(r"(?<=[MDγ])_(\d+|t|ref)\b", r" \1", text)
