"""What a user must know before believing a surface: findings with numbers and with what to do about them.

Codes: ``disconnected-windows``, ``low-overlap``, ``empty-windows``, ``empty-bins``, ``few-effective-samples``,
``not-equilibrated``, ``walkers-disagree``, ``windows-disagree``, ``windows-contradict``, ``nothing-orthogonal-recorded``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.agreement import UNKNOWN, Neighbours, compare_neighbours, walkers_disagree
from couloir.analysis.closure import Contradiction, contradiction
from couloir.analysis.grid import Grid
from couloir.analysis.mbar import MbarResult
from couloir.analysis.overlap import biased_names, connected_sets, describe_place, gap_findings, name_windows
from couloir.analysis.replicas import replicas_disagree
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.timeseries import WalkerEquilibration, equilibration, inefficiencies, observables, walkers
from couloir.analysis.wham import bin_states, solution_findings, solve_connected
from couloir.errors import Finding
from couloir.trajectory import Array

if TYPE_CHECKING:
    from couloir.analysis.surface import FreeEnergySurface

LEAST_OVERLAP = 0.03
"""Overlap of neighbours below which MBAR is unreliable (Klimovich, Shirts & Mobley 2015)."""
LEAST_SAMPLES = 50


def diagnose(samples: BiasedSamples) -> tuple[Finding, ...]:
    """Return everything that is doubtful about the samples: windows first, then equilibration."""
    return window_findings(samples, inefficiencies(samples)) + transients(equilibration(samples))


def window_findings(samples: BiasedSamples, inefficiency: Array, neighbours: Neighbours | None = None) -> tuple[Finding, ...]:
    """Return findings about connection, overlap, effective samples, and walkers or windows that disagree.

    Parameters
    ----------
    samples : anything recorded; where temperatures differ, potential energies must be there.
    inefficiency : (n_windows,) statistical inefficiency of each window, in rows.
    neighbours : what :func:`couloir.analysis.agreement.compare_neighbours` found, to save finding it again.
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
    found += _carried(samples)
    found += _shifts(compare_neighbours(samples) if neighbours is None else neighbours)
    found += _contradiction(contradiction(samples, solution.free_energies, shared, inefficiency))
    found += _orthogonal(samples)
    return tuple(found)


def _windows_alone(samples: BiasedSamples, given: object) -> BiasedSamples | None:
    """Return the rows that windows sampled, without those of further states; None where there are none."""
    if not isinstance(given, MbarResult) or not len(given.sampled_states):
        return samples
    own = ~np.isin(samples.window, given.sampled_states)
    return samples.select(own) if own.any() else None


def neighbours_of(samples: BiasedSamples, given: object) -> Neighbours | None:
    """Return which neighbouring windows disagree; a further state (of ``given``, an ``MbarResult``) has no neighbours."""
    alone = _windows_alone(samples, given)
    return None if alone is None else compare_neighbours(alone)


def findings_of(samples: BiasedSamples, given: object, inefficiency: Array, neighbours: Neighbours | None) -> tuple[Finding, ...]:
    """Return :func:`window_findings`; where further states took part, connection is judged with them, all else without."""
    alone = _windows_alone(samples, given)
    if alone is samples:
        return window_findings(samples, inefficiency, neighbours)
    assert isinstance(given, MbarResult)
    found = () if alone is None else window_findings(alone, inefficiency, neighbours)
    return given.findings + tuple(f for f in found if f.code not in ("disconnected-windows", "low-overlap"))


def _few_samples(samples: BiasedSamples, inefficiency: Array) -> list[Finding]:
    filled = samples.counts > 0
    effective = np.where(filled, samples.counts / np.where(filled, inefficiency, 1.0), np.inf)
    few = tuple(int(k) for k in np.flatnonzero(effective < LEAST_SAMPLES))
    if not few:
        return []
    worst = min(few, key=lambda k: effective[k])
    factor = LEAST_SAMPLES / max(effective[worst], 1.0)
    message = (
        f"{name_windows(few)} hold{'s' if len(few) == 1 else ''} fewer than {LEAST_SAMPLES} decorrelated samples"
        f" (least: {effective[worst]:.0f} in window {worst})"
    )
    return [Finding("few-effective-samples", message, f"run them about {factor:.1f} times as long")]


