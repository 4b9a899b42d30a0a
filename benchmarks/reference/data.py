"""The long reference simulations as samples and surfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from couloir.analysis import BiasedSamples, FreeEnergySurface, free_energy_surface
from couloir.cv import HarmonicBias

HERE = Path(__file__).parent
BASINS = {"C7eq": (-2.8, -0.7), "alphaL": (0.7, 1.5)}
"""Ranges of phi, rad."""


def alanine_dipeptide_obc2(file: Path = HERE / "alanine_dipeptide_obc2.npz") -> BiasedSamples:
    """Return the reference windows along phi (see ``alanine_dipeptide_obc2.py``) as samples with phi and psi."""
    with np.load(file) as data:
        phi, psi, centers = data["phi"], data["psi"], data["centers"]
        k, temperature = float(data["force_constant"]), float(data["temperature"])
    n_sets, n_windows, n_frames = phi.shape
    _, window, frame = np.indices(phi.shape)
    return BiasedSamples(
        names=("phi", "psi"),
        units=("rad", "rad"),
        periods=(2 * np.pi, 2 * np.pi),
        values=np.stack([phi.ravel(), psi.ravel()], axis=1).astype(float),
        potential=np.full(phi.size, np.nan),
        window=window.ravel(),
        walker=(np.arange(n_sets * n_windows).repeat(n_frames)),
        time=0.5 * (frame.ravel() + 1),
        biases=tuple(HarmonicBias(("phi",), (float(c),), (k,), (2 * np.pi,)) for c in centers),
        temperatures=np.full(n_windows, temperature),
    )


def alanine_dipeptide_surface(along: str | tuple[str, ...] = "phi", estimator: str = "wham", **options: object) -> FreeEnergySurface:
    """Return the reference surface along phi, psi or both, with named basins where phi comes first."""
    first = along if isinstance(along, str) else along[0]
    options = {"basins": BASINS if first == "phi" else None, **options}
    return free_energy_surface(alanine_dipeptide_obc2(), along, estimator=estimator, **options)  # type: ignore[arg-type]
