"""Seeding: physically valid starting structures in every window, proposed by a model, judged by physics.

generate at the window's CV value -> gates on what can never be repaired -> restrained minimization -> thermalization in
the window -> all gates -> choice.  Nothing is dropped silently: :class:`Seeds` counts what failed which gate, and a
window that the model cannot reach falls back to the nearest physical structure, dragged, and says so.

A seed claims no weight: windows must equilibrate from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from couloir.errors import DataError, Finding, ModelError
from couloir.sampling.dragging import THERMALIZATION_STEPS, SeedingEngine, dragged, minimized, propagated
from couloir.sampling.engine import steps
from couloir.sampling.gates import GEOMETRY_GATES, GeometryGates, all_finite
from couloir.sampling.seeds import Seeds, window_centers
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State

if TYPE_CHECKING:
    from couloir.sampling.umbrella import UmbrellaSampling

GATES = (*GEOMETRY_GATES, "dynamics", "energy", "cv")


class ConditionalSampler(Protocol):
    """Whatever proposes configurations at given CV values (``ConditionalSGM`` does)."""

    def sample(self, cv_values: Any, n: int | None = None, *, seed: int) -> Array:
        """Return positions (n, n_atoms, 3), one for each row of CV values."""
        ...


def seed_windows(
    model: ConditionalSampler,
    engine: SeedingEngine,
    windows: UmbrellaSampling,
    per_window: int = 2,
    *,
    seed: int,
    oversample: int = 3,
    selection: Literal["diverse", "model"] = "diverse",
    thermalization: Any = None,
    reference: State | None = None,
    fallback: Mapping[int, Sequence[State]] | None = None,
    only: Sequence[int] | None = None,
) -> Seeds:
    """Propose, repair, judge and choose starting states for every window.

    Parameters
    ----------
    per_window : seeds (walkers) per window; ``oversample`` times as many candidates are generated.
    selection : ``"diverse"`` takes the structures furthest from each other, so that every mode the model proposes is
        represented; ``"model"`` takes them as they come, which keeps the model's proportions between modes.
    thermalization : time in the window before the last gates; default 1000 steps.
    reference : a physical structure for the geometry gates; needed for molecules (default: the engine's molecule as given).
    fallback : physical states by window, from which windows that the model cannot reach may be dragged.
    only : seed these windows only.

    Raises
    ------
    ModelError : nothing passed in any window and there is no fallback to drag from, or a label of the model is not biased.
    """
    wanted = list(range(len(windows))) if only is None else list(only)
    numbers = np.repeat(wanted, per_window * oversample)
    raw = model.sample(_conditions(model, windows)[numbers], seed=integer_seed(seed, "seeding"))
    candidates = _Candidates(engine, windows, numbers, raw, geometry_gates(engine, reference))
    candidates.repair()
    candidates.thermalize(thermalization, integer_seed(seed, "thermalization"))
    chosen = candidates.choose(per_window, selection, seed)
    states = [candidates.states[i] for i in chosen]
    homes = [int(numbers[i]) for i in chosen]
    origins = ["model"] * len(chosen)

    missing = {w: per_window - homes.count(w) for w in wanted if homes.count(w) < per_window}
    unreached = [w for w in missing if homes.count(w) == 0]
    sources: dict[int, list[State]] = {w: list(s) for w, s in (fallback or {}).items()}
    for window, state in zip(homes, states, strict=True):
        sources.setdefault(window, []).append(state)
    if missing and not sources:
        failed = ", ".join(f"{gate}: {int(n.sum())}" for gate, n in candidates.tally().items() if n.sum() and gate in GATES)
        raise ModelError(f"no generated structure passed the gates in any window ({failed})", "train longer, or give fallback states")
    arrived = dragged(engine, windows, sources, missing, seed=integer_seed(seed, "drag"))
    states += [state for _, state in arrived]
    homes += [window for window, _ in arrived]
    origins += ["dragged"] * len(arrived)
    findings = (
        *_shortfall(windows, unreached, [w for w in missing if w not in unreached]),
        *_extrapolation(model, windows, wanted),
        *_lagging(engine, windows, arrived, candidates.gates),
    )
    order = np.argsort(homes, kind="stable")
    return Seeds(
        tuple(states[i] for i in order), np.array(homes, dtype=np.int64)[order], tuple(origins[i] for i in order),
        candidates.tally(), findings, window_centers(windows),
    )  # fmt: skip


class _Candidates:
    """Generated structures on their way through repair and gates; each remembers the first gate it failed."""

    def __init__(
        self, engine: SeedingEngine, windows: UmbrellaSampling, numbers: npt.NDArray[np.int64], raw: Array, gates: GeometryGates | None
    ) -> None:
        self.engine, self.windows, self.numbers, self.gates = engine, windows, numbers, gates
        self.positions = np.asarray(raw, dtype=np.float64)
        self.failed: list[str | None] = [None] * len(numbers)
        self.states: dict[int, State] = {}

    @property
    def alive(self) -> list[int]:
        return [i for i, gate in enumerate(self.failed) if gate is None]

    def _judge(self, members: list[int], positions: Array, **tolerances: float) -> None:
        checks = {"finite": all_finite(positions)} if self.gates is None else self.gates.check(positions, **tolerances)
        for gate, passed in checks.items():
            for i, ok in zip(members, passed, strict=True):
                if not ok and self.failed[i] is None:
                    self.failed[i] = gate

    def repair(self) -> None:
        """Drop what minimization cannot mend (handedness, cis/trans, torn bonds); minimize the rest in its window."""
        self._judge(self.alive, self.positions, bond_tolerance=0.06, contact_scale=0.4)
        members = self.alive
        if not members:
            return
        states = [State(self.positions[i]) for i in members]
        biases = [self.windows.windows[self.numbers[i]] for i in members]
        self._keep(members, minimized(self.engine, self.windows, states, biases))
        self._judge_survivors(members)

    def thermalize(self, duration: Any, seed: int) -> None:
        """Run the survivors in their windows, then apply every gate to where they ended."""
        members = self.alive
        if not members:
            return
        n_steps = THERMALIZATION_STEPS if duration is None else steps(duration, self.engine.time_step, "thermalization")
        done = propagated(
            self.engine,
            [self.states[i] for i in members],
            duration=n_steps * self.engine.time_step,
            bias=[self.windows.windows[self.numbers[i]] for i in members],
            record=self.windows.cvs,
            seed=[integer_seed(seed, i) for i in members],
        )
        whole = [None if t.ended == "failed" else t.last for t in done]
        self._keep(members, whole)
        self._judge_survivors(members)
        self._judge_energy(self.alive)
        self._judge_cv(self.alive)

    def _keep(self, members: list[int], states: Sequence[State | None]) -> None:
        """Take over new states; a candidate that has none broke down on the way."""
        for i, state in zip(members, states, strict=True):
            if state is not None:
                self.states[i] = state
            elif self.failed[i] is None:
                self.failed[i] = "dynamics"

    def _judge_survivors(self, members: list[int]) -> None:
        alive = [i for i in members if self.failed[i] is None]
        if alive:
            self._judge(alive, np.array([self.states[i].positions for i in alive]))

    def _judge_energy(self, members: list[int]) -> None:
        """A thermal structure is within 15 kT (a barrier) and six standard deviations of the typical energy."""
        if not members:
            return
        energies = self.engine.energies(np.array([self.states[i].positions for i in members]))
        n_coordinates = self.positions[0].size
        limit = np.median(energies) + self.engine.kT * (15 + 6 * np.sqrt(n_coordinates / 2))
        for i, energy in zip(members, energies, strict=True):
            if self.failed[i] is None and not energy <= limit:
                self.failed[i] = "energy"

    def _judge_cv(self, members: list[int]) -> None:
        if not members:
            return
        inside = _inside(self.engine, self.windows, self.numbers[members], [self.states[i] for i in members])
        for i, ok in zip(members, inside, strict=True):
            if not ok:
                self.failed[i] = "cv"

    def choose(self, per_window: int, selection: str, seed: int) -> list[int]:
        """Return the chosen candidates, window by window."""
        chosen = []
        for w in np.unique(self.numbers):
            pool = [i for i in self.alive if self.numbers[i] == w]
            order = [pool[k] for k in stream(seed, "choice", int(w)).permutation(len(pool))]
            if selection == "diverse" and len(order) > per_window:
                order = _furthest_apart(order, self._features(order), per_window)
            chosen += order[:per_window]
        return chosen

    def _features(self, members: list[int]) -> Array:
        """Coordinates of a toy system; distances between heavy atoms of a molecule, which need no alignment."""
        positions = np.array([self.states[i].positions for i in members])
        if self.gates is None:
            return positions.reshape(len(members), -1)
        from scipy.spatial.distance import pdist

        heavy = [a.index for a in self.engine.topology.atoms if a.element is None or a.element.symbol != "H"]
        return np.array([pdist(x[heavy]) for x in positions])

    def tally(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return, per window, candidates, failures by gate and passes."""
        n = len(self.windows)
        failed = np.array([gate or "passed" for gate in self.failed])
        counts = {gate: np.bincount(self.numbers[failed == gate], minlength=n) for gate in (*GATES, "passed")}
        return {"generated": np.bincount(self.numbers, minlength=n), **counts}


def _conditions(model: ConditionalSampler, windows: UmbrellaSampling) -> Array:
    """Return what to ask the model for in each window (n_windows, n_labels): the centres along the model's own labels."""
    along = [cv.name for cv in windows.cvs]
    labels = [cv.name for cv in getattr(model, "labels", windows.cvs)]
    if not set(labels) <= set(along):
        raise ModelError(
            f"the model is labelled by {', '.join(labels)}, the windows are along {', '.join(along)}", "label it by a CV that is biased"
        )
    return windows.centers[:, [along.index(name) for name in labels]]


def _inside(
    engine: SeedingEngine, windows: UmbrellaSampling, homes: npt.NDArray[np.int64], states: Sequence[State]
) -> npt.NDArray[np.bool_]:
    """Return which states lie within five standard deviations of their windows' centres."""
    positions = np.array([state.positions for state in states])
    values = np.stack([cv.evaluate(positions) for cv in windows.cvs], axis=1)
    sigma = np.sqrt(engine.kT / np.array([windows.windows[w].force_constants for w in homes]))
    return np.array((np.abs(windows.displacement(values - windows.centers[homes])) <= 5 * sigma).all(axis=1), dtype=bool)


def geometry_gates(engine: SeedingEngine, reference: State | None) -> GeometryGates | None:
    """Return the gates of the engine's molecule, None for a toy; raises DataError without a physical structure."""
    if engine.topology is None:
        return None
    structure = reference if reference is not None else getattr(getattr(engine, "molecule", None), "state", None)
    if structure is None:
        raise DataError("the geometry gates need a physical structure", "give reference=molecule.state")
    return GeometryGates.of(engine.topology, structure.positions)


def _furthest_apart(members: list[int], features: Array, n: int) -> list[int]:
    picked = [0]
    nearest = np.linalg.norm(features - features[0], axis=1)
    while len(picked) < n:
        picked.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[picked[-1]], axis=1))
    return [members[k] for k in picked]


