"""Path ensembles: weights that leave out what is not sampled yet, means with honest errors, densities along a CV."""

from dataclasses import replace

import numpy as np
import pytest

from couloir.analysis import PathEnsemble
from couloir.analysis.path_independence import n_effective_by_chains
from couloir.cv import Coordinate
from couloir.errors import DataError, Finding
from couloir.sampling import potentials, systems
from couloir.streams import stream
from couloir.trajectory import Trajectory

X, _ = potentials.double_well(2.0, harmonic=4.0).cvs()


def alanine(n=4, stretch=0.0):
    system = systems.alanine_dipeptide()
    one = system.state
    x = np.array([one.positions * (1 + stretch + 1e-3 * i) for i in range(n)])
    return Trajectory(x, 0.1, velocities=x[::-1], boxes=np.tile(3 * np.eye(3), (n, 1, 1)), topology=system.topology)


def path(n, low=-1.0, high=1.0):
    x = np.linspace(low, high, n)
    return Trajectory(np.stack([x, np.zeros(n)], axis=1)[:, None, :], 0.1)


def ensemble(lengths=(5, 9, 3, 21), chain=(0, 0, 0, 1), step=(0, 2, 5, 0), multiplicity=(1, 3, 1, 5), decorrelated=(0, 1, 1, 0), **other):
    outcomes = other.pop("outcomes", {"accepted": np.array([2, 0]), "ensemble": np.array([3, 5])})
    return PathEnsemble(tuple(map(path, lengths)), chain, step, multiplicity, decorrelated, outcomes, 1000, **other)


def correlated(seed, n_chains=4, n_steps=400, keep=0.9, shift=0.0):
    """Chains whose path lengths follow an autoregressive series around 100; every step is a path of its own."""
    rng = stream(seed, "lengths")
    y = np.zeros((n_chains, n_steps))
    y[:, 0] = rng.standard_normal(n_chains)
    for t in range(1, n_steps):
        y[:, t] = keep * y[:, t - 1] + np.sqrt(1 - keep**2) * rng.standard_normal(n_chains)
    y += shift * np.arange(n_chains)[:, None]
    chain, step = np.divmod(np.arange(y.size), n_steps)
    one = np.ones(y.size, dtype=int)
    outcomes = {"accepted": np.full(n_chains, n_steps)}
    return PathEnsemble((path(3),) * y.size, chain, step + 1, one, one, outcomes, 0), y.ravel()


def test_weights_count_repeats_and_leave_out_paths_that_hold_frames_of_the_first():
    found = ensemble()
    assert found.weights.tolist() == [0.0, 0.75, 0.25, 0.0]
    assert found.durations == pytest.approx([0.4, 0.8, 0.2, 2.0])
    assert found.mean(found.durations, "ps").value == pytest.approx(0.75 * 0.8 + 0.25 * 0.2)
    assert found.mean(lambda p: float(len(p))).value == pytest.approx(7.5)
    assert (found.n_chains, found.n_steps, found.acceptance) == (2, 5, 0.2)


def test_without_decorrelated_paths_there_are_no_weights_and_no_means():
    found = ensemble(decorrelated=(0, 0, 0, 0))
    assert not found.weights.any()
    assert found.n_effective == 0
    assert "never" in str(found)
    with pytest.raises(DataError, match="sample more steps"):
        found.mean(found.durations)
    with pytest.raises(DataError, match="no path is decorrelated"):
        found.density(X)


def test_the_standard_error_of_correlated_chains_is_that_of_repeated_samplings():
    estimates = [found.mean(y) for found, y in (correlated(seed) for seed in range(60))]
    spread = np.std([e.value for e in estimates], ddof=1)
    told = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
    naive = 1 / np.sqrt(1600)
    # the spread of 60 numbers is known to 9 %, and the error is meant to be rather too large than too small
    assert 0.7 < told / spread < 2.0
    assert told > 2.5 * naive


def test_chains_that_disagree_have_a_large_error_and_are_reported():
    found, y = correlated(1, shift=3.0)
    assert found.mean(y).standard_error > 1.0
    lengths = [round(50 + 5 * value) for value in y[::10]]
    apart = PathEnsemble(
        tuple(map(path, lengths)), found.chain[::10], found.step[::10], np.ones(160), np.ones(160), {"accepted": np.full(4, 40)}, 0
    )
    assert "chains-disagree" in [f.code for f in apart.diagnose()]


