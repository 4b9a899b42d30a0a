"""Figures show the whole of a periodic surface, and appear where a session shows figures."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from couloir.analysis import FreeEnergySurface


@pytest.fixture
def plane() -> FreeEnergySurface:
    centers = -np.pi + (np.arange(12) + 0.5) * 2 * np.pi / 12
    x, y = np.meshgrid(centers, centers, indexing="ij")
    free = 5.0 * (2.0 - np.cos(x) - np.cos(y))
    return FreeEnergySurface(
        names=("phi", "psi"), units=("rad", "rad"), periods=(2 * np.pi, 2 * np.pi), grid=(centers, centers),
        free_energy=free - free.min(), standard_error=np.zeros_like(free), kT=2.494, estimator="wham",
        replicas=np.empty((0, 12, 12)), n_effective=np.ones_like(free),
    )  # fmt: skip


def test_contours_of_a_periodic_surface_reach_the_edges_of_the_period(plane: FreeEnergySurface) -> None:
    ax = plane.plot()
    assert ax.get_xlim() == pytest.approx((-np.pi, np.pi))
    assert ax.get_ylim() == pytest.approx((-np.pi, np.pi))
    corners = np.concatenate([path.vertices for path in ax.collections[0].get_paths() if len(path.vertices)])
    assert np.abs(corners).max(axis=0) == pytest.approx([np.pi + np.pi / 12] * 2)


def test_a_figure_is_pyplot_s_in_an_interactive_session_and_its_own_otherwise(plane: FreeEnergySurface) -> None:
    plt.close("all")
    with matplotlib.rc_context({"backend": "agg", "interactive": False}):
        plane.plot()
        assert not plt.get_fignums()
    with matplotlib.rc_context({"interactive": True}):
        ax = plane.plot()
        assert ax.figure is plt.gcf()
    plt.close("all")
