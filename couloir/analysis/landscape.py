"""Minima, basins and saddles of a free-energy surface: the merge tree of its cells, cut at a depth."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from couloir.analysis.positive import ShareEstimate
from couloir.analysis.samples import IntArray
from couloir.analysis.surface import Estimate, FreeEnergySurface
from couloir.cv.region import Mask
from couloir.errors import DataError, nearest
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Basin", "Landscape", "Saddle", "landscape"]


@dataclass(frozen=True)
class Basin:
    """A minimum and the cells that drain to it.

    Attributes
    ----------
    label : the surface's own name for it where it has one, else A, B, C ... from the lowest up.
    cell, place : the lowest cell, and the CVs at its centre.
    free_energy : of that cell on the surface's scale; its error is that of -kT ln p.
    population : probability of all its cells.
    depth : height of its lowest way out to a deeper minimum above its own; for the deepest of connected cells, the highest of them.
    """

    label: str
    cell: tuple[int, ...]
    place: tuple[float, ...]
    free_energy: Estimate
    population: ShareEstimate
    depth: float


@dataclass(frozen=True)
class Saddle:
    """The lowest point of a border between two basins.

    Attributes
    ----------
    between : labels of the two, the lower minimum first.
    cell, place : the higher of the two cells where the border is crossed, and the CVs at its centre.
    free_energy : of that cell on the surface's scale; its error is that of -kT ln p.
    heights : above the minimum of each of the two.
    """

    between: tuple[str, str]
    cell: tuple[int, ...]
    place: tuple[float, ...]
    free_energy: Estimate
    heights: tuple[Estimate, Estimate]


@dataclass(frozen=True, eq=False)
class Landscape:
    """Basins and saddles of a surface.

    Attributes
    ----------
    basins : by free energy, lowest first.
    saddles : by free energy; two basins may be joined by several.
    cells : on the grid, the number of the basin in ``basins`` each cell belongs to; -1 where there are no samples.
    names, units, unit : of the CVs, and of energies.
    depth : kT; shallower minima belong to the basin they drain to.
    """

    basins: tuple[Basin, ...]
    saddles: tuple[Saddle, ...]
    cells: IntArray = field(repr=False)
    names: tuple[str, ...]
    units: tuple[str, ...]
    unit: str
    depth: float

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the basins."""
        return tuple(b.label for b in self.basins)

    def basin(self, label: str) -> Basin:
        """Return the basin of that label; raises DataError when there is none."""
        return self.basins[self._index(label)]

    def mask(self, label: str) -> Mask:
        """Return the cells of a basin, as :meth:`FreeEnergySurface.difference` takes them; raises DataError when there is none."""
        return np.asarray(self.cells == self._index(label))

    def saddle(self, a: str, b: str) -> Saddle:
        """Return the lowest saddle between two basins that touch.

        Raises
        ------
        DataError : a basin is unknown, or no saddle joins the two directly.
        """
        self._index(a), self._index(b)
        for saddle in self.saddles:
            if set(saddle.between) == {a, b}:
                return saddle
        raise DataError(f"no saddle joins {a} and {b} directly", "surface.barrier(a, b) finds the lowest way over other basins")

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per basin, then one per saddle; what does not apply is NaN."""
        import pandas as pd

        rows = []
        items: list[Basin | Saddle] = [*self.basins, *self.saddles]
        for item in items:
            row: dict[str, object] = {"kind": "basin" if isinstance(item, Basin) else "saddle"}
            row["label"] = item.label if isinstance(item, Basin) else "-".join(item.between)
            row |= dict(zip(self.names, item.place, strict=True))
            row |= _columns("free_energy", item.free_energy)
            row |= _columns("population", item.population if isinstance(item, Basin) else None)
            for i, side in enumerate(("first", "second")):
                row |= _columns(f"height_above_{side}", item.heights[i] if isinstance(item, Saddle) else None)
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        at = ", ".join(f"{n} [{u}]" if u else n for n, u in zip(self.names, self.units, strict=True))
        wide = max([len(at), *(len(_point(p)) for p in [b.place for b in self.basins] + [s.place for s in self.saddles])])
        name = max([6, *(len("-".join(s.between)) for s in self.saddles), *(len(b.label) for b in self.basins)])
        lines = [
            f"Landscape: {len(self.basins)} basins deeper than {self.depth:g} kT, {len(self.saddles)} saddles; energies in {self.unit}"
        ]
        lines.append(f"  {'basin':<{name}}  {at:<{wide}}  {'F':>15}  {'population':>17}")
        for b in self.basins:
            lines.append(f"  {b.label:<{name}}  {_point(b.place):<{wide}}  {_number(b.free_energy):>15}  {_number(b.population, 4):>17}")
        if self.saddles:
            lines.append(f"  {'saddle':<{name}}  {at:<{wide}}  {'F':>15}  {'above first':>17}  {'above second':>17}")
        for s in self.saddles:
            heights = "  ".join(f"{_number(h):>17}" for h in s.heights)
            lines.append(f"  {'-'.join(s.between):<{name}}  {_point(s.place):<{wide}}  {_number(s.free_energy):>15}  {heights}")
        return "\n".join(lines)

    def _index(self, label: str) -> int:
        if label not in self.labels:
            raise DataError(f"no basin is labelled {label!r}{nearest(label, self.labels)}", f"labels are {', '.join(self.labels)}")
        return self.labels.index(label)


def landscape(surface: FreeEnergySurface, depth: float = 1.0) -> Landscape:
    """Return the basins and saddles of a surface along one or two CVs.

    Cells fill from the lowest up, each joining the basin of its lowest neighbour (diagonals and periods included).  A minimum whose
    way out to a deeper one is less than ``depth`` kT high is noise and joins the basin beyond its lowest saddle (persistence; Edelsbrunner,
    Letscher & Zomorodian, Discrete Comput. Geom. 28, 511 (2002)).  Unsampled cells are walls.  An island of sampled cells less than
    ``depth`` high has no basin of its own and counts to the nearest.  Places and borders are found once: errors are those of fixed cells.

    Raises
    ------
    DataError : no cell is sampled, or ``depth`` is negative.
    """
    if not depth >= 0:
        raise DataError(f"depth = {depth:g} kT is not a height", "give a number of kT of 0 or more")
    if not np.isfinite(surface.free_energy).any():
        raise DataError("the surface has no sampled cell", "sample before looking for basins")
    periodic = [p is not None for p in surface.periods]
    tree = _Tree(surface.free_energy, periodic, depth * surface.kT)
    minima = sorted(tree.minima, key=lambda m: (tree.height[m], m))
    number = {m: i for i, m in enumerate(minima)}
    flat = np.array([number[tree.basin_of(c)] if tree.drains[c] >= 0 else -1 for c in range(tree.height.size)], dtype=np.int64)
    cells = _adopt_islands(flat.reshape(tree.shape), surface)
    errors = _Errors(surface)
    labels = _labels(surface, [tree.cell(m) for m in minima])
    basins = tuple(
        Basin(
            label, tree.cell(m), surface._place(tree.cell(m)), errors.free_energy(tree.cell(m)), errors.population(cells == i),
            tree.persistence(m),
        )
        for i, (label, m) in enumerate(zip(labels, minima, strict=True))
    )  # fmt: skip
    saddles = [_saddle(surface, errors, basins, tree.cell(c), i, j) for c, i, j in _passes(tree, flat, number)]
    saddles.sort(key=lambda s: s.free_energy.value)
    return Landscape(basins, tuple(saddles), cells, surface.names, surface.units, surface.unit, depth)


class _Tree:
    """Merge tree of the cells of a height map: who drains where, and where basins first meet."""

    def __init__(self, height: Array, periodic: Sequence[bool], depth: float) -> None:
        self.shape, self.depth = height.shape, depth
        self.height = np.asarray(height, dtype=float).ravel()
        self.neighbours = _neighbour_table(height.shape, periodic, np.isfinite(self.height))
        self.drains = np.full(self.height.size, -1, dtype=np.int64)  # the unsimplified minimum each cell drains to
        self.merged: dict[int, int] = {}  # a shallow minimum -> the one whose basin it joined
        self._component: dict[int, int] = {}  # minimum -> a deeper one of the same flooded component
        self._out: dict[int, float] = {}  # minimum -> level at which it met a deeper one
        self._top: dict[int, float] = {}  # root of a component -> the highest level flooded
        self.meetings: list[tuple[int, int, int]] = []  # (cell, basin, basin): the saddles of the tree
        order = np.argsort(self.height, kind="stable")
        for cell in order[np.isfinite(self.height[order])].tolist():
            self._flood(cell)
        roots = [m for m in self._component if self._component[m] == m]
        lowest = min(roots, key=lambda m: self.height[m])
        dropped = {m for m in roots if m != lowest and self._top[m] - self.height[m] < depth}
        self.minima = [m for m in self._component if m not in self.merged and m not in dropped]
        for cell in np.flatnonzero(self.drains >= 0).tolist():
            if self.basin_of(cell) in dropped:
                self.drains[cell] = -1

    def cell(self, flat: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))

    def basin_of(self, cell: int) -> int:
        return _root(self.merged, int(self.drains[cell]))

    def persistence(self, minimum: int) -> float:
        out = self._out.get(minimum, self._top.get(minimum, np.nan))
        return float(out - self.height[minimum])

    def _flood(self, cell: int) -> None:
        below = [n for n in self.neighbours[cell] if self.drains[n] >= 0]
        level = float(self.height[cell])
        if not below:
            self.drains[cell] = self._component[cell] = cell
            self._top[cell] = level
            return
        below.sort(key=lambda n: self.height[n])
        self.drains[cell] = self.drains[below[0]]
        here = _root(self._component, int(self.drains[cell]))
        for other in below[1:]:
            there = _root(self._component, int(self.drains[other]))
            if there != here:
                here = self._meet(cell, below[0], other, here, there)
        self._top[here] = level

    def _meet(self, cell: int, one: int, other: int, here: int, there: int) -> int:
        deep, shallow = sorted((here, there), key=lambda m: (self.height[m], m))
        side, beyond = self.basin_of(one), self.basin_of(other)
        self._component[shallow] = deep
        self._out[shallow] = float(self.height[cell])
        if self.height[cell] - self.height[shallow] < self.depth:
            # All of a component as shallow as this has merged into its lowest minimum before: it joins what lies across this cell.
            self.merged[shallow] = beyond if shallow == here else side
        else:
            self.meetings.append((cell, side, beyond))
        return deep


def _root(parent: dict[int, int], item: int) -> int:
    while (up := parent.get(item, item)) != item:
        item = up
    return item


def _neighbour_table(shape: tuple[int, ...], periodic: Sequence[bool], sampled: Mask) -> list[list[int]]:
    """Return the sampled neighbours of each flat cell; a diagonal one only when a sampled cell lies beside the step."""
    table: list[list[int]] = [[] for _ in range(int(np.prod(shape)))]
    index = np.indices(shape).reshape(len(shape), -1)

    def shifted(step: tuple[int, ...]) -> tuple[IntArray, Mask]:
        moved, inside = [], sampled.copy()
        for i, s, n, around in zip(index, step, shape, periodic, strict=True):
            inside &= np.ones_like(inside) if around else (i + s >= 0) & (i + s < n)
            moved.append((i + s) % n)
        flat = np.ravel_multi_index(tuple(moved), shape)
        return flat, inside & sampled[flat]

    for step in itertools.product((-1, 0, 1), repeat=len(shape)):
        if not any(step):
            continue
        flat, valid = shifted(step)
        if all(step) and len(shape) == 2:
            valid = valid & (shifted((step[0], 0))[1] | shifted((0, step[1]))[1])
        for c in np.flatnonzero(valid).tolist():
            table[c].append(int(flat[c]))
    return table


def _passes(tree: _Tree, flat: IntArray, number: dict[int, int]) -> list[tuple[int, int, int]]:
    """Return (cell, basin, basin) of every saddle: where the tree merges, and the low points of the other borders."""
    borders: dict[tuple[int, int], dict[int, float]] = {}
    for c, neighbours in enumerate(tree.neighbours):
        for n in neighbours:
            if flat[c] >= 0 and flat[n] >= 0 and flat[c] < flat[n]:
                top = c if tree.height[c] >= tree.height[n] else n
                borders.setdefault((int(flat[c]), int(flat[n])), {})[top] = float(tree.height[top])
    meetings = {(cell, number[_root(tree.merged, a)], number[_root(tree.merged, b)]) for cell, a, b in tree.meetings}
    full = 3 ** len(tree.shape) - 1
    found = []
    for (i, j), border in borders.items():
        for c, part in _low_points(tree, border):
            basins_near = {int(flat[n]) for n in tree.neighbours[c]} | {int(flat[c])}
            # A border that is lowest at its end (a third basin, the grid's edge, unsampled cells) slopes down past it: no saddle there.
            inside = len(tree.neighbours[c]) == full and len(basins_near) == 2
            if inside or any((x, i, j) in meetings or (x, j, i) in meetings for x in part):
                found.append((c, i, j))
    return found


def _low_points(tree: _Tree, border: dict[int, float]) -> list[tuple[int, set[int]]]:
    """Return the lowest cell of each part of a border, with its part; parts end where the border rises by ``tree.depth`` in between."""
    parts: dict[int, set[int]] = {}
    part_of: dict[int, int] = {}
    joined: dict[int, int] = {}  # a low point -> a lower one of the same flooded stretch
    for cell in sorted(border, key=lambda c: (border[c], c)):
        # Border cells may alternate between the two sides, so cells that share a neighbour are next to each other on it.
        near = {m for n in (cell, *tree.neighbours[cell]) for m in tree.neighbours[n] if m in part_of}
        roots = sorted({_root(joined, part_of[m]) for m in near}, key=lambda m: (border[m], m))
        lowest = roots[0] if roots else cell
        for root in roots[1:]:
            joined[root] = lowest
            if border[cell] - border[root] < tree.depth:
                parts[lowest] |= parts.pop(root)
        part_of[cell] = lowest
        parts.setdefault(lowest, set()).add(cell)
    return list(parts.items())


def _saddle(surface: FreeEnergySurface, errors: _Errors, basins: Sequence[Basin], cell: tuple[int, ...], i: int, j: int) -> Saddle:
    heights = (errors.height(cell, basins[i].cell), errors.height(cell, basins[j].cell))
    return Saddle((basins[i].label, basins[j].label), cell, surface._place(cell), errors.free_energy(cell), heights)


class _Errors:
    """Values at fixed cells with errors from the surface's replicas."""

    def __init__(self, surface: FreeEnergySurface) -> None:
        self.surface = surface
        self.p = surface.probability
        shape = (-1, *surface.free_energy.shape)
        with np.errstate(invalid="ignore"):
            f = np.where(np.isfinite(surface.replicas), surface.replicas, np.inf).reshape(shape)
            weights = np.exp(-(f - f.min(axis=tuple(range(1, f.ndim)), keepdims=True)) / surface.kT) if len(f) else f
        self.p_replicas = weights / weights.sum(axis=tuple(range(1, f.ndim)), keepdims=True)

    def free_energy(self, cell: tuple[int, ...]) -> Estimate:
        with np.errstate(divide="ignore"):
            draws = -self.surface.kT * np.log(self.p_replicas[(slice(None), *cell)])
        return self.surface._estimate(float(self.surface.free_energy[cell]), draws)

    def height(self, cell: tuple[int, ...], above: tuple[int, ...]) -> Estimate:
        f, replicas = self.surface.free_energy, self.surface.replicas
        return self.surface._estimate(float(f[cell] - f[above]), np.array([r[cell] - r[above] for r in replicas]))

    def population(self, mask: Mask) -> ShareEstimate:
        estimate = self.surface._estimate(float(self.p[mask].sum()), self.p_replicas[:, mask].sum(axis=1))
        return ShareEstimate(estimate.value, estimate.standard_error, "")


