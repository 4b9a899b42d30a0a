"""The closed loop: propose, weigh, resample, run briefly, learn again, until the model carries the whole range by itself.

Crabtree, Bello-Rivas & Kevrekidis 2023 end with the outlook that biased simulations started by a model could teach it in turn.  Here
a round is

1. train on the frames of the last rounds, every window counting the same;
2. draw structures at labels in windows that still need them, and weigh each by its energy, w = exp(-U/kT) / q;
3. in every such window pick a few in proportion to w, and run them there for a moment; what they visit is new data;

so what is learned from has the weights of *physics*, not those of the model before it, as far as its samples can tell.  Windows just beyond
the data join each round.  A window is done when its structures are worth ``enough`` samples.  At the end structures from the
whole range, with their weights, are the answer: one force evaluation each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from couloir.analysis.reduced import effective_number
from couloir.analysis.surface import FreeEnergySurface
from couloir.cv.base import CollectiveVariable
from couloir.errors import DataError, Finding
from couloir.generative.conditional_sgm import FittedConditionalSGM
from couloir.generative.model_state import MixtureLabels, ModelState
from couloir.sampling.dragging import SeedingEngine, minimized, propagated
from couloir.sampling.engine import steps
from couloir.sampling.frontier import Fit, Trainable, coverage, even_weights, fitting, homes, spacing, windows_ahead
from couloir.sampling.gates import GeometryGates
from couloir.sampling.model_samples import ModelSamples, sample_model
from couloir.sampling.seeding import geometry_gates
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State

BURST_STEPS = 1000
FRAMES_PER_BURST = 50
SETTLING = 0.2
"""Share of a burst that is left out: its start was chosen among few."""
MEMORY = 4
"""Rounds whose frames a window remembers; its oldest ones have the weights of its poorest models."""
STRAINED = 2.0
"""Effective samples of a window below which what is picked there is relaxed first."""
RELAXATION = 100
"""Iterations of the minimizer then."""
PATIENCE = 4
"""Rounds without a new window or a window done after which the loop gives up."""


@dataclass(frozen=True, eq=False)
class Round:
    """One round: how many effective samples each window had (NaN: not asked), which hold data, and what it cost.

    Attributes
    ----------
    effective : (n_windows,).
    covered : (n_windows,) after the round.
    force_evaluations : of this round.
    structures : generated in it, each by integrating the model's flow once.
    """

    effective: Array
    covered: npt.NDArray[np.bool_]
    force_evaluations: int
    structures: int

    def __str__(self) -> str:
        asked = self.effective[np.isfinite(self.effective)]
        worth = f"{np.median(asked):.3g} ({asked.min():.2g} ... {asked.max():.3g})" if len(asked) else "-"
        return f"{self.covered.sum()} of {len(self.covered)} windows hold data; structures of a window are worth {worth} samples"


@dataclass(frozen=True, eq=False)
class AssistedResult:
    """What the closed loop arrived at.

    Attributes
    ----------
    model : trained on the frames of the last rounds.
    generated : structures over the whole range, with their weights.
    rounds : what each did.
    force_evaluations : spent in all, energies of generated structures included; training data that were given are not.
    structures : generated in all.
    findings : windows that were not reached, or where the model's weights are worth too little.
    """

    model: FittedConditionalSGM
    generated: ModelSamples
    rounds: tuple[Round, ...]
    force_evaluations: int
    structures: int
    findings: tuple[Finding, ...]

    def surface(self, along: Any, **options: Any) -> FreeEnergySurface:
        """Return the free energy along recorded CVs, from the structures generated last."""
        return self.generated.surface(along, **options)

    def __str__(self) -> str:
        lines = [f"AssistedResult: {self.force_evaluations} force evaluations, {self.structures} structures generated"]
        lines += [f"  round {i + 1}: {one}" for i, one in enumerate(self.rounds)]
        return "\n".join([*lines, f"  {self.generated}", *(f"  {finding}" for finding in self.findings)])


def assisted_sampling(
    fit: Trainable | Fit,
    engine: SeedingEngine,
    windows: UmbrellaSampling,
    positions: Array,
    *,
    seed: int,
    record: Sequence[CollectiveVariable] = (),
    enough: float = 5.0,
    proposals: int = 40,
    per_window: int = 2,
    burst: Any = None,
    reach: int = 2,
    max_rounds: int = 20,
    final: int = 100,
    settings: dict[str, Any] | None = None,
    reference: State | None = None,
    store: Store | None = None,
    on_round: Callable[[str], None] | None = None,
) -> AssistedResult:
    """Let a model that knows one basin learn the whole range of ``windows``, and weigh it by physics.

    Parameters
    ----------
    fit : an unfitted :class:`~couloir.generative.ConditionalSGM` that imposes its labels, or a function
        (positions, weights, seed) -> fitted model.
    positions : (n, n_atoms, 3) configurations of the basin that is known.
    record : further CVs to record on the final structures.
    enough : effective samples that the structures proposed in a window must be worth.
    proposals, per_window : structures generated in a window per round, and how many of them are run.
    burst : time that each runs in its window; default 1000 steps.
    reach : how many windows beyond the data a round may go.
    final : structures per window at the end.
    settings : how densities are integrated (:func:`couloir.generative.likelihood.log_prob`).
    reference : a physical structure for the gates; default the engine's molecule as given.
    store : keeps finished rounds; the same call on it continues.
    on_round : told in one line what each round arrived at, once it is stored.

    Raises
    ------
    DataError : the data touch no window.
    """
    loop = _Loop(fitting(fit), engine, windows, np.asarray(positions, dtype=np.float64), seed, settings or {"n_steps": 40}, reference)
    n_steps = BURST_STEPS if burst is None else steps(burst, engine.time_step, "burst")
    kept, rounds, done, still = store or Store(), list[Round](), np.zeros(len(windows), dtype=bool), 0
    for number in range(max_rounds):
        wanted = windows_ahead(windows, loop.covered, reach) + np.flatnonzero(loop.covered & ~done).tolist()
        if not wanted or still >= PATIENCE:
            break
        before = loop.covered.sum() + done.sum()
        if number >= kept.count("assisted"):
            kept.append({"assisted": loop.round(number, sorted(wanted), proposals, per_window, n_steps)})
        stored = kept.chunk("assisted", number)
        loop.learn(number, stored["positions"], stored["windows"])
        done = np.where(np.isfinite(stored["effective"]), loop.covered & (stored["effective"] >= enough), done)
        rounds.append(Round(stored["effective"], loop.covered, int(stored["cost"][0]), int(stored["cost"][1])))
        still = still + 1 if loop.covered.sum() + done.sum() <= before else 0
        if on_round is not None:
            on_round(f"round {number + 1}: {rounds[-1]}; {done.sum()} done")
    model, generated = loop.answer(final, record)
    last = final * int(loop.covered.sum())
    spent, made = last + sum(r.force_evaluations for r in rounds), last + sum(r.structures for r in rounds)
    return AssistedResult(model, generated, tuple(rounds), spent, made, (*_findings(windows, loop.covered, done), *generated.findings))


class _Loop:
    """The data so far, and what a round does with them."""

    def __init__(
        self, fit: Fit, engine: SeedingEngine, windows: UmbrellaSampling, positions: Array, seed: int, settings: dict[str, Any],
        reference: State | None,
    ) -> None:  # fmt: skip
        self.fit, self.engine, self.windows, self.seed, self.settings = fit, engine, windows, seed, settings
        self.gates: GeometryGates | None = geometry_gates(engine, reference)
        self.frames, self.age = positions, np.full(len(positions), -1)
        self.covered = coverage(windows, positions, engine.kT)
        if not self.covered.any():
            raise DataError("the data lie in no window, so there is nothing to start from", "place windows where the data are")

    def learn(self, number: int, positions: Array, at: npt.NDArray[np.int64]) -> None:
        """Add the frames of a round; windows that have new ones forget those of long ago, and given data at once."""
        home = homes(self.windows, self.frames, self.engine.kT)[0]
        renewed = np.isin(home, np.unique(at))
        keep = ~renewed | ((self.age >= 0) & (self.age > number - MEMORY))
        self.frames = np.concatenate([self.frames[keep], positions])
        self.age = np.concatenate([self.age[keep], np.full(len(positions), number)])
        self.covered = self.covered | coverage(self.windows, self.frames, self.engine.kT)

    def model(self, *key: int | str) -> FittedConditionalSGM:
        """Return the model of all frames remembered, every window counting the same."""
        weights = even_weights(self.windows, self.frames, self.engine.kT)
        return cast("FittedConditionalSGM", self.fit(self.frames, weights, integer_seed(self.seed, "model", *key)))

    def state(self, model: FittedConditionalSGM, wanted: Sequence[int]) -> ModelState:
        """Return the model with labels spread over some windows: at least as far as bias or spacing lets them."""
        names = [cv.name for cv in self.windows.cvs]
        columns = [names.index(cv.name) for cv in model.labels]
        force = np.array([self.windows.windows[w].force_constants for w in wanted]).mean(axis=0)
        widths = np.maximum(np.sqrt(self.engine.kT / force), 0.5 * spacing(self.windows) / np.sqrt(force))[columns]
        labels = MixtureLabels(self.windows.centers[wanted][:, columns], widths, tuple(cv.period for cv in model.labels))
        return ModelState(model, labels, self.settings)

    def drawn(
        self, model: FittedConditionalSGM, wanted: Sequence[int], n: int, cvs: Sequence[CollectiveVariable], *key: int | str
    ) -> ModelSamples:
        """Return ``n`` weighed structures per window; those of another handedness weigh nothing."""
        return sample_model(
            self.state(model, wanted), self.engine, n * len(wanted), cvs, seed=integer_seed(self.seed, "draw", *key), gates=self.gates
        )

    def round(self, number: int, wanted: list[int], proposals: int, per_window: int, n_steps: int) -> dict[str, npt.NDArray[Any]]:
        """Return the frames of one round, the windows they were run in, what structures were worth, and the cost."""
        model = self.model(number)
        found = self.drawn(model, wanted, proposals, self.windows.cvs, number)
        home = homes(self.windows, found.positions, self.engine.kT)[0]
        effective, picked, at, strained = np.full(len(self.windows), np.nan), [], [], []
        for w in wanted:
            rows = np.flatnonzero((home == w) & (found.log_weights > found.log_weights.max() - 1e3))
            effective[w] = 0.0
            if not len(rows):
                continue
            log_w = found.log_weights[rows] - np.logaddexp.reduce(found.log_weights[rows])
            effective[w] = effective_number(log_w)
            rng = stream(self.seed, "pick", number, w)
            picked += rng.choice(rows, size=per_window, p=np.exp(log_w) / np.exp(log_w).sum()).tolist()
            at += [w] * per_window
            strained += [effective[w] < STRAINED] * per_window
        cost = proposals * len(wanted)
        states = [State(found.positions[i]) for i in picked]
        relax = [i for i, yes in enumerate(strained) if yes]
        if relax:
            biases = [self.windows.windows[at[i]] for i in relax]
            relaxed = minimized(self.engine, self.windows, [states[i] for i in relax], biases, RELAXATION)
            for i, state in zip(relax, relaxed, strict=True):
                states[i] = states[i] if state is None else state
            cost += 2 * RELAXATION * len(relax)
        frames, where, run = self._run(number, states, at, n_steps)
        return {
            "positions": frames, "windows": where, "effective": effective, "cost": np.array([cost + run, proposals * len(wanted)]),
        }  # fmt: skip

    def _run(self, number: int, states: list[State], at: list[int], n_steps: int) -> tuple[Array, npt.NDArray[np.int64], int]:
        """Run every state briefly in its window; returns frames, their windows, and the number of steps."""
        stride = max(1, n_steps // FRAMES_PER_BURST)
        done = propagated(
            self.engine, states, duration=stride * FRAMES_PER_BURST * self.engine.time_step, stride=stride * self.engine.time_step,
            bias=[self.windows.windows[w] for w in at], record=self.windows.cvs,
            seed=[integer_seed(self.seed, "burst", number, i) for i in range(len(states))],
        )  # fmt: skip
        settled = int(SETTLING * FRAMES_PER_BURST)
        whole = [(w, t.positions[settled:]) for w, t in zip(at, done, strict=True) if t.ended != "failed"]
        shape = (0, *states[0].positions.shape) if states else (0, *self.frames.shape[1:])
        frames = np.concatenate([x for _, x in whole]) if whole else np.empty(shape)
        where = np.concatenate([np.full(len(x), w) for w, x in whole]) if whole else np.empty(0, dtype=np.int64)
        return frames, where, stride * FRAMES_PER_BURST * len(states)

    def answer(self, n: int, record: Sequence[CollectiveVariable]) -> tuple[FittedConditionalSGM, ModelSamples]:
        """Return the last model and structures over the whole range it knows."""
        model = self.model("final")
        wanted = np.flatnonzero(self.covered).tolist()
        names = {cv.name for cv in self.windows.cvs}
        return model, self.drawn(model, wanted, n, (*self.windows.cvs, *(cv for cv in record if cv.name not in names)), "final")


def _findings(windows: UmbrellaSampling, covered: npt.NDArray[np.bool_], done: npt.NDArray[np.bool_]) -> list[Finding]:
    out = []
    for bad, what in ((~covered, "was never reached"), (covered & ~done, "holds too few effective samples of the model")):
        if bad.any():
            where = ", ".join(f"{w} ({', '.join(f'{c:.2f}' for c in windows.centers[w])})" for w in np.flatnonzero(bad))
            out.append(Finding("assisted-incomplete", f"window {where} {what}", "allow more rounds or proposals, or a larger network"))
    return out
