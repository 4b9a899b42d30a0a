"""Figures: surfaces with their error bands, window histograms, overlap, convergence.  Work without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis.surface import FreeEnergySurface
from couloir.trajectory import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from couloir.analysis.landscape import Landscape
    from couloir.analysis.mfep import MinimumFreeEnergyPath
    from couloir.analysis.samples import BiasedSamples

_LINE = "#1f4e79"


def _axes(ax: Axes | None, size: tuple[float, float] = (6.0, 4.0)) -> Axes:
    if ax is not None:
        return ax
    import matplotlib

    if matplotlib.is_interactive():  # a notebook or an interactive session: pyplot is what shows the figure there
        import matplotlib.pyplot

        return matplotlib.pyplot.subplots(figsize=size, layout="constrained")[1]
    # A Figure of its own, outside pyplot: needs no display and is freed with its last reference.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def label(name: str, unit: str) -> str:
    """Return an axis label: the name, with its unit when it has one."""
    return f"{name} [{unit}]" if unit else name


def plot_surface(
    surface: FreeEnergySurface, ax: Axes | None = None, landscape: Landscape | None = None, path: MinimumFreeEnergyPath | None = None
) -> Axes:
    """Draw a 1-D surface with its 95 % band, or a 2-D one as filled contours; returns the axes.

    With a ``landscape`` of the surface, minima are labelled and saddles crossed; a ``path`` is drawn on a 2-D surface.
    """
    ax = _line(surface, _axes(ax)) if len(surface.grid) == 1 else _contours(surface, _axes(ax, (6.0, 5.0)))
    if path is not None and len(surface.grid) == 2:
        images = path.images.copy()
        for i, period in enumerate(surface.periods):
            if period is not None:  # the line stops at the seam instead of crossing the figure
                images[1:][np.abs(np.diff(path.images[:, i])) > period / 2] = np.nan
        ax.plot(*images.T, color="white", linewidth=1.6, label="path")
    if landscape is not None:
        _mark(landscape, ax)
    return ax


def _mark(landscape: Landscape, ax: Axes) -> None:
    from matplotlib.patheffects import withStroke

    color = _LINE if len(landscape.names) == 1 else "white"
    outline = [] if len(landscape.names) == 1 else [withStroke(linewidth=2.5, foreground="black", alpha=0.6)]
    for basin in landscape.basins:
        x, y = (*basin.place, basin.free_energy.value)[:2]
        ax.plot(x, y, "o", color=color, markersize=4)
        ax.annotate(basin.label, (x, y), xytext=(4, 4), textcoords="offset points", color=color, weight="bold", path_effects=outline)
    for saddle in landscape.saddles:
        x, y = (*saddle.place, saddle.free_energy.value)[:2]
        ax.plot(x, y, "x", color=color, markersize=6)


def _line(surface: FreeEnergySurface, ax: Axes) -> Axes:
    x, f, e = surface.grid[0], surface.free_energy, np.nan_to_num(surface.standard_error)
    ax.fill_between(x, f - 1.96 * e, f + 1.96 * e, color=_LINE, alpha=0.25, linewidth=0, label="95 %")
    ax.plot(x, f, color=_LINE, linewidth=1.6, label=surface.estimator)
    ax.set_xlabel(label(surface.names[0], surface.units[0]))
    ax.set_ylabel(label("free energy", surface.unit))
    if surface.periods[0] is not None:
        ax.set_xlim(-surface.periods[0] / 2, surface.periods[0] / 2)
    ax.legend(frameon=False)
    return ax


def _contours(surface: FreeEnergySurface, ax: Axes) -> Axes:
    from matplotlib.ticker import MaxNLocator

    top = float(min(np.nanmax(surface.free_energy), 16 * surface.kT))
    levels = MaxNLocator(16).tick_values(0.0, max(top, 1e-9))
    axes, f = list(surface.grid), np.minimum(surface.free_energy, top)
    for i, period in enumerate(surface.periods):
        if period is not None:  # contours join cell centres: one more cell on either side closes the period
            f = np.pad(f, [(1, 1) if j == i else (0, 0) for j in range(2)], mode="wrap")
            axes[i] = np.concatenate([[axes[i][-1] - period], axes[i], [axes[i][0] + period]])
    drawn = ax.contourf(*axes, np.ma.masked_invalid(f).T, levels=levels, cmap="viridis")
    ax.figure.colorbar(drawn, ax=ax, label=label("free energy", surface.unit))
    if surface.periods[0] is not None:
        ax.set_xlim(-surface.periods[0] / 2, surface.periods[0] / 2)
    if surface.periods[1] is not None:
        ax.set_ylim(-surface.periods[1] / 2, surface.periods[1] / 2)
    ax.set_xlabel(label(surface.names[0], surface.units[0]))
    ax.set_ylabel(label(surface.names[1], surface.units[1]))
    return ax


def plot_windows(samples: BiasedSamples, name: str, ax: Axes | None = None, bins: int = 200) -> Axes:
    """Draw the histogram of one CV in every window; returns the axes."""
    import matplotlib

    ax = _axes(ax)
    x = samples[name]
    period = samples.periods[samples.column(name)]
    limits = (float(x.min()), float(x.max())) if period is None else (-period / 2, period / 2)
    edges = np.linspace(*limits, bins + 1)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, samples.n_windows))
    for k in range(samples.n_windows):
        counts, _ = np.histogram(x[samples.window == k], edges)
        ax.stairs(counts, edges, color=colors[k], fill=True, alpha=0.45)
    ax.set_xlabel(label(name, samples.units[samples.column(name)]))
    ax.set_ylabel("samples")
    return ax


def plot_overlap(overlap: Array, ax: Axes | None = None) -> Axes:
    """Draw an overlap matrix (n_windows, n_windows), as :func:`wham` and :func:`mbar` return it; returns the axes."""
    ax = _axes(ax, (5.0, 4.2))
    drawn = ax.imshow(overlap, cmap="Blues", vmin=0, vmax=max(float(overlap.max()), 1e-9), origin="lower")
    ax.figure.colorbar(drawn, ax=ax, label="overlap")
    ax.set_xlabel("window")
    ax.set_ylabel("window")
    return ax


def plot_convergence(surfaces: Sequence[FreeEnergySurface], labels: Sequence[Any] | None = None, ax: Axes | None = None) -> Axes:
    """Draw 1-D surfaces from growing parts of the data over each other, the last with its band; returns the axes."""
    import matplotlib

    ax = _axes(ax)
    names = [f"part {i + 1} of {len(surfaces)}" for i in range(len(surfaces))] if labels is None else [str(v) for v in labels]
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(surfaces)))
    for surface, name, color in zip(surfaces, names, colors, strict=True):
        ax.plot(surface.grid[0], surface.free_energy, color=color, label=name, linewidth=1.3)
    last = surfaces[-1]
    e = 1.96 * np.nan_to_num(last.standard_error)
    ax.fill_between(last.grid[0], last.free_energy - e, last.free_energy + e, color=colors[-1], alpha=0.25, linewidth=0)
    ax.set_xlabel(label(last.names[0], last.units[0]))
    ax.set_ylabel(label("free energy", last.unit))
    ax.legend(frameon=False)
    return ax
