"""Samples and surfaces in other programs' shapes: pymbar's inputs and xarray."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from exact_systems import KT, double_well, torsion, umbrella

from couloir.analysis import BiasedSamples, free_energy_surface, mbar
from couloir.cv.bias import bias_from_dict
from couloir.errors import ConfigError, DataError


def wells(**options):
    return umbrella(double_well, np.linspace(-1.5, 1.5, 8), 60 * KT, 100, **options)


def test_pymbar_gets_what_it_wants_whatever_the_order_of_rows():
    import pymbar

    samples = wells()
    mixed = samples.select(np.random.default_rng(1).permutation(len(samples)))
    u, n = mixed.to_pymbar()
    assert u.shape == (8, 800)
    assert n.tolist() == [100] * 8
    f = mbar(samples).free_energies
    assert np.abs(pymbar.MBAR(u, n).f_k - (f - f[0])).max() < 1e-6
    # Bootstrapping inside pymbar resamples each state's block of rows, so the order of rows matters to it.
    order = np.argsort(mixed.window, kind="stable")
    assert np.allclose(u[3], mixed.bias_energies()[3][order] / KT)
    assert np.array_equal(np.repeat(np.arange(8), n), mixed.window[order])


def test_pymbar_gets_potential_energies_where_temperatures_differ():
    import pymbar

    samples = wells(seed=2)
    hot = {**samples.__dict__, "temperatures": np.linspace(300.0, 340.0, 8)}
    with pytest.raises(DataError, match="without potential energies: that of row 0 is nan"):
        BiasedSamples(**hot).to_pymbar()
    hot = BiasedSamples(**{**hot, "potential": double_well(samples["x"])})
    u, n = hot.to_pymbar()
    f = mbar(hot).free_energies
    assert np.abs(pymbar.MBAR(u, n).f_k - (f - f[0])).max() < 1e-6


def test_samples_as_an_xarray_dataset():
    samples = umbrella(torsion, [0.0, 0.5], 30 * KT, 50, period=2 * np.pi)
    table = samples.to_xarray()
    assert dict(table.sizes) == {"row": 100, "state": 2}
    assert table["x"].attrs == {"units": "rad", "period": 2 * np.pi}
    assert table["x"].where(table["window"] == 1, drop=True).size == 50
    assert bias_from_dict(json.loads(str(table["bias"].values[1]))) == samples.biases[1]
    assert table["temperature"].values.tolist() == [300.0, 300.0]


def test_a_surface_as_an_xarray_dataset():
    surface = free_energy_surface(wells(), "x", bins=20, n_bootstrap=5)
    table = surface.to_xarray()
    lowest = float(surface.minimum()[0])
    assert float(table["free_energy"].sel(x=lowest, method="nearest")) == 0
    assert table["replicas"].dims == ("replica", "x")
    assert table["free_energy"].attrs["units"] == "kJ/mol"
    assert surface.in_kT.to_xarray()["standard_error"].attrs["units"] == "kT"
    assert table.attrs["kT"] == surface.kT


def test_without_xarray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ConfigError, match=r'pip install "couloir\[interop\]"'):
        wells().to_xarray()


@pytest.mark.parametrize("temperatures", [[300.0, 310.0], [0.0], [float("nan")]])
def test_temperatures_that_do_not_fit_are_refused(temperatures):
    with pytest.raises(DataError, match="for 8 windows"):
        BiasedSamples(**{**wells().__dict__, "temperatures": np.array(temperatures)})
