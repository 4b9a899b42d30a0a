"""The report of a run: one HTML file that needs no network and no other file, warnings before results.

A run that is not finished gets a report too: it shows what is there and says what is not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from couloir import report_figures as figures
from couloir import report_html as web
from couloir.analysis import convergence, free_energy_surface, wham
from couloir.analysis.landscape import Landscape
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.errors import CouloirError, DataError, Finding, StoreError
from couloir.report_data import RunData, read_run, record_stride
from couloir.report_html import Page
from couloir.run import Run

_MBAR_ENTRIES = 20_000_000
"""Rows times windows up to which MBAR sees every row (its matrix takes 8 bytes each)."""
_PARTS = (0.25, 0.5, 0.75, 1.0)
_BELOW = 8.0
BASIN_DEPTH = 2.0
"""kT; noise makes shallower basins than this."""


def write_report(run: Run, path: str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file and return where it is.

    Parameters
    ----------
    run : finished or not; it is only read.
    path : where to write; default ``report.html`` in the run's directory.  An older report is replaced in one step.

    Raises
    ------
    StoreError : the file cannot be written.
    """
    target = run.path / "report.html" if path is None else Path(path)
    if not target.parent.is_dir():
        raise StoreError(f"cannot write the report {target}: there is no folder {target.parent}", "make it, or choose another path")
    data = read_run(run)
    with web.figure_style():
        text = _page(data).render()
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error.strerror}", "choose another path") from None
    return target


def _page(data: RunData) -> Page:
    page = Page(_title(data))
    # Comparing estimators may find something to warn of, and warnings come first.
    comparisons = [_compare(data, surface) for surface in data.surfaces]
    _summary(page, data)
    _warnings(page, data, [found for _, found in comparisons if found is not None])
    sections: list[tuple[str, str, Callable[[Page, RunData], None]]] = []
    if data.explored is not None and data.samples is None:
        sections.append(("explored", "Unbiased dynamics", _explored))
    if data.run.config.umbrella is not None:
        sections += [
            ("surfaces", "Free energy", lambda p, d: _surfaces(p, d, [text for text, _ in comparisons])),
            ("windows", "Windows", _windows),
            ("seeds", "Seeds", _seeds),
            ("convergence", "Convergence with time", _convergence),
            ("equilibration", "Equilibration", _equilibration),
        ]
    for name, title, write in [*sections, ("provenance", "Provenance", _provenance)]:
        page.heading(name, title)
        try:
            write(page, data)
        except CouloirError as error:
            page.add(web.paragraph(f"This part could not be made: {error.message}", "soft"))
    return page


def _system_name(data: RunData) -> str:
    system = data.run.config.system
    source = next(str(v) for v in (system.name, system.pdb, system.prmtop, system.top) if v is not None)
    solvent = {"obc2": "implicit solvent (OBC2)", "tip3p": "TIP3P water", "vacuum": "vacuum"}.get(system.solvent or "", "")
    return source.replace("_", " ") + (f" in {solvent}" if solvent else "")


def _title(data: RunData) -> str:
    what = f"Free energy along {' and '.join(data.along)}" if data.along else "Unbiased dynamics"
    return f"{what}: {_system_name(data)}"


def _summary(page: Page, data: RunData) -> None:
    engine = data.run.config.engine
    toy = data.potential is not None
    thermal = f"kT = {engine.kT or 1.0:g} kJ/mol" if toy else f"{engine.temperature:g} K"
    unbiased = data.explored.duration if data.explored is not None else 0.0
    total = unbiased + data.sampled
    answers = [line for surface in data.surfaces for line in _answers(surface)]
    state = (
        '<span class="badge">finished</span>' if data.finished else '<span class="badge partial">partial: the run is not finished</span>'
    )
    page.add(f"<h1>{web.escape(page.title)}</h1>", state)
    method = f"umbrella windows along {', '.join(data.along)}" if data.along else "unbiased dynamics"
    text = f"{_system_name(data)} at {thermal}: {method}, {_time(total)} simulated in total."
    note = " (± one standard error)" if answers else ""
    page.add(web.paragraph(text + "".join(f" {line}." for line in answers[:2]) + note, "answer"))
    items = [("temperature", thermal), ("unbiased dynamics", _time(unbiased))]
    if data.along:
        n_windows = data.samples.n_windows if data.samples is not None else "not started"
        items += [("in windows, all walkers", _time(data.sampled)), ("windows", str(n_windows))]
    page.add(web.numbers(items))
    if len(answers) > 2:
        page.add("<ul>" + "".join(f"<li>{web.escape(line)}</li>" for line in answers[2:12]) + "</ul>")
    page.add(*(web.paragraph(note, "soft") for note in data.notes))


