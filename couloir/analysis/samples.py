"""BiasedSamples: everything that biased simulations recorded, and the one input of WHAM, MBAR and surfaces."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.cv.bias import Bias, bias_from_dict
from couloir.errors import DataError, nearest
from couloir.trajectory import Array
from couloir.units import GAS_CONSTANT, convert

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

IntArray = npt.NDArray[np.int64]
ROWS = ("values", "potential", "window", "walker", "time", "replica")
"""What there is one of per row."""


@dataclass(frozen=True, eq=False)
class BiasedSamples:
    """CV values recorded in a set of windows (states), row by row.

    Attributes
    ----------
    names, units, periods : of the CVs, in column order.
    values : (n_rows, n_cvs).
    potential : (n_rows,) unbiased potential energy, kJ/mol; NaN where it was not recorded.
    window : (n_rows,) the window each row was sampled in.
    walker : (n_rows,) the walker (independent simulation) each row belongs to; unique over all windows.
    time : (n_rows,) ps since the walker started; rows of one walker are in time order.
    replica : (n_rows,) the configuration each row belongs to, followed through exchanges between windows; default: the walker.
    biases : per window, its bias, or None for an unbiased one.
    temperatures : (n_windows,) K.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    values: Array
    potential: Array
    window: IntArray
    walker: IntArray
    time: Array
    biases: tuple[Bias | None, ...]
    temperatures: Array = field(default_factory=lambda: np.array([300.0]))
    replica: IntArray | None = None

    def __post_init__(self) -> None:
        if self.replica is None:
            object.__setattr__(self, "replica", self.walker)
        for name in ROWS:
            array = np.array(getattr(self, name), dtype=np.int64 if name in ("window", "walker", "replica") else float)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        temperatures = np.asarray(self.temperatures, dtype=float)
        if temperatures.size not in (1, len(self.biases)) or not (np.isfinite(temperatures) & (temperatures > 0)).all():
            raise DataError(
                f"temperatures are {temperatures} for {len(self.biases)} windows", "give one positive number, or one per window"
            )
        temperatures = np.broadcast_to(temperatures.ravel(), (len(self.biases),)).copy()
        temperatures.setflags(write=False)
        object.__setattr__(self, "temperatures", temperatures)
        n = len(self.values)
        if n == 0:
            raise DataError("there are no samples", "did every window fail, or was everything discarded as equilibration?")
        if self.values.shape != (n, len(self.names)) or len(self.units) != len(self.names) or len(self.periods) != len(self.names):
            raise DataError(f"values have shape {self.values.shape} for the CVs {self.names}")
        for name in ("potential", "window", "walker", "time", "replica"):
            if getattr(self, name).shape != (n,):
                raise DataError(f"{name} has shape {getattr(self, name).shape}, expected ({n},)")
        if not np.isfinite(self.values).all():
            row = int(np.flatnonzero(~np.isfinite(self.values).all(axis=1))[0])
            raise DataError(f"CV values of row {row} are not finite", "remove the damaged frames, or find out why they are there")
        if self.window.min() < 0 or self.window.max() >= len(self.biases):
            raise DataError(f"windows run to {self.window.max()} but there are {len(self.biases)} biases")

    @property
    def n_windows(self) -> int:
        """Number of windows, empty ones included."""
        return len(self.biases)

    @property
    def replicas(self) -> IntArray:
        """The configuration of each row, (n_rows,)."""
        assert self.replica is not None
        return self.replica

    @property
    def kT(self) -> Array:
        """Thermal energy of each window (n_windows,), kJ/mol."""
        return GAS_CONSTANT * self.temperatures

    @property
    def counts(self) -> IntArray:
        """Number of rows in each window, (n_windows,)."""
        return np.bincount(self.window, minlength=self.n_windows)

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        n_walkers = len(np.unique(self.walker))
        lines = [f"BiasedSamples: {len(self)} rows, {self.n_windows} windows, {n_walkers} walkers, T = {np.unique(self.temperatures)} K"]
        for i, name in enumerate(self.names):
            x = self.values[:, i]
            lines.append(f"  {name} [{self.units[i]}]: {x.min():.4g} ... {x.max():.4g}" + (", periodic" if self.periods[i] else ""))
        return "\n".join(lines)

    def column(self, name: str) -> int:
        """Return the column of the CV called ``name``; raises DataError when it was not recorded."""
        if name not in self.names:
            raise DataError(f"the CV {name!r} was not recorded{nearest(name, self.names)}")
        return self.names.index(name)

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.values[:, self.column(name)])

    def bias_energies(self) -> Array:
        """Return the bias energy of every row in every window, (n_windows, n_rows), kJ/mol."""
        return np.stack([self.bias_energy(w, self.values) for w in range(self.n_windows)])

    def bias_energy(self, window: int, values: Array) -> Array:
        """Return the energy (n,) in kJ/mol of window ``window``'s bias on rows of CV values (n, n_cvs)."""
        bias = self.biases[window]
        if bias is None:
            return np.zeros(len(values))
        return bias.energy(np.asarray(values)[:, [self.column(name) for name in bias.names]])

    def require_potential(self, problem: str) -> None:
        """Raise a DataError that says ``problem`` and names a row, unless the potential energy of every row was recorded."""
        bad = np.flatnonzero(~np.isfinite(self.potential))
        if len(bad):
            raise DataError(
                f"{problem} without potential energies: that of row {bad[0]} is {self.potential[bad[0]]} ({len(bad)} such)",
                "record the potential energy with the CVs, or remove those rows",
            )

    def select(self, rows: Any) -> BiasedSamples:
        """Return the rows given by a mask or index; windows stay as they are, even when they become empty."""
        pick = {name: getattr(self, name)[rows] for name in ROWS}
        return replace(self, **pick)

    def until(self, time: float) -> BiasedSamples:
        """Return what had been sampled when each walker had run for ``time`` ps."""
        return self.select(self.time <= time + 1e-9)

    @classmethod
    def join(cls, *parts: BiasedSamples) -> BiasedSamples:
        """Put several sets together; their windows and walkers stay distinct.  Only CVs recorded in all of them are kept.

        Raises
        ------
        DataError : a biased CV was not recorded in all, or a CV has another unit or period in another set.
        """
        if not parts:
            raise DataError("nothing to join")
        common = [name for name in parts[0].names if all(name in p.names for p in parts)]
        missing = {name for p in parts for b in p.biases if b is not None for name in b.names} - set(common)
        if missing:
            raise DataError(f"{', '.join(sorted(missing))} is biased in one set but not recorded in all", "record it in every set")
        first = parts[0]
        columns = [first.column(name) for name in common]
        for number, part in enumerate(parts[1:], 2):
            for name in common:
                _require_alike(name, first, part, number)
        window_offset = np.cumsum([0] + [p.n_windows for p in parts])
        walker_offset = np.cumsum([0] + [int(p.walker.max()) + 1 for p in parts])
        replica_offset = np.cumsum([0] + [int(p.replicas.max()) + 1 for p in parts])
        return cls(
            names=tuple(common),
            units=tuple(first.units[i] for i in columns),
            periods=tuple(first.periods[i] for i in columns),
            values=np.concatenate([p.values[:, [p.column(name) for name in common]] for p in parts]),
            potential=np.concatenate([p.potential for p in parts]),
            window=np.concatenate([p.window + o for p, o in zip(parts, window_offset, strict=False)]),
            walker=np.concatenate([p.walker + o for p, o in zip(parts, walker_offset, strict=False)]),
            time=np.concatenate([p.time for p in parts]),
            replica=np.concatenate([p.replicas + o for p, o in zip(parts, replica_offset, strict=False)]),
            biases=tuple(b for p in parts for b in p.biases),
            temperatures=np.concatenate([p.temperatures for p in parts]),
        )

    def save(self, file: str | Path) -> None:
        """Write everything to one npz file (no pickles)."""
        meta = {
            "format": "couloir-samples-1", "names": self.names, "units": self.units, "periods": self.periods,
            "biases": [None if b is None else b.to_dict() for b in self.biases],
        }  # fmt: skip
        arrays = {name: getattr(self, name) for name in (*ROWS, "temperatures")}
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)

    @classmethod
    def load(cls, file: str | Path) -> BiasedSamples:
        """Read what :meth:`save` wrote; raises DataError when the file is something else."""
        try:
            with np.load(file, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                arrays = {name: data[name] for name in (*ROWS, "temperatures") if name in data or name != "replica"}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file} does not hold saved samples: {error}") from error
        biases = tuple(None if b is None else bias_from_dict(b) for b in meta["biases"])
        return cls(tuple(meta["names"]), tuple(meta["units"]), tuple(meta["periods"]), biases=biases, **arrays)

    @classmethod
    def from_plumed(
        cls,
        metafile: str | Path,
        temperature: Any,
        *,
        names: tuple[str, ...] = ("cv",),
        units: tuple[str, ...] = ("",),
        periods: tuple[float | None, ...] = (None,),
        energy_unit: Literal["kJ/mol", "kcal/mol"] = "kJ/mol",
        angle_unit: Literal["rad", "deg"] = "rad",
    ) -> BiasedSamples:
        """Read umbrella windows from a WHAM metafile and the time series (or PLUMED COLVAR files) that it lists.

        Each line of the metafile is ``path centers... force_constants... [rest]``, one centre and one force constant per CV,
        with the bias 0.5 k (s - c)^2; paths are relative to the metafile.  A series has the time in its first column
        and the CVs in the next, or a PLUMED ``#! FIELDS`` header that names them.

        Parameters
        ----------
        metafile : the list of windows.
        temperature : of all windows (K or text).
        names : of the CVs; looked up in a ``FIELDS`` header where there is one.
        units, periods : of the CVs once read: centres, series and force constants of those in ``"rad"`` are converted from
            ``angle_unit``; those in any other unit stay as they are in the files.
        energy_unit : of the force constants, which are in it over the square of the CV's unit in the files.
        angle_unit : of angles in the files, metafile and series alike (PLUMED: radians).

        Raises
        ------
        DataError : a file is missing, a line is not what it should be (the message names file and line), or a period contradicts
            the CV's unit or the ``#! SET min_`` and ``max_`` lines of a series.
        """
        from couloir.analysis.umbrella_files import read_metafile

        kelvin = convert(temperature, "K", "temperature")
        return cls(**read_metafile(Path(metafile), kelvin, names, units, periods, energy_unit=energy_unit, angle_unit=angle_unit))

    def to_pymbar(self) -> tuple[Array, IntArray]:
        """Return ``u_kn`` (n_windows, n_rows) and ``N_k`` (n_windows,) for ``pymbar.MBAR(u_kn, N_k)``.

        Rows come window by window, as pymbar wants them: row i is row ``np.argsort(samples.window, kind="stable")[i]`` of the samples.
        Potential energies take part where temperatures differ; elsewhere they are common to all windows and left out.

        Raises
        ------
        DataError : temperatures differ and potential energies were not recorded.
        """
        order = np.argsort(self.window, kind="stable")
        energies = self.bias_energies()[:, order]
        if np.ptp(self.temperatures) > 1e-9 * self.temperatures[0]:
            self.require_potential("windows at several temperatures cannot be combined")
            energies = energies + self.potential[order]
        return energies / self.kT[:, None], self.counts

    def to_xarray(self) -> xr.Dataset:
        """Return an xarray Dataset: CVs, potential, window, walker, replica and time by ``row``; bias (JSON) and temperature by ``state``.

        Raises
        ------
        ConfigError : xarray is not installed.
        """
        from couloir.analysis._interop import quantity, xarray

        rows = {"window": self.window, "walker": self.walker, "replica": self.replicas}
        variables = {name: quantity("row", column) for name, column in rows.items()}
        variables["time"], variables["potential"] = quantity("row", self.time, "ps"), quantity("row", self.potential, "kJ/mol")
        for i, name in enumerate(self.names):
            variables[name] = quantity("row", self.values[:, i], self.units[i], self.periods[i])
        texts = ["" if b is None else json.dumps(b.to_dict()) for b in self.biases]
        variables["bias"], variables["temperature"] = quantity("state", np.array(texts)), quantity("state", self.temperatures, "K")
        table: xr.Dataset = xarray().Dataset(variables)
        return table

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per sample as a pandas table."""
        import pandas as pd

        table = {"window": self.window, "walker": self.walker, "replica": self.replicas, "time": self.time}
        return pd.DataFrame({**table, **{n: self[n] for n in self.names}, "potential": self.potential})


def _require_alike(name: str, first: BiasedSamples, other: BiasedSamples, number: int) -> None:
    """Raise a DataError unless a CV means the same in both sets; ``number`` counts the other one from 1."""
    a, b = first.column(name), other.column(name)
    if first.units[a] != other.units[b]:
        raise DataError(
            f"{name} is in {first.units[a] or 'no unit'!r} in set 1 and in {other.units[b] or 'no unit'!r} in set {number}",
            "convert one of them, or name the CVs differently if they are not the same",
        )
    p, q = first.periods[a], other.periods[b]
    if (p is None) != (q is None) or (p is not None and q is not None and abs(p - q) > 1e-9 * abs(p)):
        raise DataError(
            f"{name} has the period {p} in set 1 and {q} in set {number} (unit: {first.units[a] or 'none'!r} in both)",
            "give both the same period, or name the CVs differently if they are not the same",
        )
