"""The demonstration run against the long reference: how far off its surface is, whether its intervals hold, how long it took.

    python -m benchmarks.demo

Carries out ``tutorials/alanine_dipeptide.toml`` (or reads it, where it is finished) and compares F(phi), by both
estimators, with 144 ns of windows made without Couloir's sampling code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import BiasedSamples, FreeEnergySurface, free_energy_surface
from couloir.analysis.surface import Estimate
from couloir.pipeline import execute
from couloir.run import Run

FILE = Path(__file__).parents[1] / "tutorials" / "alanine_dipeptide.toml"
C7EQ, ALPHA_L = (-2.8, -0.7), (0.7, 1.5)
GRID = {"bins": 72, "n_bootstrap": 200, "seed": 1}


def alpha_l(surface: FreeEnergySurface) -> Estimate:
    """Return the height of the alpha-L minimum above the C7eq minimum, at the two lowest cells of the surface."""
    x = surface.grid[0]
    cells = [int(np.nanargmin(np.where((x > low) & (x < high), surface.free_energy, np.nan))) for low, high in (C7EQ, ALPHA_L)]
    draws = surface.replicas[:, cells[1]] - surface.replicas[:, cells[0]]
    return Estimate(float(surface.free_energy[cells[1]] - surface.free_energy[cells[0]]), float(np.nanstd(draws, ddof=1)), surface.unit)


def compare(samples: BiasedSamples, estimator: str) -> list[Row]:
    """Return the rows of one estimator."""
    mine = free_energy_surface(samples, "phi", estimator=estimator, **GRID)  # type: ignore[arg-type]
    truth = alanine_dipeptide_surface("phi", estimator="wham", **GRID)
    name = estimator.upper()
    error = mine.rmse(truth, below=8.0) / mine.kT
    rows = [Row(f"{name}: RMSE of F(phi) below 8 kT from the 144 ns reference", error, "kT", None, 0.3, error <= 0.3)]
    pairs = {
        "barrier C7eq to alpha-L": (mine.barrier(C7EQ, ALPHA_L), truth.barrier(C7EQ, ALPHA_L)),
        "alpha-L minimum above C7eq": (alpha_l(mine), alpha_l(truth)),
    }
    for what, (found, exact) in pairs.items():
        off = abs(found.value - exact.value) / found.standard_error
        rows.append(
            Row(f"{name}: {what}, distance from the reference in standard errors", off, "sigma", None, 1.96, off <= 1.96,
                f"reference {exact}, demonstration {found}", exact.value)
        )  # fmt: skip
    return rows


def main() -> None:
    arguments = scale_parser(__doc__, help="both are the run file as it is").parse_args()
    with Run.create(FILE) as run:
        if not run.store.get("finished", False):
            execute(run)
        minutes = sum(run.store.get("timings").values()) / 60
        samples = BiasedSamples.load(run.path / "results" / "samples.npz")
    rows = [Row("demonstration: time after installation", minutes, "min", None, 12.0, minutes <= 12.0)]
    rows += compare(samples, "wham") + compare(samples, "mbar")
    write_results("demo", rows, scale=arguments.scale)


if __name__ == "__main__":
    main()