def _answers(surface: FreeEnergySurface) -> list[str]:
    """Return barriers and differences between named basins that hold samples."""
    out = []
    for a, b in itertools.combinations(surface.basins, 2):
        try:
            barrier, difference = surface.barrier(a, b), surface.difference(a, b)
        except DataError:
            continue
        along = f" along {', '.join(surface.names)}"
        out.append(f"Barrier from {a} to {b}{along}: {_both(barrier.value, barrier.standard_error, surface.kT)}")
        out.append(f"Free energy of {b} minus {a}{along}: {_both(difference.value, difference.standard_error, surface.kT)}")
    return out


def _both(value: float, error: float, kT: float) -> str:
    spread = " ± unknown" if not np.isfinite(error) else f" ± {error:.2g}"
    thermal = "" if not np.isfinite(error) else f" ± {error / kT:.2g}"
    return f"{value:.3g}{spread} kJ/mol ({value / kT:.3g}{thermal} kT)"


def _warnings(page: Page, data: RunData, extra: list[Finding]) -> None:
    page.heading("warnings", "Warnings")
    found = [*data.findings, *extra]
    if found:
        page.add(*(web.finding(f) for f in found))
    elif data.along and data.samples is None:
        page.add(web.paragraph("Nothing to judge yet: the windows have no samples.", "fine"))
    else:
        page.add(web.paragraph("No warnings: every check passed.", "fine"))


def _compare(data: RunData, surface: FreeEnergySurface) -> tuple[str, Finding | None]:
    """Compare WHAM and MBAR on the surface's grid; returns a sentence and, where they differ too much, a finding."""
    assert data.kept is not None
    samples, thinned = _thinned(data.kept)
    steps = [x[1] - x[0] if len(x) > 1 else 1.0 for x in surface.grid]
    limits = [(float(x[0] - 0.5 * h), float(x[-1] + 0.5 * h)) for x, h in zip(surface.grid, steps, strict=True)]
    options: dict[str, Any] = {"bins": [len(x) for x in surface.grid], "limits": limits, "n_bootstrap": 0}
    if len(surface.grid) == 1:
        options = {"bins": len(surface.grid[0]), "limits": limits[0], "n_bootstrap": 0}
    try:
        one, other = (free_energy_surface(samples, surface.names, estimator=e, equilibrate=False, **options) for e in ("wham", "mbar"))
    except CouloirError as problem:
        return f"WHAM and MBAR could not be compared: {problem.message}", None
    low = np.minimum(one.free_energy, other.free_energy) < _BELOW * surface.kT
    delta = (one.free_energy - other.free_energy)[low & np.isfinite(one.free_energy) & np.isfinite(other.free_energy)] / surface.kT
    if len(delta) == 0:
        return "WHAM and MBAR share no sampled cell, so they could not be compared.", None
    largest = float(np.abs(delta - np.median(delta)).max())
    error = _typical_error(surface)
    part = f" (on every {thinned}th row)" if thinned > 1 else ""
    text = (
        f"WHAM and MBAR{part} differ by at most {largest:.2g} kT below {_BELOW:g} kT; "
        f"the median standard error there is {error:.2g} kT. Shown: {surface.estimator.upper()}."
    )
    if largest > max(0.05, error if np.isfinite(error) else 0.05):
        message = (
            f"WHAM and MBAR differ by {largest:.2g} kT along {', '.join(surface.names)}, more than the standard error ({error:.2g} kT)"
        )
        return text, Finding("estimators-differ", message, "look at the cells with few samples; sample longer, or use finer bins")
    return text, None


def _typical_error(surface: FreeEnergySurface) -> float:
    errors = surface.standard_error[(surface.free_energy < _BELOW * surface.kT) & np.isfinite(surface.standard_error)]
    return float(np.median(errors)) / surface.kT if errors.size else float("nan")