def _places(windows: UmbrellaSampling, numbers: Sequence[int]) -> str:
    return ", ".join(f"{w} ({', '.join(f'{c:.2f}' for c in windows.centers[w])})" for w in numbers)


def _shortfall(windows: UmbrellaSampling, unreached: list[int], partly: list[int]) -> list[Finding]:
    fix = "give the model data nearer to these windows (frontier rounds), or inspect which gate fails"
    out = []
    if unreached:
        text = f"every generated structure failed in window {_places(windows, unreached)}; dragged ones are used instead"
        out.append(Finding("model-cannot-reach", text, fix))
    if partly:
        text = f"too few generated structures passed in window {_places(windows, partly)}; copies of the survivors fill the rest"
        out.append(Finding("few-seeds", text + ", so walkers there do not start independently", "raise oversample"))
    return out


def _extrapolation(model: Any, windows: UmbrellaSampling, wanted: list[int]) -> list[Finding]:
    """Name the windows at label values that a model (one that says what it has seen) was never trained on."""
    seen = getattr(model, "label_range", None)
    if seen is None or len(seen.names) != len(windows.cvs):
        return []
    beyond = [w for w in wanted if not seen.covers(windows.centers[[w]])[0]]
    if not beyond:
        return []
    text = f"the model was never trained near {len(beyond)} of {len(wanted)} windows (first: {_places(windows, beyond[:1])})"
    return [
        Finding("extrapolated-label", text + "; its structures there passed the gates, but their modes are guesses", "use frontier rounds")
    ]


def _lagging(
    engine: SeedingEngine, windows: UmbrellaSampling, arrived: list[tuple[int, State]], gates: GeometryGates | None
) -> list[Finding]:
    """Name the windows whose dragged seeds would not have passed the gates."""
    if not arrived:
        return []
    homes = np.array([w for w, _ in arrived])
    good = _inside(engine, windows, homes, [state for _, state in arrived])
    if gates is not None:
        checks = gates.check(np.array([state.positions for _, state in arrived]))
        good &= np.logical_and.reduce(list(checks.values()))
    bad = sorted(set(homes[~good].tolist()))
    if not bad:
        return []
    text = f"dragged structures did not arrive whole in window {_places(windows, bad)}"
    return [Finding("dragged-astray", text, "look at them; use a stiffer bias or windows closer together")]
