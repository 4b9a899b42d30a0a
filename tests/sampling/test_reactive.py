"""From generated paths to reactive ones: what is returned is real dynamics from A to B, and everything is counted."""

from functools import cache

import numpy as np
import pytest

from couloir.errors import ConfigError, DataError, ModelError, SimulationError
from couloir.sampling import ToyEngine, potentials, reactive_seeds, two_way_shots
from couloir.sampling.rebuild import Rebuilt
from couloir.sampling.velocities import turned_paths
from couloir.streams import stream
from couloir.trajectory import State

WELL = potentials.double_well(4.0, harmonic=4.0)
X, Y = WELL.cvs()
A, B = X < -0.8, X > 0.8
OVERDAMPED = ToyEngine(WELL, kT=1.0, time_step=1e-3, threads=1)
STRIDE = 1e-2


def underdamped(friction: float) -> ToyEngine:
    return ToyEngine(WELL, kT=1.0, time_step=1e-3, friction=friction, threads=1)


class Interpolation:
    """Straight lines between the imposed frames, with a little noise on the others: a model that has learned nothing."""

    n_frames, stride = 24, STRIDE

    def __init__(self, noise: float = 0.02) -> None:
        self.noise = noise

    def inpaint(self, known, mask, *, seed, n_calls=20, resamples=1):
        at = np.flatnonzero(mask)
        weight = np.interp(np.arange(len(mask)), at[[0, -1]], [0.0, 1.0])[None, :, None, None]
        lines = (1 - weight) * known[:, at[:1]] + weight * known[:, at[-1:]]
        noise = self.noise * stream(seed, "noise").standard_normal(known.shape)
        return np.where(mask[None, :, None, None], known, lines + noise)


@cache
def md():
    return tuple(OVERDAMPED.propagate([OVERDAMPED.state(s, 0.0) for s in (-1.0, 1.0)], duration=20.0, stride=STRIDE, seed=3))


def seeds(model=None, **settings):
    return reactive_seeds(model or Interpolation(), OVERDAMPED, A, B, 8, **{"seed": 1, "data": md(), "max_duration": 5.0, **settings})


@pytest.mark.parametrize("selection", ["top", "spread"])
def test_seeds_run_from_a_to_b_and_touch_neither_in_between(selection):
    found = seeds(selection=selection)
    assert len(found) >= 8
    for k, path in enumerate(found):
        in_a, in_b = A.contains(path.positions), B.contains(path.positions)
        assert np.flatnonzero(in_a).tolist() == [0]
        assert np.flatnonzero(in_b).tolist() == [len(path) - 1]
        origin = found.generated[found.generated_paths[k], found.generated_frames[k]]
        assert (found.shooting_state(k).positions == origin).all()


def test_the_table_accounts_for_every_path_and_shot_and_what_they_cost():
    found = seeds(n_generate=30)
    c = found.counts
    assert c["generated"] == len(found.generated) == len(found.scores) == 30
    assert c["passed every gate"] == int(found.scores.passed_all.sum()) >= c["with frames between A and B"] > 0
    assert c["shots"] == c["connecting"] + c["A and A"] + c["B and B"] + c["unfinished"] + c["failed"]
    assert c["connecting"] == len(found)
    assert c["network calls"] == 30 * 20
    in_paths = sum(round((len(path) - 1) * STRIDE / OVERDAMPED.time_step) for path in found)
    assert c["force evaluations"] >= in_paths
    assert all(name in str(found) for name in c)


def test_seams_of_paths_made_before_are_judged_where_frames_were_imposed():
    made = np.array(seeds(n_generate=12).generated)
    made[:, 12:, 0, 1] += 1.2  # a tear between frames 11 and 12
    at_tear = np.arange(made.shape[1]) == 12
    settings = {"generated": made, "require_gates": False}
    assert seeds(**settings).scores.passed["seam"].all()
    assert not seeds(**settings, imposed=at_tear).scores.passed["seam"].any()
    with pytest.raises(ConfigError, match="imposed="):
        seeds(imposed=at_tear)
    with pytest.raises(DataError, match="imposed has shape"):
        seeds(**settings, imposed=at_tear[1:])


def test_gates_of_generated_paths_that_were_not_judged_are_in_the_table():
    found = seeds()
    assert set(found.scores.not_judged) == {"bonds", "angles"}
    assert "gate not judged: bonds (there are none without a topology)" in str(found)


