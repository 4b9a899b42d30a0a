"""Claims about the toy potentials: gradients, published stationary points, and free energies against another quadrature."""

import pickle

import numpy as np
import pytest
from scipy import integrate, optimize

from couloir.errors import ConfigError, DataError
from couloir.sampling import potentials
from couloir.sampling.potentials import ToyPotential

EVERY = [
    *(make() for make in potentials.LIBRARY.values()),
    potentials.double_well(2.0, harmonic=3.0),
    potentials.harmonic((1.0, 2.0, 5.0)),
    potentials.variable_barrier(8.0, k=0.5),
    potentials.mueller_brown(scale=0.1),
    potentials.hidden_barrier(kT=2.5),
    potentials.hidden_barrier(periodic=True),
]


def temperature(potential):
    return abs(potential.parameters[1]) * 0.075 if potential.name == "mueller_brown" else 1.0  # 15 at scale 1


@pytest.mark.parametrize("potential", EVERY, ids=lambda p: f"{p.name}-{p.n_dim}")
def test_gradients_are_those_of_the_energy(potential):
    generator = np.random.default_rng(1)
    low, high = np.array(potential.bounds).T
    points = generator.uniform(low, high, (40, potential.n_dim))
    gradient = potential.gradient(points)
    for i in range(potential.n_dim):
        step = np.zeros(potential.n_dim)
        step[i] = 1e-5
        numeric = (potential.energy(points + step) - potential.energy(points - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-6, atol=1e-6 * (1 + np.abs(gradient).max()))


@pytest.mark.parametrize("potential", EVERY, ids=lambda p: f"{p.name}-{p.n_dim}")
def test_potentials_pickle_and_compare(potential):
    assert pickle.loads(pickle.dumps(potential)) == potential
    assert [cv.name for cv in potential.cvs()] == list(potential.names)


@pytest.mark.parametrize("potential", [p for p in EVERY if p.n_dim == 2], ids=lambda p: p.name)
@pytest.mark.parametrize("along", [0, 1])
def test_free_energies_agree_with_adaptive_quadrature(potential, along):
    kT = temperature(potential)
    other = 1 - along
    low, high = potential.bounds[along]
    grid = np.linspace(low, high, 7)[1:-1]

    def weight(t, s):
        x = np.empty((1, 2))
        x[0, along], x[0, other] = s, t
        return np.exp(-(potential.energy(x)[0] - floor) / kT)

    fine = np.linspace(*potential.bounds[other], 801)
    expected = []
    for s in grid:
        x = np.empty((801, 2))
        x[:, along], x[:, other] = s, fine
        energies = potential.energy(x)
        floor, top = energies.min(), fine[energies.argmin()]
        a, b = potential.bounds[other]
        if potential.confined[other] and potential.periods[other] is None:
            a, b = a - 2.0, b + 2.0
        value = sum(integrate.quad(weight, p, q, args=(s,), epsabs=1e-13, epsrel=1e-11, limit=300)[0] for p, q in [(a, top), (top, b)])
        expected.append(floor - kT * np.log(value))
    expected = np.array(expected) - min(expected)
    np.testing.assert_allclose(potential.exact_free_energy(grid, along, kT), expected, atol=1e-8)


@pytest.mark.parametrize("potential", [p for p in EVERY if p.n_dim == 2], ids=lambda p: p.name)
def test_densities_are_normalized_and_marginals_agree(potential):
    kT = temperature(potential)
    (a, b), (c, d) = ((v[0] - 1.5, v[1] + 1.5) if f and p is None else v for v, p, f in zip(potential.bounds, potential.periods, potential.confined, strict=True))  # fmt: skip # noqa: E501
    x, y = np.linspace(a, b, 501), np.linspace(c, d, 601)
    joint = potential.exact_density((x, y), (0, 1), kT)
    assert np.trapezoid(np.trapezoid(joint, y, axis=1), x) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.trapezoid(joint, y, axis=1), potential.exact_density(x, 0, kT), atol=2e-4)  # fmt: skip


def test_a_harmonic_potential_has_the_textbook_density_and_mean():
    potential = potentials.harmonic((2.0, 7.0, 3.0))
    x = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(potential.exact_free_energy(x, 1, 0.7), 3.5 * x**2, atol=1e-9)
    np.testing.assert_allclose(potential.exact_density(x, 0, 0.7), np.sqrt(2 / (2 * np.pi * 0.7)) * np.exp(-(x**2) / 0.7), rtol=1e-9)
    assert potentials.harmonic((2.0,)).exact_mean(lambda p: p[:, 0] ** 2, kT=0.7) == pytest.approx(0.35, rel=1e-10)


def test_one_dimensional_free_energy_is_the_potential():
    x = np.linspace(-1.5, 1.5, 31)
    np.testing.assert_allclose(potentials.double_well().exact_free_energy(x, kT=0.3), x**4 - 2 * x**2 + 1, atol=1e-12)