def channelled(seed, n_chains, away, n_steps=150):
    """Chains of short paths around x = 0 that remember a little; the last ``away`` of them around x = 0.5."""
    rng = np.random.default_rng(seed)
    paths, chain, step = [], [], []
    for c in range(n_chains):
        x = rng.normal()
        for k in range(n_steps):
            x = 0.7 * x + np.sqrt(1 - 0.7**2) * rng.normal()
            centre = 0.1 * x + 0.5 * (c >= n_chains - away)
            paths.append(path(5, centre - 0.3, centre + 0.3))
            chain.append(c)
            step.append(k)
    ones = np.ones(len(paths), dtype=int)
    return PathEnsemble(tuple(paths), chain, step, ones, ones, {"accepted": np.full(n_chains, n_steps)}, 0)


def test_a_chain_in_another_channel_shows_in_a_cv_where_paths_take_as_long():
    circle = Coordinate(0, "x", period=1.5)  # the second channel lies on both sides of its end
    for seed in range(10):
        apart, alike = channelled(seed, 8, 1), channelled(seed, 8, 0)
        assert apart.diagnose() == alike.diagnose([X]) == alike.diagnose([circle]) == []
        for cv in (X, circle):
            [finding] = apart.diagnose([cv])
            assert finding.code == "few-independent-paths"
            assert "by x" in finding.message


def test_independent_paths_are_counted_by_the_cv_that_tells_the_fewest():
    apart, alike = channelled(1, 8, 1), channelled(1, 8, 0)
    assert apart.n_effective == alike.n_effective == apart.n_independent() == 8 * 150  # all take as long
    assert apart.n_independent([X]) < 40 < alike.n_independent([X]) < 8 * 150
    y = Coordinate(1, "y")  # 0 on all paths
    assert alike.n_independent([y]) == 8 * 150
    assert apart.n_independent([y, X]) == apart.n_independent([X])
    assert ensemble(decorrelated=(0, 0, 0, 0)).n_independent([X]) == 0


def test_a_single_chain_counts_paths_by_how_long_it_remembers_a_cv():
    alone = channelled(2, 1, 0, n_steps=4000)
    # an autoregressive series with 0.7 from value to value has g = 1.7 / 0.3; g of 4000 values is known to 10 % or so
    assert alone.n_effective == 4000
    assert alone.n_independent([X]) == pytest.approx(4000 * 0.3 / 1.7, rel=0.45)


def test_a_cv_that_never_changes_but_for_rounding_does_not_tell_chains_apart():
    rng = np.random.default_rng(1)
    series = [0.1 + 1e-16 * (c + rng.random(50)) for c in range(2)]
    assert n_effective_by_chains(series, None) == 100
    assert n_effective_by_chains([1e12 * (s - 0.1) for s in series], None) < 10  # the same in numbers that count


def test_a_chain_that_is_stuck_is_not_taken_for_many_independent_paths():
    stuck = ensemble(lengths=(5, 9, 3, 7), step=(0, 2, 90, 50), multiplicity=(1, 88, 10, 98), decorrelated=(0, 1, 1, 1))
    assert stuck.n_effective <= 2
    alone = ensemble(multiplicity=(1, 0, 80, 1))
    assert alone.n_effective == pytest.approx(1.0)
    assert alone.mean(alone.durations).standard_error == np.inf
    assert [f.code for f in stuck.diagnose()] == ["few-independent-paths"]


def test_the_density_of_uniform_paths_is_uniform_and_integrates_to_one():
    found = ensemble(lengths=(5, 2000, 2000, 21)).density(X, np.linspace(-1.0, 1.0, 5))
    assert found.density == pytest.approx(np.full(4, 0.5), rel=1e-2)
    assert (found.density * np.diff(found.edges)).sum() == pytest.approx(1.0)
    assert found.centers == pytest.approx([-0.75, -0.25, 0.25, 0.75])


def test_the_density_weighs_frames_by_their_paths():
    paths = (path(10, -1.0, -0.5), path(10, 0.5, 1.0), path(100, 0.5, 1.0))
    found = PathEnsemble(paths, (0, 0, 0), (1, 4, 0), (3, 1, 2), (1, 1, 0), {"accepted": np.array([2])}, 0)
    density = found.density(X, [-1.0, 0.0, 1.0])
    assert density.density == pytest.approx([0.75, 0.25])
    assert (density.standard_error > 0).all()


