"""The figures of a report: functions from results to matplotlib figures, none of which needs a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.agreement import walkers_disagree
from couloir.analysis.diagnostics import LEAST_OVERLAP, LEAST_SAMPLES
from couloir.analysis.plots import label, plot_convergence, plot_overlap, plot_surface, plot_windows
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.analysis.timeseries import inefficiencies, walkers
from couloir.cv.base import wrap
from couloir.report_data import Explored, Places
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from couloir.analysis.connectivity import WindowGraph
    from couloir.analysis.exchange import ExchangeReport
    from couloir.analysis.landscape import Landscape
    from couloir.cv import CollectiveVariable
    from couloir.sampling.potentials import ToyPotential
    from couloir.sampling.seeds import Seeds

LINE = "#1f4e79"
_WARN = "#c8553d"
_SIZE = (5.4, 3.6)
_POINTS = 300
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme: told apart by colour-blind readers, on light and on dark pages."""


def new(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    """Return a figure with one axes, outside pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def surface_figure(surface: FreeEnergySurface, landscape: Landscape | None = None) -> Figure:
    """Draw a surface in kJ/mol with kT on a second axis, and its basins and saddles."""
    figure, ax = new() if len(surface.grid) == 1 else new((5.4, 4.2))
    plot_surface(surface, ax, landscape)
    scale = (lambda f: f / surface.kT, lambda f: f * surface.kT)
    if len(surface.grid) == 1:
        ax.secondary_yaxis("right", functions=scale).set_ylabel("free energy [kT]")
        return figure
    as_image(ax)
    from matplotlib.ticker import MaxNLocator

    bar = ax.collections[0].colorbar
    assert bar is not None
    bar.locator = MaxNLocator(7)
    bar.update_ticks()
    bar.ax.secondary_yaxis("left", functions=scale).set_ylabel("[kT]", labelpad=1)
    return figure


def error_figure(surface: FreeEnergySurface) -> Figure:
    """Draw the standard error of a 2-D surface."""
    figure, ax = new((5.4, 4.2))
    drawn = ax.pcolormesh(*surface.grid, np.ma.masked_invalid(surface.standard_error).T, cmap="magma_r", vmin=0, shading="nearest")
    drawn.set_rasterized(True)
    figure.colorbar(drawn, ax=ax, label="standard error [kJ/mol]")
    ax.set_xlabel(label(surface.names[0], surface.units[0]))
    ax.set_ylabel(label(surface.names[1], surface.units[1]))
    return figure


def window_figure(samples: BiasedSamples, name: str) -> Figure:
    """Draw the histogram of every window along one CV."""
    figure, ax = new()
    plot_windows(samples, name, ax, bins=90)
    return figure


def overlap_figure(overlap: Array) -> Figure:
    """Draw the overlap matrix."""
    figure, ax = new((5.4, 4.2))
    plot_overlap(overlap, ax)
    _whole_numbers(ax.xaxis)
    _whole_numbers(ax.yaxis)
    return figure


def effective_figure(samples: BiasedSamples) -> Figure:
    """Draw how many decorrelated samples each window holds."""
    counts = samples.counts
    effective = np.divide(counts, inefficiencies(samples), out=np.zeros(len(counts)), where=counts > 0)
    figure, ax = new()
    ax.bar(np.arange(len(effective)), effective, width=0.8, color=LINE)
    ax.axhline(LEAST_SAMPLES, color=_WARN, linewidth=1, linestyle="--", label=f"{LEAST_SAMPLES}: the least to trust")
    ax.set_yscale("log")
    # Plain numbers: the labels of powers are mathematics, which the report leaves off for the sake of names.
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(1, 4 * max(float(effective.max()), LEAST_SAMPLES))
    _whole_numbers(ax.xaxis)
    ax.set_xlabel("window")
    ax.set_ylabel("effective samples")
    ax.legend(frameon=False)
    return figure


def cells_figure(surface: FreeEnergySurface) -> Figure:
    """Draw the decorrelated samples behind every cell of a surface."""
    from matplotlib.colors import LogNorm

    n = np.ma.masked_less(np.nan_to_num(surface.n_effective), 1.0)
    top = 2 * max(float(n.max(fill_value=1.0)) if n.count() else 1.0, LEAST_SAMPLES)
    if len(surface.grid) == 1:
        figure, ax = new()
        ax.plot(surface.grid[0], n, drawstyle="steps-mid", color=LINE, linewidth=1.4)
        ax.axhline(LEAST_SAMPLES, color=_WARN, linewidth=1, linestyle="--", label=f"{LEAST_SAMPLES}: the least to trust")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(1, 2 * top)
        ax.set_xlabel(label(surface.names[0], surface.units[0]))
        ax.set_ylabel("effective samples")
        ax.legend(frameon=False)
        return figure
    figure, ax = new((5.4, 4.2))
    drawn = ax.pcolormesh(*surface.grid, n.T, cmap="cividis", norm=LogNorm(1, top), shading="nearest")
    drawn.set_rasterized(True)
    figure.colorbar(drawn, ax=ax, label="effective samples", format="{x:g}")
    ax.set_xlabel(label(surface.names[0], surface.units[0]))
    ax.set_ylabel(label(surface.names[1], surface.units[1]))
    return figure


def graph_figure(graph: WindowGraph) -> Figure:
    """Draw the links between windows where the windows are, and how much they overlap."""
    where = Places(graph.names, graph.units, graph.periods, graph.places)
    return _links(where, graph.links, graph.overlap, "overlap", (LEAST_OVERLAP, f"{LEAST_OVERLAP:g}: the least to trust"))


def passages_figure(exchange: ExchangeReport, places: Places) -> Figure:
    """Draw how often configurations passed between neighbouring windows, where the windows are."""
    return _links(places, exchange.neighbours, 100 * exchange.passed, "passed [% of attempts]", None)


def _links(places: Places, pairs: Any, values: Array, what: str, least: tuple[float, str] | None) -> Figure:
    """Draw a value of pairs of windows: along one CV as a bar from window to window, along more as coloured lines."""
    figure, ax = new() if len(places.names) == 1 else new((5.4, 4.2))
    starts, ends = _segments(places, pairs)
    ax.set_xlabel(label(places.names[0], places.units[0]))
    if len(places.names) == 1:
        twice = np.tile(values, len(starts) // len(values))
        ax.hlines(twice, starts[:, 0], ends[:, 0], color=LINE, linewidth=2)
        ax.plot(places.centers[:, 0], np.zeros(len(places.centers)), "|", color=LINE, markersize=8, clip_on=False)
        if least is not None:
            ax.axhline(least[0], color=_WARN, linewidth=1, linestyle="--", label=least[1])
            ax.legend(frameon=False)
        ax.set_ylim(0, 1.15 * max(float(values.max()), 0.0 if least is None else 2 * least[0], 1e-9))
        ax.set_ylabel(what)
    else:
        from matplotlib.collections import LineCollection

        lines = LineCollection(np.stack([starts, ends], axis=1).tolist(), cmap="viridis", linewidths=2)
        lines.set_array(np.tile(values, len(starts) // len(values)))
        lines.set_clim(0, max(float(values.max()), 1e-9))
        ax.add_collection(lines)
        ax.plot(*places.centers[:, :2].T, "o", color=LINE, markersize=3)
        figure.colorbar(lines, ax=ax, label=what)
        ax.set_ylabel(label(places.names[1], places.units[1]))
    for axis, period in zip("xy", places.periods[:2], strict=False):
        if period is not None:
            ax.set(**{f"{axis}lim": (-period / 2, period / 2)})
    return figure


def _segments(places: Places, pairs: Any) -> tuple[Array, Array]:
    """Return starts and ends (n, n_cvs <= 2) of lines between windows; of periodic CVs twice, from either end, to cross the seam."""
    x = places.centers[:, :2]
    delta = np.stack([wrap(d, p) for d, p in zip((x[pairs[:, 1]] - x[pairs[:, 0]]).T, places.periods[:2], strict=True)], axis=1)
    one, other = x[pairs[:, 0]], x[pairs[:, 1]]
    if all(p is None for p in places.periods[:2]):
        return one, other
    return np.concatenate([one, other - delta]), np.concatenate([one + delta, other])


def paths_figure(exchange: ExchangeReport, places: Places) -> Figure:
    """Draw the windows that three replicas visited over time: those with the most, the median and the fewest round trips."""
    figure, ax = new()
    order = np.argsort(-exchange.round_trips, kind="stable")
    alone = len(places.names) == 1
    for number, replica in enumerate(dict.fromkeys((int(order[0]), int(order[len(order) // 2]), int(order[-1])))):
        path = exchange.paths[replica]
        pick = _thin(np.arange(len(path)))
        visited = np.asarray(places.centers[path[pick], 0] if alone else path[pick], dtype=float)
        time = exchange.interval * pick
        if alone and places.periods[0] is not None:  # the line stops at the seam instead of crossing the figure
            across = np.flatnonzero(np.abs(np.diff(visited)) > places.periods[0] / 2) + 1
            visited, time = np.insert(visited, across, np.nan), np.insert(time, across, time[across])
        trips = float(exchange.round_trips[replica])
        text = f"{trips:g} round trip{'s' * (trips != 1)}"
        ax.plot(time, visited, ".-", markersize=3, linewidth=0.6, color=COLORS[number], label=text)
    ax.set_xlabel("time [ps]")
    ax.set_ylabel(f"window, by its {label(places.names[0], places.units[0])}" if alone else "window")
    ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def convergence_figure(surfaces: Sequence[FreeEnergySurface], labels: Sequence[str]) -> Figure:
    """Draw surfaces from growing parts of the sampling: lines in 1-D, panels in 2-D."""
    if len(surfaces[0].grid) == 1:
        figure, ax = new()
        plot_convergence(surfaces, labels, ax)
        return figure
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    top = min(float(np.nanmax(surfaces[-1].free_energy)), 16 * surfaces[-1].kT)
    panels = figure.subplots(-(-len(surfaces) // 2), 2, sharex=True, sharey=True, squeeze=False)
    for ax, surface, text in zip(panels.ravel(), surfaces, labels, strict=False):
        f = np.ma.masked_invalid(np.minimum(surface.free_energy, top)).T
        ax.pcolormesh(*surface.grid, f, cmap="viridis", vmin=0, vmax=max(top, 1e-9), shading="nearest").set_rasterized(True)
        ax.set_title(text, fontsize=9)
    for ax in panels[-1]:
        ax.set_xlabel(label(surfaces[0].names[0], surfaces[0].units[0]))
    for ax in panels[:, 0]:
        ax.set_ylabel(label(surfaces[0].names[1], surfaces[0].units[1]))
    return figure


def suspicious(samples: BiasedSamples, most: int = 6) -> list[tuple[int, str, float]]:
    """Return (window, CV, scale reduction) where walkers disagree, the worst first."""
    reduction, apart = walkers_disagree(samples)
    n_cvs = len(samples.names)
    found = [(int(w), samples.names[c], float(reduction[w, c])) for w, c in np.argwhere(apart[:, :n_cvs])]
    return sorted(found, key=lambda entry: -entry[2])[:most]


def walkers_figure(samples: BiasedSamples, window: int, name: str) -> Figure:
    """Draw the time series of one CV for all walkers of a window."""
    figure, ax = new((5.4, 2.6))
    members = [rows for w, _, rows in walkers(samples) if w == window]
    for number, rows in enumerate(members):
        pick = _thin(rows)
        ax.plot(samples.time[pick], samples[name][pick], ".", markersize=2.6, color=COLORS[number % len(COLORS)])
    ax.set_xlabel("time [ps]")
    ax.set_ylabel(label(name, samples.units[samples.column(name)]))
    return figure


def explored_figures(explored: Explored) -> tuple[Figure, Figure]:
    """Draw time series and histograms of the unbiased dynamics, one panel per CV."""
    from matplotlib.figure import Figure

    n = len(explored.names)
    series, histograms = (Figure(figsize=(5.4, 1.9 * n + 0.4), layout="constrained") for _ in range(2))
    pairs = zip(series.subplots(n, 1, sharex=True, squeeze=False)[:, 0], histograms.subplots(n, 1, squeeze=False)[:, 0], strict=True)
    for c, (over_time, counted) in enumerate(pairs):
        name, period = label(explored.names[c], explored.units[c]), explored.periods[c]
        everything = np.concatenate([values[:, c] for values in explored.walkers])
        limits = (float(everything.min()), float(everything.max()) + 1e-9) if period is None else (-period / 2, period / 2)
        edges = np.linspace(*limits, 61)
        for number, values in enumerate(explored.walkers):
            color = COLORS[number % len(COLORS)]
            pick = _thin(np.arange(len(values)))
            over_time.plot(explored.stride * (pick + 1), values[pick, c], ".", markersize=2.2, color=color)
            counted.stairs(np.histogram(values[:, c], edges, density=True)[0], edges, color=color)
        over_time.set_ylabel(name)
        over_time.set_ylim(*limits)
        counted.set_xlabel(name)
        counted.set_ylabel("density")
    series.axes[-1].set_xlabel("time [ps]")
    return series, histograms


def chosen_seeds(seeds: Seeds, most: int = 12) -> list[int]:
    """Return one seed each of up to ``most`` windows, evenly spread."""
    windows = np.unique(seeds.windows)
    spread = windows[np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int))]
    return [int(np.flatnonzero(seeds.windows == w)[0]) for w in spread]


def molecule_figure(seeds: Seeds, topology: mdtraj.Topology, cvs: Sequence[CollectiveVariable]) -> Figure:
    """Draw seeds of windows along the CVs as ball-and-stick pictures."""
    from couloir.molecule_picture import picture_grid

    picked = chosen_seeds(seeds)
    positions = np.array([seeds.states[i].positions for i in picked])
    titles = []
    for row, i in enumerate(picked):
        values = ", ".join(f"{cv.name} = {cv.evaluate(positions[row : row + 1])[0]:.2f} {cv.unit}".rstrip() for cv in cvs)
        origin = "" if seeds.origins[i] == "model" else f" ({seeds.origins[i]})"
        titles.append(f"window {seeds.windows[i]}{origin}\n{values}")
    atoms = [int(a) for a in getattr(cvs[0], "atoms", ())] if cvs else []
    return picture_grid(positions, topology, titles, highlight=atoms)


def toy_figure(seeds: Seeds, potential: ToyPotential, kT: float) -> Figure:
    """Draw all seeds of a toy system over its potential, in its first two coordinates (others at their middle)."""
    x = np.array([state.positions.ravel() for state in seeds.states])
    figure, ax = new((5.4, 4.0))
    colors = [COLORS[0] if origin == "model" else COLORS[1] for origin in seeds.origins]
    middle = np.mean(np.asarray(potential.bounds, dtype=float), axis=1)
    axes = [np.linspace(*limits, 121) for limits in potential.bounds[:2]]
    points = np.tile(middle, (int(np.prod([len(a) for a in axes])), 1))
    points[:, : len(axes)] = np.stack([p.ravel() for p in np.meshgrid(*axes, indexing="ij")], axis=1)
    energy = potential.energy(points).reshape([len(a) for a in axes]) / kT
    energy = energy - energy.min()
    ax.set_xlabel(potential.names[0])
    if potential.n_dim == 1:
        ax.plot(axes[0], energy, color=LINE)
        ax.scatter(x[:, 0], (potential.energy(x) - potential.energy(points).min()) / kT, c=colors, s=18, zorder=3)
        ax.set_ylabel("potential [kT]")
        ax.set_ylim(-0.5, min(float(energy.max()), 25.0))
        return figure
    drawn = ax.contourf(*axes, np.minimum(energy, 20).T, levels=np.linspace(0, 20, 11), cmap="Greys", alpha=0.75)
    drawn.set_rasterized(True)
    figure.colorbar(drawn, ax=ax, label="potential [kT]")
    ax.scatter(x[:, 0], x[:, 1], c=colors, s=14, linewidths=0.4, edgecolors="white", zorder=3)
    ax.set_ylabel(potential.names[1])
    return figure


def _thin(rows: Any) -> Any:
    return rows[:: max(1, -(-len(rows) // _POINTS))]


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def as_image(ax: Axes) -> None:
    """Turn what is drawn so far into an image within the figure."""
    # Contours as vectors show seams between levels and take many times the space.
    for collection in ax.collections:
        collection.set_rasterized(True)