@pytest.mark.parametrize(
    ("point", "energy"),
    [
        ((-0.558, 1.442), -146.700), ((0.623, 0.028), -108.167), ((-0.050, 0.467), -80.768),
        ((-0.822, 0.624), -40.665), ((0.212, 0.293), -72.249),
    ],
)  # fmt: skip
def test_mueller_brown_has_its_published_minima_and_saddles(point, energy):
    potential = potentials.mueller_brown()
    found = optimize.root(lambda x: potential.gradient(x[None])[0], point, tol=1e-12).x
    np.testing.assert_allclose(found, point, atol=1e-3)
    assert potential.energy(found[None])[0] == pytest.approx(energy, abs=1e-3)


def test_double_wells_have_their_minima():
    well = potentials.dynamics_diffusion_well()
    minima = np.array([[(-3 + np.sqrt(1305)) / 36, 0], [(-3 - np.sqrt(1305)) / 36, 0]])
    np.testing.assert_allclose(well.gradient(minima), 0, atol=1e-12)
    x, y = minima[0, 0], 0.7
    assert well.energy(np.array([[x, y]]))[0] == pytest.approx(-9 * x**2 + x**3 + 4.5 * x**4 + 3 * y**2)
    np.testing.assert_allclose(potentials.double_well(3.0).energy(np.array([[-1.0], [0.0], [1.0]])), [-3, 0, -3], atol=1e-14)


@pytest.mark.parametrize("height", [4.0, 8.0])
def test_the_variable_barrier_has_wells_at_plus_and_minus_one_and_its_height_between(height):
    potential = potentials.variable_barrier(height)
    points = np.array([[3.0, -1.0], [3.0, 0.0], [3.0, 1.0]])
    np.testing.assert_allclose(potential.energy(points), [0, height, 0], atol=1e-12)
    np.testing.assert_allclose(potential.gradient(points), 0, atol=1e-12)


def test_the_wells_evolve_with_z1():
    potential = potentials.evolving_wells()
    z = np.array([[0.0, -1.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0], [10.0, 1.0]])
    np.testing.assert_allclose(potential.energy(z), [1, -1, 1, 0, 1], atol=1e-14)
    z1 = np.linspace(0, 10, 11)
    free = potential.exact_free_energy(z1, 0, 0.5)
    np.testing.assert_allclose(free, free[::-1], atol=1e-9)
    np.testing.assert_allclose(potential.gradient(z)[:, 1], -1 + 0.2 * z[:, 0] + 4 * z[:, 1] * (z[:, 1] ** 2 - 1), atol=1e-13)


def test_the_hysteresis_potential_follows_its_formula():
    x, y = 0.1, -0.3
    expected = (x**2 + y**2) ** 2 - 10 * np.exp(-30 * (x - 0.2) ** 2 - 3 * (y - 0.4) ** 2) - 10 * np.exp(-30 * (x + 0.2) ** 2 - 3 * (y + 0.4) ** 2)  # fmt: skip # noqa: E501
    assert potentials.hysteresis().energy(np.array([[x, y]]))[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("periodic", "window", "ends"), [(False, (-1.9, 2.0), (-2.0, 2.0)), (True, (-2.2, 2.2), (np.pi, 0.0))])
def test_windows_of_the_hidden_barrier_cannot_cross_it_and_its_modes_turn_over(periodic, window, ends):
    potential = potentials.hidden_barrier(periodic=periodic)
    y = np.linspace(-1.6, 1.6, 321)

    def slice_at(x):
        return potential.energy(np.stack([np.full_like(y, x), y], axis=1))

    for x in np.linspace(*window, 40):
        u = slice_at(x)
        top = u[(np.abs(y) < 0.7)].max()
        assert top - max(u[y < 0].min(), u[y > 0].min()) > 7
    mode = [np.exp(-slice_at(x)) for x in ends]
    right = [m[y > 0].sum() / m.sum() for m in mode]
    assert right[0] < 0.2
    assert right[1] > 0.99
    passage = slice_at(-np.pi if periodic else -2.7)
    assert passage[np.abs(y) < 0.7].max() - min(passage[y < 0].min(), passage[y > 0].min()) < 4


def test_potentials_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'harmonic'"):
        ToyPotential("h", "harmonics", (1.0,), ("x",), ((-1, 1),))
    with pytest.raises(DataError, match="2 coordinates"):
        potentials.hysteresis().energy(np.zeros((4, 3)))
    with pytest.raises(DataError, match="no coordinate 'z'"):
        potentials.hysteresis().exact_free_energy(np.zeros(3), along="z")
    with pytest.raises(DataError, match="pair"):
        potentials.hysteresis().exact_free_energy(np.zeros(3), along=(0, 0))
