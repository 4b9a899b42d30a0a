"""A small arithmetic language that NumPy, torch and OpenMM's Lepton read alike: ``"cos(phi) + 2*psi^2"``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from couloir.cv._native import constant
from couloir.errors import ConfigError, nearest

_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "sqrt": (1, lambda xp, a: xp.sqrt(a)),
    "exp": (1, lambda xp, a: xp.exp(a)),
    "log": (1, lambda xp, a: xp.log(a)),
    "sin": (1, lambda xp, a: xp.sin(a)),
    "cos": (1, lambda xp, a: xp.cos(a)),
    "tan": (1, lambda xp, a: xp.tan(a)),
    "asin": (1, lambda xp, a: xp.arcsin(a)),
    "acos": (1, lambda xp, a: xp.arccos(a)),
    "atan": (1, lambda xp, a: xp.arctan(a)),
    "atan2": (2, lambda xp, a, b: xp.arctan2(a, b)),
    "sinh": (1, lambda xp, a: xp.sinh(a)),
    "cosh": (1, lambda xp, a: xp.cosh(a)),
    "tanh": (1, lambda xp, a: xp.tanh(a)),
    "square": (1, lambda xp, a: a * a),
    "cube": (1, lambda xp, a: a * a * a),
    "recip": (1, lambda xp, a: 1 / a),
    "min": (2, lambda xp, a, b: xp.minimum(a, b)),
    "max": (2, lambda xp, a, b: xp.maximum(a, b)),
    "abs": (1, lambda xp, a: xp.abs(a)),
    "floor": (1, lambda xp, a: xp.floor(a)),
    "ceil": (1, lambda xp, a: xp.ceil(a)),
    "step": (1, lambda xp, a: xp.where(a >= 0, xp.ones_like(a), xp.zeros_like(a))),
    "select": (3, lambda xp, a, b, c: xp.where(a != 0, b, c)),
}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_HINT = 'write it like "cos(phi) + 2*psi^2"'


def to_lepton(text: str) -> str:
    """Return the expression as Lepton text (``^`` for powers)."""
    return text.replace("**", "^")


def check_expression(text: str, names: Iterable[str]) -> None:
    """Raise ConfigError unless ``text`` is an expression of ``names`` that uses every one of them."""
    used = {node.id for node in _checked(text, set(names)) if isinstance(node, ast.Name)}
    idle = sorted(set(names) - used)
    if idle:
        raise ConfigError(f"the expression {text!r} does not use {', '.join(idle)}", "drop what it does not depend on")


def evaluate_expression(text: str, values: Mapping[str, Any], xp: Any) -> Any:
    """Return the value of a checked expression for arrays ``values`` of the module ``xp``."""
    like = next(iter(values.values()))

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return constant(node.value, like, xp)
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return _FUNCTIONS[node.func.id][1](xp, *(value(argument) for argument in node.args))

    return value(syntax_tree(text))


@lru_cache(maxsize=1000)
def syntax_tree(text: str) -> ast.expr:
    """Return an expression as Python reads it; raises ConfigError when it cannot."""
    try:
        # Python gives ^ the precedence of a bit operation, Lepton that of a power
        return ast.parse(text.replace("^", "**"), mode="eval").body
    except SyntaxError:
        raise ConfigError(f"cannot read the expression {text!r}", _HINT) from None


def _checked(text: str, names: set[str]) -> list[ast.AST]:
    """Return the nodes that stand for values, after refusing everything that is not arithmetic."""
    open_nodes: list[ast.AST] = [syntax_tree(text)]
    done: list[ast.AST] = []
    while open_nodes:
        node = open_nodes.pop()
        done.append(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id not in _FUNCTIONS:
                raise ConfigError(f"unknown function {node.func.id!r} in {text!r}{nearest(node.func.id, _FUNCTIONS)}")
            if len(node.args) != _FUNCTIONS[node.func.id][0]:
                raise ConfigError(f"{node.func.id} takes {_FUNCTIONS[node.func.id][0]} argument(s) in {text!r}", _HINT)
            open_nodes.extend(node.args)
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            open_nodes.extend([node.left, node.right])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            open_nodes.append(node.operand)
        elif isinstance(node, ast.Name):
            if node.id not in names:
                raise ConfigError(f"unknown name {node.id!r} in {text!r}{nearest(node.id, names)}")
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ConfigError(f"cannot read the expression {text!r}", _HINT)
    return done
