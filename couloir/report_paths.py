"""The section of a report on reactive paths, and its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from couloir import report_html as web
from couloir.analysis.path_density import between_ends
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.analysis.plots import label, plot_surface
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv import CollectiveVariable
from couloir.generated_paths import stored_generated
from couloir.paths_stage import stored_branches
from couloir.report_channels import write_channels
from couloir.report_data import RunData
from couloir.report_figures import COLORS, LINE, as_image, new
from couloir.report_html import Page
from couloir.report_path_tree import tree_figure
from couloir.trajectory import Array
from couloir.transition_states import NEAR_HALF, Candidates, stored_candidates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CVS = 4
_BINS = 40


def write_paths(page: Page, data: RunData) -> None:
    """Say what became of the moves, how long paths take, and where they go."""
    first, paths = data.first_paths, data.paths
    if first is None:
        page.add(web.paragraph("There are no first paths yet.", "soft"))
        return
    if paths is None:
        page.add(web.paragraph(f"{first['n']} first paths ({first['how']}); no path has been sampled yet.", "soft"))
        return
    page.add(
        web.paragraph(_said(data, paths, first["force_evaluations"])),
        web.table(("chain", *paths.outcomes, "paths", "free of its first path"), _chains(paths)),
    )
    write_channels(page, paths, _shown(data))
    between = bool((paths.lengths[paths.weights > 0] > 2).any())
    drawn = [
        page.vector(durations_figure(paths), "Durations of paths, from the last frame in A to the first frame in B."),
        page.vector(chains_figure(paths), "Duration of the path that each chain was at, step by step; dots: accepted moves."),
    ]
    for cv in _shown(data):
        drawn.append(page.vector(along_figure(paths, cv), f"{cv.name} along paths, from A to B."))
        if between:
            text = f"Where along {cv.name} reactive paths spend their time between A and B; the band is the 95 % interval."
            drawn.append(page.vector(density_figure(paths, cv), text))
    for surface in data.surfaces:
        if len(surface.grid) == 2 and set(surface.names) <= set(data.cvs) and between:
            where = ", ".join(surface.names)
            text = (
                f"Reactive paths on the free-energy surface along {where}: white lines enclose half and nine tenths of their frames "
                "between A and B."
            )
            drawn.append(page.vector(surface_figure(paths, surface, data.cvs), text))
    tree = stored_branches(data.run, data.engine)
    if len(tree) > 1:
        text = (
            f"How the paths of the first chain follow from each other: its first path and the next {len(tree) - 1} accepted ones. Frames "
            "that paths share stand above each other; rejected trials are left out."
        )
        drawn.append(page.vector(tree_figure(tree, paths.stride), text, wide=True))
    page.add(web.grid(*drawn))
    found = stored_candidates(data.run)
    if found is not None:
        asked = data.run.config.paths.committor if data.run.config.paths is not None else None
        _write_candidates(page, found, asked or len(found), _shown(data))
    counts = [(name, n) for name, n in first["counts"].items()]
    rows = [("how", first["how"].replace("_", " ")), ("paths", first["n"]), ("force evaluations", first["force_evaluations"])]
    made = stored_generated(data.run)
    said = "" if made is None else web.paragraph(
        f"A model generated {len(made['passed'])} paths, of which {made['passed'].sum()} passed every gate that was judged; all are in "
        "results/generated_paths.npz, their scores in results/generated_paths.csv."
    )  # fmt: skip
    page.add(web.details("First paths", said + web.facts(rows) + web.table(("what became of shots", "number"), counts)))


def answer(data: RunData) -> str:
    """Return the result in one sentence; empty where there is none."""
    paths = data.paths
    if paths is None or not paths.weights.any():
        return ""
    return f"Paths from A to B take {paths.mean(paths.durations, 'ps')} ({data.n_independent:.0f} effectively independent paths)"


def _said(data: RunData, paths: PathEnsemble, searching: int) -> str:
    n, total = data.n_independent, paths.force_evaluations + searching
    each = f"; {total / n:.0f} per effectively independent path, both together" if n >= 1 else ""
    judged = f" by durations and by means of {', '.join(data.cvs)} over paths, whichever tells the fewest" if data.cvs else " by durations"
    return (
        f"{paths.n_chains} chains of {paths.n_steps} steps visited {len(paths)} different paths; {paths.acceptance:.0%} of the moves were "
        f"accepted. {int(paths.decorrelated.sum())} paths hold no frame of a first path: only these count. "
        f"They are worth {n:.1f} effectively independent paths{judged}. "
        f"{paths.force_evaluations} force evaluations were spent on them, {searching} on first paths{each}."
    )


def _write_candidates(page: Page, found: Candidates, asked: int, cvs: list[CollectiveVariable]) -> None:
    near = len(found.transition_states)
    fewer = f" (there are no more, {asked} were asked for)" if len(found) < asked else ""
    page.add(
        web.paragraph(
            f"Candidates for transition states: {len(found)} shooting frames of accepted moves{fewer}. {found.n_shots.sum()} "
            f"shots ({found.force_evaluations} force evaluations) say how often each reaches B before A. This committor p_B lies "
            f"between 1/4 and 3/4 for {near} of them: transition states. All are in results/committor.csv, results/transition_states.npz."
        ),
        web.grid(*(page.vector(committor_figure(found, cv), f"p_B of candidates along {cv.name}, one standard error.") for cv in cvs)),
    )


def _chains(paths: PathEnsemble) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for c in range(paths.n_chains):
        mine = paths.chain == c
        free = paths.step[mine & paths.decorrelated]
        since = f"since step {free.min()}" if len(free) else "not yet"
        rows.append((c, *(int(counts[c]) for counts in paths.outcomes.values()), int(mine.sum()), since))
    return rows


def _shown(data: RunData) -> list[CollectiveVariable]:
    """Return the CVs of the two states, then others, as many as a report has room for."""
    table = data.run.config.paths
    assert table is not None
    text = f"{table.region_a} {table.region_b}"
    return sorted(data.cvs.values(), key=lambda cv: cv.name not in text)[:_MOST_CVS]


def durations_figure(paths: PathEnsemble) -> Figure:
    """Draw the histogram of durations, weighted as averages are (all paths alike when none has a weight)."""
    figure, ax = new()
    weights = paths.weights if paths.weights.any() else np.full(len(paths), 1 / len(paths))
    x = paths.durations
    low, high = float(x.min()), float(x.max())
    # a bin holds whole strides, or every other bin could be empty
    width = max(1, round((high - low) / paths.stride / 30)) * paths.stride
    edges = low - paths.stride / 2 + width * np.arange(int((high - low) / width) + 2)
    ax.stairs(np.histogram(x, edges, weights=weights)[0] / width, edges, color=LINE, fill=True, alpha=0.75)
    if paths.weights.any():
        ax.axvline(float(weights @ x), color="#c8553d", linewidth=1, linestyle="--", label="mean")
        ax.legend(frameon=False)
    ax.set_xlabel("duration [ps]")
    ax.set_ylabel("density [1/ps]")
    return figure


def chains_figure(paths: PathEnsemble) -> Figure:
    """Draw the duration of every chain's path over its steps; grey while it holds frames of its first path."""
    figure, ax = new()
    for c in range(paths.n_chains):
        rows = np.flatnonzero(paths.chain == c)
        rows = rows[np.argsort(paths.step[rows])]
        step = np.append(paths.step[rows], paths.n_steps)
        value = np.append(paths.durations[rows], paths.durations[rows[-1]])
        n_bound = int((~paths.decorrelated[rows]).sum())
        color = COLORS[c % len(COLORS)]
        ax.step(step[: n_bound + 1], value[: n_bound + 1], where="post", color="#999999", linewidth=0.8)
        ax.step(step[n_bound:], value[n_bound:], where="post", color=color, linewidth=0.8)
        ax.plot(step[1:-1], value[1:-1], ".", color=color, markersize=2.5)
    ax.set_xlabel("step")
    ax.set_ylabel("duration [ps]")
    return figure


