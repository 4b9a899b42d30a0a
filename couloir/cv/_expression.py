"""A small arithmetic language that NumPy, torch and OpenMM's Lepton read alike: ``"cos(phi) + 2*psi^2"``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache, partial
from types import CodeType
from typing import Any

import numpy as np

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
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
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
    code, numbers = _compiled(text, tuple(values))
    # arrays of NumPy may be used again; a tensor may belong to the mode of autograd that it was made in
    known = _numpy_constants(text, like.dtype) if xp is np else {name: constant(number, like, xp) for name, number in numbers.items()}
    return eval(code, {**_functions(xp), **known}, dict(values))


@cache
def _functions(xp: Any) -> dict[str, Any]:
    """Return the functions of a module by name, and nothing else that code could reach."""
    return {"__builtins__": {}, **{name: partial(of, xp) for name, (_, of) in _FUNCTIONS.items()}}


@lru_cache(maxsize=1000)
def _numpy_constants(text: str, dtype: Any) -> dict[str, Any]:
    return {name: np.asarray(number, dtype=dtype) for name, number in _named(text)[1].items()}


@lru_cache(maxsize=1000)
def _compiled(text: str, names: tuple[str, ...]) -> tuple[CodeType, dict[str, float]]:
    """Return the code of an expression, and its numbers by the names that they have there.

    Nothing but arithmetic of ``names`` ever becomes code: all else is refused here as well.
    """
    _checked(text, set(names))
    tree, numbers = _named(text)
    return compile(tree, text, "eval"), numbers


class _Naming(ast.NodeTransformer):
    """Puts a name in place of every number, and keeps which number it was."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def visit_Constant(self, node: ast.Constant) -> ast.Name:
        """Return the name of a number."""
        assert isinstance(node.value, int | float)
        name = f"number {len(self.numbers)}"
        self.numbers[name] = float(node.value)
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def _named(text: str) -> tuple[ast.Expression, dict[str, float]]:
    """Return an expression in which numbers have names, which no CV can have, so that they come as arrays of the right kind."""
    naming = _Naming()
    return ast.Expression(naming.visit(_parsed(text))), naming.numbers


@lru_cache(maxsize=1000)
def syntax_tree(text: str) -> ast.expr:
    """Return an expression as Python reads it, to be looked at only; raises ConfigError when it cannot."""
    return _parsed(text)


def _parsed(text: str) -> ast.expr:
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
        elif isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
            open_nodes.extend([node.left, node.right])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            open_nodes.append(node.operand)
        elif isinstance(node, ast.Name):
            if node.id not in names:
                raise ConfigError(f"unknown name {node.id!r} in {text!r}{nearest(node.id, names)}")
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ConfigError(f"cannot read the expression {text!r}", _HINT)
    return done
