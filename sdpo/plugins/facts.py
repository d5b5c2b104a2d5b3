"""Read from a source file's text the facts that it states of a function or value.

.. code-block:: python

    @objective(title="DPO", paper="2305.18290", form="pairwise")
    def dpo(logps, *, beta): ...

    SINGLE = Strategy(name="single", description="everything at once", assign=_assign)

The facts of the first are the keywords of the decorator, those of the second the keywords of the
call. What is no literal is no fact, and is left out.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """A source states this of one name.

    ``facts`` are the literal keywords, ``computed`` the names of those that are none;
    ``parameters`` the function's keyword-only ones.
    """

    facts: Mapping[str, object]
    computed: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


NOTHING_STATED = Stated(facts={})


def stated(source: str, by: str) -> dict[str, Stated]:
    """Return what a module's text states with calls of ``by``, by the name it is stated of.

    Raises:
        SyntaxError: the text is no Python.
    """
    found: dict[str, Stated] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            call = next((c for d in node.decorator_list if (c := _call(d, by))), None)
            if call:
                parameters = tuple(argument.arg for argument in node.args.kwonlyargs)
                found[node.name] = _stated(call, parameters)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            call = _call(node.value, by)
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found |= dict.fromkeys(names, _stated(call)) if call else {}
    return found


def _call(node: ast.expr | None, by: str) -> ast.Call | None:
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return node if name == by else None


def _stated(call: ast.Call, parameters: tuple[str, ...] = ()) -> Stated:
    facts: dict[str, object] = {}
    computed: list[str] = []
    for keyword in call.keywords:
        try:
            facts[keyword.arg or "**"] = _literal(keyword.value)
        except ValueError:
            computed.append(keyword.arg or "**")
    return Stated(facts=facts, computed=tuple(computed), parameters=parameters)


def _literal(node: ast.expr) -> object:
    """Return the value of a literal, or of ``frozenset`` of one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "frozenset":
        return frozenset(ast.literal_eval(node.args[0])) if node.args else frozenset()
    return ast.literal_eval(node)
