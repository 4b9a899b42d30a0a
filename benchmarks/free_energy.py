"""WHAM, MBAR and pymbar on the same windows, and WHAM on a stream: ``python -m benchmarks.free_energy --scale small|paper``.

Windows on a 6 kT double well are sampled exactly, so nothing but the estimators is timed, and the error is against the free
energies by quadrature.  All get the same rows, each in a process of its own; the time of WHAM includes its binning, that of
MBAR its bias energies, that of JAX no compilation.  Estimators whose table of windows x rows is too large are left out at
that size.  FastMBAR and JAX join when they are installed: ``pip install -e ".[bench]"``.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.alone import Measured, alone
from benchmarks.results import Row, scale_parser, write_results
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
STREAMED = {"small": 10_000_000, "paper": 100_000_000}
WHOLE_TABLE = 1e8
"""Most windows x rows of an estimator that keeps all energies (0.8 GB)."""
TABLE = {"WHAM": math.inf, "MBAR": 5e8}
"""The same of those that do not."""
LIMIT = 120.0
"""Seconds after which an estimator is stopped."""
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
    return np.asarray(np.interp(rng.random(n), cdf / cdf[-1], GRID + 0.5 * (GRID[1] - GRID[0])))


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


def deviation(f: Array, n_windows: int) -> float:
    """Return the largest error of a window, kT, free energies taken relative to their mean."""
    error = f - exact(n_windows)
    return float(np.abs(error - error.mean()).max())


def fastmbar(samples: BiasedSamples) -> Array:
    """Return the free energies of FastMBAR, bias energies included in the time."""
    module: Any = importlib.import_module("FastMBAR")
    solved = module.FastMBAR(energy=samples.bias_energies() / samples.kT[:, None], num_conf=samples.counts, cuda=False, method="Newton")
    return np.asarray(solved.F)


ESTIMATORS: dict[str, Callable[[BiasedSamples], Array]] = {
    "WHAM": lambda s: wham(s).free_energies,
    "MBAR": lambda s: mbar(s, solver="torch").free_energies,
    "MBAR (pymbar, warm)": lambda s: mbar(s, solver="pymbar").free_energies,
    "pymbar": lambda s: mbar(s, solver="pymbar", warm_start=False).free_energies,
    "pymbar + JAX": lambda s: mbar(s, solver="pymbar", warm_start=False).free_energies,
    "FastMBAR (Newton)": fastmbar,
}
"""What is compared: free energies of windows from their rows."""
PEERS = {"pymbar": None, "pymbar + JAX": "jax", "FastMBAR (Newton)": "FastMBAR"}
"""Those that are not Couloir's, and the module that has to be installed for them."""


def installed(name: str) -> bool:
    """Return whether an estimator can run here."""
    module = PEERS.get(name)
    return module is None or importlib.util.find_spec(module) is not None


def prepared(name: str, n_windows: int, n: int) -> Callable[[], Array]:
    """Return an estimator with its rows, everything imported."""
    if name != "pymbar + JAX":
        # pymbar takes JAX wherever it finds it.
        sys.modules["jax"] = None  # type: ignore[assignment]
        importlib.import_module("pymbar")
        del sys.modules["jax"]
    estimate = ESTIMATORS[name]
    estimate(windows(3, 50))
    return partial(estimate, windows(n_windows, n))


def measured(name: str, n_windows: int, n: int) -> Measured | None:
    """Return how an estimator fares; with JAX a second call, because the first one compiles."""
    return alone(prepared, name, n_windows, n, limit=LIMIT, calls=2 if name == "pymbar + JAX" else 1)


