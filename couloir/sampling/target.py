"""Umbrella sampling until the surface is known as well as asked for, with time going to the windows that need it.

After every stage the surface and its standard errors are computed from everything sampled so far.  The next stage is as
long as the error, falling with the inverse square root of the time, needs to reach the target (a quarter to all of the
time spent so far), and is shared out by :func:`couloir.analysis.allocation.allocate`.

Only cells that some window holds are judged.  A cell in the tails of all windows gets better with more windows, not with
more time: its error falls by jumps, whenever a tail happens to reach it.  With p_k ~ exp(-F/kT - u_k) the distribution of
window k, a cell is held when p_k there is at least exp(-2) of its peak for some k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from couloir.analysis import allocate, equilibrated, free_energy_surface
from couloir.analysis.allocation import BELOW
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, Finding
from couloir.sampling.engine import Engine
from couloir.sampling.seeds import Seeds
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.trajectory import Array, State
from couloir.units import convert

SharedOut = Literal["adaptive", "uniform"]
Mask = npt.NDArray[np.bool_]
FIRST_STEPS = 20_000
_LIMIT = 64
"""Default limit of a walker's time, in units of the first stage."""
_HELD = 2.0
"""How far (kT) below the peak of its distribution a window still holds a cell."""
_LEAST_SHARE = 0.25
"""Share of every stage that is spread evenly: a window whose slow mode has not shown yet looks better than it is."""
_GROWTH = 2.0
"""A window gets at most this many times what was spent on it in one stage: its variance is known from no more."""
_REPLICAS = 50
_UNSURE = {"disconnected-windows", "walkers-disagree", "replicas-disagree", "windows-disagree", "windows-contradict"}
"""Findings of the surface without which no target can be called met."""


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
    findings : a target that was not reached, and what makes the errors unsure.
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
    record: Sequence[CollectiveVariable] = (),
    record_stride: Any = None,
    exchange: bool = True,
    store: Store | None = None,
    name: str = "umbrella",
) -> KnownSurface:
    """Run windows until the largest standard error of their surface below 8 kT is at most ``target``.

    Cells in the tails of all windows do not count.  The target is not met while sets of windows share no samples.  On a store
    that holds part of the work the same call goes on where it was interrupted; with another target, from the last stage.

    Parameters
    ----------
    target : an energy, such as "0.25 kT"; a number is in kT.
    first : time per walker of the first stage; default 20,000 steps.
    most : time per walker at which to give up: when the window that the largest error mostly comes from has had it; default
        64 times ``first``.
    allocation : share further time out by what it should gain, or evenly.
    bins : cells of the surface per CV (see ``free_energy_surface``).
    on_stage : told what is known after each stage.
    record, record_stride, exchange, store, name : of :meth:`UmbrellaSampling.run`.

    Raises
    ------
    DataError : the target is not positive.
    """
    goal = convert(target, "kT", "target")
    if not goal > 0:
        raise DataError(f"target = {goal:g} kT is not positive", 'give an error to reach, such as "0.25 kT"')
    begin = FIRST_STEPS * engine.time_step if first is None else convert(first, "ps", "first")
    limit = _LIMIT * begin if most is None else convert(most, "ps", "most")
    kept_in, key = store if store is not None else Store(), f"{name}/stages"
    # What was decided is kept: a run that goes on does not depend on deciding the same again.
    plans: list[list[float]] = kept_in.get(key) or [[min(begin, limit)] * len(windows)]
    stages: list[Stage] = []
    while True:
        kept_in[key], durations = plans, np.array(plans[-1])
        samples = windows.run(
            engine, seeds, durations, seed=seed, record=record, record_stride=record_stride, exchange=exchange, store=kept_in, name=name
        )
        walkers = np.array([len(np.unique(samples.walker[samples.window == w])) for w in range(len(windows))])
        judged = _Judged.of(samples, windows, bins, seed)
        stages.append(Stage(float((durations * walkers).sum()), judged.error, float(durations.max())))
        if on_stage is not None:
            on_stage(stages[-1])
        if judged.error <= goal:
            break
        time = stages[-1].total * float(np.clip((judged.error / goal) ** 2 - 1, 0.25, 1.0))
        room = np.maximum(np.minimum(_GROWTH * durations, limit - durations), 0.0) * walkers
        share, worst = judged.shares(windows, time, room, allocation)
        if durations[worst] >= limit * (1 - 1e-9) or not share.any():
            break
        plans.append((durations + share / walkers).tolist())
    findings = [f for f in judged.surface.findings if f.code in _UNSURE]
    if judged.error > goal:
        text = f"the error is {judged.error:.2f} kT after at most {durations.max():g} ps per walker, asked for {goal:g} kT"
        findings.append(Finding("target-not-reached", text, "raise umbrella.max_duration and run again"))
    return KnownSurface(samples, judged.surface, durations, tuple(stages), tuple(findings))


@dataclass(frozen=True, eq=False)
class _Judged:
    """What a stage gave: equilibrated samples, their surface, the cells that count, the largest error (kT) of these."""

    samples: BiasedSamples
    surface: FreeEnergySurface
    counted: Mask
    error: float
    bins: Any

    @classmethod
    def of(cls, samples: BiasedSamples, windows: UmbrellaSampling, bins: Any, seed: int) -> _Judged:
        kept = equilibrated(samples)
        surface = free_energy_surface(kept, windows.cvs[:2], bins=bins, n_bootstrap=_REPLICAS, seed=seed, equilibrate=False)
        counted = cells_that_count(surface, windows)
        apart = any(finding.code == "disconnected-windows" for finding in surface.findings)
        return cls(kept, surface, counted, np.inf if apart else largest_error(surface, counted), bins)

    def shares(self, windows: UmbrellaSampling, time: float, room: Array, allocation: SharedOut) -> tuple[Array, int]:
        """Return what each window gets of ``time``, at most its ``room``, and the window that the error mostly comes from."""
        even = np.full(len(windows), time / len(windows))
        try:
            plan = allocate(
                self.samples, time, windows.cvs[:2], aim="largest", least=_LEAST_SHARE, most=room, bins=self.bins, cells=self.counted
            )
        except DataError:
            # Windows that share no samples yet need time everywhere, or windows between them, which the surface's findings say.
            return np.minimum(even, room), int(np.argmax(room <= 0))
        return plan.extra if allocation == "adaptive" else np.minimum(even, room), int(np.argmax(plan.variance))


def cells_that_count(surface: FreeEnergySurface, windows: UmbrellaSampling) -> Mask:
    """Return which cells lie below 8 kT and are held by some window."""
    points = np.stack([x.ravel() for x in np.meshgrid(*surface.grid, indexing="ij")], axis=1)
    free = np.where(np.isfinite(surface.free_energy), surface.free_energy, np.inf).ravel()
    biased = np.array([free + window.energy(points) for window in windows.windows]) / surface.kT
    held = (biased - biased.min(axis=1, keepdims=True) < _HELD).any(axis=0)
    return np.asarray(held & (free < BELOW * surface.kT)).reshape(surface.free_energy.shape)


def largest_error(surface: FreeEnergySurface, counted: Mask) -> float:
    """Return the largest standard error (kT) of the cells that count; infinite if bootstrap replicas mostly miss one."""
    errors = surface.standard_error[counted]
    return float(np.where(np.isfinite(errors), errors, np.inf).max(initial=0.0) / surface.kT) if len(errors) else np.inf
