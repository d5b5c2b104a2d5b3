"""Say what names and expressions of a script stand for, as far as its text alone tells."""

import ast
import operator
from collections.abc import Callable, Iterator
from typing import Any

from sdpo.migration.reading import Computed, Value

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_DEEPEST = 20


class Names:
    """The names of a script stand for what is assigned to them, where that is one expression."""

    def __init__(self, tree: ast.Module) -> None:
        self._assigned: dict[str, list[ast.expr]] = {}
        self._varying: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.AugAssign | ast.For | ast.NamedExpr):
                self._vary(node.target)
            elif isinstance(node, ast.arg):
                self._varying.add(node.arg)

    def value(self, node: ast.expr, *, depth: int = 0) -> Value:
        """Return the value of an expression, or that it is computed."""
        computed = Computed(ast.unparse(node), node.lineno)
        if depth > _DEEPEST:
            return computed
        if isinstance(node, ast.Constant):
            plain = node.value is None or isinstance(node.value, bool | int | float | str)
            return node.value if plain else computed  # type: ignore[return-value]
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            values = [self.value(each, depth=depth + 1) for each in node.elts]
            return computed if _any_computed(values) else values  # type: ignore[return-value]
        if isinstance(node, ast.Dict):
            return self._mapping(node, computed, depth=depth + 1)
        if isinstance(node, ast.UnaryOp | ast.BinOp):
            return self._number(node, computed, depth=depth + 1)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return f"torch.{node.attr}" if node.value.id == "torch" else computed
        if isinstance(node, ast.Name) and (found := self.resolved(node)) is not node:
            return self.value(found, depth=depth + 1)
        return computed

    def text(self, node: ast.expr) -> Value:
        """Return the text that an expression is; None where it is none, or is computed."""
        value = self.value(node)
        return value if isinstance(value, str) else None

    def resolved(self, node: ast.expr) -> ast.expr:
        """Return the one expression that is assigned to a name, else ``node`` itself."""
        for _ in range(_DEEPEST):
            if not isinstance(node, ast.Name) or node.id in self._varying:
                return node
            assigned = self._assigned.get(node.id, [])
            if len(assigned) != 1:
                return node
            node = assigned[0]
        return node

    def names_of(self, value: ast.expr) -> set[str]:
        """Return the names that ``value``, this very expression, is assigned to."""
        return {name for name, values in self._assigned.items() if any(v is value for v in values)}

    def closure(self, node: ast.expr) -> Iterator[ast.AST]:
        """Yield the nodes of an expression, and of all that is assigned to the names in it."""
        seen: set[str] = set()
        todo: list[ast.expr] = [node]
        while todo:
            for each in ast.walk(todo.pop()):
                yield each
                if isinstance(each, ast.Name) and each.id not in seen:
                    seen.add(each.id)
                    todo += self._assigned.get(each.id, [])

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._assigned.setdefault(target.id, []).append(value)
        else:
            self._vary(target)

    def _vary(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name | ast.Tuple | ast.List | ast.Starred):
            self._varying |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}

    def _mapping(self, node: ast.Dict, computed: Computed, *, depth: int) -> Value:
        found: dict[str, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                return computed
            found[key.value] = self.value(value, depth=depth)
        return computed if _any_computed(list(found.values())) else found

    def _number(self, node: ast.UnaryOp | ast.BinOp, computed: Computed, *, depth: int) -> Value:
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand, depth=depth)
            if isinstance(node.op, ast.USub) and _is_number(inner):
                return -inner  # type: ignore[operator]
            return computed
        left, right = (self.value(each, depth=depth) for each in (node.left, node.right))
        compute = _OPERATORS.get(type(node.op))
        if compute is None or not (_is_number(left) and _is_number(right)):
            return computed
        try:
            return compute(left, right)  # type: ignore[no-any-return]
        except (ArithmeticError, ValueError):
            return computed


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _any_computed(values: list[Value]) -> bool:
    return any(isinstance(each, Computed) for each in values)