def test_every_frame_that_is_rebuilt_is_kept_with_what_the_rebuild_says_of_it():
    def rebuild(frames):
        failed = tuple("energy" if i % 3 == 0 else None for i in range(len(frames)))
        states = tuple(None if gate else State(frame) for gate, frame in zip(failed, frames, strict=True))
        return Rebuilt(states, failed, np.abs(frames[:, 0, 0]), OVERDAMPED.energies(frames))

    found = seeds(rebuild=rebuild)
    rows = found.rebuilt
    assert found.counts["not rebuilt"] == found.counts["not rebuilt: energy"] == rows.failures["energy"] > 0
    assert len(rows) == found.counts["not rebuilt"] + found.counts["rebuilt into A or B"] + found.counts["shots"]
    frames = found.generated[rows.paths, rows.frames]
    assert rows.energies == pytest.approx(OVERDAMPED.energies(frames))
    assert (rows.displacement == np.abs(frames[:, 0, 0])).all()
    table = rows.to_dataframe()
    assert (table["failed"] == "energy").sum() == found.counts["not rebuilt"]
    shot_from = set(zip(found.generated_paths.tolist(), found.generated_frames.tolist(), strict=True))
    passed = table[table["failed"] == ""]
    assert shot_from <= set(zip(passed["generated_path"], passed["generated_frame"], strict=True))
    silent = seeds(rebuild=lambda given: list(rebuild(given)))
    assert silent.rebuilt.failures == {"unnamed": silent.counts["not rebuilt"]}
    assert np.isnan(silent.rebuilt.energies).all()


def test_the_same_seed_finds_the_same_paths():
    one, same, other = seeds(), seeds(), seeds(seed=2)
    assert all((p.positions == q.positions).all() for p, q in zip(one, same, strict=True))
    assert one.paths[0].positions.shape != other.paths[0].positions.shape or (one.paths[0].positions != other.paths[0].positions).any()


def test_shooting_moves_along_the_path_until_it_finds_the_top():
    """A model whose middle frame lies far down on A's side: one shot per path rarely connects, several do."""

    class Late(Interpolation):
        def inpaint(self, known, mask, *, seed):
            lines = super().inpaint(known, mask, seed=seed)
            lines[:, 1:-1, 0, 0] = np.interp(np.arange(1, len(mask) - 1), [1, 16, len(mask) - 2], [-0.45, -0.35, 0.75])
            return lines

    settings = {"starts_a": md(), "starts_b": md(), "n_generate": 60, "max_duration": 5.0, "seed": 1}
    few, many = (reactive_seeds(Late(), OVERDAMPED, A, B, 60, n_shots_per_path=k, **settings) for k in (1, 5))
    assert len(many) > 2 * len(few)
    assert many.generated_frames.mean() > few.generated_frames.mean()


def test_a_model_that_samples_finds_its_own_ends():
    class Sampler(Interpolation):
        def sample(self, n, *, seed):
            return np.concatenate([t.positions for t in md()])[: n * 10].reshape(-1, 10, 1, 2)

    found = reactive_seeds(Sampler(), OVERDAMPED, A, B, 2, seed=1, max_duration=5.0)
    assert found.scores is None
    assert [f.code for f in found.findings] == ["paths-not-scored"]
    assert "network calls" in found.counts


def test_ends_that_are_missing_are_asked_for():
    with pytest.raises(DataError, match="starts_b"):
        seeds(data=md()[0])
    with pytest.raises(DataError, match="give starts_a"):
        seeds(data=None)
    assert len(seeds(data=md()[0], starts_b=[OVERDAMPED.state(1.0, 0.0)])) >= 8


def test_paths_that_jump_are_kept_reported_and_not_shot_from():
    with pytest.raises(ModelError, match=r"passed every gate +0\n"):
        seeds(Interpolation(noise=2.0))


