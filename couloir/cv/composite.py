"""CVs made of other CVs: linear combinations, functions, and progress along a path.

The path CVs are those of Branduardi, Gervasio, Parrinello (J. Chem. Phys. 126, 054103 (2007), eq. 8 and 9) with nodes
counted from 1 and d_i the squared distance to node i in the space of the given CVs (nearest image when periodic):

    s = sum_i i exp(-lambda d_i) / sum_i exp(-lambda d_i)        z = -1/lambda ln sum_i exp(-lambda d_i)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from couloir.cv._expression import check_expression, evaluate_expression, to_lepton
from couloir.cv._native import check_name, collective, wrapped_text
from couloir.cv.base import CollectiveVariable, wrap
from couloir.errors import ConfigError, DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    import openmm


class _Composite(CollectiveVariable):
    """A formula over the values of other CVs, written once for NumPy and torch and once for Lepton."""

    cvs: tuple[CollectiveVariable, ...]

    def _check(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "cvs", tuple(self.cvs))
        names = [cv.name for cv in self.cvs]
        if not names:
            raise ConfigError(f"{self.name!r} is made of no CVs", "give at least one")
        if len({self.name, *names}) != len(names) + 1:
            raise ConfigError(f"{self.name!r} and the CVs it is made of ({', '.join(names)}) need different names")

    @abstractmethod
    def _formula(self, values: dict[str, Any], xp: Any) -> Any:
        """Return values (n_frames,) from the CVs' values by name."""

    @abstractmethod
    def _definitions(self) -> list[str]:
        """Return Lepton definitions of this CV's name from those of its CVs, each using the ones after it."""

    def compute(self, positions: Any, xp: Any) -> Any:
        return self._formula({cv.name: cv.compute(positions, xp) for cv in self.cvs}, xp)

    def of_frame(self) -> Callable[[Array], float] | None:
        parts = [(cv.name, cv.of_frame()) for cv in self.cvs]
        known = [(name, function) for name, function in parts if function is not None]
        if len(known) < len(parts):
            return None
        return lambda frame: float(self._formula({name: np.float64(function(frame)) for name, function in known}, np))

    def to_openmm_energy(self, expression: str, parameters: Mapping[str, float]) -> openmm.Force:
        return collective("; ".join([expression, *self._definitions()]), parameters, {cv.name: cv.to_openmm() for cv in self.cvs})


@dataclass(frozen=True)
class LinearCombination(_Composite):
    """sum_i c_i s_i, wrapped when it has a ``period``.

    A periodic CV may enter only when the sum has a period that divides its coefficient times its own period; otherwise
    the sum would jump where the CV wraps.

    Raises
    ------
    ConfigError : names clash, numbers differ, or a periodic CV would make the sum jump.
    """

    cvs: tuple[CollectiveVariable, ...]
    coefficients: tuple[float, ...]
    name: str
    unit: str = ""
    period: float | None = None

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))
        if len(self.coefficients) != len(self.cvs):
            raise ConfigError(f"{self.name!r} has {len(self.coefficients)} coefficients for {len(self.cvs)} CVs")
        for c, cv in zip(self.coefficients, self.cvs, strict=True):
            if cv.period is not None and (
                self.period is None or abs(c * cv.period / self.period - round(c * cv.period / self.period)) > 1e-9
            ):
                raise ConfigError(
                    f"{self.name!r} would jump where the periodic CV {cv.name!r} wraps",
                    f'give a period that divides {c:g} x {cv.period:g}, or use a function such as "cos({cv.name})"',
                )

    def _formula(self, values: dict[str, Any], xp: Any) -> Any:
        return wrap(sum(c * v for c, v in zip(self.coefficients, values.values(), strict=True)), self.period)

    def _definitions(self) -> list[str]:
        total = "+".join(f"({c!r})*{cv.name}" for c, cv in zip(self.coefficients, self.cvs, strict=True))
        return [f"{self.name}={wrapped_text(f'{self.name}_raw', self.period)}", f"{self.name}_raw={total}"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "linear", "cvs": [cv.to_dict() for cv in self.cvs], "coefficients": list(self.coefficients),
            "name": self.name, "unit": self.unit, "period": self.period,
        }  # fmt: skip


@dataclass(frozen=True)
class FunctionOfCVs(_Composite):
    """An arithmetic expression of other CVs, e.g. ``"cos(phi) + 2*d^2"``, wrapped when it has a ``period``.

    It knows + - * / ^, numbers and OpenMM's common functions.  Where a periodic CV wraps, the expression should not jump.

    Raises
    ------
    ConfigError : the expression cannot be read, names an unknown CV or function, or leaves a CV unused.
    """

    cvs: tuple[CollectiveVariable, ...]
    function: str
    name: str
    unit: str = ""
    period: float | None = None

    def __post_init__(self) -> None:
        self._check()
        check_expression(self.function, [cv.name for cv in self.cvs])

    def _formula(self, values: dict[str, Any], xp: Any) -> Any:
        return wrap(evaluate_expression(self.function, values, xp), self.period)

    def _definitions(self) -> list[str]:
        raw = f"{self.name}_raw"
        return [f"{self.name}={wrapped_text(raw, self.period)}", f"{raw}={to_lepton(self.function)}"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "function", "cvs": [cv.to_dict() for cv in self.cvs], "function": self.function,
            "name": self.name, "unit": self.unit, "period": self.period,
        }  # fmt: skip


