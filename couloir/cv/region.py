"""Regions: sets in CV space with the algebra ``&``, ``|``, ``~``; stable states, interfaces and stop conditions."""

from __future__ import annotations

import ast
import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable, require_in_period
from couloir.errors import ConfigError, nearest
from couloir.trajectory import Array

# a number followed by a unit (any word but the operators), as a user types it after a comparison
_WITH_UNIT = re.compile(r"(?<![\w.])([+-]?\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*((?!(?:and|or|not)\b|[eE][+-]?\d)[A-Za-zÅµ][\w/^*Å]*)")

_MARGIN = 1e-9  # of a CV's value: far above rounding, and so narrow that hardly a frame is in it

Mask = npt.NDArray[np.bool_]


class Region(ABC):
    """A set in the space of one or more CVs."""

    @property
    @abstractmethod
    def cvs(self) -> tuple[CollectiveVariable, ...]:
        """The CVs this region is defined on, each once."""

    @abstractmethod
    def contains_values(self, values: Mapping[str, Array]) -> Mask:
        """Return which rows of CV values (name -> (n,)) lie inside."""

    @property
    @abstractmethod
    def limits(self) -> dict[str, tuple[float, ...]]:
        """The finite limits of each CV, in increasing order, each once."""

    def contains(self, positions: Array) -> Mask:
        """Return which frames of positions (n_frames, n_atoms, 3) lie inside; each CV is computed once."""
        return self.contains_values({cv.name: cv.evaluate(positions) for cv in self.cvs})

    def decider(self) -> Callable[[Array], bool]:
        """Return a function that says of one frame (n_atoms, 3) what :meth:`contains` says, faster where the CVs know how.

        Values that agree to rounding decide alike unless they are next to a limit; there :meth:`contains` decides.
        """
        if "_decider" not in self.__dict__:
            self.__dict__["_decider"] = self._decider_made()
        return cast(Callable[[Array], bool], self.__dict__["_decider"])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_decider"}  # functions do not travel

    def _decider_made(self) -> Callable[[Array], bool]:
        functions = {cv.name: cv.of_frame() for cv in self.cvs}

        def exactly(frame: Array) -> bool:
            return bool(self.contains(frame[None])[0])

        fast = [(name, function) for name, function in functions.items() if function is not None]
        if len(fast) < len(functions):
            return exactly
        if len(fast) == 1:
            return self._on_a_line(*fast[0], exactly)

        def decide(frame: Array) -> bool:
            decision = self.decides({name: function(frame) for name, function in fast})
            return exactly(frame) if decision is None else decision

        return decide

    def _on_a_line(self, name: str, function: Callable[[Array], float], exactly: Callable[[Array], bool]) -> Callable[[Array], bool]:
        """Return what decides on one CV: between two limits all values are inside, or none."""
        period = self.cvs[0].period
        finite = sorted({*self.limits[name], *(() if period is None else (-period / 2, period / 2))})
        between = [(low + high) / 2 for low, high in pairwise([finite[0] - 2, *finite, finite[-1] + 2])] if finite else [0.0]
        inside = [self.decides({name: x}) for x in between]
        edges = [-math.inf, *finite, math.inf]

        def decide(frame: Array) -> bool:
            x = function(frame)
            after = bisect_left(edges, x)
            margin = _MARGIN * (1.0 + abs(x))
            if edges[after] - x > margin and x - edges[after - 1] > margin:  # neither is true of NaN
                decision = inside[after - 1]
                if decision is not None:
                    return decision
            return exactly(frame)

        return decide

    def decides(self, values: Mapping[str, float]) -> bool | None:
        """Return whether one frame's CV values (name -> number) lie inside; None where rounding could decide."""
        return None

    def __and__(self, other: Region) -> Region:
        return Combined(self, other, either=False)

    def __or__(self, other: Region) -> Region:
        return Combined(self, other, either=True)

    def __invert__(self) -> Region:
        return Complement(self)

    def __bool__(self) -> bool:
        raise TypeError("a Region is a set, not a truth value: write (phi > a) & (phi < b), not a < phi < b")

    @staticmethod
    def parse(text: str, cvs: Mapping[str, CollectiveVariable]) -> Region:
        """Read a region such as ``"phi > 0.7 and not psi < 60 deg"``; numbers without a unit are in the CV's own.

        Raises
        ------
        ConfigError : the text is not such an expression, or names an unknown CV.
        UnitError : a unit is unknown or does not fit its CV.
        DataError : a limit is outside the period of a periodic CV.
        """
        quoted = _WITH_UNIT.sub(lambda m: repr(f"{m[1].replace(' ', '')} {m[2]}"), text)
        try:
            return _build(ast.parse(quoted.strip(), mode="eval").body, cvs, text)
        except SyntaxError:
            raise ConfigError(f"cannot read the region {text!r}", 'write it like "phi > 0.7 and phi < 1.5"') from None


