"""Load YAML that stays as small as its text: aliases do not multiply, nesting has an end.

A few lines of anchors and aliases can stand for gigabytes, and the parser does not say so before
it has made them. So the graph of nodes is measured first.
"""

import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

try:
    from yaml._yaml import CParser
except ImportError:  # PyYAML was built without libyaml

    class CParser(Reader, Scanner, Parser):  # type: ignore[no-redef]
        """Python's own parts of a parser."""

        def __init__(self, stream: str) -> None:
            Reader.__init__(self, stream)
            Scanner.__init__(self)
            Parser.__init__(self)


_MOST_NODES = 100_000
_LONGEST_NUMBER = 100
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class QuickLoader(Composer, CParser, SafeConstructor, Resolver):
    """A quick loader has libyaml read the text, in a quarter of the time, and words faults its way.

    libyaml's own composer of nodes ends the process where nesting is deep, so Python's stands
    before it.
    """

    def __init__(self, stream: str) -> None:
        CParser.__init__(self, stream)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)


class MalformedError(ValueError):
    """A malformed text is refused: the error says what is wrong, and where.

    ``line`` and ``column`` are from 1, 0 where not known.

    ``what`` may quote the text.
    """

    def __init__(self, what: str, mark: "yaml.Mark | None" = None) -> None:
        self.what = what
        self.line = mark.line + 1 if mark else 0
        self.column = mark.column + 1 if mark else 0
        super().__init__(f"{self.where}: {what}" if mark else what)

    @property
    def where(self) -> str:
        """Return the place in words."""
        return f"line {self.line}, column {self.column}" if self.line else "somewhere"


def load_yaml(text: str, *, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML text, in which no mapping has a key twice.

    Merge keys (``<<``) are followed, as YAML 1.1 has them.

    Raises:
        MalformedError: it is not YAML, is larger or deeper than any recipe, or has text or numbers
            that nothing could hold.
    """
    return _loaded(text, loader)


def load_written_yaml(text: str) -> Any:
    """Do as :func:`load_yaml`, faster, where nobody is told what is malformed."""
    return _loaded(text, QuickLoader)


def _loaded(text: str, loader: "type[yaml.SafeLoader | QuickLoader]") -> Any:
    try:
        parser = loader(text)
        try:
            node = parser.get_single_node()
            if node is None:
                return None
            _measure(node)
            return parser.construct_document(node)
        finally:
            parser.dispose()
    except MalformedError:
        raise
    except yaml.MarkedYAMLError as error:
        raise MalformedError(error.problem or error.context or "", error.problem_mark) from error
    except RecursionError as error:
        raise MalformedError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, a forbidden character
        raise MalformedError(" ".join(str(error).split())) from error


def _measure(root: yaml.Node) -> None:
    """Refuse a graph of nodes that stands for too much, or for something without an end."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    todo = [root]
    while todo:
        node = todo[-1]
        if id(node) in sizes:
            todo.pop()
            continue
        parts = _parts(node)
        if id(node) not in open_nodes:
            open_nodes.add(id(node))
            if any(id(part) in open_nodes and id(part) not in sizes for part in parts):
                raise MalformedError("an alias stands within what it stands for", node.start_mark)
            todo += [part for part in parts if id(part) not in sizes]
            continue
        todo.pop()
        sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
        if sizes[id(node)] > _MOST_NODES:
            raise MalformedError(
                f"its aliases stand for more than {_MOST_NODES} values", node.start_mark
            )


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise MalformedError(f"the key `{key.value}` stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    _check_scalar(node)
    return []


def _check_scalar(node: yaml.Node) -> None:
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        what = f"a number of {len(node.value)} characters"
        raise MalformedError(what, node.start_mark)
    if _NO_TEXT.search(node.value):
        raise MalformedError("a character that no text has", node.start_mark)