@dataclass(frozen=True)
class PathCV(_Composite):
    """Progress ``s`` along a path of nodes (from 1 to the number of nodes), or the squared distance ``z`` from it.

    Build it with :func:`path_s` or :func:`path_z`.

    Attributes
    ----------
    cvs : the CVs whose values make the metric.
    nodes : their values at each node, (n_nodes, n_cvs).
    smoothing : lambda of the formula, one over squared distance.
    component : ``"s"`` or ``"z"``.
    """

    cvs: tuple[CollectiveVariable, ...]
    nodes: tuple[tuple[float, ...], ...]
    smoothing: float
    component: Literal["s", "z"]
    name: str
    unit: str = field(default="", init=False, repr=False)
    period: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        nodes = np.asarray(self.nodes, dtype=np.float64)
        if nodes.ndim != 2 or len(nodes) < 2 or nodes.shape[1] != len(self.cvs) or not np.isfinite(nodes).all():
            raise DataError(f"the nodes of {self.name!r} have shape {nodes.shape}, expected finite (n_nodes >= 2, {len(self.cvs)})")
        if self.component not in ("s", "z") or not self.smoothing > 0:
            raise ConfigError(f"{self.name!r} has component {self.component!r} and smoothing {self.smoothing}", "use 's' or 'z', and > 0")
        # the Lepton form of the nearest image needs nodes inside the period
        wrapped = np.stack([wrap(nodes[:, i], cv.period) for i, cv in enumerate(self.cvs)], axis=1)
        object.__setattr__(self, "nodes", tuple(tuple(row) for row in wrapped.tolist()))

    def _formula(self, values: dict[str, Any], xp: Any) -> Any:
        d = xp.stack([sum(wrap(values[cv.name] - c, cv.period) ** 2 for cv, c in zip(self.cvs, node, strict=True)) for node in self.nodes])
        nearest_node = xp.amin(d, axis=0)
        weights = xp.exp(-self.smoothing * (d - nearest_node))
        if self.component == "z":
            return nearest_node - xp.log(weights.sum(axis=0)) / self.smoothing
        return sum((i + 1) * w for i, w in enumerate(weights)) / weights.sum(axis=0)

    def _definitions(self) -> list[str]:
        n = len(self.nodes)
        d, w, low = f"{self.name}_d", f"{self.name}_w", f"{self.name}_low"
        total = "+".join(f"{w}{i}" for i in range(n))
        weighted = "+".join(f"{i + 1}*{w}{i}" for i in range(n))
        result = f"({weighted})/({total})" if self.component == "s" else f"{low}-log({total})/{self.smoothing!r}"
        lowest = f"{d}0"
        for i in range(1, n):
            lowest = f"min({lowest},{d}{i})"
        weights = [f"{w}{i}=exp(-{self.smoothing!r}*({d}{i}-{low}))" for i in range(n)]
        distances = [f"{d}{i}=" + "+".join(map(_squared, self.cvs, node)) for i, node in enumerate(self.nodes)]
        return [f"{self.name}={result}", *weights, f"{low}={lowest}", *distances]

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": f"path_{self.component}", "cvs": [cv.to_dict() for cv in self.cvs], "nodes": [list(node) for node in self.nodes],
            "smoothing": self.smoothing, "name": self.name,
        }  # fmt: skip


def path_s(cvs: Sequence[CollectiveVariable], nodes: Any, smoothing: float | None = None, name: str = "s") -> PathCV:
    """Return the progress along the path of ``nodes`` (n_nodes, n_cvs), between 1 and n_nodes.

    ``smoothing`` is lambda; by default 2.3 over the mean squared distance of neighbouring nodes, which leaves a
    neighbour a tenth of the weight.
    """
    return PathCV(tuple(cvs), nodes, _smoothing(cvs, nodes, smoothing), "s", name)


def path_z(cvs: Sequence[CollectiveVariable], nodes: Any, smoothing: float | None = None, name: str = "z") -> PathCV:
    """Return the squared distance from the path of ``nodes`` (n_nodes, n_cvs); arguments as for :func:`path_s`."""
    return PathCV(tuple(cvs), nodes, _smoothing(cvs, nodes, smoothing), "z", name)


def _smoothing(cvs: Sequence[CollectiveVariable], nodes: Any, smoothing: float | None) -> float:
    if smoothing is not None:
        return float(smoothing)
    table: Array = np.asarray(nodes, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or table.shape[1] != len(cvs):
        raise DataError(f"path nodes have shape {table.shape}, expected (n_nodes >= 2, {len(cvs)})")
    steps = np.stack([wrap(np.diff(table[:, i]), cv.period) for i, cv in enumerate(cvs)], axis=1)
    spacing = float((steps**2).sum(axis=1).mean())
    if not spacing > 0:
        raise DataError("the nodes of the path are all the same", "give distinct nodes")
    return 2.3 / spacing


def _squared(cv: CollectiveVariable, node: float) -> str:
    difference = f"abs({cv.name}-({node!r}))"
    return f"({difference})^2" if cv.period is None else f"min({difference},{cv.period!r}-{difference})^2"
