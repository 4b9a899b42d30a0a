"""Committors by shooting: exact against the backward Kolmogorov equation, with honest errors and adaptive effort."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import spsolve

from couloir.errors import DataError, StoreError
from couloir.sampling import committors
from couloir.sampling.committors import CommittorResult, committor, committor_histogram_test, jeffreys_error
from couloir.sampling.potentials import ToyPotential, double_well, hysteresis
from couloir.sampling.toy import ToyEngine
from couloir.store import Store
from couloir.trajectory import Array, State


def grid_committor(potential: ToyPotential, kT: float, axes: tuple[Array, Array], in_a: Array, in_b: Array) -> Array:
    """Solve L q = 0 with q = 0 in A, 1 in B on a grid, L the generator of overdamped dynamics.

    Rates between neighbours exp(-(U_j - U_i) / 2 kT) / h^2 obey detailed balance exactly (square-root approximation, Lie,
    Fackeldey & Weber, SIAM J. Matrix Anal. Appl. 34, 738 (2013)); mobility and kT cancel.
    """
    shape = (len(axes[0]), len(axes[1]))
    points = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    energy, number = potential.energy(points) / kT, np.arange(len(points)).reshape(shape)
    pairs = [(number[:-1].ravel(), number[1:].ravel(), 0), (number[:, :-1].ravel(), number[:, 1:].ravel(), 1)]
    i = np.concatenate([np.concatenate([a, b]) for a, b, _ in pairs])
    j = np.concatenate([np.concatenate([b, a]) for a, b, _ in pairs])
    width = np.concatenate([np.full(2 * len(a), axes[axis][1] - axes[axis][0]) for a, _, axis in pairs])
    rates = csr_array((np.exp(-(energy[j] - energy[i]) / 2) / width**2, (i, j)), shape=(len(points),) * 2)
    generator = (rates - diags_array(rates.sum(axis=1))).tocsr()
    free = np.flatnonzero(~(in_a | in_b).ravel())
    q = in_b.ravel().astype(float)
    q[free] = spsolve(generator[free][:, free].tocsc(), -(generator[free] @ q))
    return q.reshape(shape)


def test_the_grid_solution_is_the_integral_formula_in_one_dimension() -> None:
    # with a harmonic second coordinate q depends on x alone: q(x) = int_a^x exp(V/kT) / int_a^b exp(V/kT)
    x, y = np.linspace(-1.6, 1.6, 129), np.linspace(-2, 2, 41)
    in_a, in_b = np.broadcast_to((x <= -0.8)[:, None], (129, 41)), np.broadcast_to((x >= 0.6)[:, None], (129, 41))
    q = grid_committor(double_well(2.0, harmonic=3.0), 1.0, (x, y), in_a, in_b)
    fine = np.linspace(-0.8, 0.6, 5601)
    cumulated = np.concatenate([[0], np.cumsum(np.exp(2 * (fine**4 - 2 * fine**2)))])[:-1]
    exact = np.interp(x, fine, cumulated / cumulated[-1])
    assert np.abs(q - exact[:, None]).max() < 2e-3


@pytest.mark.parametrize("seed", [1, 2])
def test_it_solves_the_backward_kolmogorov_equation_on_a_two_dimensional_surface(seed: int) -> None:
    potential, kT = hysteresis(), 2.0
    engine = ToyEngine(potential, kT=kT, time_step=5e-5, threads=1)
    x, y = potential.cvs()
    h = 0.0125
    axes = np.arange(-96, 97) * h, np.arange(-112, 113) * h
    # where neither coordinate alone is the committor, and A and B are no images of each other
    in_a = (axes[0] <= -0.1)[:, None] & (axes[1] <= -0.3)[None, :]
    in_b = (axes[0] >= 0.1)[:, None] & (axes[1] >= 0.2)[None, :]
    q = grid_committor(potential, kT, axes, in_a, in_b)
    across, along = np.meshgrid([-0.3, -0.15, 0.0, 0.15, 0.3], [-0.4, -0.2, 0.0, 0.15, 0.4], indexing="ij")
    states = [engine.state(float(u), float(v)) for u, v in zip(across.ravel(), along.ravel(), strict=True)]
    exact = q[np.rint(across / h).astype(int) + 96, np.rint(along / h).astype(int) + 112].ravel()
    found = committor(
        engine, states, (x < -0.1) & (y < -0.3), (x > 0.1) & (y > 0.2),
        standard_error=0.02, max_duration=10.0, stride=5e-5, seed=seed,
    )  # fmt: skip
    assert np.ptp(exact) == 1
    assert ((exact > 0.2) & (exact < 0.8)).sum() >= 8
    assert found.unfinished.sum() == 0 == found.failed.sum()
    assert (found.standard_error <= 0.02).all()
    assert np.sqrt(((found.p - exact) ** 2).mean()) <= 0.03


WELL = ToyEngine(double_well(2.0), kT=1.0, time_step=1e-3, threads=1)
(X,) = WELL.potential.cvs()
LEFT, RIGHT = X < -0.8, X > 0.8


def shoot(engine: ToyEngine, *xs: float, **settings: object) -> CommittorResult:
    usual = {"max_duration": 20.0, "stride": 1e-3, "seed": 3}
    return committor(engine, [engine.state(x) for x in xs], LEFT, RIGHT, **(usual | settings))


def test_configurations_inside_a_state_cost_nothing() -> None:
    found = shoot(WELL, -1.0, 0.9, 0.0)
    assert found.p[:2].tolist() == [0.0, 1.0]
    assert found.standard_error[:2].tolist() == [0.0, 0.0]
    assert found.n_shots[:2].tolist() == [0, 0]
    assert found.n_shots[2] > 0
    assert shoot(WELL, -1.0, 0.9).force_evaluations == 0


def test_shots_go_where_the_committor_is_undecided() -> None:
    found = shoot(WELL, -0.75, 0.0, 0.75, standard_error=0.04)
    assert (found.standard_error <= 0.04).all()
    assert found.n_shots[1] > 1.3 * max(found.n_shots[0], found.n_shots[2])
    assert found.n_shots[1] <= 0.25 / 0.04**2 + 1
    assert not found.warnings


def test_the_standard_error_is_that_of_repeated_estimates() -> None:
    # copies of one configuration: their spread is the error that each reports, up to 8 % that come from stopping by the error
    n = 250
    found = shoot(WELL, *[0.1] * n, standard_error=0.06)
    ratio = found.p.std(ddof=1) / np.sqrt((found.standard_error**2).mean())
    assert abs(ratio - 1) < 0.08 + 4.5 / np.sqrt(2 * n)
    test = committor_histogram_test(found.to_a, found.to_b, seed=1)
    assert abs(test.variance) < 4.5 * test.variance_error


def test_none_and_all_of_the_shots_leave_an_error() -> None:
    assert jeffreys_error([10, 0], [0, 10]) == pytest.approx(np.sqrt(0.5 * 10.5 / (121 * 12)))


def test_underdamped_shots_start_with_fresh_velocities() -> None:
    engine = ToyEngine(double_well(2.0), kT=1.0, time_step=5e-3, friction=1.0, threads=1)
    thrown = State(np.array([[0.0]]), np.array([[50.0]]))
    found = committor(engine, thrown, LEFT, RIGHT, standard_error=0.03, max_duration=20.0, stride=5e-3, seed=2)
    assert abs(found.p[0] - 0.5) < 4.5 * found.standard_error[0]


def test_results_repeat_and_do_not_depend_on_later_neighbours() -> None:
    alone, together = shoot(WELL, -0.2), shoot(WELL, -0.2, 0.3)
    assert (alone.p[0], alone.n_shots[0]) == (together.p[0], together.n_shots[0])
    assert shoot(WELL, *[0.0] * 9, seed=1).to_b.tolist() != shoot(WELL, *[0.0] * 9, seed=2).to_b.tolist()


def test_broken_off_after_any_batch_it_goes_on_without_making_a_shot_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committors, "_KEPT_BATCH", 15)
    made: list[tuple[int, int]] = []
    run, append = committors._Shooting.run, Store.append
    monkeypatch.setattr(committors._Shooting, "run", lambda self, shots: (made.extend(shots), run(self, shots))[1])
    whole, broken = Store(), Store()
    expected = shoot(WELL, -0.75, 0.0, 0.75, standard_error=0.07, store=whole)
    assert whole.count("committor/shots") > 4
    assert sorted(made) == [(i, k) for i, n in enumerate(expected.n_shots) for k in range(n)]
    once = sorted(made)
    made.clear()

    def failing(self: Store, chunks: dict, **options: object) -> None:
        append(self, chunks, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", failing)
        times = 0
        while True:
            try:
                found = shoot(WELL, -0.75, 0.0, 0.75, standard_error=0.07, store=broken)
                break
            except KeyboardInterrupt:
                times += 1
    assert times == whole.count("committor/shots")
    assert sorted(made) == once
    assert broken.digest() == whole.digest()
    plain = shoot(WELL, -0.75, 0.0, 0.75, standard_error=0.07)
    for result in (found, plain):
        assert result.to_dataframe().equals(expected.to_dataframe())
        assert result.force_evaluations == expected.force_evaluations


@pytest.mark.parametrize("other", [{"seed": 4}, {"standard_error": 0.09}, {"max_duration": 10.0}])
def test_a_store_refuses_other_shots_of_the_same_name(other: dict[str, float]) -> None:
    store = Store()
    settings: dict[str, object] = {"standard_error": 0.1, "store": store}
    key = next(iter(other))
    found = shoot(WELL, 0.0, **settings)
    with pytest.raises(StoreError, match=f"other shots called 'committor' .*{key.removeprefix('max_')}"):
        shoot(WELL, 0.0, **(settings | other))
    with pytest.raises(StoreError, match="different states"):
        shoot(WELL, 0.1, **settings)
    assert shoot(WELL, 0.1, **settings, name="another").n_shots[0] > 0
    assert shoot(WELL, 0.0, **settings).p[0] == found.p[0]


def test_unfinished_shots_are_counted_apart_and_reported() -> None:
    found = shoot(WELL, 0.0, max_duration=0.1, max_shots=60)
    assert found.unfinished[0] > 0
    assert found.to_a + found.to_b + found.unfinished == found.n_shots == [60]
    assert {warning.code for warning in found.warnings} == {"unfinished-shots", "committor-error-not-reached"}
    nothing = shoot(WELL, 0.0, max_duration=1e-3, max_shots=30)
    assert np.isnan([nothing.p[0], nothing.standard_error[0]]).all()
    assert "p_B unknown" in str(nothing)


def test_failed_shots_are_counted_and_the_others_go_on() -> None:
    engine = ToyEngine(double_well(2.0), kT=1.0, time_step=0.06, threads=1)
    found = committor(engine, [engine.state(30.0), engine.state(0.0)], X.between(-1.2, -0.8), X.between(0.8, 1.2),
                      max_duration=6.0, stride=0.06, seed=1, max_shots=40)  # fmt: skip
    assert found.failed[0] == found.n_shots[0] == 40
    assert found.to_a[1] + found.to_b[1] > 0
    assert "failed-shots" in {warning.code for warning in found.warnings}


def test_it_reads_as_text_and_as_a_table() -> None:
    found = shoot(WELL, -1.0, 0.0)
    assert "2 configurations, p_B from 0.00 to" in str(found)
    table = found.to_dataframe()
    assert list(table.p) == list(found.p)
    assert (table.n_shots == table.to_a + table.to_b + table.unfinished + table.failed).all()


@pytest.mark.parametrize("settings", [{"standard_error": 0.0}, {"standard_error": 0.5}, {"max_shots": 0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DataError):
        shoot(WELL, 0.0, **settings)


def test_overlapping_states_are_refused() -> None:
    with pytest.raises(DataError, match="overlap"):
        committor(WELL, WELL.state(0.5), X < 0.6, X > 0.4, max_duration=1.0, stride=1e-3, seed=1)


def drawn(p: Array, n: Array, seed: int) -> tuple[Array, Array]:
    hits = np.random.default_rng(seed).binomial(n, p)
    return n - hits, hits


def test_the_histogram_test_finds_the_intrinsic_spread_with_unequal_shots() -> None:
    rng = np.random.default_rng(1)
    p, n = rng.beta(2, 3, size=600), rng.integers(5, 60, size=600)
    found = committor_histogram_test(*drawn(p, n, 2), seed=3)
    assert abs(found.variance - p.var(ddof=1)) < 4.5 * found.variance_error
    assert abs(found.mean - p.mean()) < 4.5 * found.mean_error
    assert found.standard_deviation == pytest.approx(0.2, abs=4.5 * found.standard_deviation_error)
    assert not found.one_committor
    assert "not one committor" in str(found)


def test_for_equal_numbers_of_shots_it_is_the_correction_of_peters() -> None:
    to_a, hits = drawn(np.random.default_rng(4).uniform(size=50), np.full(50, 20), 5)
    share = hits / 20
    variance = share.var(ddof=1) - (share * (1 - share)).mean() / 19
    assert committor_histogram_test(to_a, hits, seed=1).variance == pytest.approx(variance)


def test_one_committor_is_rejected_as_often_as_the_level_says() -> None:
    n = np.random.default_rng(6).integers(5, 40, size=25)
    values = np.array([committor_histogram_test(*drawn(np.full(25, 0.4), n, s), seed=s, n_resamples=199).p_value for s in range(400)])
    # p-values are uniform: their mean has standard error 1/sqrt(12 n), the share below 0.05 that of a binomial
    assert abs(values.mean() - 0.5) < 4.5 / np.sqrt(12 * 400)
    assert abs((values <= 0.05).mean() - 0.05) < 4.5 * np.sqrt(0.05 * 0.95 / 400)


def test_a_coordinate_that_is_not_the_committor_is_told_from_one_that_is() -> None:
    # at fixed x + y the committor of this separable well depends on x alone, and so it varies
    engine = ToyEngine(double_well(2.0, harmonic=2.0), kT=1.0, time_step=1e-3, threads=1)
    settings = {"standard_error": 0.08, "max_duration": 20.0, "stride": 1e-3}
    ys = np.linspace(-0.6, 0.6, 30)
    good, bad = (
        committor(engine, [engine.state(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], LEFT, RIGHT, seed=4, **settings)
        for xs in (np.zeros(30), -ys)
    )
    assert committor_histogram_test(bad.to_a, bad.to_b, seed=1).p_value < 1e-3
    assert committor_histogram_test(good.to_a, good.to_b, seed=1).p_value > 1e-3


@pytest.mark.parametrize(("a", "b"), [([3], [4]), ([3, 1], [4, 0]), ([3, 2], [4]), ([3.5, 2], [4, 4]), ([-1, 9], [9, 9])])
def test_counts_that_say_nothing_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(DataError):
        committor_histogram_test(a, b, seed=1)


def test_by_default_frames_are_ten_steps_apart_and_shots_end_after_ten_thousand_of_them() -> None:
    engine = ToyEngine(double_well(2.0, harmonic=4.0), kT=1.0, time_step=1e-3, threads=1)
    x, _ = engine.potential.cvs()
    state = engine.state(-0.1, 0.0)
    told = committor(engine, state, x < -0.8, x > 0.8, standard_error=0.1, max_duration=100.0, stride=0.01, seed=1)
    default = committor(engine, state, x < -0.8, x > 0.8, standard_error=0.1, seed=1)
    assert (default.p[0], default.force_evaluations) == (told.p[0], told.force_evaluations)