def sizes(scale: str) -> list[Row]:
    """Return time, memory and error of every estimator at every size."""
    rows = []
    for n_windows, n in SCALES[scale]:
        for name in filter(installed, ESTIMATORS):
            if n_windows**2 * n > TABLE.get(name, WHOLE_TABLE):
                continue
            found, claim = measured(name, n_windows, n), f"{name}, {n_windows} windows x {n:,}"
            if found is None:
                rows.append(Row(f"{claim}: not done after", LIMIT, "s"))
            else:
                rows.append(Row(f"{claim}: time", found.seconds, "s", peer="memory, MB", peer_value=found.megabytes))
                rows.append(Row(f"{claim}: largest error", deviation(found.value, n_windows), "kT"))
            print(rows[-1], flush=True)
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


def apart(f: Array, g: Array) -> float:
    """Return the largest difference of two sets of free energies, each relative to its mean."""
    return float(np.abs((f - f.mean()) - (g - g.mean())).max())


def done(name: str, n_windows: int, n: int) -> Measured:
    """Return how an estimator fares where it has to finish."""
    found = measured(name, n_windows, n)
    if found is None:
        raise RuntimeError(f"{name} was not done after {LIMIT:g} s with {n_windows} windows x {n:,}")
    return found


def ratios() -> list[Row]:
    """Return the rows with targets: WHAM against pymbar, and warm against cold."""
    n_windows, n = MAIN
    quick, best, warm, cold = (done(name, n_windows, n) for name in ("WHAM", "MBAR", "MBAR (pymbar, warm)", "pymbar"))
    surface = free_energy_surface(windows(n_windows, n), "x", bins=60, n_bootstrap=50, equilibrate=False)
    error = float(np.nanmedian(surface.standard_error)) / KT
    difference = apart(quick.value, cold.value)
    agreement = max(apart(m.value, cold.value) for m in (warm, best))
    size = f"{n_windows} windows, {n_windows * n:,} samples, pymbar without JAX"
    speed, gain, default = (cold.seconds / m.seconds for m in (quick, warm, best))
    warmed = "pymbar warm-started by WHAM (adaptive protocol) is faster than cold pymbar as it comes (hybr)"
    return [
        Row(f"WHAM is faster than MBAR from pymbar ({size})", speed, "x", None, 500, speed >= 500, "pymbar MBAR, s", cold.seconds),
        Row("WHAM differs from MBAR by at most", difference, "kT", None, 0.01, difference < 0.01, "median standard error, kT", error),
        Row(warmed, gain, "x", None, 5, gain >= 5, "cold, s", cold.seconds),
        Row("MBAR as it comes is faster than cold pymbar", default, "x", None, 5, default >= 5, "cold, s", cold.seconds),
        Row("MBAR and cold pymbar differ by at most", agreement, "kT", None, 1e-6, agreement < 1e-6),
    ]


def against_peers(n_windows: int = 50, n: int = 1_000) -> list[Row]:
    """Return how many times faster MBAR is than each peer that is installed, at 50 windows x 1,000 samples."""
    ours, rows = done("MBAR", n_windows, n), []
    for name in filter(installed, PEERS):
        peer = done(name, n_windows, n)
        claim = f"MBAR is faster than {name} ({n_windows} windows x {n:,}); they differ by {apart(peer.value, ours.value):.1g} kT"
        speed = peer.seconds / ours.seconds
        rows.append(Row(claim, speed, "x", None, 1.0, speed > 1, f"{name}, s", peer.seconds))
        print(rows[-1], flush=True)
    return rows


def measure(scale: str) -> list[Row]:
    """Return the rows of the table."""
    return [*ratios(), *against_peers(), *streamed(scale), *sizes(scale)]


def main() -> None:
    """Measure, print the table, write the results."""
    parser = scale_parser(__doc__, SCALES)
    parser.add_argument("--ratios", action="store_true", help="measure the ratios that have targets again, and keep all other rows")
    arguments = parser.parse_args()
    rows = ratios() if arguments.ratios else measure(arguments.scale)
    write_results("free_energy", rows, scale=arguments.scale, update=arguments.ratios)


if __name__ == "__main__":
    main()