def test_the_density_leaves_out_the_frames_in_a_and_b():
    two, four = (Trajectory(np.array(x)[:, None, None] * [1.0, 0.0], 0.1) for x in ([-1.0, 1.0], [-1.0, -0.2, 0.3, 1.0]))
    found = PathEnsemble((two, four), (0, 0), (1, 2), (3, 1), (1, 1), {"accepted": np.array([2])}, 0)
    density = found.density(X, [-1.5, -0.5, 0.0, 0.5, 1.5])
    assert (density.density * np.diff(density.edges)).tolist() == pytest.approx([0.0, 0.5, 0.5, 0.0])
    assert found.density(X, 5).edges[[0, -1]] == pytest.approx([-0.2, 0.3])
    one = Trajectory(np.array([-1.0, 0.25, 1.0])[:, None, None] * [1.0, 0.0], 0.1)
    alone = PathEnsemble((one, one), (0, 0), (1, 2), (1, 1), (1, 1), {"accepted": np.array([2])}, 0).density(X, 3)
    assert alone.density.tolist() == pytest.approx([0.0, 3.0, 0.0])
    assert alone.centers[1] == pytest.approx(0.25)


@pytest.mark.parametrize("bins", [10, [-2.0, 0.0, 2.0]])
def test_paths_without_a_frame_between_have_no_density(bins):
    pair = PathEnsemble((path(2), path(2)), (0, 0), (1, 2), (1, 1), (1, 1), {"accepted": np.array([2])}, 0)
    with pytest.raises(DataError, match="ends in A and B") as caught:
        pair.density(X, bins)
    assert "shorter stride" in caught.value.fix


def test_the_error_of_the_density_is_that_of_repeated_samplings():
    def sampled(seed):
        rng = stream(seed, "sides")
        sides = rng.random(200) < 0.3
        paths = tuple(path(20, 0.1, 1.0) if up else path(10, -1.0, -0.1) for up in sides)
        one = np.ones(200, dtype=int)
        found = PathEnsemble(paths, 0 * one, np.arange(200), one, one, {"accepted": np.array([200])}, 0)
        return found.density(X, [-1.0, 0.0, 1.0])

    densities = [sampled(seed) for seed in range(60)]
    spread = np.std([d.density[1] for d in densities], ddof=1)
    assert 0.7 < np.mean([d.standard_error[1] for d in densities]) / spread < 1.5
    exact = 0.3 * 20 / (0.3 * 20 + 0.7 * 10)
    assert np.mean([d.density[1] for d in densities]) == pytest.approx(exact, abs=4.5 * spread / np.sqrt(60) + 1e-3)


@pytest.mark.parametrize(
    ("bins", "message"), [([1.0, 0.0], "do not increase"), ([0.0], "do not increase"), ([5.0, 6.0], "no frame of a decorrelated path")]
)
def test_bins_that_say_nothing_are_refused(bins, message):
    with pytest.raises(DataError, match=message):
        ensemble().density(X, bins)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (), "chain": (), "step": (), "multiplicity": (), "decorrelated": ()}, "no paths"),
        ({"chain": (0, 0)}, "one entry per path"),
        ({"multiplicity": (1, -1, 1, 1)}, "negative"),
    ],
)
def test_arrays_that_do_not_fit_the_paths_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        ensemble(**change)


def test_paths_of_different_strides_are_refused():
    two = (path(5), Trajectory(path(5).positions, 0.2))
    with pytest.raises(DataError, match="time between frames"):
        PathEnsemble(two, (0, 0), (0, 1), (1, 1), (1, 1), {"accepted": np.array([1])}, 0)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, np.nan, 1.0, 1.0]])
def test_observables_are_one_finite_number_per_path(bad):
    with pytest.raises(DataError, match="one finite number for each of 4 paths"):
        ensemble().mean(bad)


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        ensemble().multiplicity[0] = 7


def test_text_table_and_figure_show_every_chain_path_and_finding():
    import matplotlib as mpl

    mpl.use("Agg")
    found = ensemble(findings=(Finding("paths-cut", "10% of the trials were cut off"),))
    text = str(found)
    assert "from step 2" in text
    assert "never" in text
    assert "[paths-cut]" in text
    table = found.to_dataframe()
    assert table.weight.tolist() == found.weights.tolist()
    assert table.duration_ps.tolist() == pytest.approx(found.durations.tolist())
    axes = found.plot(X)
    assert len(axes.lines) == 2
    assert "ps" in axes.get_xlabel()


