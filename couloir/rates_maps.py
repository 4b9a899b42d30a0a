"""Free energies and committors from the weighted paths of ``[rates]``: their files in ``results/``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from couloir.analysis.surface import FreeEnergySurface
from couloir.errors import DataError
from couloir.trajectory import Array

if TYPE_CHECKING:
    from pathlib import Path

    from couloir.analysis.reweighted_paths import ReweightedPaths
    from couloir.run import Run

BINS, BINS_OF_TWO = 50, 36
"""Cells along each CV, of one and of two."""


def mapped(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return what maps there are of recorded CVs: along each, and over the first two."""
    return [*((name,) for name in names), *([tuple(names[:2])] if len(names) > 1 else [])]


def save_maps(run: Run, both: ReweightedPaths, names: Sequence[str], temperature: float) -> None:
    """Write free energies (npz) and committors (a table of cells) along recorded CVs."""
    import pandas as pd

    free_energy_file(run, names[:1]).parent.mkdir(exist_ok=True)
    for along in mapped(names):
        bins = BINS if len(along) == 1 else BINS_OF_TWO
        both.free_energy(along, temperature=temperature, bins=bins).save(free_energy_file(run, along))
        found = both.committor(along, bins=bins)
        cells = dict(zip(along, (x.ravel() for x in np.meshgrid(*found.grid, indexing="ij")), strict=True))
        columns = {**cells, "committor": found.committor.ravel(), "standard_error": found.standard_error.ravel()}
        pd.DataFrame(columns).to_csv(_committor_file(run, along), index=False)


def free_energy_file(run: Run, along: Sequence[str]) -> Path:
    """Return where the free energy along CVs is."""
    return run.path / "results" / f"path_free_energy_{'_'.join(along)}.npz"


def free_energy(run: Run, along: Sequence[str]) -> FreeEnergySurface:
    """Return the free energy along CVs that :func:`save_maps` wrote."""
    return FreeEnergySurface.load(free_energy_file(run, along))


def committor(run: Run, along: Sequence[str]) -> tuple[Array, Array]:
    """Return committor and standard error of all cells, in the order of the free energy's, (n_cells,) each.

    Raises
    ------
    DataError : the file cannot be read.
    """
    file = _committor_file(run, along)
    try:
        table = np.genfromtxt(file, delimiter=",", skip_header=1, ndmin=2)
        return table[:, len(along)], table[:, len(along) + 1]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot read {file}: {error}", "remove results/rates.json, and give couloir run again") from None


def _committor_file(run: Run, along: Sequence[str]) -> Path:
    return run.path / "results" / f"path_committor_{'_'.join(along)}.csv"
