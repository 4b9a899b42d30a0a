"""Functions of coordinates as small programs, which the compiled toy loop runs record by record.

A program is a list of instructions (operation, slot, index, number) on numbered slots; its result is left in slot 0.
An operation reads its operands from ``slot`` and those after it, and writes to ``slot``; ``toy_kernels.OPERATIONS`` are all
there are.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from couloir.cv._expression import syntax_tree
from couloir.cv.base import CollectiveVariable
from couloir.cv.composite import FunctionOfCVs, LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.sampling.toy_kernels import OPERATIONS
from couloir.trajectory import Array

Instruction = tuple[int, int, int, float]  # operation, slot, index of a coordinate or slot, number

_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
_POWERS = {"square": 2, "cube": 3}


def coordinate_index(cv: Coordinate, n_dim: int) -> int:
    """Return the coordinate that ``cv`` reads; raises DataError when there is none of that number."""
    if cv.index >= n_dim:
        raise DataError(f"the CV {cv.name!r} reads coordinate {cv.index}, but there are {n_dim}", f"use 0 ... {n_dim - 1}")
    return cv.index


def program_of(cv: CollectiveVariable, n_dim: int) -> list[Instruction] | None:
    """Return a CV made of coordinates, linear combinations and functions as a program; None when it is made of anything else.

    Raises
    ------
    DataError : it reads a coordinate that does not exist.
    """
    writer = _Writer(n_dim)
    return writer.program if writer.variable(cv, 0) else None


def packed(programs: Sequence[Sequence[Instruction]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """Return where each program starts and ends (n + 1,), and of all instructions operation, slot and index (m, 3) and number (m,)."""
    starts = np.cumsum([0, *map(len, programs)], dtype=np.int64)
    lines = [line for program in programs for line in program]
    codes = np.array([line[:3] for line in lines], dtype=np.int64).reshape(len(lines), 3)
    return starts, codes, np.array([line[3] for line in lines], dtype=np.float64)


class _Writer:
    """Writes instructions in the order of evaluation; ``slot`` is always where the value is to go, and what lies above is free."""

    def __init__(self, n_dim: int) -> None:
        self.n_dim = n_dim
        self.program: list[Instruction] = []

    def add(self, operation: str, slot: int, index: int = 0, number: float = 0.0) -> None:
        self.program.append((_CODE[operation], slot, index, number))

    def variable(self, cv: CollectiveVariable, slot: int) -> bool:
        """Write the value of a CV, wrapped by its period; False when it is of an unknown kind."""
        if isinstance(cv, Coordinate):
            self.add("coordinate", slot, coordinate_index(cv, self.n_dim))
        elif isinstance(cv, LinearCombination):
            self.add("number", slot)
            for coefficient, part in zip(cv.coefficients, cv.cvs, strict=True):
                self.add("number", slot + 1, number=coefficient)
                if not self.variable(part, slot + 2):
                    return False
                self.add("multiply", slot + 1)
                self.add("add", slot)
        elif isinstance(cv, FunctionOfCVs):
            for i, part in enumerate(cv.cvs):
                if not self.variable(part, slot + i):
                    return False
            above = slot + len(cv.cvs)
            self.node(syntax_tree(cv.function), above, {part.name: slot + i for i, part in enumerate(cv.cvs)})
            self.add("copy", slot, above)
        else:
            return False
        if cv.period is not None:
            self.add("wrap", slot, number=cv.period)
        return True

    def node(self, node: ast.AST, slot: int, slots: dict[str, int]) -> None:
        """Write the value of a checked expression, whose names have their values in ``slots``."""
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, (int, float))
            self.add("number", slot, number=float(node.value))
        elif isinstance(node, ast.Name):
            self.add("copy", slot, slots[node.id])
        elif isinstance(node, ast.UnaryOp):
            self.node(node.operand, slot, slots)
            if isinstance(node.op, ast.USub):
                self.add("number", slot + 1, number=-1.0)
                self.add("multiply", slot)
        elif isinstance(node, ast.BinOp):
            exponent = node.right.value if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant) else None
            if isinstance(exponent, (int, float)) and exponent in _POWERS.values():
                self.power(node.left, int(exponent), slot, slots)
            else:
                self.call(_OPERATORS[type(node.op)], [node.left, node.right], slot, slots)
        else:
            assert isinstance(node, ast.Call)
            assert isinstance(node.func, ast.Name)
            if node.func.id in _POWERS:
                self.power(node.args[0], _POWERS[node.func.id], slot, slots)
            elif node.func.id == "recip":
                self.call("divide", [ast.Constant(1.0), *node.args], slot, slots)
            else:
                self.call(node.func.id, node.args, slot, slots)

    def call(self, operation: str, arguments: Sequence[ast.AST], slot: int, slots: dict[str, int]) -> None:
        for i, argument in enumerate(arguments):
            self.node(argument, slot + i, slots)
        self.add(operation, slot)

    def power(self, base: ast.AST, power: int, slot: int, slots: dict[str, int]) -> None:
        """Write a small power as products, far cheaper than the general one and as exact."""
        self.node(base, slot, slots)
        for i in range(1, power):
            self.add("copy", slot + i, slot)
        for i in range(power - 2, -1, -1):
            self.add("multiply", slot + i)