def _disagreement(samples: BiasedSamples) -> list[Finding]:
    reduction, apart = walkers_disagree(samples)
    biased = biased_names(samples)
    out = []
    for c, (name, _, _) in enumerate(observables(samples)):
        windows = tuple(int(k) for k in np.flatnonzero(apart[:, c]))
        if not windows:
            continue
        worst = float(reduction[list(windows), c].max())
        head = f"walkers in {name_windows(windows)} sample different {name} (scale reduction up to {worst:.2f})"
        if name in biased:
            text, fix = ", though it is biased: something slower that is not keeps them apart, or they still relax", "run longer"
        else:
            text = ": a barrier that the bias does not help over may keep them apart, and then pooled weights are those of the seeds"
            also = "" if name == "potential" else f"bias {name} too, "
            fix = f"{also}let windows that lead around it exchange, add generative moves, or run longer"
        out.append(Finding("walkers-disagree", head + text, fix))
    return out


def _carried(samples: BiasedSamples) -> list[Finding]:
    out = []
    for name, reduction in replicas_disagree(samples).items():
        text = (
            f"configurations keep their own {name} (scale reduction {reduction:.2f}) while windows exchange them:"
            " a barrier that no window leads around keeps them apart, and pooled weights are those of the seeds"
        )
        also = "" if name == "potential" else f"bias {name} too, "
        out.append(Finding("replicas-disagree", text, f"{also}add generative moves, or run longer"))
    return out


def _shifts(neighbours: Neighbours) -> list[Finding]:
    out = []
    for name in dict.fromkeys(shift.name for shift in neighbours.shifts):
        mine = sorted((s for s in neighbours.shifts if s.name == name), key=lambda s: -s.deviations)
        pairs = ", ".join(f"{s.windows[0]} and {s.windows[1]}" for s in mine[:4]) + (f", and {len(mine) - 4} more" if len(mine) > 4 else "")
        worst = mine[0]
        size = "unknown" if worst.offset >= UNKNOWN else f"uncertain by about {worst.offset:.2g} kT"
        message = (
            f"windows {pairs} sample different {name} where they overlap ({worst.deviations:.2g} standard deviations apart,"
            f" {worst.errors:.1f} standard errors): the height of one side against the other is {size}"
        )
        also = "" if name == "potential" else f"bias {name} too, "
        out.append(
            Finding(
                "windows-disagree", message, f"{also}let windows exchange (on by default), seed every mode in every window, or run longer"
            )
        )
    return out


def _contradiction(found: Contradiction | None) -> list[Finding]:
    if found is None:
        return []
    i, j = found.windows
    more = f" ({found.others} more pairs like it)" if found.others else ""
    message = (
        f"pair by pair, windows {i} and {j} differ by {found.by_pairs:.2f} +- {found.standard_error:.2f} kT, by all windows together by"
        f" {found.together:.2f} kT{more}: some were not sampled in equilibrium, and the error bars do not know it"
    )
    first = f"look at {name_windows(found.suspects)} first; " if found.suspects else ""
    fix = (
        f"{first}where a barrier is sharper than the restraint, use stiffer restraints and more windows, so that none sits on both sides"
        " of it, or several walkers per window, seeded on both sides"
    )
    return [Finding("windows-contradict", message, fix)]


def _orthogonal(samples: BiasedSamples) -> list[Finding]:
    biased = biased_names(samples)
    if not biased or any(name not in biased for name, _, _ in observables(samples)):
        return []
    message = f"only the biased {', '.join(biased)} was recorded: whether windows and walkers agree in anything else cannot be checked"
    return [
        Finding("nothing-orthogonal-recorded", message, "record another CV, such as a torsion that might be slow, and the potential energy")
    ]


def transients(table: list[WalkerEquilibration]) -> tuple[Finding, ...]:
    """Return the finding about walkers that had not arrived after half of their time, if there are any."""
    windows = tuple(sorted({walker.window for walker in table if walker.drifting}))
    if not windows:
        return ()
    message = f"{name_windows(windows)} {'were' if len(windows) > 1 else 'was'} still drifting after half of the time"
    return (Finding("not-equilibrated", message, "run longer, or start from structures that belong there"),)