def test_refused_paths_come_with_the_error_and_are_shot_from_without_generating_again():
    with pytest.raises(ModelError, match=r"the gate 'jump' failed most, \d+ of 24 \(the best of these has jump_ratio") as caught:
        seeds(Interpolation(noise=0.4))
    partial = caught.value.partial
    assert len(partial.generated) == len(partial.scores) == 24
    assert "generated=error.partial" in caught.value.fix

    class Exhausted(Interpolation):
        def inpaint(self, known, mask, *, seed):
            raise AssertionError("generated again")

    for looser in ({"gates": {"max_jump": 1e3, "max_seam": 1e3, "max_energy": 1e3}}, {"require_gates": False}):
        found = seeds(Exhausted(), generated=partial, **looser)
        assert (found.generated == partial.generated).all()
        assert found.counts["network calls"] == 0
        assert len(found) > 0
    assert len(seeds(Exhausted(), generated=partial.generated, data=None, require_gates=False)) > 0
    with pytest.raises(DataError, match="frames"):
        seeds(Exhausted(), generated=partial.generated[0], require_gates=False)


def test_paths_that_pass_but_have_no_frame_between_the_states_are_told_apart():
    class Stepping(Interpolation):
        def inpaint(self, known, mask, *, seed):
            return np.where(np.arange(len(mask))[:, None, None] < len(mask) // 2, known[:, :1], known[:, -1:])

    with pytest.raises(ModelError, match="24 of 24 generated paths could be used, but none has a frame between") as caught:
        seeds(Stepping(), require_gates=False)
    assert "closer together" in caught.value.fix


def test_a_model_of_many_temperatures_generates_at_the_engines():
    given = []

    class Conditioned(Interpolation):
        log_kT = 0.0, 1.0

        def sample(self, n, *, seed, kT):
            given.append(kT)
            return np.stack([run.positions[:200] for run in md()])

        def inpaint(self, known, mask, *, seed, kT):
            given.append(kT)
            return super().inpaint(known, mask, seed=seed)

    seeds(Conditioned(), data=None)
    assert given == [OVERDAMPED.kT] * 2
    seeds(Conditioned(), data=None, inpainting={"kT": 0.5})
    assert given[2:] == [0.5] * 2


def test_limits_of_gates_need_md_to_judge_by():
    with pytest.raises(ConfigError, match="without data"):
        seeds(starts_a=md(), starts_b=md(), data=None, gates={"max_jump": 2.0})


def test_when_nothing_connects_the_table_is_in_the_message():
    with pytest.raises(SimulationError, match=r"unfinished +\d+") as caught:
        seeds(max_duration=0.02)
    assert len(caught.value.partial.generated) == 24
    assert "max_duration" in caught.value.fix


def test_half_of_the_shots_from_a_symmetric_top_connect():
    n = 1000
    shots = two_way_shots(OVERDAMPED, OVERDAMPED.state(0.0, 0.0), A, B, max_duration=20.0, stride=1e-3, seed=5, n_per_state=n)
    assert shots.counts()["unfinished"] == shots.counts()["failed"] == 0
    assert abs(shots.connecting.mean() - 0.5) < 4 * np.sqrt(0.25 / n)
    to_b = np.mean([end == "B" for end in shots.backward_ends + shots.forward_ends])
    assert abs(to_b - 0.5) < 4 * np.sqrt(0.25 / (2 * n))


def test_opposite_velocities_carry_the_halves_apart_when_friction_is_low():
    engine = underdamped(0.1)
    shots = two_way_shots(engine, engine.state(0.0, 0.0), A, B, max_duration=20.0, stride=STRIDE, seed=5, n_per_state=200)
    assert shots.connecting.mean() > 0.75


def test_velocities_point_along_the_path_in_both_halves_and_after_time_reversal():
    engine = underdamped(1.0)
    shots = two_way_shots(engine, engine.state(0.1, 0.3), A, B, max_duration=20.0, stride=1e-3, seed=2, n_per_state=4)
    for path in (*shots.paths, *turned_paths(engine, shots.paths)):
        seen = (path.positions[2:] - path.positions[:-2]) / (2 * path.stride)
        assert np.abs(seen - path.velocities[1:-1]).max() < 0.3
        assert np.abs(path.velocities).max() > 0.5


def test_drawn_velocities_have_the_engines_temperature():
    engine = ToyEngine(WELL, kT=2.5, time_step=1e-3, friction=1.0, masses=4.0, threads=1)
    n = 1000
    shots = two_way_shots(engine, engine.state(0.0, 0.0), A, B, max_duration=1e-3, stride=1e-3, seed=1, n_per_state=n)
    drawn = np.array([p.velocities[f] for p, f in zip(shots.paths, shots.shooting_frames, strict=True)])
    assert abs((4.0 * drawn**2).mean() - 2.5) < 4 * 2.5 * np.sqrt(2 / drawn.size)


def test_a_shot_from_inside_a_state_is_refused():
    with pytest.raises(DataError, match="state 1 is inside B"):
        two_way_shots(OVERDAMPED, [State([[0.0, 0.0]]), State([[1.0, 0.0]])], A, B, max_duration=1.0, stride=STRIDE, seed=1)


def transition_paths(x):
    """Return durations (frames) of the transition paths in a series x (n,), either way."""
    label = np.where(x < -0.8, -1, np.where(x > 0.8, 1, 0))
    at = np.flatnonzero(label)
    crossings = np.flatnonzero(label[at[1:]] != label[at[:-1]])
    return at[crossings + 1] - at[crossings]


@pytest.mark.statistical
def test_shots_from_equilibrium_on_top_give_brute_force_path_times():
    """A path is shot as often as it has frames in the window; weighted by their inverse, path times are those of brute force."""
    walkers = OVERDAMPED.propagate([OVERDAMPED.state(-1.0, 0.0)] * 20, duration=2000.0, stride=STRIDE, seed=1)
    brute = np.concatenate([transition_paths(t.positions[:, 0, 0]) for t in walkers])
    rng, width = np.random.default_rng(1), 0.1
    points = np.stack([rng.uniform(-width, width, 20_000), rng.normal(0, 0.5, 20_000)], axis=1)
    energy = WELL.energy(points * [1.0, 0.0])
    points = points[rng.random(len(points)) < np.exp(-(energy - energy.min()))][:8000]
    shots = two_way_shots(OVERDAMPED, [State(p[None]) for p in points], A, B, max_duration=20.0, stride=STRIDE, seed=2)
    paths = [shots.paths[i] for i in np.flatnonzero(shots.connecting)]
    durations = np.array([len(p) - 1 for p in paths])
    weights = 1 / np.array([(np.abs(p.positions[:, 0, 0]) < width).sum() for p in paths])
    mean = weights @ durations / weights.sum()
    error = np.hypot(
        np.sqrt((weights**2) @ (durations - mean) ** 2) / weights.sum(), brute.std() / np.sqrt(len(brute))
    )  # fmt: skip
    assert abs(mean - brute.mean()) < 4 * error


def test_network_calls_of_the_real_model_are_counted():
    from couloir.generative import FittedTrajectoryDiffusion
    from couloir.sampling.reactive import _network_calls

    model = FittedTrajectoryDiffusion.__new__(FittedTrajectoryDiffusion)
    assert _network_calls(model.inpaint, 3, {}) == 120
    assert _network_calls(model.inpaint, 3, {"n_calls": 10, "resamples": 2}) == 60
    assert _network_calls(model.vary, 3, {}) == 60


class Varying(Interpolation):
    """Lines that bulge as much as the level says; completing them is not what is asked."""

    def inpaint(self, known, mask, *, seed):
        raise AssertionError("lines were to be varied")

    def interpolate(self, start, end, n_frames):
        weight = np.linspace(0.0, 1.0, n_frames)[None, :, None, None]
        return (1 - weight) * start[:, None] + weight * end[:, None]

    def vary(self, path, level, *, mask, seed, n_calls=20):
        bulge = level * np.sin(np.linspace(0.0, np.pi, path.shape[1]))[None, :, None, None] * np.array([0.0, 1.0])
        return np.where(mask[None, :, None, None], path, path + bulge)


@pytest.mark.parametrize(("level", "calls"), [(0.0, 0), (0.3, 24 * 20)])
def test_lines_between_the_ends_are_varied_at_a_level_in_place_of_completing_them(level, calls):
    found = seeds(Varying(), level=level)
    assert len(found) >= 8
    assert found.counts["network calls"] == calls
    ends = found.generated[:, [0, -1]]
    lines = Varying().interpolate(ends[:, 0], ends[:, 1], 24)
    np.testing.assert_allclose(np.abs(found.generated - lines).max(), level, atol=0.01 * level)


def test_a_level_needs_a_model_that_interpolates():
    with pytest.raises(ConfigError, match="Interpolation has no interpolate"):
        seeds(level=0.1)
