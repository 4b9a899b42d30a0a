import sys

import numpy as np
import pytest
from exact_systems import KT, double_well, umbrella

from couloir.analysis import mbar, wham
from couloir.errors import DataError


def wells(n=400, seed=21):
    return umbrella(double_well, np.linspace(-1.6, 1.6, 14), 60 * KT, n, seed=seed)


def test_automatic_bins_stop_when_free_energies_do():
    samples = wells()
    result = wham(samples, bins="auto")
    assert result.movement is not None
    assert 0 < result.movement < 1e-3
    # The last halving moved less than 0.001 kT and the error shrinks fourfold with each.
    assert np.abs(result.free_energies - mbar(samples).free_energies).max() < 1.5e-3
    assert wham(samples).movement is None


def test_refinement_that_must_stop_says_so(monkeypatch):
    # couloir.analysis.wham is the function; the module behind it is in sys.modules.
    module = sys.modules["couloir.analysis.wham"]
    monkeypatch.setattr(module, "MOVEMENT", 0.0)
    monkeypatch.setattr(module, "_LARGEST", 10_000)
    assert "coarse-bins" in {f.code for f in wham(wells(), bins="auto").findings}


def test_torch_solves_the_same_dual():
    pytest.importorskip("torch")
    samples = wells()
    a, b = wham(samples), wham(samples, device="cpu")
    assert np.abs(a.free_energies - b.free_energies).max() < 1e-9
    assert np.abs(a.weights - b.weights).max() < 1e-12


def test_bad_widths_are_refused():
    for widths in (0.0, -1.0, [0.1, 0.1], np.inf):
        with pytest.raises(DataError, match="widths"):
            wham(wells(n=20), widths=widths)
    with pytest.raises(DataError, match="give one of the two"):
        wham(wells(n=20), widths=0.1, bins="auto")
