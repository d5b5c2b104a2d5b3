"""The measurements of the house are those of a tree that can be counted by hand."""

import ast

from benchmarks.house import circles, function_lines, imports, loose_types, read_modules

TREE = {
    "sdpo/__init__.py": "",
    "sdpo/a/__init__.py": "",
    "sdpo/a/one.py": (
        "from typing import TYPE_CHECKING, Any, cast\n"
        "from sdpo.b import two\n"
        "if TYPE_CHECKING:\n"
        "    from sdpo.a.three import Three\n"
        "\n\n"
        "def first(value: Any, other: 'list[Any]') -> object:\n"
        "    assert value is not None\n"
        "    return cast(int, value)\n"
    ),
    "sdpo/a/three.py": "from .one import first\n\n\nclass Three:\n    def name(self) -> str: ...\n",
    "sdpo/b/__init__.py": "",
    "sdpo/b/two.py": "def lazily():\n    from sdpo.a.one import first\n    return first\n",
    "flows/__init__.py": "",
    "partitions/__init__.py": "",
}


def test_a_tree_is_measured_as_by_hand(tmp_path):
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = {module.name: module for module in read_modules(tmp_path)}
    one, three, two = modules["sdpo.a.one"], modules["sdpo.a.three"], modules["sdpo.b.two"]
    assert (one.lines, one.room, modules["sdpo"].room) == (9, "sdpo.a", "sdpo.__init__")
    assert list(function_lines(one.tree)) == [3]
    expected = {"Any": 2, "object": 1, "cast": 1, "assert … is not None": 1}
    assert loose_types(one.tree) == expected
    names = set(modules)
    assert imports(one, names) == {"sdpo.b.two"}
    assert imports(three, names) == {"sdpo.a.one"}
    assert imports(two, names) == set()


def test_a_circle_is_found_and_a_line_is_none():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_a_qualified_name_counts_as_well():
    assert loose_types(ast.parse("import typing\nx: typing.Any = 1"))["Any"] == 1
