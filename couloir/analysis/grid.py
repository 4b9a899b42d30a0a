"""Grids over one or two CVs: which cell a row falls in, and the lowest way from cell to cell."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from couloir.analysis.samples import BiasedSamples, IntArray
from couloir.cv.base import wrap
from couloir.errors import DataError
from couloir.trajectory import Array

Cell = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """Equal cells along each CV; a periodic CV is covered once around.

    Attributes
    ----------
    names : of the CVs.
    periods : None or the period of each.
    edges : per CV, (n_cells + 1,) ascending.
    """

    names: tuple[str, ...]
    periods: tuple[float | None, ...]
    edges: tuple[Array, ...]

    @classmethod
    def over(cls, samples: BiasedSamples, names: Sequence[str], bins: Any = None, limits: Any = None) -> Grid:
        """Return a grid that covers the samples.

        Parameters
        ----------
        names : one or two recorded CVs.
        bins : cells per CV, one number or one each; default 72 (5 degrees) in 1-D, 48 in 2-D.
        limits : ``(low, high)`` (or one pair per CV, or None) instead of the data's range; ignored for periodic CVs.

        Raises
        ------
        DataError : a CV was not recorded, or the numbers do not fit.
        """
        default = 72 if len(names) == 1 else 48
        numbers = [default if bins is None else bins] * len(names) if bins is None or np.ndim(bins) == 0 else list(bins)
        ranges = [limits] if len(names) == 1 and np.ndim(limits) == 1 else ([None] * len(names) if limits is None else list(limits))
        if len(numbers) != len(names) or len(ranges) != len(names) or min(numbers) < 2:
            raise DataError(f"bins = {bins}, limits = {limits} for {len(names)} CVs", "give at least 2 bins, and a pair of limits, per CV")
        periods = tuple(samples.periods[samples.column(n)] for n in names)
        edges = []
        for name, period, n, given in zip(names, periods, numbers, ranges, strict=True):
            x = samples[name]
            low, high = (float(x.min()), float(x.max())) if given is None else (float(given[0]), float(given[1]))
            if period is not None:
                low, high = -period / 2, period / 2
            if not high > low:
                raise DataError(f"the grid along {name} runs from {low:g} to {high:g}", "give limits with low < high")
            edges.append(np.linspace(low, high, int(n) + 1))
        return cls(tuple(names), periods, tuple(edges))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each CV."""
        return tuple(len(e) - 1 for e in self.edges)

    @property
    def centers(self) -> tuple[Array, ...]:
        """Centres of the cells along each CV."""
        return tuple(0.5 * (e[1:] + e[:-1]) for e in self.edges)

    def cells(self, samples: BiasedSamples) -> IntArray:
        """Return the flat number of the cell each row falls in (n_rows,), -1 outside."""
        out = np.zeros(len(samples), dtype=np.int64)
        outside = np.zeros(len(samples), dtype=bool)
        for name, period, edges in zip(self.names, self.periods, self.edges, strict=True):
            x, n = wrap(samples[name], period), len(edges) - 1
            i = np.floor((x - edges[0]) / (edges[-1] - edges[0]) * n).astype(np.int64)
            i[x == edges[-1]] = n - 1
            outside |= (i < 0) | (i >= n)
            out = out * n + np.clip(i, 0, n - 1)
        out[outside] = -1
        return out


def minimax_path(height: Array, periodic: Sequence[bool], start: Cell, end: Cell) -> list[Cell] | None:
    """Return the path of neighbouring cells whose highest point is lowest; ties go to the lower sum of heights.

    Parameters
    ----------
    height : any shape; NaN cells cannot be entered.
    periodic : per dimension, whether the two ends are neighbours.
    start, end : cells.

    Returns
    -------
    The cells from start to end, or None when no path exists.
    """
    queue: list[tuple[float, float, Cell, Cell | None]] = [(float(height[start]), 0.0, start, None)]
    came: dict[Cell, Cell | None] = {}
    floor = float(np.nanmin(height)) - 1e-3
    while queue:
        top, length, cell, previous = heapq.heappop(queue)
        if cell in came:
            continue
        came[cell] = previous
        if cell == end:
            path = [cell]
            while (before := came[path[-1]]) is not None:
                path.append(before)
            return path[::-1]
        for neighbour in _neighbours(cell, height.shape, periodic):
            h = float(height[neighbour])
            if np.isfinite(h) and neighbour not in came:
                heapq.heappush(queue, (max(top, h), length + h - floor, neighbour, cell))
    return None


def _neighbours(cell: Cell, shape: tuple[int, ...], periodic: Sequence[bool]) -> list[Cell]:
    out = []
    for axis, n in enumerate(shape):
        for step in (-1, 1):
            i = cell[axis] + step
            if periodic[axis]:
                i %= n
            if 0 <= i < n:
                out.append((*cell[:axis], i, *cell[axis + 1 :]))
    return out
