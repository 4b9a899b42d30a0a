"""The section of a report on rates, and its figures: crossing probabilities, and free energy and committor from weighted paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir import report_html as web
from couloir.analysis.plots import label, plot_surface
from couloir.analysis.surface import FreeEnergySurface
from couloir.analysis.surface_agreement import Agreement
from couloir.errors import CouloirError, Finding
from couloir.rates_agreement import agreements
from couloir.rates_maps import committor, free_energy, free_energy_file
from couloir.rates_numbers import readable
from couloir.rates_stage import finished, recorded, stored_cycles
from couloir.report_channels import write_weighted_channels
from couloir.report_data import RunData
from couloir.report_figures import COLORS, LINE, new, surface_figure
from couloir.report_html import Page
from couloir.trajectory import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WAYS = {"from_a": "A to B", "from_b": "B to A"}
_OTHER = "#c8553d"  # the umbrella surface beside that from paths
_LEVELS = (0.1, 0.5, 0.9)
_KNOWN = 0.15  # standard error up to which a cell's committor bends lines of equal committor


def write_rates(page: Page, data: RunData) -> None:
    """Show both rates, how probable it is to reach each interface, and free energy and committor along recorded CVs."""
    found = data.rates
    if found is None:
        cycles = stored_cycles(data.run)
        text = f"No rates yet: {cycles[0]} cycles from A and {cycles[1]} from B are stored." if any(cycles) else "There are no rates yet."
        page.add(web.paragraph(text, "soft"))
        return
    if not finished(data.run):
        page.add(web.paragraph("These are the rates of an earlier request: what is asked for now is not finished.", "soft"))
    header: tuple[str, ...] = ("", "k", "standard error", "95 % interval", "mean waiting time")
    page.add(web.paragraph(_said(found)), web.table(header, _rates(found)))
    write_weighted_channels(page, found.get("channels"))
    text = "Probability that a path that leaves A (B) reaches a value of the order parameter before it returns; bars: 95 % intervals."
    drawn, said = [page.vector(crossing_figure(found), text)], []
    beside = agreements(data.run, found, data.surfaces)
    for name in recorded(data.run):
        surface = free_energy(data.run, (name,))
        other, compared = beside.get(name, (None, None))
        text = f"Free energy along {name} from weighted paths; the band is the 95 % interval."
        if isinstance(compared, Agreement):
            text += " Beside it the surface of the windows, shifted to agree best."
            said.append(web.paragraph(_agreement(name, compared)))
        elif compared is not None:
            said.append(web.paragraph(f"Along {name}, free energy from paths and from windows could not be compared: {compared.message}."))
        drawn.append(page.vector(beside_figure(surface, other, compared if isinstance(compared, Agreement) else None), text))
        text = f"Committor along {name}: share of frames that go on to B before A, over all else; the band is the 95 % interval."
        figure = committor_figure(surface.grid[0], *committor(data.run, (name,)), label(name, surface.units[0]))
        drawn.append(page.vector(figure, text))
    two = recorded(data.run)[:2]
    if len(two) == 2 and free_energy_file(data.run, two).exists():  # runs of earlier versions have none
        text = f"Free energy over {two[0]} and {two[1]} from weighted paths; white lines: committor 0.1, 0.5 and 0.9, where it is known."
        drawn.append(page.vector(map_figure(free_energy(data.run, two), *committor(data.run, two)), text))
    page.add(web.grid(*drawn), *said)
    header = ("", "flux [1/ps]", "P(other state)", "in the state [ps]", "out of it [ps]", "cycles", "sets", "force evaluations", "to place")
    page.add(web.details("What the rates are made of", web.table(header, _parts(found))))
    for key, way in _WAYS.items():
        header = (f"interface along {found['along']}", "P(from the first)", "standard error", "P(next)", "standard error")
        page.add(web.details(f"Interfaces from {way[0]}", web.table(header, _interfaces(found["sides"][key]))))
        if found["sides"][key].get("tried", {}).get("shots"):  # runs of earlier versions have none
            text = (
                "Exchanges are with the next ensemble; where paths are permuted, one is accepted when paths pass between the ensembles up "
                "to the one and those after it. Cycles that do not count are in these numbers, too."
            )
            shown = web.table(*shots_and_exchanges(found["sides"][key]["tried"])) + web.paragraph(text, "soft")
            page.add(web.details(f"Shots and exchanges from {way[0]}", shown))


def answer(data: RunData) -> str:
    """Return the rates in one sentence; empty where there are none."""
    if data.rates is None:
        return ""
    k = {key: readable(data.rates["rates"][key]) for key in _WAYS}
    one, other = (f"{_short(k[key]['value'])} ± {_short(k[key]['standard_error'], 2)} {k[key]['unit']}" for key in _WAYS)
    return f"The rate from A to B is {one}, from B to A {other}"


def _said(found: Mapping[str, Any]) -> str:
    share, flux = found["population"], readable(found["reactive_flux"])
    return (
        f"A is {found['from']}, B is {found['to']}. The system spends {_both(share)} of its time in A or on the way from it, and goes "
        f"from A to B {_both(flux)} times per {flux['unit'].removeprefix('1/')}. "
        f"{found['force_evaluations']} force evaluations were spent on the rates."
    )


def _rates(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, way in _WAYS.items():
        k, value = readable(found["rates"][key]), found["rates"][key]["value"]
        interval = f"{_short(k['low'])} to {_short(k['high'])} {k['unit']}"
        known = f"{_short(k['value'])} {k['unit']}", f"{_short(k['standard_error'], 2)} {k['unit']}"
        rows.append((way, *known, interval, web.duration(1 / value) if value else ""))
    return rows


def _parts(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for key, way in _WAYS.items():
        side = found["sides"][key]
        numbers = (_both(side[name]) for name in ("flux", "crossing", "time_in", "time_out"))
        counts = (side[name] for name in ("cycles", "sets", "force_evaluations", "force_evaluations_of_placement"))
        rows.append((f"from {way[0]}", *numbers, *counts))
    return rows


def _interfaces(side: Mapping[str, Any]) -> list[tuple[str, ...]]:
    columns = ("probability", "standard_error", "local", "local_error")
    rows = ((row["interface"], *(_short(row[name], 2 if "error" in name else 3) for name in columns)) for row in side["interfaces"])
    return [(f"{value:.4g}", *numbers) for value, *numbers in rows]


def shots_and_exchanges(tried: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return header and rows: per ensemble, shots that were accepted, why others were not, and exchanges that were accepted."""
    shots, exchanges = tried["shots"], tried["exchanges"]
    reasons = [reason for reason, counts in shots.items() if reason != "accepted" and any(counts)]
    rows: list[tuple[Any, ...]] = []
    for i, name in enumerate(tried["ensembles"]):
        known = i + 1 < len(tried["ensembles"]) and exchanges
        exchanged = _share(exchanges, i) if known else ""
        rows.append((name, _share(shots, i), *(shots[reason][i] for reason in reasons), exchanged))
    return ("ensemble", "shots accepted", *(f"rejected: {reason}" for reason in reasons), "exchanges accepted"), rows


