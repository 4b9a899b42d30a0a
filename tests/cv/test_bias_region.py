"""Biases mean the same in NumPy and in OpenMM; regions are sets."""

from __future__ import annotations

import numpy as np
import openmm
import pytest

from couloir.cv import Dihedral, Distance, FlatBottom, HarmonicBias, Region, Tabulated, bias_from_dict
from couloir.errors import ConfigError, DataError, UnitError

PHI, D = Dihedral((0, 1, 2, 3), "phi"), Distance((0, 3), "d")
TABLE = np.cos(np.linspace(-np.pi, np.pi, 61)) * 3
TABLE[-1] = TABLE[0]
BIASES = {
    "harmonic": HarmonicBias.on(PHI, 0.3, 40.0),
    "harmonic at the edge": HarmonicBias.on(PHI, "179 deg", "0.01 kJ/mol/deg^2"),
    "harmonic at the lower edge": HarmonicBias.on(PHI, -3.1, 40.0),
    "flat bottom": FlatBottom.on(PHI, 3.0, 0.4, 25.0),
    "tabulated": Tabulated(("phi",), -np.pi, np.pi, tuple(TABLE), periodic=True),
    "sum": HarmonicBias.on(PHI, -2.9, 10.0) + FlatBottom.on(PHI, 0.5, 0.2, 8.0) + Tabulated(("phi",), -np.pi, np.pi, tuple(TABLE), True),
}
EVERY_BIAS = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())


def frames(angles) -> np.ndarray:
    made = np.array([[[0.1, 0, 0], [0, 0, 0], [0, 0, 0.15], [0.1 * np.cos(a), 0.1 * np.sin(a), 0.15]] for a in angles])
    return made if np.allclose(PHI.evaluate(made), angles) else made * np.array([1, -1, 1])


ANGLES = np.array([-3.14, -3.0, -2.0, -0.7, 0.1, 0.4, 1.3, 2.8, 3.05, 3.14])


@EVERY_BIAS
def test_lepton_energy_and_forces_equal_numpy_on_the_whole_circle(bias):
    positions = frames(ANGLES)
    values, slopes = PHI.value_and_gradient(positions)
    assert values == pytest.approx(ANGLES)
    term = bias.lepton()
    force = PHI.to_openmm_energy(term.expression, term.parameters)
    for name, (low, high, periodic, table) in term.tables.items():
        force.addTabulatedFunction(name, openmm.Continuous1DFunction(table, low, high, periodic))
    system = openmm.System()
    for _ in range(4):
        system.addParticle(10.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    energies, gradients = bias.energy(values[:, None]), bias.gradient(values[:, None])[:, 0]
    assert np.ptp(energies) > 1
    for frame, energy, gradient, slope in zip(positions, energies, gradients, slopes, strict=True):
        context.setPositions(frame)
        state = context.getState(energy=True, forces=True)
        assert state.getPotentialEnergy()._value == pytest.approx(energy, rel=1e-6, abs=1e-6)
        assert state.getForces(asNumpy=True)._value == pytest.approx(-gradient * slope, rel=1e-4, abs=1e-3)


@EVERY_BIAS
def test_gradient_is_that_of_the_energy(bias):
    x, h = ANGLES[:, None], 1e-6
    assert bias.gradient(x)[:, 0] == pytest.approx((bias.energy(x + h) - bias.energy(x - h)) / (2 * h), rel=1e-4, abs=1e-4)


@EVERY_BIAS
def test_plain_data_rebuild_the_bias(bias):
    assert bias_from_dict(bias.to_dict()) == bias


def test_biases_that_differ_only_in_numbers_share_their_structure():
    a, b = (HarmonicBias.on(PHI, c, k).lepton() for c, k in ((0.1, 5), (3.0, 50)))
    assert a.structure == b.structure
    assert a.parameters != b.parameters
    assert a.structure != FlatBottom.on(PHI, 0, 1, 1).lepton().structure


def test_a_bias_refuses_wrong_units_and_negative_constants():
    with pytest.raises(UnitError, match="center"):
        HarmonicBias.on(PHI, "1 nm", 10)
    with pytest.raises(DataError, match="negative"):
        HarmonicBias.on(D, 0.1, -1.0)


def inside(region: Region, angles) -> list[bool]:
    return region.contains(frames(angles)).tolist()


def test_regions_form_an_algebra():
    low, high = PHI < -1, PHI > 1
    angles = [-2.0, 0.0, 2.0]
    assert inside(low | high, angles) == [True, False, True]
    assert inside(~(low | high), angles) == [False, True, False]
    assert inside((PHI > -1) & (PHI < 1), angles) == [False, True, False]
    assert (low & (D > 0.1)).cvs == (PHI, D)


def test_an_interval_may_run_through_the_edge_of_the_period():
    assert inside(PHI.between(3.0, -3.0), [3.1, -3.1, 2.9, -2.9, 0.0]) == [True, True, False, False, False]


def test_a_region_is_read_from_text():
    region = Region.parse("phi > 0.7 and not phi >= 1.5 or phi < -3", {"phi": PHI, "d": D})
    assert inside(region, [0.5, 1.0, 1.6, -3.1]) == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phj > 1", "unknown CV 'phj'.*did you mean 'phi'"),
        ("phi >", "cannot read"),
        ("phi > d", "cannot read"),
        ("0 < phi < 1", "cannot read"),
    ],
)
def test_a_region_that_cannot_be_read_says_so(text, message):
    with pytest.raises(ConfigError, match=message):
        Region.parse(text, {"phi": PHI, "d": D})


def test_a_chained_comparison_is_refused():
    with pytest.raises(TypeError, match="is a set"):
        -1 < PHI < 1  # noqa: B015


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("phi < 60 deg", (-np.inf, np.pi / 3)),
        ("phi > -60deg", (-np.pi / 3, np.inf)),
        ("phi > - 1.5e0 rad", (-1.5, np.inf)),
        ("d < 3.5 angstrom", (-np.inf, 0.35)),
        ("d >= .4 nm", (0.4, np.inf)),
        ("d > 1e-1", (0.1, np.inf)),
    ],
)
def test_limits_in_text_take_units(text, limits):
    region = Region.parse(text, {"phi": PHI, "d": D})
    assert (region.low, region.high) == pytest.approx(limits)


def test_units_work_inside_a_longer_region():
    region = Region.parse("(phi > 40 deg and not phi >= 86 deg) or phi < -172 deg", {"phi": PHI})
    assert inside(region, [0.5, 1.0, 1.6, -3.1]) == [False, True, False, True]


@pytest.mark.parametrize(("text", "message"), [("phi < 60 dge", "unknown unit 'dge'.*did you mean 'deg'"), ("phi < 1 nm", "does not fit")])
def test_an_unknown_or_misplaced_unit_in_a_region_is_named(text, message):
    with pytest.raises(UnitError, match=message):
        Region.parse(text, {"phi": PHI})


def test_limits_take_units_in_code_too():
    assert ((PHI < "60 deg").high, (D > "2 angstrom").low) == pytest.approx((np.pi / 3, 0.2))


@pytest.mark.parametrize(
    "build", [lambda: PHI < 60, lambda: PHI.between(3.0, 4.0), lambda: Region.parse("phi > -200 deg", {"phi": PHI})], ids=range(3)
)
def test_a_limit_outside_the_period_is_refused_with_the_place_it_means(build):
    with pytest.raises(DataError, match=r"(?s)outside the period of phi.*the same place is"):
        build()


def test_the_edges_of_the_period_are_limits():
    assert inside(PHI.between("-180 deg", "180 deg"), [-3.0, 0.0, 3.0]) == [True, True, True]
