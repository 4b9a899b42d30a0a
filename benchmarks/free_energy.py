"""WHAM against pymbar's MBAR, and MBAR warm-started by WHAM against cold: ``python -m benchmarks.free_energy --scale small|paper``.

Windows on a 6 kT double well are sampled exactly, so nothing but the estimators is timed.  Both get the same rows; the
time of WHAM includes its binning.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.results import Row, write_results
from couloir.analysis import BiasedSamples, free_energy_surface, mbar, wham
from couloir.cv.bias import HarmonicBias
from couloir.units import kt

SCALES = {"small": (40, 4_000), "paper": (40, 20_000)}
KT = kt(300.0)


def windows(n_windows: int, n: int, seed: int = 0) -> BiasedSamples:
    """Return ``n`` exact samples in each of ``n_windows`` windows on the double well."""
    rng = np.random.default_rng(seed)
    x = np.linspace(-2.5, 2.5, 20001)
    centers, k = np.linspace(-1.8, 1.8, n_windows), 100 * KT
    drawn = []
    for c in centers:
        cdf = np.cumsum(np.exp(-6 * (x**2 - 1) ** 2 - 0.5 * k * (x - c) ** 2 / KT))
        drawn.append(np.interp(rng.random(n), cdf / cdf[-1], x))
    which = np.repeat(np.arange(n_windows), n)
    biases = tuple(HarmonicBias(("x",), (float(c),), (k,), (None,)) for c in centers)
    return BiasedSamples(
        ("x",), ("nm",), (None,), np.concatenate(drawn)[:, None], np.full(len(which), np.nan), which, which,
        np.tile(np.arange(1.0, n + 1), n_windows), biases, np.array([300.0]),
    )  # fmt: skip


def timed(task: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Return what the task returns and its shortest time in seconds."""
    best, out = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        out = task()
        best = min(best, time.perf_counter() - start)
    return out, best


def measure(scale: str) -> list[Row]:
    """Return the rows of the table."""
    n_windows, n = SCALES[scale]
    samples = windows(n_windows, n)
    quick, t_wham = timed(lambda: wham(samples), 5)
    cold, t_cold = timed(lambda: mbar(samples, warm_start=False))
    warm, t_warm = timed(lambda: mbar(samples), 2)
    surface = free_energy_surface(samples, "x", bins=60, n_bootstrap=50, equilibrate=False)
    error = float(np.nanmedian(surface.standard_error)) / KT
    difference = float(np.abs(quick.free_energies - cold.free_energies).max())
    agreement = float(np.abs(warm.free_energies - cold.free_energies).max())
    size = f"{n_windows} windows, {n_windows * n:,} samples"

    speed, gain = t_cold / t_wham, t_cold / t_warm
    return [
        Row(f"WHAM is faster than MBAR from pymbar ({size})", speed, "x", None, 500, speed >= 500, "pymbar MBAR, s", t_cold),
        Row("WHAM differs from MBAR by at most", difference, "kT", None, 0.01, difference < 0.01, "median standard error, kT", error),
        Row("MBAR warm-started by WHAM is faster than cold", gain, "x", None, 5, gain >= 5, "cold, s", t_cold),
        Row("warm and cold MBAR differ by at most", agreement, "kT", None, 1e-6, agreement < 1e-6),
    ]


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    scale = parser.parse_args().scale
    write_results("free_energy", measure(scale), scale=scale)


if __name__ == "__main__":
    main()
