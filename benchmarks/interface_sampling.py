"""Rates of rare events by interface sampling, against published numbers and brute force.

``python -m benchmarks.interface_sampling --scale small|paper``

- The double well of PyRETIS' first example: the total crossing probability, published as 9.73e-7 with an error of 2.9 % from
  1 million cycles.  Replica exchange with one-way shooting; every set of ensembles starts from the same few paths, and its
  first tenth is thrown away.
- The same well, hot enough to wait for transitions: flux, crossing probability and rate against one long simulation.
- The two-dimensional wells of PyRETIS' second example: the rate along three order parameters is one rate.

Errors are standard errors from whole sets, or walkers, resampled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmarks.results import Row, scale_parser, write_results
from benchmarks.systems import hysteresis
from benchmarks.systems.pyretis_well import PUBLISHED, TIME_STEP, B, engine, sampling
from couloir.analysis.crossing import InterfaceRate, interface_rate
from couloir.analysis.positive import PositiveEstimate
from couloir.sampling import TransitionInterfaceSampling, initial_paths
from couloir.sampling._pool import available_cores, run_tasks
from couloir.trajectory import Array, State

HOT, HOT_INTERFACES = 0.2, (-0.9, -0.6, -0.3)
WALKERS, AT_ONCE = 16, 250.0
TARGET = 0.1
"""Relative error that the crossing probability must reach at the larger scale."""


@dataclass(frozen=True)
class Scale:
    """Sets, cycles per set at the published temperature, when hot and in two dimensions, and simulated time per walker."""

    sets: int
    cycles: int
    hot_cycles: int
    flat_cycles: int
    duration: float


SCALES = {"small": Scale(20, 250, 200, 100, 10_000.0), "paper": Scale(20, 6000, 4000, 12_000, 40_000.0)}


def sampled(what: TransitionInterfaceSampling, start: State, cycles: int, sets: int) -> tuple[InterfaceRate, float]:
    """Return what interface sampling finds, and the seconds it took."""
    begin = time.perf_counter()
    first = initial_paths(what, start, stride=TIME_STEP, seed=1)
    samples = what.run(first, cycles, seed=2, n_sets=sets, discard=cycles // 10)
    return interface_rate(samples), time.perf_counter() - begin


def brute_force(kT: float, boundary: float, duration: float) -> dict[str, tuple[float, float]]:
    """Return flux, crossing probability and rate with their errors, from simulations of ``duration`` per walker."""
    md = engine(kT)
    states, last = [md.state(-1.0)] * WALKERS, np.ones(WALKERS)
    counts = np.zeros((WALKERS, 3))  # departures from A, arrivals in B, frames since A was visited and B was not
    for part in range(round(duration / AT_ONCE)):
        runs = md.propagate(states, duration=AT_ONCE, stride=TIME_STEP, seed=100 + part)
        states = [run.last for run in runs if run.last is not None]
        for w, run in enumerate(runs):
            last[w] = _count(run.positions[:, 0, 0], boundary, last[w], counts[w])
    departures, arrivals, frames = counts.T
    return {
        "flux": _ratio(departures, frames * TIME_STEP),
        "crossing probability": _ratio(arrivals, departures),
        "rate": _ratio(arrivals, frames * TIME_STEP),
    }


def _count(x: Array, boundary: float, before: float, counts: Array) -> float:
    """Add the events of frames ``x`` to ``counts`` and return which state was visited last: 1 for A, -1 for B.

    A departure between two batches of frames is not seen: one in 125 000 frames.
    """
    at = np.where(x <= boundary, 1, np.where(x >= B, -1, 0))
    marked = np.maximum.accumulate(np.where(at != 0, np.arange(len(at)), -1))
    last = np.where(marked >= 0, at[marked], before)
    counts += [np.sum((at[:-1] == 1) & (at[1:] != 1)), np.sum((last[:-1] == 1) & (last[1:] == -1)), np.sum(last == 1)]
    return float(last[-1])


def _ratio(a: Array, b: Array) -> tuple[float, float]:
    ratio = a.mean() / b.mean()
    return float(ratio), float(ratio * (a / a.mean() - b / b.mean()).std(ddof=1) / np.sqrt(len(a)))


def measure(scale: str) -> list[Row]:
    """Return every row of the table."""
    size = SCALES[scale]
    cold, seconds = sampled(sampling(), engine().state(-1.0), size.cycles, size.sets)
    total = cold.crossing.total
    value, relative = PUBLISHED
    combined = float(np.hypot(total.standard_error, relative * value))
    away, error = abs(total.value - value) / combined, total.standard_error / total.value
    target = TARGET if scale == "paper" else None
    rows = [
        Row("total crossing probability at kT = 0.07", total.value, "", total.standard_error, peer="PyRETIS, 1 M cycles", peer_value=value),
        Row("its distance from the published one", away, "combined errors", None, 2.0, bool(away <= 2.0)),
        Row("its relative error", error, "", None, target, None if target is None else error <= target),
        Row("flux at kT = 0.07", cold.flux.value, "per time", cold.flux.standard_error),
        Row("rate at kT = 0.07", cold.rate.value, "per time", cold.rate.standard_error),
        Row("wall clock of all of it", seconds, "s"),
    ]
    hot, _ = sampled(sampling(HOT_INTERFACES, HOT), engine(HOT).state(-1.0), size.hot_cycles, size.sets)
    truth = brute_force(HOT, HOT_INTERFACES[0], size.duration)
    for name, found in (("flux", hot.flux), ("crossing probability", hot.crossing.total), ("rate", hot.rate)):
        right, error = truth[name]
        away = abs(found.value - right) / float(np.hypot(found.standard_error, error))
        rows.append(
            Row(f"{name} at kT = {HOT:g}", found.value, found.unit, found.standard_error, None, None, f"brute force (± {error:.2g})", right)
        )
        rows.append(Row(f"its distance from brute force ({name})", away, "combined errors", None, 2.0, bool(away <= 2.0)))
    return rows + flat(size)


def flat(size: Scale) -> list[Row]:
    """Return the rows about the two-dimensional wells."""
    tasks = [(name, size) for name in hysteresis.ALONG]
    rates = dict(zip(hysteresis.ALONG, run_tasks(flat_rate, tasks, available_cores(), processes=True), strict=True))
    rows, (low, high) = [], hysteresis.PUBLISHED
    for name, rate in rates.items():
        outside = max(low - rate.value, rate.value - high, 0.0) / rate.standard_error
        rows.append(Row(f"rate in two dimensions, along {name}", rate.value, "per time", rate.standard_error))
        peer = f"PyRETIS, {low:.2g} to {high:.2g} along three order parameters"
        rows.append(Row(f"its distance from the published range ({name})", outside, "errors", None, 2.0, bool(outside <= 2.0), peer))
    for a, b in combinations(rates, 2):
        away = abs(np.log(rates[a].value / rates[b].value)) / float(np.hypot(rates[a].relative_error, rates[b].relative_error))
        rows.append(Row(f"rates along {a} and along {b}: distance", away, "combined errors", None, 2.0, bool(away <= 2.0)))
    return rows


def flat_rate(task: tuple[str, Scale]) -> PositiveEstimate:
    """Return the rate in two dimensions along one order parameter."""
    name, size = task
    (start,) = hysteresis.engine().minimize([hysteresis.engine().state(-0.2, -0.4)])
    return sampled(hysteresis.sampling(name), start, size.flat_cycles, size.sets)[0].rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    scale = scale_parser(__doc__, SCALES).parse_args(arguments).scale
    write_results("interface_sampling", measure(scale), scale=scale)


if __name__ == "__main__":
    main()
