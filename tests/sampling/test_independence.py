"""Generative moves leave the Boltzmann distribution alone, however wrong the model is."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from couloir.cv.bias import HarmonicBias
from couloir.cv.geometric import Coordinate, Dihedral
from couloir.errors import DataError, ModelError, StoreError
from couloir.sampling import IndependenceMoves, OpenMMEngine, ToyEngine, UmbrellaSampling, potentials, systems
from couloir.sampling.gates import isomer
from couloir.store import Store
from couloir.trajectory import Array, State

X, Y = Coordinate(0, "x"), Coordinate(1, "y")


@dataclass(frozen=True)
class Sketch:
    """Two Gaussians in y, at -1 and +1, whose proportion is chosen by hand; x is the label."""

    right: float
    width: float = 0.35
    learned: bool = False

    labels = (X,)

    @property
    def imposed(self) -> tuple[int | None, ...]:
        return (None,) if self.learned else (0,)

    def _log_density(self, x: Array, label: Array) -> Array:
        parts = [np.log(w) - 0.5 * ((x[:, 1] - m) / self.width) ** 2 for w, m in ((1 - self.right, -1.0), (self.right, 1.0))]
        around = -0.5 * ((x[:, 0] - label) / 0.4) ** 2 if self.learned else 0.0
        return np.asarray(np.logaddexp(*parts) + around)

    def sample_with_log_prob(self, cv_values: Any, n: int | None = None, *, seed: int, **_: Any) -> Any:
        label, rng = np.asarray(cv_values)[:, 0], np.random.default_rng(seed)
        y = np.where(rng.random(len(label)) < self.right, 1.0, -1.0) + self.width * rng.standard_normal(len(label))
        x = np.stack([label + 0.4 * rng.standard_normal(len(label)) * self.learned, y], axis=1)

        class Out:
            positions, log_prob = x[:, None], self._log_density(x, label)

        return Out()

    def log_prob(self, positions: Array, cv_values: Any = None, **_: Any) -> Array:
        return self._log_density(positions[:, 0], np.asarray(cv_values)[:, 0])

    def digest(self) -> str:
        return repr(self)


def engine() -> ToyEngine:
    return ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=2e-3, threads=1)


def share_on_the_right(bias: HarmonicBias) -> float:
    """Return the probability of y > 0 in a window, by quadrature."""
    x, y = np.meshgrid(np.linspace(-2.8, 2.8, 400), np.linspace(-2, 2, 401), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    weight = np.exp(-engine().potential.energy(points) - bias.energy(points[:, :1]))
    return float(weight[points[:, 1] > 0].sum() / weight.sum())


@pytest.mark.parametrize("model", [Sketch(0.9), Sketch(0.2, width=0.5), Sketch(0.5, learned=True)], ids=["90:10", "20:80", "learned"])
def test_the_boltzmann_distribution_survives_any_model(model: Sketch) -> None:
    """400 walkers that dynamics alone never carries over 11 kT; after 60 moves each has forgotten where it began."""
    windows = UmbrellaSampling(X, [HarmonicBias(("x",), (-0.9,), (8.0,), (None,))])
    truth, n = share_on_the_right(windows.windows[0]), 400
    seeds = {0: [State(np.array([[-0.9, -1.0 if k % 2 else 1.0]])) for k in range(n)]}
    kwargs: dict[str, Any] = {"seed": 4, "record": (Y,), "record_stride": 0.01, "exchange": False}
    samples = windows.run(engine(), seeds, 6.0, moves=IndependenceMoves(model), **kwargs)
    last = samples["y"][samples.time > samples.time.max() - 1e-9] > 0
    assert abs(last.mean() - truth) < 4 * np.sqrt(truth * (1 - truth) / n)
    x = samples["x"][samples.time > samples.time.max() - 1e-9]
    assert abs(x.std() / np.sqrt(1 / 8.0) - 1) < 0.25
    assert windows.move_report().acceptance[0] > 0.05
    assert windows.move_report().findings == ()
    stuck = windows.run(engine(), seeds, 6.0, **kwargs)
    assert abs((stuck["y"][stuck.time > 5.99] > 0).mean() - 0.5) < 0.02


def test_the_share_of_accepted_moves_is_that_of_the_rule() -> None:
    """With a flat target in y (no dynamics between), acceptance is E min(1, w'/w), here summed over pairs."""
    flat, rng = engine(), np.random.default_rng(1)
    model = Sketch(0.7)
    y = rng.choice([-1.0, 1.0], 4000)
    states = [State(np.array([[-1.2, value]])) for value in y]
    moved = IndependenceMoves(model).apply(flat, states, [None] * len(states), (X,), seed=2)
    new = model.sample_with_log_prob(np.full((200_000, 1), -1.2), seed=7).positions
    after = -flat.energies(new) - model.log_prob(new, np.full((len(new), 1), -1.2))
    expected = []
    for value in (-1.0, 1.0):
        at = np.array([[[-1.2, value]]])
        before = -flat.energies(at) - model.log_prob(at, np.array([[-1.2]]))
        expected.append(np.minimum(1, np.exp(after - before)).mean())
    for value, share in zip((-1.0, 1.0), expected, strict=True):
        took = moved.accepted[y == value]
        assert abs(took.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / len(took))
    kept = [s is old for s, old, yes in zip(moved.states, states, moved.accepted, strict=True) if not yes]
    assert all(kept)


@dataclass(frozen=True)
class Mirror:
    """A model of a molecule that proposes what it is shown, and every second time its mirror image: both have the same energy."""

    shown: Array
    labels = (Dihedral.phi(systems.alanine_dipeptide(solvent="vacuum").topology, residue=2),)
    imposed = (0,)

    def sample_with_log_prob(self, cv_values: Any, n: int | None = None, *, seed: int, **_: Any) -> Any:
        class Out:
            positions, log_prob = self.shown * np.where(np.arange(len(self.shown)) % 2, -1.0, 1.0)[:, None, None], np.zeros(len(self.shown))

        return Out()

    def log_prob(self, positions: Array, cv_values: Any = None, **_: Any) -> Array:
        return np.zeros(len(positions))


def test_mirror_images_of_a_molecule_are_rejected_though_their_energy_is_as_low() -> None:
    molecule = systems.alanine_dipeptide(solvent="vacuum")
    md = OpenMMEngine(molecule, temperature=300.0, platform="Reference")
    shown = np.repeat(molecule.state.positions[None], 6, axis=0)
    np.testing.assert_allclose(md.energies(-shown), md.energies(shown))
    moved = IndependenceMoves(Mirror(shown)).apply(md, [molecule.state] * 6, [None] * 6, (), seed=1)
    assert moved.accepted.tolist() == [True, False] * 3
    assert np.isneginf(moved.log_ratio[1::2]).all()


def test_another_isomer_of_a_peptide_bond_is_another_isomer() -> None:
    molecule = systems.alanine_dipeptide(solvent="vacuum")
    x, topology = molecule.state.positions, molecule.topology
    bond = np.array([[topology.select(f"resid {r} and name {name}")[0] for r, name in ((0, "C"), (1, "N"))]])[0]
    axis = x[bond[1]] - x[bond[0]]
    turned = x.copy()
    beyond = [atom.index for atom in topology.atoms if atom.residue.index > 0 and atom.index != bond[1]]
    turned[beyond] = Rotation.from_rotvec(np.pi * axis / np.linalg.norm(axis)).apply(x[beyond] - x[bond[0]]) + x[bond[0]]
    signs = isomer(topology, np.stack([x, x + 0.01, turned, -x]))
    assert (signs[0] == signs[1]).all()
    assert (signs[0] != signs[2]).sum() == 1
    assert (signs[0] != signs[3]).sum() == signs.shape[1] - 2  # every stereo centre; both peptide bonds stay trans


def test_a_run_with_moves_goes_on_where_it_stopped() -> None:
    windows = UmbrellaSampling.grid(X, 3, 8.0, range=(-1.2, -0.6))
    seeds = {w: [State(np.array([[c[0], 1.0]]))] * 2 for w, c in enumerate(windows.centers)}
    moves = IndependenceMoves(Sketch(0.6), every=2)
    whole = windows.run(engine(), seeds, 3.0, seed=1, record_stride=0.01, moves=moves)
    store = Store()
    windows.run(engine(), seeds, 1.1, seed=1, record_stride=0.01, moves=moves, store=store)
    made = store.count("umbrella/moves")
    continued = windows.run(engine(), seeds, 3.0, seed=1, record_stride=0.01, moves=moves, store=store)
    np.testing.assert_array_equal(whole.values, continued.values)
    assert made == 5
    assert store.count("umbrella/moves") == 14
    with pytest.raises(StoreError, match="different moves"):
        windows.run(engine(), seeds, 3.0, seed=1, record_stride=0.01, moves=replace(moves, every=1), store=store)


def test_a_model_that_never_helps_is_named() -> None:
    windows = UmbrellaSampling.grid(X, 2, 8.0, range=(-1.2, -0.6))
    seeds = {w: [State(np.array([[c[0], 1.0]]))] * 20 for w, c in enumerate(windows.centers)}
    windows.run(engine(), seeds, 2.0, seed=1, record_stride=0.01, moves=IndependenceMoves(Sketch(0.5, width=40.0)))
    report = windows.move_report()
    assert report.attempted.tolist() == [380, 380]
    assert [f.code for f in report.findings] == ["model-moves-rejected"]
    assert "window 0, 1" in str(report)


def test_what_cannot_be_moved_is_refused() -> None:
    windows = UmbrellaSampling.grid(Y, 2, 8.0, range=(-1.0, 1.0))
    seeds = {w: [State(np.array([[-0.9, c[0]]]))] for w, c in enumerate(windows.centers)}
    with pytest.raises(ModelError, match="learned the label 'x'"):
        windows.run(engine(), seeds, 1.0, seed=1, record_stride=0.01, record=(X,), moves=IndependenceMoves(Sketch(0.5, learned=True)))
    with pytest.raises(ModelError, match="every = 0"):
        IndependenceMoves(Sketch(0.5), every=0)
    with pytest.raises(DataError, match="no generative moves"):
        UmbrellaSampling.grid(Y, 2, 8.0, range=(-1.0, 1.0)).move_report()
