"""The sections of a report between its warnings and its provenance: each takes a page and what was read of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from couloir import report_figures as figures
from couloir import report_html as web
from couloir.analysis import convergence, wham, window_graph
from couloir.analysis.landscape import Landscape
from couloir.analysis.surface import FreeEnergySurface
from couloir.report_data import RunData, record_stride
from couloir.report_html import Page, duration

BELOW = 8.0
"""kT above the minimum up to which surfaces are compared."""
BASIN_DEPTH = 2.0
"""kT; noise makes shallower basins than this."""
_PARTS = (0.25, 0.5, 0.75, 1.0)


def write_surfaces(page: Page, data: RunData, comparisons: list[str]) -> None:
    if not data.surfaces:
        page.add(web.paragraph("No surface yet: the windows have not been sampled.", "soft"))
        return
    if data.provisional:
        page.add(web.paragraph("Provisional: computed for this report from what the windows hold so far.", "soft"))
    for surface, comparison in zip(data.surfaces, comparisons, strict=True):
        along = ", ".join(surface.names)
        found = surface.landscape(depth=BASIN_DEPTH)
        drawn = [page.vector(figures.surface_figure(surface, found), _caption(surface))]
        if len(surface.grid) == 2 and np.isfinite(surface.standard_error).any():
            drawn.append(page.vector(figures.error_figure(surface), f"Standard error of the surface along {along}."))
        text = f"Decorrelated samples behind each cell along {along}."
        drawn.append(page.vector(figures.cells_figure(surface), text))
        page.add(web.grid(*drawn), web.paragraph(comparison), *_landscape_tables(found))
        if len(surface.grid) == 1:
            page.add(web.details(f"Numbers along {along}", _surface_table(surface)))


def _caption(surface: FreeEnergySurface) -> str:
    place = ", ".join(f"{n} = {v:.3g} {u}".rstrip() for n, v, u in zip(surface.names, surface.minimum(), surface.units, strict=True))
    band = "The band is the 95 % interval. " if len(surface.grid) == 1 else "Blank: no samples. "
    return f"Free energy along {', '.join(surface.names)} ({surface.estimator.upper()}). {band}Minimum at {place}."


def _landscape_tables(found: Landscape) -> list[str]:
    """Return tables of basins and of the saddles between them."""
    where = ", ".join(found.names)

    def place(point: tuple[float, ...]) -> str:
        return ", ".join(f"{v:.3g}" for v in point)

    basins = [
        (b.label, place(b.place), f"{b.free_energy}", f"{b.population.value:.3g} ± {b.population.standard_error:.1g}") for b in found.basins
    ]
    saddles = [(" to ".join(s.between), place(s.place), f"{s.heights[0]}", f"{s.heights[1]}") for s in found.saddles]
    parts = [web.table(("basin", where, "free energy", "population"), basins)]
    if saddles:
        parts.append(web.table(("pass", where, "height above the first", "above the second"), saddles))
    return [web.details(f"Basins at least {found.depth:g} kT deep along {where}", "".join(parts))]


def _surface_table(surface: FreeEnergySurface) -> str:
    rows = [
        (f"{x:.4g}", f"{f:.2f}", f"{e:.2f}", f"{f / surface.kT:.2f}", f"{n:.0f}")
        for x, f, e, n in zip(surface.grid[0], surface.free_energy, surface.standard_error, surface.n_effective, strict=True)
    ]
    name = f"{surface.names[0]} [{surface.units[0]}]" if surface.units[0] else surface.names[0]
    return web.table((name, "F [kJ/mol]", "standard error", "F [kT]", "effective samples"), rows)


def write_windows(page: Page, data: RunData) -> None:
    if data.kept is None:
        page.add(web.paragraph("The windows have no samples yet.", "soft"))
        return
    drawn = [
        page.vector(figures.window_figure(data.kept, name), f"Histogram of {name} in every window, transients left out.")
        for name in data.along
    ]
    solved = wham(data.kept)
    graph = window_graph(data.kept, solved)
    text = "Overlap matrix: row i says where samples of window i could have come from. Neighbours below 0.03 are too far apart."
    drawn.append(page.vector(figures.overlap_figure(solved.overlap), text))
    if len(graph.links):
        text = "Connections: which windows share samples, where they are, and how much they overlap."
        drawn.append(page.vector(figures.graph_figure(graph), text))
    text = "Decorrelated samples in each window, judged by the slowest recorded CV."
    drawn.append(page.vector(figures.effective_figure(data.kept), text))
    page.add(web.paragraph(f"{graph}."), web.grid(*drawn))
    rows = [
        (f"{a} and {b}", f"{overlap:.3f}", "yes" if backbone else "")
        for (a, b), overlap, backbone in zip(graph.links, graph.overlap, graph.backbone, strict=True)
    ]
    if rows:
        page.add(web.details("Connection by connection", web.table(("windows", "overlap", "on the strongest way"), rows)))


def write_exchange(page: Page, data: RunData) -> None:
    """Say what windows exchanged; a run that has not exchanged yet says so."""
    found = data.exchange
    if found is None:
        page.add(web.paragraph("No configurations have been exchanged yet.", "soft"))
        return
    page.add(*(web.paragraph(f"{line.strip()[0].upper()}{line.strip()[1:]}.") for line in found.lines()))
    drawn = []
    if len(found.neighbours):
        text = "Passages: how often a configuration went straight from a window to its neighbour, per attempt."
        drawn.append(page.vector(figures.passages_figure(found, data.places), text))
    text = "Paths of the replicas with the most, the median and the fewest round trips: the window each was in."
    drawn.append(page.vector(figures.paths_figure(found, data.places), text))
    page.add(web.grid(*drawn))
    rows = [
        (f"{a} and {b}", data.places.between(int(a), int(b)), f"{100 * share:.1f} %")
        for (a, b), share in zip(found.neighbours, found.passed, strict=True)
    ]
    header = ("windows", "halfway", "configurations passed")
    page.add(web.details("Exchange between neighbours", web.table(header, rows)))


def write_seeds(page: Page, data: RunData) -> None:
    seeds = data.seeds
    if seeds is None:
        page.add(web.paragraph("There are no seeds yet.", "soft"))
        return
    counts = {kind: seeds.origins.count(kind) for kind in ("model", "dragged", "given")}
    made = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    page.add(web.paragraph(f"{len(seeds)} seeds in {len(set(seeds.windows.tolist()))} windows: {made}."))
    if seeds.tally:
        total = {key: int(values.sum()) for key, values in seeds.tally.items()}
        share = max(total.get("generated", 0), 1)
        named = {"generated": "generated", "passed": "passed every gate"}
        rows = [(named.get(key, f"failed first at: {key}"), n, f"{100 * n / share:.0f} %") for key, n in total.items()]
        page.add(web.table(("candidates", "number", "share"), rows))
        frame = seeds.to_dataframe()
        per_window = [(w, *(f"{v:.4g}" for v in row)) for w, row in zip(frame.index, frame.to_numpy(), strict=True)]
        page.add(web.details("Window by window", web.table(("window", *frame.columns), per_window)))
    else:
        page.add(web.paragraph("No candidates were generated: these seeds did not come from a model.", "soft"))
    if data.topology is not None:
        cvs = [data.cvs[name] for name in data.along if name in data.cvs]
        picture = figures.molecule_figure(seeds, data.topology, cvs)
        text = "Seeds of windows spread along the CV, superposed on the backbone; bonds of the CV's atoms in yellow."
        page.add(page.raster(picture, text))
    elif data.potential is not None:
        text = "Seeds over the potential: blue from the model, red dragged."
        page.add(web.grid(page.vector(figures.toy_figure(seeds, data.potential, data.engine.kT), text)))


def write_convergence(page: Page, data: RunData) -> None:
    if data.kept is None or not data.surfaces:
        page.add(web.paragraph("Nothing to compare yet.", "soft"))
        return
    drawn, rows = [], []
    header = [f"{which} {100 * f:.0f} %" for which, parts in (("first", _PARTS[:-1]), ("last", _PARTS[-2::-1])) for f in parts]
    for surface in data.surfaces:
        bins = [len(x) for x in surface.grid] if len(surface.grid) > 1 else len(surface.grid[0])
        options: dict[str, Any] = {"bins": bins, "n_bootstrap": 0, "equilibrate": False}
        parts = convergence(data.kept, surface.names, _PARTS, **options)
        ends = [*convergence(data.kept, surface.names, _PARTS[:-1], backward=True, **options), parts[-1]]
        labels = [f"{100 * f:.0f} % ({duration(f * data.kept.time.max())} per walker)" for f in _PARTS]
        names = ", ".join(surface.names)
        text = f"Surface along {names} from the first part of every walker's time."
        drawn.append(page.vector(figures.convergence_figure(parts, labels), text))
        text = f"Surface along {names} from the last part of every walker's time; where this approaches otherwise, sampling drifts."
        drawn.append(page.vector(figures.convergence_figure(ends, labels), text))
        rows.append((names, *(f"{part.rmse(parts[-1], below=BELOW) / surface.kT:.2f}" for part in (*parts[:-1], *ends[-2::-1]))))
    page.add(web.grid(*drawn))
    text = f"Root mean square difference from the final surface where that is below {BELOW:g} kT, in kT, forward and backward in time:"
    page.add(web.paragraph(text))
    page.add(web.table(("surface along", *header), rows))
    entries = figures.suspicious(data.kept)
    if entries:
        page.add(
            web.paragraph("Walkers that sample different values in the same window (one colour each): a hidden barrier keeps them apart.")
        )
        page.add(web.grid(*(
            page.vector(figures.walkers_figure(data.kept, w, name), f"Window {w}: {name}, scale reduction {r:.2f}.")
            for w, name, r in entries
        )))  # fmt: skip
    elif len(np.unique(data.kept.walker)) > len(np.unique(data.kept.window)):
        page.add(web.paragraph("Walkers of the same window agree in every recorded CV."))
    else:
        page.add(web.paragraph("There is one walker per window, so hidden barriers cannot be seen by comparing walkers.", "soft"))


def write_equilibration(page: Page, data: RunData) -> None:
    if data.samples is None:
        page.add(web.paragraph("The windows have no samples yet.", "soft"))
        return
    stride = record_stride(data.samples)
    shares = np.array([w.discarded / (w.discarded + w.kept) for w in data.table])
    lost = stride * sum(w.discarded for w in data.table)
    text = (
        f"The transient of each walker was detected (not guessed) and left out: {duration(lost)} of {duration(data.sampled)} in all, "
        f"{100 * float(np.median(shares)):.0f} % of the median walker, {100 * float(shares.max()):.0f} % of the worst."
    )
    rows = [
        (
            f"{w.window}",
            w.walker,
            duration(stride * w.discarded),
            f"{100 * share:.0f} %",
            duration(stride * w.inefficiency),
            f"{w.n_effective:.0f}",
        )
        for w, share in zip(data.table, shares, strict=True)
    ]
    header = ("window", "walker", "discarded", "share", "statistical inefficiency", "effective samples")
    page.add(web.paragraph(text), web.details("Walker by walker", web.table(header, rows)))


def write_explored(page: Page, data: RunData) -> None:
    assert data.explored is not None
    series, histograms = figures.explored_figures(data.explored)
    n = len(data.explored.walkers)
    walkers = f"{n} walker{'s' * (n > 1)}, one colour each"
    page.add(web.grid(
        page.vector(series, f"CVs over time ({walkers})."),
        page.vector(histograms, "Histograms of what was visited; they are equilibrium only if every basin was entered and left often."),
    ))  # fmt: skip
