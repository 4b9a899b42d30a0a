"""Umbrella sampling until the surface is known as well as asked for, with time going to the windows that need it.

After every stage the surface and its standard errors are computed from everything sampled so far.  The next stage is as
long as the error, falling with the inverse square root of the time, needs to reach the target (a quarter to all of the
time spent so far), and is shared out by :func:`couloir.analysis.allocation.allocate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.analysis import allocate, equilibrated, free_energy_surface
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.base import wrap
from couloir.errors import DataError, Finding
from couloir.sampling.engine import Engine
from couloir.sampling.seeds import Seeds
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.trajectory import Array, State
from couloir.units import convert

SharedOut = Literal["adaptive", "uniform"]
BELOW = 8.0
"""kT above the minimum up to which cells count."""
FIRST_STEPS = 20_000
MOST_STAGES = 64
_LEAST_SHARE = 0.25
"""Share of every stage that is spread evenly: a window whose slow mode has not shown yet looks better than it is."""
_GROWTH = 2.0
"""A window is planned to get at most this many times what was spent on it in one stage."""
_REPLICAS = 50


@dataclass(frozen=True, eq=False)
class Stage:
    """How well the surface was known: ``total`` ps behind it over all walkers, the ``error`` (kT), ``longest`` ps per walker."""

    total: float
    error: float
    longest: float

    def __str__(self) -> str:
        text = f"{self.total:.4g} ps in all, at most {self.longest:.4g} ps per walker"
        return f"{text}: largest standard error below {BELOW:g} kT is {self.error:.2f} kT"


@dataclass(frozen=True, eq=False)
class KnownSurface:
    """What :func:`run_until` returns.

    Attributes
    ----------
    samples : all rows, transients included.
    surface : along the (first two) biased CVs.
    durations : (n_windows,) ps per walker.
    stages : time spent and error after each stage.
    findings : a target that was not reached.
    """

    samples: BiasedSamples
    surface: FreeEnergySurface
    durations: Array
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        return "\n".join(["KnownSurface", *(f"  {stage}" for stage in self.stages), *(f"  {f}" for f in self.findings)])


def run_until(
    windows: UmbrellaSampling,
    engine: Engine,
    seeds: Seeds | Mapping[int, Sequence[State]],
    target: Any,
    *,
    seed: int,
    first: Any = None,
    most: Any = None,
    allocation: SharedOut = "adaptive",
    bins: Any = None,
    on_stage: Callable[[Stage], None] | None = None,
    **settings: Any,
) -> KnownSurface:
    """Run windows until the largest standard error of their surface below 8 kT is at most ``target``.

    Cells further than half a spacing from every window do not count.  On a store that holds part of the work the same
    call goes on where it was interrupted.

    Parameters
    ----------
    target : an energy, such as "0.25 kT"; a number is in kT.
    first : time per walker of the first stage; default 20,000 steps.
    most : time per walker at which to give up; default 64 times ``first``.
    allocation : share further time out by what it should gain, or evenly.
    bins : cells of the surface per CV (see ``free_energy_surface``).
    on_stage : told what is known after each stage.
    settings : of :meth:`UmbrellaSampling.run` (``record``, ``record_stride``, ``exchange``, ``store``, ``name``).

    Raises
    ------
    DataError : the target is not positive.
    """
    goal = convert(target, "kT", "target")
    if not goal > 0:
        raise DataError(f"target = {goal:g} kT is not positive", 'give an error to reach, such as "0.25 kT"')
    begin = FIRST_STEPS * engine.time_step if first is None else convert(first, "ps", "first")
    limit = MOST_STAGES * begin if most is None else convert(most, "ps", "most")
    if settings.get("store") is None:
        settings["store"] = Store()
    durations, stages = np.full(len(windows), min(begin, limit)), list[Stage]()
    while True:
        samples = windows.run(engine, seeds, durations, seed=seed, **settings)
        kept = equilibrated(samples)
        surface = free_energy_surface(kept, windows.cvs[:2], bins=bins, n_bootstrap=_REPLICAS, seed=seed, equilibrate=False)
        counted = cells_that_count(surface, windows)
        walkers = np.array([len(np.unique(samples.walker[samples.window == w])) for w in range(len(windows))])
        stages.append(Stage(float((durations * walkers).sum()), largest_error(surface, counted), float(durations.max())))
        if on_stage is not None:
            on_stage(stages[-1])
        if stages[-1].error <= goal or durations.min() >= limit:
            break
        lack = (stages[-1].error / goal) ** 2 - 1
        time = stages[-1].total * float(np.clip(lack, 0.25, 1.0))
        share = _shares(kept, windows, counted, time, allocation, bins)
        durations = np.minimum(durations + share / walkers, limit)
    reached = stages[-1].error <= goal
    text = f"the error is {stages[-1].error:.2f} kT after {limit:g} ps per walker, asked for {goal:g} kT"
    findings = () if reached else (Finding("target-not-reached", text, "raise umbrella.max_duration and run again"),)
    return KnownSurface(samples, surface, durations, tuple(stages), findings)


def cells_that_count(surface: FreeEnergySurface, windows: UmbrellaSampling) -> npt.NDArray[np.bool_]:
    """Return which cells lie below 8 kT and no further than half a spacing from a window, along every CV."""
    axes = []
    for i, (cv, x) in enumerate(zip(windows.cvs, surface.grid, strict=False)):
        centers = np.unique(windows.centers[:, i].round(12))
        half = np.diff(centers).max() / 2 if len(centers) > 1 else np.inf
        axes.append(np.abs(wrap(x[:, None] - centers, cv.period)).min(axis=1) <= half * (1 + 1e-6))
    inside = np.logical_and.reduce(np.meshgrid(*axes, indexing="ij"))
    return np.asarray(inside & (surface.free_energy < BELOW * surface.kT))


def largest_error(surface: FreeEnergySurface, counted: npt.NDArray[np.bool_]) -> float:
    """Return the largest standard error (kT) of the cells that count; infinite if bootstrap replicas mostly miss one."""
    errors = surface.standard_error[counted]
    return float(np.where(np.isfinite(errors), errors, np.inf).max(initial=0.0) / surface.kT) if len(errors) else np.inf


def _shares(
    samples: BiasedSamples, windows: UmbrellaSampling, counted: npt.NDArray[np.bool_], time: float, allocation: SharedOut, bins: Any
) -> Array:
    """Return how much of ``time`` each window gets, (n_windows,) ps over all its walkers."""
    even = np.full(len(windows), time / len(windows))
    if allocation == "uniform" or not counted.any():
        return even
    try:
        return allocate(samples, time, windows.cvs[:2], aim="largest", least=_LEAST_SHARE, growth=_GROWTH, bins=bins, cells=counted).extra
    except DataError:
        # Windows that share no samples yet need time everywhere, or windows between them, which the surface's findings say.
        return even
