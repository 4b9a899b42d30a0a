"""The exact pieces of the assisted-sampling benchmark: laws of z2 given z1, draws from them, models as tables."""

import numpy as np

from benchmarks.assisted.exactness import denied, rows_of
from benchmarks.assisted.fast_slow import CELLS, EDGES, TabulatedModel, binned, draw, driven, exact_cells, histogram, l1
from benchmarks.assisted.labels import law_at_zero
from couloir.sampling import potentials

CENTRES = 0.5 * (CELLS[1:] + CELLS[:-1])


def test_wells_of_the_variable_barrier_weigh_the_same_and_the_evolving_ones_as_their_tilt_says():
    even = exact_cells(potentials.variable_barrier(4.0), 0.5, 3.0)
    assert abs(even[CENTRES > 0].sum() - 0.5) < 1e-12
    left = {z1: exact_cells(potentials.evolving_wells(), 0.5, z1)[CENTRES < 0].sum() for z1 in (0.0, 5.0, 10.0)}
    assert abs(left[5.0] - 0.5) < 1e-12
    assert abs(left[0.0] + left[10.0] - 1) < 1e-12
    assert left[10.0] > 0.95


def test_cells_are_the_boltzmann_density_as_quadrature_gives_it():
    potential = potentials.evolving_wells()
    cells = exact_cells(potential, 0.5, 12.0)
    fine = np.linspace(-3, 3, 60001)
    weight = np.exp(-potential.energy(np.stack([np.full_like(fine, 12.0), fine], axis=1)) / 0.5)
    mean = np.trapezoid(weight * fine, fine) / np.trapezoid(weight, fine)
    assert abs(cells @ CENTRES - mean) < 1e-4


def test_draws_follow_their_cells():
    cells, n = exact_cells(potentials.evolving_wells(), 0.5, 7.0), 40_000
    z2 = draw(cells, n, np.random.default_rng(0))
    p = binned(cells)
    apart = (histogram(z2[None])[0] - p) / np.sqrt(np.maximum(p * (1 - p) / n, 1e-9))
    assert np.abs(apart[p > 1e-4]).max() < 5


def test_histograms_count_every_group_by_itself():
    z2 = np.array([[-1.05, -1.05, 0.05, 9.0], [0.05, 0.05, 0.05, 0.05]])
    shares = histogram(z2)
    assert shares.sum(axis=1).tolist() == [0.75, 1.0]
    assert shares[:, np.searchsorted(EDGES, 0.05) - 1].tolist() == [0.25, 1.0]


def test_distance_is_zero_for_equal_and_two_for_disjoint_distributions():
    p, q = np.eye(4)[0], np.eye(4)[2]
    assert l1(p, p) == 0
    assert l1(p, q) == 2


def test_a_tabulated_model_is_normalized_and_divides_by_what_it_draws_from():
    table = TabulatedModel(exact_cells(potentials.variable_barrier(4.0), 0.5, 5.0), 5.0)
    drawn = table.sample(30_000, seed=1)
    assert np.array_equal(drawn.log_prob, table.log_prob(drawn.positions))
    assert (drawn.positions[:, 0, 0] == 5.0).all()
    # The mean of 1/q over draws from q is the length that q covers, whatever q is; on the wells alone, where q is not tiny.
    inside = np.abs(np.abs(drawn.positions[:, 0, 1]) - 1) < 0.15
    inverse = np.where(inside, np.exp(-drawn.log_prob), 0.0)
    assert abs(inverse.mean() - 0.6) < 5 * inverse.std() / np.sqrt(len(inverse)) + 2e-3
    assert table.log_prob(np.array([[[5.0, 4.0]]]))[0] == -np.inf


def test_the_law_where_a_label_is_zero_is_that_of_samples_near_zero():
    potential, kT, n = potentials.evolving_wells(), 0.5, 200_000
    rng = np.random.default_rng(2)
    z1 = rng.uniform(0, 10, n)
    joint = np.array([exact_cells(potential, kT, z) for z in np.linspace(0.05, 9.95, 100)])
    z2 = np.concatenate([draw(joint[k], int((z1 // 0.1 == k).sum()), rng) for k in range(100)])
    points = np.stack([np.sort(z1), z2], axis=1)[:, None]

    class Tilted:
        """A label whose level sets are neither straight nor evenly spaced."""

        def evaluate(self, positions):
            return (positions[:, 0, 0] - 5) * (1 + 0.2 * positions[:, 0, 1]) + 0.3 * positions[:, 0, 1]

    cells, mean = law_at_zero(Tilted(), potential, kT)
    near = points[np.abs(Tilted().evaluate(points)) < 0.1]
    p = binned(cells)
    apart = (histogram(near[None, :, 0, 1])[0] - p) / np.sqrt(np.maximum(p * (1 - p) / len(near), 1e-9))
    assert np.abs(apart[p > 5e-3]).max() < 5
    assert abs(mean - near[:, 0, 0].mean()) < 0.05


def test_pooled_rows_keep_their_windows_and_walkers():
    engine = driven(potentials.variable_barrier(4.0), 0.5, 1e-3)
    samples = rows_of(np.arange(24.0).reshape(8, 3), engine, per_window=4)
    assert samples.n_windows == 2
    assert samples.window.tolist() == [0] * 12 + [1] * 12
    assert samples.walker.tolist() == np.repeat(np.arange(8), 3).tolist()
    assert rows_of(np.arange(24.0).reshape(8, 3), engine).n_windows == 1


def test_energies_deny_wrong_weights_of_wells_and_leave_right_ones_alone():
    engine = driven(potentials.variable_barrier(4.0), 0.5, 1e-3)
    right = exact_cells(potentials.variable_barrier(4.0), 0.5, 5.0)
    wrong = np.where(CENTRES > 0, 10 * right, right)
    share = {
        name: denied(TabulatedModel(cells / cells.sum(), 5.0), engine, 300, 50, seed=1) for name, cells in (("r", right), ("w", wrong))
    }
    assert share["r"] == 0
    assert share["w"] >= 0.9
