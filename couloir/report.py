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

from couloir import report_html as web
from couloir import report_paths, report_rates
from couloir import report_sections as sections
from couloir.analysis import free_energy_surface
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.config import SystemTable
from couloir.errors import CouloirError, DataError, Finding, StoreError
from couloir.report_data import RunData, read_run
from couloir.report_html import Page, duration
from couloir.report_sections import BELOW
from couloir.run import Run

_MBAR_ENTRIES = 20_000_000
"""Rows times windows up to which MBAR sees every row (its matrix takes 8 bytes each)."""


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
    _warnings(page, data, [*(found for _, found in comparisons if found is not None), *report_rates.disagreements(data)])
    written: list[tuple[str, str, Callable[[Page, RunData], None]]] = []
    if data.explored is not None and data.samples is None:
        written.append(("explored", "Unbiased dynamics", sections.write_explored))
    if data.run.config.umbrella is not None:
        written += [
            ("surfaces", "Free energy", lambda p, d: sections.write_surfaces(p, d, [text for text, _ in comparisons])),
            ("windows", "Windows", sections.write_windows),
            *([("exchange", "Exchange", sections.write_exchange)] if data.run.config.umbrella.exchange else []),
            ("seeds", "Seeds", sections.write_seeds),
            ("convergence", "Convergence with time", sections.write_convergence),
            ("equilibration", "Equilibration", sections.write_equilibration),
        ]
    if data.run.config.paths is not None:
        written.append(("paths", "Reactive paths", report_paths.write_paths))
    if data.run.config.rates is not None:
        written.append(("rates", "Rates", report_rates.write_rates))
    for name, title, write in [*written, ("provenance", "Provenance", _provenance)]:
        page.heading(name, title)
        try:
            write(page, data)
        except CouloirError as error:
            page.add(web.paragraph(f"This part could not be made: {error.message}", "soft"))
    return page


def system_name(system: SystemTable) -> str:
    """Return what a report calls the system: its name, or that of its file, and the solvent."""
    files = (Path(str(file)).stem for file in (system.pdb, system.prmtop, system.top) if file is not None)
    source = system.name or next(files)
    solvent = {"obc2": "implicit solvent (OBC2)", "tip3p": "TIP3P water", "vacuum": "vacuum"}.get(system.solvent or "", "")
    return source.replace("_", " ") + (f" in {solvent}" if solvent else "")


def _title(data: RunData) -> str:
    without = "Unbiased dynamics" if data.run.config.paths is None else "Reactive paths"
    what = f"Free energy along {' and '.join(data.along)}" if data.along else without
    return f"{what}: {system_name(data.run.config.system)}"


def _summary(page: Page, data: RunData) -> None:
    engine = data.run.config.engine
    toy = data.potential is not None
    thermal = f"kT = {engine.kT or 1.0:g} kJ/mol" if toy else f"{engine.temperature:g} K"
    unbiased = data.explored.duration if data.explored is not None else 0.0
    total = unbiased + data.sampled
    answers = [line for surface in data.surfaces for line in _answers(surface)]
    told = [line for line in (report_rates.answer(data), report_paths.answer(data)) if line]
    answers = [*answers[:1], *told, *answers[1:]]
    state = (
        '<span class="badge">finished</span>' if data.finished else '<span class="badge partial">partial: the run is not finished</span>'
    )
    page.add(f"<h1>{web.escape(page.title)}</h1>", state)
    methods = (
        [f"umbrella windows along {', '.join(data.along)}"] if data.along else ["unbiased dynamics"] if data.explored is not None else []
    )
    methods += ["transition path sampling"] if data.run.config.paths is not None else []
    methods += ["interface sampling"] if data.run.config.rates is not None else []
    method = " and ".join(methods) or "unbiased dynamics"
    if data.paths is not None:
        total += data.paths.force_evaluations * data.engine.time_step
    if data.rates is not None and data.engine is not None:
        total += data.rates["force_evaluations"] * data.engine.time_step
    text = f"{system_name(data.run.config.system)} at {thermal}: {method}, {duration(total)} simulated in total."
    note = " (± one standard error)" if answers else ""
    page.add(web.paragraph(text + "".join(f" {line}." for line in answers[:2]) + note, "answer"))
    items = [("temperature", thermal), ("unbiased dynamics", duration(unbiased))]
    if data.along:
        n_windows = data.samples.n_windows if data.samples is not None else "not started"
        items += [("in windows, all walkers", duration(data.sampled)), ("windows", str(n_windows))]
        if data.exchange is not None:
            items.append(("round trips by exchange", f"{data.exchange.round_trips.sum():g}"))
    if data.paths is not None:
        items += [("different paths", str(len(data.paths))), ("moves accepted", f"{data.paths.acceptance:.0%}")]
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
    elif data.run.config.paths is not None and data.paths is None:
        page.add(web.paragraph("Nothing to judge yet: no paths have been sampled.", "fine"))
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
    low = np.minimum(one.free_energy, other.free_energy) < BELOW * surface.kT
    delta = (one.free_energy - other.free_energy)[low & np.isfinite(one.free_energy) & np.isfinite(other.free_energy)] / surface.kT
    if len(delta) == 0:
        return "WHAM and MBAR share no sampled cell, so they could not be compared.", None
    largest = float(np.abs(delta - np.median(delta)).max())
    error = _typical_error(surface)
    part = f" (on every {thinned}th row)" if thinned > 1 else ""
    text = (
        f"WHAM and MBAR{part} differ by at most {largest:.2g} kT below {BELOW:g} kT; "
        f"the median standard error there is {error:.2g} kT. Shown: {surface.estimator.upper()}."
    )
    if largest > max(0.05, error if np.isfinite(error) else 0.05):
        message = (
            f"WHAM and MBAR differ by {largest:.2g} kT along {', '.join(surface.names)}, more than the standard error ({error:.2g} kT)"
        )
        return text, Finding("estimators-differ", message, "look at the cells with few samples; sample longer, or use finer bins")
    return text, None


def _typical_error(surface: FreeEnergySurface) -> float:
    errors = surface.standard_error[(surface.free_energy < BELOW * surface.kT) & np.isfinite(surface.standard_error)]
    return float(np.median(errors)) / surface.kT if errors.size else float("nan")


def _thinned(samples: BiasedSamples) -> tuple[BiasedSamples, int]:
    every = max(1, -(-len(samples) * samples.n_windows // _MBAR_ENTRIES))
    return (samples, 1) if every == 1 else (samples.select(slice(None, None, every)), every)


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


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