def _share(counts: Mapping[str, Any], i: int) -> str:
    """Return how many of the trials were accepted, and their share."""
    accepted, total = counts["accepted"][i], sum(count[i] for count in counts.values())
    return f"{accepted} of {total} ({accepted / total:.0%})" if total else "none tried"


def _agreement(name: str, found: Agreement) -> str:
    chance = f"p = {found.p:.2g}" if found.p >= 1e-4 else "p < 0.0001"
    verdict = "they do not agree" if found.findings else "they may not agree" if found.p < 0.05 else "no more than their errors explain"
    return (
        f"Along {name}, free energy from paths and from windows differ by {found.rms:.2g} kT (root mean square over {found.n_cells} "
        f"cells), by at most {found.largest:.2g} standard errors of the difference ({chance}): {verdict}."
    )


def disagreements(data: RunData) -> list[Finding]:
    """Return findings on free energies from paths and from windows that the run, perhaps of an earlier version, has not noted."""
    if data.rates is None or not finished(data.run):
        return []
    try:
        tested = [found for _, found in agreements(data.run, data.rates, data.surfaces).values() if isinstance(found, Agreement)]
    except CouloirError:  # the section on rates says what cannot be read
        return []
    noted = {finding.code for finding in data.findings}
    return [finding for found in tested for finding in found.findings if finding.code not in noted]


