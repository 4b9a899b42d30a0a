"""WHAM, MBAR and pymbar on the same windows, and WHAM on a stream: ``python -m benchmarks.free_energy --scale small|paper``.

Windows on a 6 kT double well are sampled exactly, so nothing but the estimators is timed, and the error is against the free
energies by quadrature.  All get the same rows; the time of WHAM includes its binning.  Estimators whose table of
windows x rows exceeds ``TABLE`` are left out at that size.  FastMBAR, and pymbar with JAX (in a process of its own, the
second call, compiled), join when they are installed: ``pip install -e ".[bench]"``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Row, write_results
from couloir.analysis import BiasedSamples, StreamedWham, free_energy_surface, mbar, wham
from couloir.cv.bias import HarmonicBias
from couloir.trajectory import Array
from couloir.units import kt

MAIN = (40, 4_000)
"""Windows and samples in each where the ratios have targets."""
SCALES = {
    "small": [(20, 1_000), (200, 1_000), (20, 100_000)],
    "paper": [(20, 1_000), (200, 1_000), (20, 100_000), (200, 10_000), (200, 100_000), (20, 1_000_000)],
}
HAS_JAX = importlib.util.find_spec("jax") is not None
STREAMED = {"small": 10_000_000, "paper": 100_000_000}
TABLE = 1e8
"""Most windows x rows of an estimator that keeps all energies (0.8 GB)."""
KT = kt(300.0)
STIFF = 100 * KT
GRID = np.linspace(-2.5, 2.5, 20001)


def centers(n_windows: int) -> Array:
    """Return where windows are held."""
    return np.linspace(-1.8, 1.8, n_windows)


def boltzmann(center: float | None) -> Array:
    """Return the weight on ``GRID`` of the double well, biased to a centre."""
    bias = 0.0 if center is None else 0.5 * STIFF * (GRID - center) ** 2 / KT
    return np.asarray(np.exp(-6 * (GRID**2 - 1) ** 2 - bias))


def exact(n_windows: int) -> Array:
    """Return the free energies of the windows by quadrature, kT."""
    whole = boltzmann(None).sum()
    return np.array([-np.log(boltzmann(float(c)).sum() / whole) for c in centers(n_windows)])


def draw(rng: np.random.Generator, center: float, n: int) -> Array:
    """Return ``n`` samples of a window by inverse CDF."""
    cdf = np.cumsum(boltzmann(center))
    # The sum up to a grid point reaches half a step beyond it.
    return np.interp(rng.random(n), cdf / cdf[-1], GRID + 0.5 * (GRID[1] - GRID[0]))


def biases(n_windows: int) -> tuple[HarmonicBias, ...]:
    """Return the restraints of all windows."""
    return tuple(HarmonicBias(("x",), (float(c),), (STIFF,), (None,)) for c in centers(n_windows))


def windows(n_windows: int, n: int, seed: int = 0) -> BiasedSamples:
    """Return ``n`` exact samples in each of ``n_windows`` windows on the double well."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([draw(rng, float(c), n) for c in centers(n_windows)])
    which = np.repeat(np.arange(n_windows), n)
    return BiasedSamples(
        ("x",), ("nm",), (None,), drawn[:, None], np.full(len(which), np.nan), which, which,
        np.tile(np.arange(1.0, n + 1), n_windows), biases(n_windows), np.array([300.0]),
    )  # fmt: skip