@dataclass(frozen=True, eq=False)
class Interval(Region):
    """low <= CV <= high; on a periodic CV with low > high, the arc through the period's edge.

    Raises
    ------
    DataError : a limit is outside the period of a periodic CV.
    """

    cv: CollectiveVariable
    low: float
    high: float

    def __post_init__(self) -> None:
        for limit in (self.low, self.high):
            require_in_period(self.cv, limit, f"the limit of {self.cv.name}")

    @property
    def cvs(self) -> tuple[CollectiveVariable, ...]:
        return (self.cv,)

    @property
    def limits(self) -> dict[str, tuple[float, ...]]:
        return {self.cv.name: tuple(sorted({x for x in (self.low, self.high) if np.isfinite(x)}))}

    def contains_values(self, values: Mapping[str, Array]) -> Mask:
        x = values[self.cv.name]
        if self.cv.period is not None and self.low > self.high:
            return (x >= self.low) | (x <= self.high)
        return (x >= self.low) & (x <= self.high)

    def decides(self, values: Mapping[str, float]) -> bool | None:
        x, low, high = values[self.cv.name], self.low, self.high
        margin = _MARGIN * (1.0 + abs(x))
        period = self.cv.period
        if not (abs(x - low) > margin and abs(x - high) > margin and (period is None or period / 2 - abs(x) > margin)):
            return None
        if period is not None and low > high:
            return x >= low or x <= high
        return low <= x <= high

    def __str__(self) -> str:
        return f"{self.low:g} <= {self.cv.name} <= {self.high:g}"


def _union(*regions: Region) -> tuple[CollectiveVariable, ...]:
    return tuple({cv.name: cv for region in regions for cv in region.cvs}.values())


def all_limits(*regions: Region) -> dict[str, tuple[float, ...]]:
    """Return the finite limits of each CV in any of the regions."""
    together: dict[str, set[float]] = {}
    for region in regions:
        for name, limits in region.limits.items():
            together.setdefault(name, set()).update(limits)
    return {name: tuple(sorted(limits)) for name, limits in together.items()}


@dataclass(frozen=True, eq=False)
class Combined(Region):
    """What lies in both of two regions, or in either; made by ``a & b`` and ``a | b``."""

    a: Region
    b: Region
    either: bool

    @property
    def cvs(self) -> tuple[CollectiveVariable, ...]:
        return _union(self.a, self.b)

    @property
    def limits(self) -> dict[str, tuple[float, ...]]:
        return all_limits(self.a, self.b)

    def contains_values(self, values: Mapping[str, Array]) -> Mask:
        a, b = self.a.contains_values(values), self.b.contains_values(values)
        return a | b if self.either else a & b

    def decides(self, values: Mapping[str, float]) -> bool | None:
        a, b = self.a.decides(values), self.b.decides(values)
        if a is None or b is None:
            return None
        return a or b if self.either else a and b

    def __str__(self) -> str:
        return f"({self.a}) {'|' if self.either else '&'} ({self.b})"


@dataclass(frozen=True, eq=False)
class Complement(Region):
    """What lies outside of a region; made by ``~a``."""

    a: Region

    @property
    def cvs(self) -> tuple[CollectiveVariable, ...]:
        return self.a.cvs

    @property
    def limits(self) -> dict[str, tuple[float, ...]]:
        return self.a.limits

    def contains_values(self, values: Mapping[str, Array]) -> Mask:
        return ~self.a.contains_values(values)

    def decides(self, values: Mapping[str, float]) -> bool | None:
        a = self.a.decides(values)
        return None if a is None else not a

    def __str__(self) -> str:
        return f"~({self.a})"


def _build(node: ast.expr, cvs: Mapping[str, CollectiveVariable], text: str) -> Region:
    if isinstance(node, ast.BoolOp):
        parts = [_build(value, cvs, text) for value in node.values]
        out = parts[0]
        for part in parts[1:]:
            out = out & part if isinstance(node.op, ast.And) else out | part
        return out
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_build(node.operand, cvs, text)
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and len(node.ops) == 1:
        if node.left.id not in cvs:
            raise ConfigError(f"the region {text!r} names the unknown CV {node.left.id!r}{nearest(node.left.id, cvs)}")
        limit = _limit(node.comparators[0])
        if limit is not None and isinstance(node.ops[0], (ast.Lt, ast.LtE)):
            return cvs[node.left.id] < limit
        if limit is not None and isinstance(node.ops[0], (ast.Gt, ast.GtE)):
            return cvs[node.left.id] > limit
    raise ConfigError(f"cannot read the region {text!r}", 'write it like "phi > 0.7 and phi < 1.5"')


def _limit(node: ast.expr) -> float | str | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, (int, float, str)) else None
