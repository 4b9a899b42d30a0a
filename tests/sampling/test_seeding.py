"""Seeds are physical, counted, and honest about where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate, Dihedral
from couloir.errors import ModelError, SimulationError
from couloir.sampling import OpenMMEngine, systems
from couloir.sampling.dragging import dragged, dragged_seeds
from couloir.sampling.frontier import coverage, even_weights, frontier_rounds
from couloir.sampling.gates import GeometryGates
from couloir.sampling.potentials import double_well, hidden_barrier
from couloir.sampling.seeding import seed_windows
from couloir.sampling.seeds import Seeds, load_seeds, save_seeds
from couloir.sampling.toy import ToyEngine
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.streams import stream
from couloir.trajectory import Array, State, Trajectory

X, Y = Coordinate(0, "x"), Coordinate(1, "y")
PHI = Dihedral((4, 6, 8, 14), "phi")


class ExactConditional:
    """Draws (x, y) with x imposed and y from the toy's own p(y | x)."""

    def __init__(self, engine: ToyEngine, broken_beyond: float = np.inf) -> None:
        self.engine, self.broken_beyond = engine, broken_beyond

    def sample(self, cv_values: Array, n: int | None = None, *, seed: int) -> Array:
        y, rng, out = np.linspace(-2, 2, 801), stream(seed), []
        for (x,) in np.asarray(cv_values):
            energy = self.engine.energies(np.stack([np.full_like(y, x), y], axis=1)[:, None])
            p = np.exp(-(energy - energy.min()) / self.engine.kT)
            out.append([[x if x < self.broken_beyond else np.nan, rng.choice(y, p=p / p.sum())]])
        return np.array(out)


class Perturbed:
    """Proposes one structure for every value: the molecule as it is given."""

    def __init__(self, positions: Array) -> None:
        self.positions = positions

    def sample(self, cv_values: Array, n: int | None = None, *, seed: int) -> Array:
        return np.repeat(self.positions[None], len(cv_values), axis=0)


@pytest.fixture(scope="module")
def toy() -> tuple[ToyEngine, UmbrellaSampling]:
    return ToyEngine(hidden_barrier(), kT=1.0, time_step=1e-3), UmbrellaSampling.grid(X, 9, 20.0, range=(-1.6, 1.6))