@pytest.mark.parametrize("molecule", [False, True], ids=["toy", "molecule"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, molecule):
    found = ensemble(shooting=(-1, 3, 1, -1), findings=(Finding("paths-cut", "10% of the trials", "raise it"),))
    if molecule:
        found = replace(found, paths=(alanine(4), alanine(5), alanine(3), alanine(6, 0.1)))
    found.save(tmp_path / "paths.npz")
    back = PathEnsemble.load(tmp_path / "paths.npz")
    for one, other in zip(found.paths, back.paths, strict=True):
        assert one.stride == other.stride
        for name in ("positions", "velocities", "boxes"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and (a == b).all())
    for name in ("chain", "step", "multiplicity", "decorrelated", "shooting", "weights"):
        assert getattr(found, name).tolist() == getattr(back, name).tolist()
    assert {k: v.tolist() for k, v in found.outcomes.items()} == {k: v.tolist() for k, v in back.outcomes.items()}
    assert (back.findings, back.force_evaluations, str(back)) == (found.findings, found.force_evaluations, str(found))
    assert back.paths[0].topology == found.paths[0].topology
    assert [p.name for p in tmp_path.iterdir()] == ["paths.npz"]


def test_other_files_are_not_taken_for_paths(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("paths")
    ensemble().save(tmp_path / "half.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:500])
    for name in ("other.npz", "text.npz", "missing.npz", "half.npz"):
        with pytest.raises(DataError, match="does not hold saved paths"):
            PathEnsemble.load(tmp_path / name)


def test_exported_paths_are_read_by_other_programs(tmp_path):
    import mdtraj
    import pandas as pd

    found = replace(ensemble(), paths=(alanine(4), alanine(5), alanine(3), alanine(6)))
    files = found.export(tmp_path / "dcd")
    table = pd.read_csv(tmp_path / "dcd" / "paths.csv")
    assert [f.name for f in files] == table.file.tolist() == ["chain000_step000002.dcd", "chain000_step000005.dcd"]
    assert table.weight.tolist() == [0.75, 0.25]
    for file, path in zip(files, found.paths[1:3], strict=True):
        read = mdtraj.load(str(file), top=str(tmp_path / "dcd" / "topology.pdb"))
        assert read.xyz == pytest.approx(path.positions, abs=1e-5)
        assert read.topology.n_bonds == path.topology.n_bonds
    assert len(found.export(tmp_path / "all", every_path=True)) == 4


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(DataError, match="no topology"):
        ensemble().export(tmp_path)
    with pytest.raises(DataError, match="no path is decorrelated"):
        ensemble(decorrelated=(0, 0, 0, 0)).export(tmp_path)
    mixed = replace(ensemble(), paths=(alanine(4), *[Trajectory(alanine(n).positions, 0.1) for n in (5, 3, 6)]))
    with pytest.raises(DataError, match="others have none"):
        mixed.save(tmp_path / "mixed.npz")
    assert not list(tmp_path.iterdir())


def test_transition_states_are_shooting_points_or_where_a_committor_is_one_half():
    found = ensemble(shooting=(-1, 6, 1, 9), decorrelated=(0, 1, 1, 1))
    assert [float(s.positions[0, 0]) for s in found.transition_states()] == pytest.approx([0.5, 0.0, -0.1])
    assert [float(s.positions[0, 0]) for s in found.transition_states(2)] == pytest.approx([0.5, -0.1])
    by_cv = found.transition_states(committor=X)
    assert [float(s.positions[0, 0]) for s in by_cv] == pytest.approx([0.5, 0.0, 0.5])
    assert [float(s.positions[0, 0]) for s in found.transition_states(1, committor=X, at=-0.75)] == pytest.approx([-0.75])


def test_transition_states_that_are_nowhere_are_refused():
    with pytest.raises(DataError, match="made by shooting"):
        ensemble().transition_states()
    with pytest.raises(DataError, match="no path is decorrelated"):
        ensemble(shooting=(-1, 6, 1, 9), decorrelated=(0, 0, 0, 0)).transition_states()
    with pytest.raises(DataError, match="n = 0"):
        ensemble(shooting=(-1, 6, 1, 9)).transition_states(0)