def surface_findings(
    grid: Grid, free_energy: Array, n_effective: Array, kT: float, biased: Sequence[str], units: Sequence[str]
) -> tuple[Finding, ...]:
    """Return findings about empty cells between sampled ones, and cells that rest on few samples.

    Parameters
    ----------
    grid : of the surface.
    free_energy : on the grid, kJ/mol, minimum 0, NaN where empty.
    n_effective : on the grid, decorrelated samples.
    kT : kJ/mol.
    biased : names of the biased CVs: a window can be inserted along these only.
    units : of the grid's CVs.
    """
    out = []
    sampled = np.isfinite(free_energy)

    def place(cell: Any) -> str:
        return describe_place(np.array([x[i] for x, i in zip(grid.centers, cell, strict=True)]), grid.names, units, grid.periods)

    holes = [place(cell) for cell in _holes(sampled, grid)]
    if holes:
        one = len(holes) == 1
        message = f"{len(holes)} {'cell' if one else 'cells'} between sampled ones {'is' if one else 'are'} empty, the first at {holes[0]}"
        advice = f"insert a window at {holes[len(holes) // 2]}" if set(grid.names) <= set(biased) else "run longer"
        out.append(Finding("empty-bins", message, f"{advice}, or use wider bins"))
    low = sampled & (n_effective < LEAST_SAMPLES) & (free_energy < 8 * kT)
    if low.any():
        first = place(np.argwhere(low)[0])
        verb = "rests" if low.sum() == 1 else "rest"
        message = (
            f"{int(low.sum())} of {int(sampled.sum())} cells {verb} on fewer than {LEAST_SAMPLES} decorrelated samples (first: {first})"
        )
        out.append(Finding("few-effective-samples", message, "run longer, or use wider bins"))
    return tuple(out)


def _holes(sampled: Any, grid: Grid) -> Any:
    """Return the indices (n, n_cvs) of empty cells that sampled ones enclose: on both sides along every CV.

    On a circle every empty cell has sampled ones on both sides.  In two dimensions, where high regions are rightly empty, both
    neighbours of a hole must be sampled, along each CV: what no window was meant to reach is no hole.
    """
    hole = ~sampled
    for axis, period in enumerate(grid.periods):
        hole = hole & (_beside(sampled, axis, period) if sampled.ndim > 1 else _between(sampled, period))
    return np.argwhere(hole)


def _between(sampled: Any, period: float | None) -> Any:
    """Whether cells (n,) lie between sampled ones."""
    if period is not None:
        return np.ones(len(sampled), dtype=bool)
    return np.logical_or.accumulate(sampled) & np.logical_or.accumulate(sampled[::-1])[::-1]


def _beside(sampled: Any, axis: int, period: float | None) -> Any:
    """Whether both neighbours of cells along an axis are sampled."""
    one, other = np.roll(sampled, 1, axis), np.roll(sampled, -1, axis)
    if period is None:
        np.moveaxis(one, axis, 0)[0] = False
        np.moveaxis(other, axis, 0)[-1] = False
    return one & other


def convergence(
    samples: BiasedSamples,
    along: Any,
    fractions: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    *,
    backward: bool = False,
    **options: Any,
) -> list[FreeEnergySurface]:
    """Return the surfaces from the first part of every walker's time, one per fraction, all on one grid.

    Where parts from the start and from the end do not approach the whole alike, the sampling drifts (Klimovich, Shirts &
    Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015), sec. 4.3).

    Parameters
    ----------
    fractions : of the longest walker's time, each in (0, 1].
    backward : take the last part of every walker's own time instead.
    options : of :func:`couloir.analysis.free_energy_surface`.
    """
    from couloir.analysis.free_energy import free_energy_surface
    from couloir.analysis.surface import make_grid

    grid = make_grid(samples, along, options.get("bins"), options.pop("limits", None))
    limits = [(float(e[0]), float(e[-1])) for e in grid.edges]
    end = float(samples.time.max())
    own = np.zeros(len(samples))
    for _, _, rows in walkers(samples):
        own[rows] = samples.time[rows].max()
    parts = [samples.select(samples.time > (1 - f) * own + 1e-9) if backward else samples.until(f * end) for f in fractions]
    return [free_energy_surface(part, along, limits=limits, **options) for part in parts]
