"""What the compiled toy loop needs of biases, CVs and regions: directions in the space of coordinates, programs, and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias, FlatBottom, HarmonicBias, SumOfBiases
from couloir.cv.composite import LinearCombination
from couloir.cv.geometric import Coordinate
from couloir.cv.region import Combined, Complement, Interval, Region
from couloir.errors import DataError, nearest
from couloir.sampling.toy_programs import coordinate_index, packed, program_of
from couloir.trajectory import Array

_MAX_BOXES = 64

Ints = npt.NDArray[np.int64]
Limits = tuple[float, float, bool]  # low, high, and whether a value that is not a number counts as inside
Box = dict[int, Limits]
Term = tuple[Array, tuple[float, float, float, float]]  # direction; centre, force constant, half width, period (0: none)


@dataclass(frozen=True, eq=False)
class Compiled:
    """Biases, CVs and stop region of a batch as arrays.

    Attributes
    ----------
    along : (n_walkers, n_terms, n_dim) coefficients over the coordinates of the CV of each bias term.
    terms : (n_walkers, n_terms, 4) centre, force constant, half width and period (0: none).
    directions : (n_cvs, n_dim) coefficients over the coordinates of each CV; a coordinate itself is a unit vector.
    period : (n_cvs,) period of each CV (0: none).
    programs : of the CVs that are not linear, as :func:`couloir.sampling.toy_programs.packed` gives them; empty for the others.
    low, high : (n_boxes, n_cvs) the stop region as a union of boxes.
    takes_nan : (n_boxes, n_cvs) whether a CV that is not a number is inside: it is in no interval, so it is outside all.
    """

    along: Array
    terms: Array
    directions: Array
    period: Array
    programs: tuple[Ints, Ints, Array]
    low: Array
    high: Array
    takes_nan: npt.NDArray[np.bool_]


def compile_walkers(cvs: Sequence[CollectiveVariable], biases: Sequence[Bias | None], stop: Region | None, n_dim: int) -> Compiled | None:
    """Return biases, CVs and stop region as arrays, or None when the compiled loop does not know one of them.

    It knows biases along CVs that are linear in the coordinates, and records and stop regions of CVs that are linear in
    them or functions of such CVs.

    Raises
    ------
    DataError : a CV reads a coordinate that does not exist.
    """
    found = [_direction(cv, n_dim) for cv in cvs]
    programs = [program_of(cv, n_dim) if direction is None else [] for cv, direction in zip(cvs, found, strict=True)]
    written = [program for program in programs if program is not None]
    if len(written) < len(cvs):
        return None
    rows = [_terms(one, {cv.name: direction for cv, direction in zip(cvs, found, strict=True) if direction is not None}) for one in biases]
    boxes = [] if stop is None else _boxes(stop, {cv.name: i for i, cv in enumerate(cvs)})
    known = [row for row in rows if row is not None]
    if boxes is None or len(known) < len(rows):
        return None
    width = max(len(row) for row in known)
    along, terms = np.zeros((len(known), width, n_dim)), np.zeros((len(known), width, 4))
    for w, row in enumerate(known):
        for t, (direction, constants) in enumerate(row):
            along[w, t], terms[w, t] = direction, constants
    directions = np.array([np.zeros(n_dim) if direction is None else direction for direction in found]).reshape(len(cvs), n_dim)
    period = np.array([cv.period or 0.0 for cv in cvs])
    return Compiled(along, terms, directions, period, packed(written), *_limits(boxes, len(cvs)))


def _limits(boxes: list[Box], n_cvs: int) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Boxes as ``low``, ``high`` and ``takes_nan`` of :class:`Compiled`."""
    low, high = np.full((len(boxes), n_cvs), -np.inf), np.full((len(boxes), n_cvs), np.inf)
    takes_nan = np.ones(low.shape, dtype=np.bool_)
    for b, box in enumerate(boxes):
        for c, limits in box.items():
            low[b, c], high[b, c], takes_nan[b, c] = limits
    return low, high, takes_nan


def check_biases(biases: Sequence[Bias | None], record: Sequence[CollectiveVariable]) -> None:
    """Raise DataError when a bias names a CV that is not recorded."""
    names = [cv.name for cv in record]
    for one in biases:
        for name in one.names if one is not None else ():
            if name not in names:
                raise DataError(
                    f"the bias is on {name!r}, which is not in `record`{nearest(name, names)}", "record every CV that is biased"
                )