def along_figure(paths: PathEnsemble, cv: CollectiveVariable) -> Figure:
    """Draw a CV along some paths."""
    figure, ax = new()
    paths.plot(cv, ax)
    return figure


def density_figure(paths: PathEnsemble, cv: CollectiveVariable) -> Figure:
    """Draw the density of the frames of paths along a CV, their ends left out."""
    figure, ax = new()
    found = paths.density(cv, _BINS)
    band = 1.96 * np.nan_to_num(found.standard_error, posinf=0.0)  # unknown from too few paths
    ax.fill_between(found.centers, np.maximum(found.density - band, 0), found.density + band, color=LINE, alpha=0.2, linewidth=0)
    ax.plot(found.centers, found.density, color=LINE)
    ax.set_xlabel(label(cv.name, cv.unit))
    ax.set_ylabel(f"density [1/{cv.unit}]" if cv.unit else "density")
    ax.set_ylim(bottom=0)
    return figure


def surface_figure(paths: PathEnsemble, surface: FreeEnergySurface, cvs: dict[str, CollectiveVariable]) -> Figure:
    """Draw the density of the frames of paths, their ends left out, over a 2-D surface, by lines that enclose given shares of it."""
    figure, ax = new((5.4, 4.2))
    plot_surface(surface, ax)
    as_image(ax)
    density = _on_grid(paths, surface, cvs)
    ranked = np.sort(density.ravel())[::-1]
    shares = np.cumsum(ranked)
    levels = sorted({float(ranked[np.searchsorted(shares, share * shares[-1])]) for share in (0.5, 0.9)})
    if levels[0] > 0:
        ax.contour(*surface.grid, density.T, levels=levels, colors="white", linewidths=1.2)
    return figure


def committor_figure(found: Candidates, cv: CollectiveVariable) -> Figure:
    """Draw p_B of candidates against a CV; the band is where they count as transition states."""
    figure, ax = new()
    x, near = np.asarray(cv.evaluate(found.positions)), np.isin(np.arange(len(found)), found.transition_states)
    ax.axhspan(0.5 - NEAR_HALF, 0.5 + NEAR_HALF, color=LINE, alpha=0.08, linewidth=0)
    for rows, color in ((near, LINE), (~near, "#999999")):
        ax.errorbar(x[rows], found.p[rows], found.standard_error[rows], fmt="o", color=color, markersize=3.5, linewidth=0.8)
    ax.set_xlabel(label(cv.name, cv.unit))
    ax.set_ylabel("p_B")
    ax.set_ylim(-0.12, 1.12)
    return figure


def _on_grid(paths: PathEnsemble, surface: FreeEnergySurface, cvs: dict[str, CollectiveVariable]) -> Array:
    """Return the weighted frames between the ends of paths in every cell of a surface."""
    edges = []
    for x in surface.grid:
        half = 0.5 * (x[1] - x[0])
        edges.append(np.append(x - half, x[-1] + half))
    rows = np.flatnonzero(paths.weights > 0)
    values = [np.concatenate([between_ends(cvs[name], paths.paths[i]) for i in rows]) for name in surface.names]
    weights = np.repeat(paths.weights[rows], np.maximum(paths.lengths[rows] - 2, 0))
    return np.asarray(np.histogram2d(values[0], values[1], bins=edges, weights=weights)[0])