def test_seeds_taken_as_they_come_keep_the_models_proportions(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    seeds = seed_windows(ExactConditional(engine), engine, windows, 40, seed=3, oversample=1, selection="model")
    assert set(seeds.origins) == {"model"}
    for w, center in enumerate(windows.centers):
        y = np.array([s.positions[0, 1] for s in seeds.by_window()[w]])
        grid = np.linspace(-2, 2, 401)
        p = np.exp(-engine.energies(np.stack([np.full_like(grid, center[0]), grid], axis=1)[:, None]))
        expected = p[grid > 0].sum() / p.sum()
        # Binomial, n = 40, nine windows, plus thermal motion in x within the window: 4.5 standard errors and 0.06.
        assert abs((y > 0).mean() - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 40) + 0.06


def test_diverse_seeds_show_every_mode_the_model_proposes(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    middle = [w for w, c in enumerate(windows.centers) if -1.4 < c[0] < -0.7]
    seeds = seed_windows(ExactConditional(engine), engine, windows, 2, seed=1, oversample=15, only=middle)
    for w in middle:
        y = sorted(s.positions[0, 1] for s in seeds.by_window()[w])
        assert y[0] < -0.5 < 0.5 < y[1]


def test_windows_that_the_model_cannot_reach_are_dragged_to_and_named(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    seeds = seed_windows(ExactConditional(engine, broken_beyond=0.5), engine, windows, 2, seed=3)
    origins = dict(zip(seeds.windows.tolist(), seeds.origins, strict=True))
    assert [origins[w] for w in range(9)] == ["model" if c[0] < 0.5 else "dragged" for c in windows.centers]
    assert [f.code for f in seeds.findings] == ["model-cannot-reach"]
    assert (seeds.tally["finite"][windows.centers[:, 0] > 0.5] == seeds.tally["generated"][windows.centers[:, 0] > 0.5]).all()
    assert "dragged" in seeds.table()
    for w, states in seeds.by_window().items():
        assert all(abs(s.positions[0, 0] - windows.centers[w, 0]) < 5 / np.sqrt(20) for s in states)


def test_a_model_that_fails_everywhere_is_an_error_that_counts_the_failures(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    with pytest.raises(ModelError, match="finite: 54"):
        seed_windows(ExactConditional(engine, broken_beyond=-9), engine, windows, 2, seed=3)


def test_seeds_survive_the_store(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    seeds, store = seed_windows(ExactConditional(engine, broken_beyond=0.5), engine, windows, 2, seed=3), Store()
    save_seeds(store, seeds)
    back = load_seeds(store)
    assert str(back) == str(seeds)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(back.states, seeds.states, strict=True))


def test_dragging_reaches_every_window_but_stays_in_its_mode(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    seeds: Seeds = dragged_seeds(engine, windows, State(np.array([[-1.6, -1.0]])), 3, seed=1)
    assert sorted(seeds.by_window()) == list(range(9))
    assert np.mean([s.positions[0, 1] < 0 for s in seeds.states]) > 0.9


class Fragile(ToyEngine):
    """A toy engine in which some walkers of every call break down."""

    def __init__(self, *arguments: Any, broken: Callable[[int], bool], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.broken = broken

    def propagate(self, states: Any, **settings: Any) -> list[Trajectory]:
        done = super().propagate(states, **settings)
        partial = [replace(t, last=None, ended="failed") if self.broken(i) else t for i, t in enumerate(done)]
        if partial != done:
            error = SimulationError("some walkers broke down", "none")
            error.partial = partial
            raise error
        return done


def test_structures_that_break_down_while_dragged_are_left_behind() -> None:
    windows = UmbrellaSampling.grid(X, 5, 40.0, range=(-1.0, 1.0))
    engine = Fragile(double_well(), kT=1.0, time_step=2e-3, broken=lambda i: i == 2)
    start = engine.state(-1.0)
    arrived = dragged(engine, windows, {0: [start]}, {1: 3, 2: 3}, seed=1)
    assert [w for w, _ in arrived] == [1, 1, 2, 2]
    engine.broken = lambda i: True
    with pytest.raises(SimulationError, match="every structure dragged to window 1 from window 0 broke down"):
        dragged(engine, windows, {0: [start]}, {1: 3}, seed=1)


def test_gates_see_mirror_images_cis_bonds_torn_bonds_and_clashes() -> None:
    molecule = systems.alanine_dipeptide()
    gates = GeometryGates.of(molecule.topology, molecule.state.positions)
    good = molecule.state.positions
    cis = _turned(good, (4, 6), np.pi)
    torn, clash = good.copy(), good.copy()
    torn[10] += 0.08
    clash[5] = good[16] + 0.05
    checks = gates.check(np.array([good, good * [1, 1, -1], cis, torn, clash, np.full_like(good, np.nan)]))
    assert {gate: passed[0] for gate, passed in checks.items()} == dict.fromkeys(checks, True)
    for bad, gate in enumerate(("chirality", "peptide", "bonds", "clash", "finite"), start=1):
        assert not checks[gate][bad]
    assert checks["bonds"][1]
    assert checks["chirality"][2]


def test_thermal_structures_pass_every_gate() -> None:
    molecule = systems.alanine_dipeptide()
    engine = OpenMMEngine(molecule, workers=1, platform="Reference")
    (md,) = engine.propagate(engine.minimize(molecule.state), duration="20 ps", stride="0.1 ps", seed=3)
    checks = GeometryGates.of(molecule.topology, molecule.state.positions).check(md.positions)
    assert {gate: float(passed.mean()) for gate, passed in checks.items()} == dict.fromkeys(checks, 1.0)


def test_a_molecule_proposed_at_the_wrong_handedness_is_refused_and_dragged_instead() -> None:
    molecule = systems.alanine_dipeptide()
    engine = OpenMMEngine(molecule, workers=1, platform="Reference")
    windows = UmbrellaSampling.at(PHI, [-1.2, -1.5], 200.0)
    mirror = Perturbed(molecule.state.positions * [1, 1, -1])
    with pytest.raises(ModelError, match="chirality: 6"):
        seed_windows(mirror, engine, windows, 1, seed=1)
    seeds = seed_windows(mirror, engine, windows, 1, seed=1, fallback={0: [molecule.state]})
    assert set(seeds.origins) == {"dragged"}
    chirality = GeometryGates.of(molecule.topology, molecule.state.positions).check(np.array([s.positions for s in seeds.states]))
    assert chirality["chirality"].all()


def test_the_frontier_carries_a_model_over_a_cv_that_is_no_coordinate_it_can_impose(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    """The model is the data themselves, nearest in x first: it knows nothing beyond them, so only the rounds can extend it."""
    engine, windows = toy

    class NearestData:
        def __init__(self, positions: Array) -> None:
            self.positions = positions

        def sample(self, cv_values: Array, n: int | None = None, *, seed: int) -> Array:
            rng = stream(seed)
            far = np.abs(self.positions[None, :, 0, 0] - np.asarray(cv_values)[:, :1])
            return self.positions[[rng.choice(np.argsort(row)[:20]) for row in far]]

    def fit(positions: Array, weights: Array, seed: int) -> NearestData:
        assert len(weights) == len(positions)
        return NearestData(positions)

    (md,) = engine.propagate(State(np.array([[-1.6, -1.0]])), duration=5.0, stride=0.01, bias=windows.windows[0], record=(X,), seed=1)
    store = Store()
    result = frontier_rounds(fit, engine, windows, md.positions, seed=1, duration=1.0, store=store)
    assert result.covered[-1].all()
    assert not result.covered[0].all()
    assert (np.diff(result.covered.sum(axis=1)) > 0).all()
    assert result.findings == ()
    again = frontier_rounds(fit, engine, windows, md.positions, seed=1, duration=1.0, store=store)
    np.testing.assert_allclose(again.positions, result.positions)
    assert again.seeds == ()


def test_coverage_counts_frames_near_centres_and_weights_are_even(toy: tuple[ToyEngine, UmbrellaSampling]) -> None:
    engine, windows = toy
    positions = np.concatenate([np.full((30, 1, 2), -1.6), np.full((10, 1, 2), -1.2), np.full((60, 1, 2), 0.8)])
    assert np.flatnonzero(coverage(windows, positions, engine.kT)).tolist() == [0, 6]
    weights = even_weights(windows, positions, engine.kT)
    np.testing.assert_allclose([weights[:30].sum(), weights[30:40].sum(), weights[40:].sum()], 100 / 3)


def _turned(positions: Array, bond: tuple[int, int], angle: float) -> Array:
    """Rotate every atom beyond the bond ACE:C - ALA:N about it."""
    origin, axis = positions[bond[0]], positions[bond[1]] - positions[bond[0]]
    axis = axis / np.linalg.norm(axis)
    out = positions.copy()
    for i in range(bond[1], len(positions)):
        v = positions[i] - origin
        out[i] = origin + v * np.cos(angle) + np.cross(axis, v) * np.sin(angle) + axis * (axis @ v) * (1 - np.cos(angle))
    return out