def timed(task: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Return what the task returns and its shortest time in seconds."""
    best, out = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        out = task()
        best = min(best, time.perf_counter() - start)
    return out, best


def peak(task: Callable[[], Any]) -> float:
    """Return the most memory in MB that Python and numpy held at once for the task."""
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def deviation(f: Array, n_windows: int) -> float:
    """Return the largest error of a window, kT, free energies taken relative to their mean."""
    error = f - exact(n_windows)
    return float(np.abs(error - error.mean()).max())


def fastmbar(samples: BiasedSamples) -> Array:
    """Return the free energies of FastMBAR, bias energies included in the time."""
    module: Any = importlib.import_module("FastMBAR")
    solved = module.FastMBAR(energy=samples.bias_energies() / samples.kT[:, None], num_conf=samples.counts, cuda=False, method="Newton")
    return np.asarray(solved.F)


_JAX = """
import sys, time
import numpy as np
from pymbar import MBAR
data = np.load(sys.argv[1])
for _ in range(2):
    start = time.perf_counter()
    f = MBAR(data["u"], data["n"]).f_k
    seconds = time.perf_counter() - start
np.savez(sys.argv[2], f=f, seconds=seconds)
"""


def import_pymbar_without_jax() -> None:
    """Import pymbar as it is without JAX, which it takes wherever it finds it."""
    sys.modules["jax"] = None  # type: ignore[assignment]
    importlib.import_module("pymbar")
    del sys.modules["jax"]


def pymbar_with_jax(samples: BiasedSamples) -> tuple[Array, float]:
    """Return the free energies of pymbar with JAX and its seconds once compiled, bias energies not included."""
    with tempfile.TemporaryDirectory() as folder:
        given, back = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, u=samples.bias_energies() / samples.kT[:, None], n=samples.counts)
        subprocess.run([sys.executable, "-c", _JAX, str(given), str(back)], check=True, capture_output=True)
        with np.load(back) as data:
            return data["f"], float(data["seconds"])


def estimators() -> dict[str, Callable[[BiasedSamples], Array]]:
    """Return what is compared; each gives free energies of windows."""
    out: dict[str, Callable[[BiasedSamples], Array]] = {
        "WHAM": lambda s: wham(s).free_energies,
        "MBAR (torch)": lambda s: mbar(s, solver="torch").free_energies,
        "MBAR (pymbar, warm)": lambda s: mbar(s, solver="pymbar").free_energies,
        "pymbar, cold": lambda s: mbar(s, solver="pymbar", warm_start=False).free_energies,
    }
    if importlib.util.find_spec("FastMBAR") is not None:
        out["FastMBAR"] = fastmbar
    return out


def sizes(scale: str) -> list[Row]:
    """Return time, memory and error of every estimator at every size."""
    rows = []
    for n_windows, n in SCALES[scale]:
        samples = windows(n_windows, n)
        for name, estimate in estimators().items():
            if name != "WHAM" and n_windows**2 * n > TABLE:
                continue
            f, seconds = timed(partial(estimate, samples))
            if seconds < 2.0:
                # The first call may have imported its solver.
                f, seconds = timed(partial(estimate, samples), 3)
            error, memory = deviation(f, n_windows), peak(partial(estimate, samples))
            size = f"{n_windows} windows x {n:,}"
            rows.append(Row(f"{name}, {size}: time", seconds, "s", peer="peak memory, MB", peer_value=memory))
            rows.append(Row(f"{name}, {size}: largest error", error, "kT"))
        if HAS_JAX and n_windows**2 * n <= TABLE:
            f, seconds = pymbar_with_jax(samples)
            rows.append(Row(f"pymbar + JAX, {n_windows} windows x {n:,}: time", seconds, "s"))
            rows.append(Row(f"pymbar + JAX, {n_windows} windows x {n:,}: largest error", deviation(f, n_windows), "kT"))
    return rows


def streamed(scale: str, n_windows: int = 40) -> list[Row]:
    """Return memory, time and error of WHAM on a stream that is drawn block by block."""
    total, n = StreamedWham(biases(n_windows), 300.0, units=("nm",)), STREAMED[scale]
    block = min(1_000_000, n // n_windows)
    rng, seconds = np.random.default_rng(1), 0.0
    tracemalloc.start()
    for i in range(n // block):
        window = i % n_windows
        values = draw(rng, float(centers(n_windows)[window]), block)
        start = time.perf_counter()
        total.add(values, window)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    f = total.solve().free_energies
    seconds += time.perf_counter() - start
    memory = tracemalloc.get_traced_memory()[1] / 1e9
    tracemalloc.stop()
    claim = f"WHAM streams {n:,} samples in"
    return [
        Row(claim, memory, "GB", None, 1.0, memory < 1.0, "occupied bins", total.n_occupied),
        Row(claim, seconds, "s", None, peer="largest error, kT", peer_value=deviation(f, n_windows)),
    ]


def ratios() -> list[Row]:
    """Return the rows with targets: WHAM against pymbar, and warm against cold."""
    n_windows, n = MAIN
    samples = windows(n_windows, n)
    quick, t_wham = timed(lambda: wham(samples), 5)
    cold, t_cold = timed(lambda: mbar(samples, warm_start=False, solver="pymbar"))
    warm, t_warm = timed(lambda: mbar(samples, solver="pymbar"), 2)
    best, t_best = timed(lambda: mbar(samples), 2)
    surface = free_energy_surface(samples, "x", bins=60, n_bootstrap=50, equilibrate=False)
    error = float(np.nanmedian(surface.standard_error)) / KT
    difference = float(np.abs(quick.free_energies - cold.free_energies).max())
    agreement = max(float(np.abs(m.free_energies - cold.free_energies).max()) for m in (warm, best))
    size = f"{n_windows} windows, {n_windows * n:,} samples, pymbar without JAX"
    speed, gain, default = t_cold / t_wham, t_cold / t_warm, t_cold / t_best
    return [
        Row(f"WHAM is faster than MBAR from pymbar ({size})", speed, "x", None, 500, speed >= 500, "pymbar MBAR, s", t_cold),
        Row("WHAM differs from MBAR by at most", difference, "kT", None, 0.01, difference < 0.01, "median standard error, kT", error),
        Row(
            "pymbar warm-started by WHAM (adaptive protocol) is faster than cold pymbar as it comes (hybr)",
            gain,
            "x",
            None,
            5,
            gain >= 5,
            "cold, s",
            t_cold,
        ),
        Row("MBAR as it comes is faster than cold pymbar", default, "x", None, 5, default >= 5, "cold, s", t_cold),
        Row("MBAR and cold pymbar differ by at most", agreement, "kT", None, 1e-6, agreement < 1e-6),
    ]


def against_peers(n_windows: int = 50, n: int = 1_000) -> list[Row]:
    """Return how many times faster MBAR is than each peer that is installed, at 50 windows x 1,000 samples."""
    samples = windows(n_windows, n)
    ours, t_ours = timed(lambda: mbar(samples), 3)
    peers: dict[str, tuple[Array, float]] = {}
    found, seconds = timed(lambda: mbar(samples, solver="pymbar", warm_start=False))
    peers["pymbar"] = found.free_energies, seconds
    if HAS_JAX:
        peers["pymbar + JAX"] = pymbar_with_jax(samples)
    if importlib.util.find_spec("FastMBAR") is not None:
        peers["FastMBAR (Newton)"] = timed(lambda: fastmbar(samples), 3)
    rows = []
    for name, (f, seconds) in peers.items():
        off = float(np.abs((f - f.mean()) - (ours.free_energies - ours.free_energies.mean())).max())
        claim = f"MBAR is faster than {name} ({n_windows} windows x {n:,}); they differ by {off:.1g} kT"
        rows.append(Row(claim, seconds / t_ours, "x", None, 1.0, seconds > t_ours, f"{name}, s", seconds))
    return rows


def measure(scale: str) -> list[Row]:
    """Return the rows of the table."""
    return [*ratios(), *against_peers(), *streamed(scale), *sizes(scale)]


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    scale = parser.parse_args().scale
    import_pymbar_without_jax()
    write_results("free_energy", measure(scale), scale=scale)


if __name__ == "__main__":
    main()