def _adopt_islands(cells: IntArray, surface: FreeEnergySurface) -> IntArray:
    lost = np.argwhere((cells < 0) & np.isfinite(surface.free_energy))
    owned = np.argwhere(cells >= 0)
    for cell in lost:
        apart = np.abs(owned - cell)
        for k, period in enumerate(surface.periods):
            if period is not None:
                apart[:, k] = np.minimum(apart[:, k], cells.shape[k] - apart[:, k])
        cells[tuple(cell)] = cells[tuple(owned[int(np.argmin((apart**2).sum(axis=1)))])]
    return cells


def _labels(surface: FreeEnergySurface, minima: Sequence[tuple[int, ...]]) -> list[str]:
    """Return a label per minimum, lowest first: a named basin that holds it (its lowest minimum only), else the next free letter."""
    masks = {}
    for name in surface.basins:
        try:
            masks[name] = surface._mask(name)
        except DataError:  # a region on CVs that this surface is not along cannot hold any of its cells
            continue
    words = ("".join(w) for n in itertools.count(1) for w in itertools.product(string.ascii_uppercase, repeat=n))  # A ... Z, AA, AB ...
    letters = (w for w in words if w not in surface.basins)
    out: list[str] = []
    for cell in minima:
        named = next((n for n, mask in masks.items() if mask[cell] and n not in out), None)
        out.append(named if named is not None else next(letters))
    return out


def _columns(name: str, estimate: Estimate | None) -> dict[str, float]:
    value, error = (np.nan, np.nan) if estimate is None else (estimate.value, estimate.standard_error)
    return {name: value, f"{name}_error": error}


def _point(place: tuple[float, ...]) -> str:
    return ", ".join(f"{x:.3f}" for x in place)


def _number(estimate: Estimate, digits: int = 2) -> str:
    error = f"{estimate.standard_error:.{digits}f}" if np.isfinite(estimate.standard_error) else "?"
    return f"{estimate.value:.{digits}f} ± {error}"