def biases_on(biases: Sequence[Bias | None], record: Sequence[CollectiveVariable], x: Array) -> tuple[Array, Array]:
    """Return energy (n,) and gradient (n, n_dim) of one bias per row at coordinates x (n, n_dim).

    Each CV is evaluated once on all rows that are biased along it: a call costs far more than a row.
    """
    energy, gradient = np.zeros(len(x)), np.zeros_like(x)
    cvs = {cv.name: cv for cv in record}
    for names in {one.names for one in biases if one is not None}:
        rows = [i for i, one in enumerate(biases) if one is not None and one.names == names]
        parts = [cvs[name].value_and_gradient(x[rows][:, None, :]) for name in names]
        values = np.stack([value for value, _ in parts], axis=1)
        for at, i in enumerate(rows):
            one = biases[i]
            assert one is not None
            slopes = one.gradient(values[at : at + 1])[0]
            energy[i] = one.energy(values[at : at + 1])[0]
            gradient[i] = sum(slopes[k] * g[at, 0] for k, (_, g) in enumerate(parts))
    return energy, gradient


def _direction(cv: CollectiveVariable, n_dim: int) -> Array | None:
    """A CV as coefficients (n_dim,) over the coordinates, or None when it is not linear in them or wraps their sum."""
    if isinstance(cv, Coordinate):
        return np.asarray(np.eye(n_dim)[coordinate_index(cv, n_dim)])
    if not isinstance(cv, LinearCombination):
        return None
    parts = [_direction(part, n_dim) for part in cv.cvs]
    if cv.period is not None or any(part is None for part in parts):
        return None
    return np.asarray(sum(c * part for c, part in zip(cv.coefficients, parts, strict=True) if part is not None))


def _terms(bias: Bias | None, linear: dict[str, Array]) -> list[Term] | None:
    """A bias as terms along the directions ``linear`` of its CVs, or None when it is of another kind or along another CV."""
    if bias is None:
        return []
    if any(name not in linear for name in bias.names):
        return None
    if isinstance(bias, SumOfBiases):
        parts = [_terms(term, linear) for term in bias.terms]
        return None if any(p is None for p in parts) else [row for p in parts if p is not None for row in p]
    if isinstance(bias, HarmonicBias):
        rows = zip(bias.names, bias.centers, bias.force_constants, bias.periods, strict=True)
        return [(linear[name], (center, constant, 0.0, period or 0.0)) for name, center, constant, period in rows]
    if isinstance(bias, FlatBottom):
        return [(linear[bias.names[0]], (bias.center, bias.force_constant, bias.half_width, bias.period or 0.0))]
    return None


def _boxes(region: Region, column: dict[str, int], outside: bool = False) -> list[Box] | None:
    """A region (or what lies ``outside`` it) as a union of boxes over CV columns; None when it is not a small one."""
    if isinstance(region, Complement):
        return _boxes(region.a, column, not outside)
    if isinstance(region, Interval):
        c, low, high = column[region.cv.name], region.low, region.high
        arc = region.cv.period is not None and low > high
        if not outside:
            return [{c: (low, np.inf, False)}, {c: (-np.inf, high, False)}] if arc else [{c: (low, high, False)}]
        below, above = float(np.nextafter(low, -np.inf)), float(np.nextafter(high, np.inf))
        if arc:
            return [{c: (above, below, True)}]
        sides: list[Box] = [{c: (-np.inf, below, True)}] * bool(low > -np.inf) + [{c: (above, np.inf, True)}] * bool(high < np.inf)
        return sides or [{c: (np.inf, -np.inf, True)}]  # only what is not a number is outside all numbers
    if not isinstance(region, Combined):
        return None
    a, b = _boxes(region.a, column, outside), _boxes(region.b, column, outside)
    if a is None or b is None or len(a) * len(b) > _MAX_BOXES:
        return None
    if region.either != outside:
        return a + b
    return [reduce(_meet, one.items(), other) for one in a for other in b]


def _meet(box: Box, side: tuple[int, Limits]) -> Box:
    """The part of ``box`` with one CV between two limits."""
    c, (low, high, takes_nan) = side
    have = box.get(c, (-np.inf, np.inf, True))
    return {**box, c: (max(low, have[0]), min(high, have[1]), takes_nan and have[2])}
