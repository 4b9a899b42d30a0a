"""Free-energy surfaces with error bars: F(s) = -kT ln p(s), along any one or two recorded CVs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.grid import Grid, minimax_path
from couloir.cv.base import CollectiveVariable
from couloir.cv.region import Mask, Region
from couloir.errors import DataError, Finding, nearest
from couloir.trajectory import Array

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

    from couloir.analysis.landscape import Landscape
    from couloir.analysis.mfep import MinimumFreeEnergyPath


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and unit."""

    value: float
    standard_error: float
    unit: str

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.standard_error:.2g} {self.unit}".rstrip()


@dataclass(frozen=True, eq=False)
class FreeEnergySurface:
    """Free energy on a grid of one or two CVs.

    Attributes
    ----------
    names, units, periods : of the CVs.
    grid : per CV, the centres of its cells; a periodic CV is covered all around.
    free_energy : kJ/mol on the grid, minimum 0, NaN where there are no samples.
    standard_error : kJ/mol, of -kT ln p with p normalized over the grid (so no cell is exact by convention);
        NaN where unknown.
    kT : kJ/mol.
    estimator : what made the weights.
    replicas : (n_bootstrap, ...) bootstrap replicas of ``free_energy``, kJ/mol.
    n_effective : on the grid, decorrelated samples behind each cell.
    findings : what is unsure; also as ``warnings``.
    basins : names for ranges, regions or masks of cells, for :meth:`barrier` and :meth:`difference`.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    grid: tuple[Array, ...]
    free_energy: Array
    standard_error: Array
    kT: float
    estimator: str
    replicas: Array = field(repr=False)
    n_effective: Array = field(repr=False)
    findings: tuple[Finding, ...] = ()
    basins: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The same as ``findings``."""
        return self.findings

    @property
    def in_kT(self) -> FreeEnergySurface:
        """The same surface in units of kT (``kT`` = 1)."""
        scale = 1.0 / self.kT
        return replace(
            self, free_energy=self.free_energy * scale, standard_error=self.standard_error * scale, replicas=self.replicas * scale, kT=1.0
        )

    @property
    def unit(self) -> str:
        """``"kJ/mol"``, or ``"kT"`` after :attr:`in_kT`."""
        return "kT" if self.kT == 1.0 else "kJ/mol"

    @property
    def probability(self) -> Array:
        """Probability of each cell; sums to 1."""
        return _probability(self.free_energy, self.kT)

    def minimum(self, low: float | None = None, high: float | None = None) -> tuple[float, ...]:
        """Return where the lowest cell is, between ``low`` and ``high`` of the first CV when given.

        Raises
        ------
        DataError : there are no samples in that range.
        """
        everywhere = np.ones(self.free_energy.shape, dtype=bool)
        given = low is not None or high is not None
        where = self._mask((-np.inf if low is None else low, np.inf if high is None else high)) if given else everywhere
        return self._place(self._lowest(where))

    def difference(self, a: Any, b: Any) -> Estimate:
        """Return the free energy of basin ``b`` minus that of ``a``: -kT ln(P_b / P_a).

        Parameters
        ----------
        a, b : a name in ``basins``, a range ``(low, high)`` of the first CV, a Region on the surface's CVs, or the mask of its cells.

        Raises
        ------
        DataError : a basin is unknown or holds no samples.
        """
        in_a, in_b = self._mask(a), self._mask(b)
        for basin, mask in ((a, in_a), (b, in_b)):
            self._lowest(mask, str(basin))

        def of(f: Array) -> float:
            p = _probability(f, self.kT)
            return float(-self.kT * np.log(p[in_b].sum() / p[in_a].sum()))

        with np.errstate(divide="ignore", invalid="ignore"):
            return self._estimate(of(self.free_energy), np.array([of(f) for f in self.replicas]))

    def barrier(self, a: Any, b: Any) -> Estimate:
        """Return the height of the lowest pass between basins ``a`` and ``b`` above the minimum of ``a``.

        Arguments and errors are those of :meth:`difference`; a DataError also says when no sampled path joins the two.
        The error is that of the difference between the two cells, found once (replicas do not search for noise's extremes).
        """
        path = self._path(a, b)
        top = max(path, key=lambda cell: self.free_energy[cell])
        start = path[0]
        return self._estimate(float(self.free_energy[top] - self.free_energy[start]), np.array([f[top] - f[start] for f in self.replicas]))

    def minimum_path(self, a: Any, b: Any) -> Array:
        """Return the grid points (n, n_cvs) of the path from the minimum of ``a`` to that of ``b`` with the lowest pass."""
        return np.array([self._place(cell) for cell in self._path(a, b)])

    def transition_state(self, a: Any, b: Any) -> tuple[float, ...]:
        """Return where the lowest pass between ``a`` and ``b`` is."""
        return self._place(max(self._path(a, b), key=lambda cell: self.free_energy[cell]))

    def landscape(self, depth: float = 1.0) -> Landscape:
        """Return the basins deeper than ``depth`` kT and the saddles between them; see :func:`couloir.analysis.landscape`."""
        from couloir.analysis.landscape import landscape

        return landscape(self, depth)

    def minimum_free_energy_path(self, a: Any, b: Any, n_images: int = 50, smoothing: float = 0.0) -> MinimumFreeEnergyPath:
        """Return the path between the minima of ``a`` and ``b``; see :func:`couloir.analysis.minimum_free_energy_path`."""
        from couloir.analysis.mfep import minimum_free_energy_path

        return minimum_free_energy_path(self, a, b, n_images, smoothing)

    def rmse(self, other: FreeEnergySurface | Callable[..., Array], below: float = 8.0) -> float:
        """Return the root mean square difference in kJ/mol from another surface, a constant offset removed.

        Parameters
        ----------
        other : a surface on the same grid, or a function of the grid's coordinates (arrays in, kJ/mol out).
        below : compare where the other lies within this many kT of its minimum.

        Raises
        ------
        DataError : the grids differ, or nothing is left to compare.
        """
        if isinstance(other, FreeEnergySurface):
            same = len(self.grid) == len(other.grid) and all(
                len(x) == len(y) and np.allclose(x, y) for x, y in zip(self.grid, other.grid, strict=True)
            )
            if not same:
                raise DataError("the two surfaces are on different grids", "make both with the same bins and ranges")
            reference = other.free_energy
        else:
            reference = np.asarray(other(*np.meshgrid(*self.grid, indexing="ij")), dtype=float)
        use = np.isfinite(reference) & np.isfinite(self.free_energy)
        use &= reference - np.nanmin(reference) < below * self.kT
        if not use.any():
            raise DataError("the surfaces have no sampled cell in common")
        delta = self.free_energy[use] - reference[use]
        return float(np.std(delta))

    def plot(self, ax: Axes | None = None, landscape: Landscape | None = None, path: MinimumFreeEnergyPath | None = None) -> Axes:
        """Draw the surface, a line with its 95 % band or filled contours, and the basins, saddles and path given; returns the axes."""
        from couloir.analysis.plots import plot_surface

        return plot_surface(self, ax, landscape, path)

    def with_basins(self, **basins: Any) -> FreeEnergySurface:
        """Return the surface with more named basins."""
        return replace(self, basins={**self.basins, **basins})

    def save(self, file: str | Path) -> None:
        """Write the surface to an npz file ; a basin given as a region becomes the mask of its cells."""
        ranges = {k: [float(x) for x in v] for k, v in self.basins.items() if isinstance(v, (tuple, list))}
        masked = [k for k in self.basins if k not in ranges]
        meta = {
            "format": "couloir-surface-1", "names": self.names, "units": self.units, "periods": self.periods, "kT": self.kT,
            "estimator": self.estimator, "findings": [[f.code, f.message, f.fix] for f in self.findings],
            "basins": ranges, "masked_basins": masked, "basin_order": list(self.basins),
        }  # fmt: skip
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("free_energy", "standard_error", "replicas", "n_effective")}
        arrays |= {f"grid_{i}": x for i, x in enumerate(self.grid)}
        arrays |= {f"basin_{i}": self._mask(self.basins[name]) for i, name in enumerate(masked)}
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)

    @classmethod
    def load(cls, file: str | Path) -> FreeEnergySurface:
        """Read what :meth:`save` wrote; raises DataError when the file is something else."""
        try:
            with np.load(file, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                arrays = {name: data[name] for name in ("free_energy", "standard_error", "replicas", "n_effective")}
                grid = tuple(data[f"grid_{i}"] for i in range(len(meta["names"])))
                basins: dict[str, Any] = {k: tuple(v) for k, v in meta["basins"].items()}
                basins |= {k: data[f"basin_{i}"] for i, k in enumerate(meta.get("masked_basins", ()))}
                basins = {k: basins[k] for k in meta.get("basin_order", basins)}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file} does not hold a saved surface: {error}") from error
        return cls(
            tuple(meta["names"]), tuple(meta["units"]), tuple(meta["periods"]), grid, kT=meta["kT"], estimator=meta["estimator"],
            findings=tuple(Finding(*f) for f in meta["findings"]), basins=basins, **arrays,
        )  # fmt: skip

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per cell: coordinates, free energy, standard error, effective samples."""
        import pandas as pd

        points = np.meshgrid(*self.grid, indexing="ij")
        table = {name: x.ravel() for name, x in zip(self.names, points, strict=True)}
        values = {"free_energy": self.free_energy, "standard_error": self.standard_error, "n_effective": self.n_effective}
        return pd.DataFrame({**table, **{k: v.ravel() for k, v in values.items()}})

    def to_xarray(self) -> xr.Dataset:
        """Return an xarray Dataset over the CVs: free energy, standard error, effective samples and bootstrap replicas.

        Raises
        ------
        ConfigError : xarray is not installed.
        """
        from couloir.analysis._interop import quantity, xarray

        along = zip(self.names, self.grid, self.units, self.periods, strict=True)
        table: xr.Dataset = xarray().Dataset(
            {
                "free_energy": quantity(self.names, self.free_energy, self.unit),
                "standard_error": quantity(self.names, self.standard_error, self.unit),
                "n_effective": quantity(self.names, self.n_effective),
                "replicas": quantity(("replica", *self.names), self.replicas, self.unit),
            },
            coords={name: quantity(name, x, unit, period) for name, x, unit, period in along},
            attrs={"kT": self.kT, "estimator": self.estimator},
        )
        return table

    def to_csv(self, file: str | Path) -> None:
        """Write :meth:`to_dataframe` as CSV."""
        self.to_dataframe().to_csv(file, index=False)

    def to_plumed_grid(self, file: str | Path) -> None:
        """Write the surface as a PLUMED grid file; cells without samples become ``inf``."""
        lines = ["#! FIELDS " + " ".join([*self.names, "free_energy", "standard_error"])]
        for name, x, period in zip(self.names, self.grid, self.periods, strict=True):
            half = 0.5 * (x[1] - x[0]) if len(x) > 1 else 0.5
            ends = (x[0] - half, x[-1] + half)
            lines += [f"#! SET min_{name} {ends[0]:.9g}", f"#! SET max_{name} {ends[1]:.9g}", f"#! SET nbins_{name} {len(x)}"]
            lines.append(f"#! SET periodic_{name} {'false' if period is None else 'true'}")
        f, e = (np.where(np.isfinite(v), v, np.inf) for v in (self.free_energy, self.standard_error))
        # PLUMED lets the first coordinate run fastest.
        points = [p.ravel(order="F") for p in np.meshgrid(*self.grid, indexing="ij")]
        for row in zip(*points, f.ravel(order="F"), e.ravel(order="F"), strict=True):
            lines.append(" ".join(f"{v:.9g}" for v in row))
        Path(file).write_text("\n".join(lines) + "\n")

    def __str__(self) -> str:
        labels = [f"{n} [{u}]" if u else n for n, u in zip(self.names, self.units, strict=True)]
        filled = np.isfinite(self.free_energy)
        place = ", ".join(f"{v:.3g}" for v in self.minimum())
        error = float(np.nanmedian(self.standard_error)) if np.isfinite(self.standard_error).any() else np.nan
        lines = [
            f"FreeEnergySurface along {', '.join(labels)} ({self.estimator}): {filled.sum()} of {filled.size} cells sampled",
            f"  minimum at {place}; highest {np.nanmax(self.free_energy):.3g} {self.unit}; median standard error {error:.2g} {self.unit}",
        ]
        if len(self.grid) == 1:
            lines.append(f"  {labels[0]:>14} {'F':>9} {'error':>9}  [{self.unit}]")
            for i in range(0, len(self.grid[0]), max(1, len(self.grid[0]) // 24)):
                lines.append(f"  {self.grid[0][i]:14.4g} {self.free_energy[i]:9.3f} {self.standard_error[i]:9.3f}")
        return "\n".join([*lines, *(f"  {f}" for f in self.findings)])

    def _estimate(self, value: float, draws: Array) -> Estimate:
        draws = draws[np.isfinite(draws)]
        error = float(np.std(draws, ddof=1)) if len(draws) > 1 and len(draws) >= 0.5 * len(self.replicas) else np.nan
        return Estimate(value, error, self.unit)

    def _mask(self, basin: Any) -> Mask:
        if isinstance(basin, str):
            if basin not in self.basins:
                raise DataError(f"no basin is called {basin!r}{nearest(basin, self.basins)}", "name it with with_basins(name=(low, high))")
            basin = self.basins[basin]
        points = dict(zip(self.names, np.meshgrid(*self.grid, indexing="ij"), strict=True))
        if isinstance(basin, Region):
            missing = [cv.name for cv in basin.cvs if cv.name not in points]
            if missing:
                raise DataError(f"the region {basin} needs {', '.join(missing)}; this surface is along {', '.join(self.names)}")
            return basin.contains_values(points)
        if isinstance(basin, np.ndarray) and basin.dtype == bool:
            if basin.shape != self.free_energy.shape:
                raise DataError(f"a mask of shape {basin.shape} for a surface of {self.free_energy.shape} cells", "give one bool per cell")
            return basin
        low, high = basin
        x = points[self.names[0]]
        if self.periods[0] is not None and low > high:
            return np.asarray((x >= low) | (x <= high))
        return np.asarray((x >= low) & (x <= high))

    def _lowest(self, mask: Mask, name: str = "the range") -> tuple[int, ...]:
        inside = np.where(mask, self.free_energy, np.nan)
        if not np.isfinite(inside).any():
            raise DataError(f"there are no samples in {name}", "sample there, or widen the range")
        return tuple(int(i) for i in np.unravel_index(int(np.nanargmin(inside)), inside.shape))

    def _place(self, cell: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(float(x[i]) for x, i in zip(self.grid, cell, strict=True))

    def _path(self, a: Any, b: Any) -> list[tuple[int, ...]]:
        start, end = self._lowest(self._mask(a), str(a)), self._lowest(self._mask(b), str(b))
        path = minimax_path(self.free_energy, [p is not None for p in self.periods], start, end)
        if path is None:
            raise DataError(f"no sampled path joins {a} and {b}", "insert windows in between, or use wider bins")
        return path


def _probability(f: Array, kT: float) -> Array:
    finite = np.where(np.isfinite(f), f, np.inf)
    p = np.exp(-(finite - finite.min()) / kT)
    return np.asarray(p / p.sum())


def make_grid(samples: Any, along: Any, bins: Any, limits: Any) -> Grid:
    """Return the grid along one CV or a pair of them (CVs or names)."""
    chosen: Sequence[Any] = [along] if isinstance(along, (str, CollectiveVariable)) else list(along)
    names = tuple(cv if isinstance(cv, str) else cv.name for cv in chosen)
    if len(names) not in (1, 2) or len(set(names)) != len(names):
        raise DataError(f"a surface runs along one CV or two different ones, not {', '.join(names) or 'none'}")
    return Grid.over(samples, names, bins, limits)
