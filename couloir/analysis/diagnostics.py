"""What a user must know before believing a surface: findings with numbers and with what to do about them.

Codes: ``disconnected-windows``, ``low-overlap``, ``empty-windows``, ``empty-bins``, ``few-effective-samples``,
``not-equilibrated``, ``walkers-disagree``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.grid import Grid
from couloir.analysis.overlap import connected_sets, describe_windows, gap_findings
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import between_walkers, equilibration, inefficiencies
from couloir.analysis.wham import bin_states, solution_findings, solve_connected
from couloir.errors import Finding
from couloir.trajectory import Array

if TYPE_CHECKING:
    from couloir.analysis.surface import FreeEnergySurface

LEAST_OVERLAP = 0.03
"""Overlap of neighbours below which MBAR is unreliable (Klimovich, Shirts & Mobley 2015)."""
LEAST_SAMPLES = 50
DISAGREE = 1.1


def diagnose(samples: BiasedSamples) -> tuple[Finding, ...]:
    """Return everything that is doubtful about the samples: windows first, then equilibration."""
    return window_findings(samples, inefficiencies(samples)) + _transients(samples)


def window_findings(samples: BiasedSamples, inefficiency: Array) -> tuple[Finding, ...]:
    """Return findings about connection, overlap, effective samples and walkers that disagree.

    Parameters
    ----------
    samples : anything recorded; where temperatures differ, potential energies must be there.
    inefficiency : (n_windows,) statistical inefficiency of each window, in rows.
    """
    present = samples.temperatures[samples.counts > 0]
    states = bin_states(samples, energies=bool(np.ptp(present) > 0))
    sets, solution, shared = solve_connected(states, samples)
    found = list(solution_findings(samples, sets, solution.converged))
    overlap = shared / np.maximum(samples.counts, 1)[:, None]
    # Seen from either side: a short window next to a long one overlaps little only if both say so.
    best = np.maximum(overlap, overlap.T)
    problem = f"overlap by less than {100 * LEAST_OVERLAP:.0f} %: their offset rests on few samples"
    for members in sets:
        loose = connected_sets(best, list(members), LEAST_OVERLAP)
        found += gap_findings(samples, loose, "low-overlap", problem)
    found += _few_samples(samples, inefficiency)
    found += _disagreement(samples)
    return tuple(found)


def _few_samples(samples: BiasedSamples, inefficiency: Array) -> list[Finding]:
    filled = samples.counts > 0
    effective = np.where(filled, samples.counts / np.where(filled, inefficiency, 1.0), np.inf)
    few = tuple(int(k) for k in np.flatnonzero(effective < LEAST_SAMPLES))
    if not few:
        return []
    worst = min(few, key=lambda k: effective[k])
    factor = LEAST_SAMPLES / max(effective[worst], 1.0)
    message = (
        f"windows {describe_windows(few)} hold fewer than {LEAST_SAMPLES} decorrelated samples"
        f" (least: {effective[worst]:.0f} in window {worst})"
    )
    return [Finding("few-effective-samples", message, f"run them about {factor:.1f} times as long")]


def _disagreement(samples: BiasedSamples) -> list[Finding]:
    reduction = between_walkers(samples)
    out = []
    for c, name in enumerate(samples.names):
        apart = tuple(int(k) for k in np.flatnonzero(np.nan_to_num(reduction[:, c], nan=1.0) > DISAGREE))
        if apart:
            worst = float(np.nanmax(reduction[:, c]))
            message = (
                f"walkers in windows {describe_windows(apart)} sample different {name} (scale reduction up to {worst:.2f}): a hidden"
                " barrier keeps them apart, and their pooled weights are those of the seeds"
            )
            fix = f"bias {name} too, exchange replicas between windows, or run longer"
            out.append(Finding("walkers-disagree", message, fix))
    return out


def _transients(samples: BiasedSamples) -> tuple[Finding, ...]:
    late = []
    for walker in equilibration(samples):
        total = walker.discarded + walker.kept
        if total >= 20 and walker.discarded > 0.5 * total:
            late.append(walker)
    if not late:
        return ()
    windows = tuple(sorted({w.window for w in late}))
    worst = max(w.discarded / (w.discarded + w.kept) for w in late)
    message = f"windows {describe_windows(windows)} were still drifting after half of their time (worst: {100 * worst:.0f} %)"
    return (Finding("not-equilibrated", message, "run them longer, or start them from structures that belong there"),)


def surface_findings(grid: Grid, free_energy: Array, n_effective: Array, kT: float) -> tuple[Finding, ...]:
    """Return findings about empty cells between sampled ones, and cells that rest on few samples.

    Parameters
    ----------
    grid : of the surface.
    free_energy : on the grid, kJ/mol, minimum 0, NaN where empty.
    n_effective : on the grid, decorrelated samples.
    kT : kJ/mol.
    """
    out = []
    sampled = np.isfinite(free_energy)
    holes = _holes(sampled, grid)
    if holes:
        message = f"{len(holes)} cells between sampled ones are empty, the first at {grid.names[0]} = {holes[0]:.3g}"
        out.append(Finding("empty-bins", message, f"insert a window at {grid.names[0]} = {holes[len(holes) // 2]:.3g}, or use wider bins"))
    low = sampled & (n_effective < LEAST_SAMPLES) & (free_energy < 8 * kT)
    if low.any():
        first = tuple(int(i) for i in np.argwhere(low)[0])
        place = ", ".join(f"{n} = {x[i]:.3g}" for n, x, i in zip(grid.names, grid.centers, first, strict=True))
        message = f"{int(low.sum())} of {int(sampled.sum())} cells rest on fewer than {LEAST_SAMPLES} decorrelated samples (first: {place})"
        out.append(Finding("few-effective-samples", message, "run longer, or use wider bins"))
    return tuple(out)


def _holes(sampled: Any, grid: Grid) -> list[float]:
    """Return places of empty cells with sampled ones on both sides (1-D; on a circle every empty cell counts)."""
    if sampled.ndim != 1:
        return []
    where = np.flatnonzero(sampled)
    empty = np.flatnonzero(~sampled)
    if grid.periods[0] is None:
        empty = empty[(empty > where[0]) & (empty < where[-1])]
    return [float(grid.centers[0][i]) for i in empty]


def convergence(
    samples: BiasedSamples, along: Any, fractions: Sequence[float] = (0.125, 0.25, 0.5, 1.0), **options: Any
) -> list[FreeEnergySurface]:
    """Return the surfaces from the first part of every walker's time, one per fraction, all on one grid.

    Parameters
    ----------
    fractions : of the longest walker's time, each in (0, 1].
    options : of :func:`couloir.analysis.free_energy_surface`.
    """
    from couloir.analysis.free_energy import free_energy_surface
    from couloir.analysis.surface import make_grid

    grid = make_grid(samples, along, options.get("bins"), options.pop("limits", None))
    limits = [(float(e[0]), float(e[-1])) for e in grid.edges]
    end = float(samples.time.max())
    return [free_energy_surface(samples.until(f * end), along, limits=limits, **options) for f in fractions]