def _thinned(samples: BiasedSamples) -> tuple[BiasedSamples, int]:
    every = max(1, -(-len(samples) * samples.n_windows // _MBAR_ENTRIES))
    return (samples, 1) if every == 1 else (samples.select(slice(None, None, every)), every)


def _surfaces(page: Page, data: RunData, comparisons: list[str]) -> None:
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


def _windows(page: Page, data: RunData) -> None:
    if data.kept is None:
        page.add(web.paragraph("The windows have no samples yet.", "soft"))
        return
    drawn = [
        page.vector(figures.window_figure(data.kept, name), f"Histogram of {name} in every window, transients left out.")
        for name in data.along
    ]
    overlap = wham(data.kept).overlap
    text = "Overlap matrix: row i says where samples of window i could have come from. Neighbours below 0.03 are too far apart."
    drawn.append(page.vector(figures.overlap_figure(overlap), text))
    text = "Decorrelated samples in each window, judged by the slowest recorded CV."
    drawn.append(page.vector(figures.effective_figure(data.kept), text))
    page.add(web.grid(*drawn))


def _seeds(page: Page, data: RunData) -> None:
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


def _convergence(page: Page, data: RunData) -> None:
    if data.kept is None or not data.surfaces:
        page.add(web.paragraph("Nothing to compare yet.", "soft"))
        return
    drawn, rows, header = [], [], [f"{100 * f:.0f} %" for f in _PARTS[:-1]]
    for surface in data.surfaces:
        bins = [len(x) for x in surface.grid] if len(surface.grid) > 1 else len(surface.grid[0])
        parts = convergence(data.kept, surface.names, _PARTS, bins=bins, n_bootstrap=0)
        labels = [f"{100 * f:.0f} % ({_time(f * data.kept.time.max())} per walker)" for f in _PARTS]
        names = ", ".join(surface.names)
        text = f"Surface along {names} from the first part of every walker's time."
        drawn.append(page.vector(figures.convergence_figure(parts, labels), text))
        rows.append((names, *(f"{part.rmse(parts[-1], below=_BELOW) / surface.kT:.2f}" for part in parts[:-1])))
    page.add(web.grid(*drawn))
    page.add(web.paragraph(f"Root mean square difference from the final surface where that is below {_BELOW:g} kT, in kT:"))
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


def _equilibration(page: Page, data: RunData) -> None:
    if data.samples is None:
        page.add(web.paragraph("The windows have no samples yet.", "soft"))
        return
    stride = record_stride(data.samples)
    shares = np.array([w.discarded / (w.discarded + w.kept) for w in data.table])
    lost = stride * sum(w.discarded for w in data.table)
    text = (
        f"The transient of each walker was detected (not guessed) and left out: {_time(lost)} of {_time(data.sampled)} in all, "
        f"{100 * float(np.median(shares)):.0f} % of the median walker, {100 * float(shares.max()):.0f} % of the worst."
    )
    rows = [
        (
            f"{w.window}",
            w.walker,
            _time(stride * w.discarded),
            f"{100 * share:.0f} %",
            _time(stride * w.inefficiency),
            f"{w.n_effective:.0f}",
        )
        for w, share in zip(data.table, shares, strict=True)
    ]
    header = ("window", "walker", "discarded", "share", "statistical inefficiency", "effective samples")
    page.add(web.paragraph(text), web.details("Walker by walker", web.table(header, rows)))


def _explored(page: Page, data: RunData) -> None:
    assert data.explored is not None
    series, histograms = figures.explored_figures(data.explored)
    n = len(data.explored.walkers)
    walkers = f"{n} walker{'s' * (n > 1)}, one colour each"
    page.add(web.grid(
        page.vector(series, f"CVs over time ({walkers})."),
        page.vector(histograms, "Histograms of what was visited; they are equilibrium only if every basin was entered and left often."),
    ))  # fmt: skip


def _provenance(page: Page, data: RunData) -> None:
    store, config = data.run.store, data.run.config
    known, engine, timings = (store.get(key, {}) for key in ("provenance", "engine", "timings"))
    rows: list[tuple[str, Any]] = [("run", data.run.path.name), ("seed", config.seed)]
    rows += [(key, known[key]) for key in ("couloir", "python", "machine") if key in known]
    rows += [(name, version) for name, version in known.get("packages", {}).items()]
    page.add(web.facts(rows))
    if engine:
        page.add("<h3>Engine</h3>", web.facts([(key.replace("_", " "), _plain(value)) for key, value in engine.items()]))
    if timings:
        page.add("<h3>Wall-clock time</h3>", web.facts([(stage, _seconds(seconds)) for stage, seconds in timings.items()]))
    page.add(web.details("Run file", web.preformatted((data.run.path / "run.toml").read_text(encoding="utf-8"))))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} = {v}" for k, v in value.items()) or "default"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(ps: float) -> str:
    for unit, scale in (("us", 1e6), ("ns", 1e3)):
        if ps >= scale:
            return f"{ps / scale:.4g} {unit}"
    return f"{ps:.4g} ps"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