def crossing_figure(found: Mapping[str, Any]) -> Figure:
    """Draw the crossing probabilities from both sides along the order parameter."""
    figure, ax = new()
    for (key, way), color, style in zip(_WAYS.items(), COLORS, ("steps-pre", "steps-post"), strict=False):
        side = found["sides"][key]
        x, p = np.array(side["curve"]["value"]), np.array(side["curve"]["probability"])
        order = np.argsort(x)
        ax.plot(x[order], p[order], color=color, linewidth=1.3, drawstyle=style)
        rows = side["interfaces"]
        at, probability, low, high = (np.array([row[c] for row in rows], dtype=float) for c in ("interface", "probability", "low", "high"))
        bars = np.nan_to_num(np.maximum([probability - low, np.minimum(high, 1) - probability], 0))
        ax.errorbar(at, probability, bars, fmt="o", color=color, markersize=4, capsize=2, label=f"from {way[0]}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # figures of a report have no mathematical text
    ax.set_xlabel(label(found["along"], found["unit"]))
    ax.set_ylabel("probability to reach")
    ax.legend(frameon=False)
    return figure


def beside_figure(surface: FreeEnergySurface, other: FreeEnergySurface | None, compared: Agreement | None) -> Figure:
    """Draw a free energy from paths, and one from windows where there is one, shifted."""
    figure, ax = new()
    plot_surface(surface, ax)
    if other is not None and compared is not None:
        f, error = other.free_energy + compared.shift, np.nan_to_num(other.standard_error)
        ax.fill_between(other.grid[0], f - 1.96 * error, f + 1.96 * error, color=_OTHER, alpha=0.2, linewidth=0)
        ax.plot(other.grid[0], f, color=_OTHER, linewidth=1.2, linestyle="--", label=f"windows ({other.estimator})")
        ax.legend(frameon=False)
    scale = (lambda f: f / surface.kT, lambda f: f * surface.kT)
    ax.secondary_yaxis("right", functions=scale).set_ylabel("free energy [kT]")
    return figure


def committor_figure(x: Array, committor: Array, error: Array, text: str) -> Figure:
    """Draw a committor along one CV with its 95 % band."""
    figure, ax = new()
    band = 1.96 * np.nan_to_num(error)
    ax.fill_between(x, np.clip(committor - band, 0, 1), np.clip(committor + band, 0, 1), color=LINE, alpha=0.25, linewidth=0)
    ax.plot(x, committor, color=LINE, linewidth=1.4)
    ax.axhline(0.5, color="#999999", linewidth=0.7, linestyle="--")
    ax.set_xlabel(text)
    ax.set_ylabel("committor")
    ax.set_ylim(-0.02, 1.02)
    return figure


def map_figure(surface: FreeEnergySurface, committor: Array, error: Array) -> Figure:
    """Draw a free energy over two CVs with lines of equal committor where that is known."""
    figure = surface_figure(surface)
    ax = figure.axes[0]
    known = np.where(error < _KNOWN, committor, np.nan).reshape(surface.free_energy.shape)
    lines = ax.contour(*surface.grid, np.ma.masked_invalid(known).T, levels=_LEVELS, colors="white", linewidths=1.2)
    ax.clabel(lines, fmt="%g", fontsize=8)
    return figure


def _both(number: Mapping[str, Any]) -> str:
    return f"{_short(number['value'])} ± {_short(number['standard_error'], 2)}"


def _short(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}g}"
