"""Whether free energies from the paths of ``[rates]`` and from windows agree: for reports, ``results/rates.json`` and a run's findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from couloir.analysis.surface import FreeEnergySurface
from couloir.analysis.surface_agreement import Agreement, agreement, on_grid
from couloir.errors import DataError
from couloir.rates_maps import free_energy
from couloir.rates_stage import Say, finished, rates_file, recorded, saved_rates
from couloir.run import write_json

if TYPE_CHECKING:
    from couloir.run import Run


def agreements(
    run: Run, found: Mapping[str, Any], surfaces: Sequence[FreeEnergySurface]
) -> dict[str, tuple[FreeEnergySurface, Agreement | DataError]]:
    """Return, per recorded CV along which there is a surface of windows, that surface on the cells of the paths' one and what a test says.

    Parameters
    ----------
    found : ``rates.json``; of earlier versions it does not say how many blocks the errors have, and those of the replicas count.
    surfaces : of windows.

    Returns
    -------
    What cannot be compared comes with the error that says why.
    """
    out: dict[str, tuple[FreeEnergySurface, Agreement | DataError]] = {}
    for name in recorded(run):
        other = next((surface for surface in surfaces if surface.names == (name,)), None)
        if other is None:
            continue
        one = free_energy(run, (name,))
        try:
            other = on_grid(other, one.grid[0])
            out[name] = other, agreement(one, other, freedom=(found.get("freedom"), None))
        except DataError as error:
            out[name] = other, error
    return out


def note_agreement(run: Run, surfaces: Sequence[FreeEnergySurface], say: Say) -> None:
    """Write to ``results/rates.json`` how far free energies from paths and from windows agree, and keep the findings of it.

    It is cheap and done in every call, because surfaces may have been made anew.
    """
    found = saved_rates(run)
    if found is None or not finished(run):
        return
    tested = {name: a for name, (_, a) in agreements(run, found, surfaces).items() if isinstance(a, Agreement)}
    rows = {name: as_row(a) for name, a in tested.items()}
    if rows != found.get("agreement", {}):
        write_json(rates_file(run), {**found, "agreement": rows})
    findings = [finding for a in tested.values() for finding in a.findings]
    run.note_findings("agreement", findings)
    for finding in findings:
        say(str(finding))


def as_row(a: Agreement) -> dict[str, float]:
    """Return an agreement for ``rates.json``: kT, cells, standard errors, value of the CV, and chance."""
    return {"rms_kT": a.rms, "cells": a.n_cells, "largest_in_errors": a.largest, "largest_at": a.place[0], "p": a.p}
