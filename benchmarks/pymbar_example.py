"""The umbrella-sampling example that pymbar ships, against the curve it publishes: ``python -m benchmarks.pymbar_example``.

The data (``reference/valine_torsion.npz``; MIT licence, pymbar's authors) are 26 windows of 100 ps on the chi torsion of a
valine of lysozyme L99A with benzene bound (Mobley et al., J. Mol. Biol. 371, 1118 (2007)), in thousandths of a degree.  Compared are

* the recipe of the example (decorrelated subsamples, MBAR): numbers of samples and free energies of the windows;
* what Couloir makes of all rows: F(chi) in the 36 published bins, in the published standard errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import BiasedSamples, free_energy_surface, mbar
from couloir.cv.bias import HarmonicBias
from couloir.trajectory import Array

DATA = Path(__file__).parent / "reference" / "valine_torsion.npz"
TEMPERATURE = 300.0
# umbrella-sampling.sample_output: N_k, f_k, and per bin of 10 degrees F and its standard error in kT.
N_K = [420, 401, 197, 122, 343, 203, 369, 326, 317, 313, 410, 256, 429, 246, 329, 115, 42, 82, 311, 501, 273, 140, 409, 393, 282, 214]
F_K = [
    0.0, 5.67115185, 10.61309514, 11.44969531, 9.16106047, 6.3761027, 3.89159209, 1.80468599, 3.51701497, 6.24479435, 10.17054226,
    14.27222477, 15.04212741, 13.07778027, 9.02609591, 5.50534627, 5.22606167, 7.03885057, 7.97151995, 8.64053058, 7.14369734,
    3.25826866, 0.1346788, 1.67556643, 12.27981581, 8.64425685,
]  # fmt: skip
F = [
    0.889, 3.104, 5.986, 8.875, 11.387, 12.438, 11.830, 9.570, 6.535, 4.123, 2.538, 2.015, 2.586, 3.745, 5.739, 8.190, 11.119, 14.051,
    15.151, 13.669, 11.437, 8.833, 6.711, 5.371, 5.158, 6.132, 7.281, 8.170, 8.602, 8.903, 8.440, 7.413, 5.084, 2.585, 0.665, 0.0,
]  # fmt: skip
DF = [
    0.083, 0.131, 0.166, 0.249, 0.275, 0.350, 0.371, 0.374, 0.376, 0.381, 0.386, 0.400, 0.403, 0.409, 0.419, 0.423, 0.425, 0.436,
    0.432, 0.431, 0.434, 0.436, 0.435, 0.439, 0.416, 0.384, 0.345, 0.318, 0.299, 0.283, 0.270, 0.262, 0.240, 0.170, 0.090, 0.0,
]  # fmt: skip


def windows() -> BiasedSamples:
    """Return the 26 windows, all rows."""
    with np.load(DATA) as data:
        torsion, centers, k = data["torsion"] / 1000.0, data["centers"], data["force_constants"]
    n_windows, n_rows = torsion.shape
    values = np.radians((torsion + 180.0) % 360.0 - 180.0)
    which = np.repeat(np.arange(n_windows), n_rows)
    biases = tuple(HarmonicBias(("chi",), (float(np.radians(c)),), (float(f),), (2 * np.pi,)) for c, f in zip(centers, k, strict=True))
    return BiasedSamples(
        ("chi",), ("rad",), (2 * np.pi,), values.reshape(-1, 1), np.full(values.size, np.nan), which, which,
        np.tile(0.2 * np.arange(1, n_rows + 1), n_windows), biases, np.array([TEMPERATURE]),
    )  # fmt: skip


def decorrelated(samples: BiasedSamples) -> BiasedSamples:
    """Return the rows that the example keeps: each window thinned by the larger inefficiency of cosine and sine."""
    from pymbar import timeseries

    keep = []
    for w in range(samples.n_windows):
        rows = np.flatnonzero(samples.window == w)
        angle = samples["chi"][rows]
        g = max(timeseries.statistical_inefficiency(f(angle)) for f in (np.cos, np.sin))
        keep.append(rows[timeseries.subsample_correlated_data(angle, g=g)])
    return samples.select(np.concatenate(keep))


def relative(free_energy: Array, kT: float) -> Array:
    """Return kT above the bin that the published curve calls zero."""
    return (free_energy - free_energy[-1]) / kT


def measure() -> list[Row]:
    """Return the rows of the table."""
    samples = windows()
    thinned = decorrelated(samples)
    published = np.array(F_K)
    rows = []
    for solver in ("pymbar", "torch"):
        f = mbar(thinned, solver=solver).free_energies  # type: ignore[arg-type]
        off = float(np.abs(f - f[0] - published).max())
        rows.append(
            Row(f"recipe of the example, {solver} solver: largest difference of a window's free energy", off, "kT", None, 0.01, off < 0.01)
        )
    missed = int(np.abs(thinned.counts - np.array(N_K)).max())
    rows.append(
        Row("recipe of the example: largest difference in a window's number of decorrelated samples", missed, "", None, 1, missed <= 1)
    )
    for estimator in ("wham", "mbar"):
        surface = free_energy_surface(samples, "chi", estimator=estimator, bins=36, n_bootstrap=200)  # type: ignore[arg-type]
        mine = relative(surface.free_energy, surface.kT)
        off_by = np.abs(mine - np.array(F))[:-1] / np.array(DF)[:-1]
        spread = np.array([relative(r, surface.kT) for r in surface.replicas]).std(axis=0, ddof=1)[:-1]
        worst = float(off_by.max())
        name = estimator.upper()
        rows.append(
            Row(
                f"{name} of all rows: largest distance of F(chi) from the published curve, in its standard errors",
                worst,
                "sigma",
                None,
                1.96,
                worst < 1.96,
            )
        )
        rows.append(Row(f"{name} of all rows: root mean square of the same", float(np.sqrt((off_by**2).mean())), "sigma"))
        ratio = float(np.median(spread / np.array(DF)[:-1]))
        rows.append(Row(f"{name} of all rows: median standard error over the published one", ratio, "x"))
    return rows


def main() -> None:
    """Measure, print the table, write the results."""
    parser = scale_parser(__doc__, help="both are the same")
    write_results("pymbar_example", measure(), scale=parser.parse_args().scale)


if __name__ == "__main__":
    main()
