"""Pooling against three exact ways to use a model, on walkers that never cross by themselves.

Variable barrier, h = 4 at kT = 0.5 (8 kT), ten walkers held at z1 = 5.  What each estimate of p(z2 | z1) converges to:
(a) pooled rows: the model's weights of the wells, as long as nothing crosses; (b) MBAR over {model, each well of the window}:
the truth, the weights between wells coming from the energies of the model's structures; (c) generative moves: the truth,
every walker forgetting its seed; (d) windows along z2 that exchange: the truth, without any model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.assisted.fast_slow import EDGES, Z1, Z2, TabulatedModel, binned, draw, driven, exact_cells, histogram, l1
from benchmarks.assisted.runs import WALKERS, Curves, fit, long_run, mean_and_error
from benchmarks.results import Row
from couloir.analysis import BiasedSamples, free_energy_surface, mbar
from couloir.cv.bias import HarmonicBias
from couloir.generative.conditional_sgm import FittedConditionalSGM
from couloir.sampling import IndependenceMoves, ToyEngine, UmbrellaSampling, potentials
from couloir.sampling.model_samples import sample_model, with_windows
from couloir.streams import integer_seed, stream
from couloir.trajectory import Array, State

BUDGETS = (100, 300, 1000, 3000, 10000)
HELD = HarmonicBias.on(Z1, 5.0, 1.0)
STRIDE = 10  # steps between rows
MOVE = 100  # steps between generative moves
FEW = 4  # walkers per window in an experiment of ten windows
ENERGIES = 300  # structures whose energies judge the model
NETWORK_WALKERS = 40  # walkers whose moves take the network's density, not its table
NETWORK: dict[str, Any] = {"n_steps": 20, "method": "rk4"}  # how the network's own density is integrated
STAGES = 4  # calls per step of it
SEED_CALLS = 20  # calls for a structure without its density


def side(positions: Array) -> npt.NDArray[np.int64]:
    """Return the well (n,) that positions (n, 1, 2) lie in: 0 left, 1 right."""
    return (positions[:, 0, 1] > 0).astype(np.int64)


def run(engine: ToyEngine, z2: Array, seed: int, moves: IndependenceMoves | None = None) -> tuple[Array, Array]:
    """Return z2 (n_repeats, n_walkers, n_rows) over the largest budget, and the acceptance of every walker's moves."""
    repeats, n = z2.shape
    states = [engine.state(5.0, float(y)) for y in z2.ravel()]
    piece = MOVE if moves is not None else max(BUDGETS)
    parts, accepted = [], []
    for i in range(max(BUDGETS) // piece):
        done = engine.propagate(
            states, duration=piece * engine.time_step, bias=HELD, record=(Z1, Z2), record_stride=STRIDE * engine.time_step,
            seed=[integer_seed(seed, i, w) for w in range(len(states))],
        )  # fmt: skip
        parts.append(np.array([walker.series["z2"] for walker in done]))
        states = [walker.last for walker in done]
        if moves is not None:
            moved = moves.apply(engine, states, [HELD] * len(states), (Z1,), integer_seed(seed, "moves", i))
            states = moved.states
            accepted.append(moved.accepted)
    share = np.mean(accepted, axis=0) if accepted else np.zeros(repeats * n)
    return np.concatenate(parts, axis=1).reshape(repeats, n, -1), share


def pooled(values: Array) -> Array:
    """Return histograms (n_budgets, n_repeats, n_bins) of all rows within each budget."""
    return np.array([histogram(values[:, :, : n // STRIDE].reshape(len(values), -1)) for n in BUDGETS])


def rows_of(values: Array, engine: ToyEngine, per_window: int | None = None) -> BiasedSamples:
    """Return walkers' z2 (n_walkers, n_rows) as samples of p(z2 | z1): what holds z1 has no part in it.

    The walkers share a window, or have one for every ``per_window`` of them.
    """
    n, length = values.shape
    window = np.arange(n) // (per_window or n)
    n_windows = int(window[-1]) + 1
    points = np.stack([np.full(values.size, 5.0), values.ravel()], axis=1)
    return BiasedSamples(
        ("z2",), (Z2.unit,), (None,), values.reshape(-1, 1), engine.energies(points[:, None]), np.repeat(window, length),
        np.repeat(np.arange(n), length), np.tile(STRIDE * engine.time_step * np.arange(1, length + 1), n), (None,) * n_windows,
        np.full(n_windows, engine.temperature),
    )  # fmt: skip


def as_state(values: Array, table: TabulatedModel, engine: ToyEngine, seed: int) -> tuple[Array, Array]:
    """Return the MBAR histograms (n_budgets, n_repeats, n_bins) and effective shares (n_budgets, n_repeats) of the model's samples.

    Of ten walkers' n steps each, a tenth is spent on energies of n structures of the model.
    """
    out, share = [], []
    for budget in BUDGETS:
        for repeat, walkers in enumerate(values[:, :, : int(0.9 * budget) // STRIDE]):
            generated = sample_model(table, engine, budget, (Z2,), seed=integer_seed(seed, budget, repeat))
            frames = np.stack([np.full(walkers.size, 5.0), walkers.ravel()], axis=1)[:, None]
            joined, states = with_windows(generated, table, rows_of(walkers, engine), frames, modes=side)
            weights = np.exp(mbar(joined, states=states, solver="torch").log_weights)
            out.append(np.histogram(joined["z2"], EDGES, weights=weights)[0])
            share.append(generated.effective_samples / budget)
    return np.array(out).reshape(len(BUDGETS), len(values), -1), np.array(share).reshape(len(BUDGETS), -1)


def along_z2(engine: ToyEngine, repeats: int, seed: int) -> Array:
    """Return histograms (n_budgets, n_repeats, n_bins) from ten windows over z2 at z1 = 5 that exchange configurations."""
    windows = UmbrellaSampling.at((Z1, Z2), [(5.0, c) for c in np.linspace(-1.35, 1.35, WALKERS)], (1.0, 25.0))
    seeds = {w: [State(np.array([c]))] * repeats for w, c in enumerate(windows.centers)}
    samples = windows.run(engine, seeds, max(BUDGETS) * engine.time_step, seed=seed, record_stride=STRIDE * engine.time_step)
    out = []
    for budget in BUDGETS:
        early = samples.until(budget * engine.time_step)
        for repeat in range(repeats):
            part = early.select(early.walker % repeats == repeat)
            out.append(np.histogram(part["z2"], EDGES, weights=np.exp(mbar(part, solver="torch").log_weights))[0])
    return np.array(out).reshape(len(BUDGETS), repeats, -1)


def flagged(engine: ToyEngine, model: FittedConditionalSGM, repeats: int, seed: int) -> float:
    """Return the share of experiments whose surface along z2 warns that walkers or windows disagree.

    An experiment is ten windows from z1 = 0.5 to 9.5 with four walkers each, seeded by the model at its own z1 and pooled by hand:
    ten unbiased simulations of z2, which the variable barrier allows, since p(z2 | z1) is the same everywhere.
    """
    centers = np.repeat(np.arange(0.5, 10.0), FEW)
    z2 = model.sample(np.tile(centers, repeats), seed=integer_seed(seed, "seeds"))[:, 0, 1]
    states = [engine.state(float(c), float(y)) for c, y in zip(np.tile(centers, repeats), z2, strict=True)]
    done = engine.propagate(
        states, duration=max(BUDGETS) * engine.time_step, bias=[HarmonicBias.on(Z1, float(c), 1.0) for c in centers] * repeats,
        record=(Z1, Z2), record_stride=STRIDE * engine.time_step, seed=[integer_seed(seed, i) for i in range(len(states))],
    )  # fmt: skip
    values = np.array([walker.series["z2"] for walker in done]).reshape(repeats, len(centers), -1)
    codes = {"walkers-disagree", "windows-disagree"}
    found = [free_energy_surface(rows_of(v, engine, FEW), "z2", n_bootstrap=0).findings for v in values]
    return float(np.mean([bool(codes & {finding.code for finding in findings}) for findings in found]))


def denied(table: TabulatedModel, engine: ToyEngine, n: int, repeats: int, seed: int) -> float:
    """Return the share of repeats in which energies of n structures deny the model's weights of the wells.

    They do where the share of the right well differs by 3 standard errors and the free energy between the wells by 0.5 kT.
    """
    out = []
    for repeat in range(repeats):
        made = sample_model(table, engine, n, (Z2,), seed=integer_seed(seed, repeat))
        right, weights = side(made.positions) > 0, np.exp(made.log_weights)
        physical, own = float(weights @ right), float(right.mean())
        # Both shares come from the same structures: the error is that of their difference.
        error = float(np.linalg.norm(weights * (right - physical) - (right - own) / n))
        shift = np.log(physical / (1 - physical)) - np.log(own / (1 - own))
        out.append(abs(physical - own) > 3 * error and abs(shift) > 0.5)
    return float(np.mean(out))


def by_run(engine: ToyEngine, model: FittedConditionalSGM, n_walkers: int, seed: int) -> tuple[Array, float]:
    """Return z2 (n_walkers, n_rows) and the acceptance of moves of the network itself in :meth:`UmbrellaSampling.run`."""
    windows = UmbrellaSampling.at((Z1,), [(5.0,)], (1.0,))
    z2 = model.sample(5.0, n_walkers, seed=integer_seed(seed, "seeds"))[:, 0, 1]
    seeds = {0: [engine.state(5.0, float(y)) for y in z2]}
    samples = windows.run(
        engine, seeds, max(BUDGETS) * engine.time_step, seed=seed, record=(Z2,), record_stride=STRIDE * engine.time_step,
        exchange=False, moves=IndependenceMoves(model, settings=NETWORK),
    )  # fmt: skip
    values = np.array([samples["z2"][samples.walker == w] for w in range(n_walkers)])
    return values, float(windows.move_report().acceptance[0])


def costs(n: int = max(BUDGETS)) -> list[Row]:
    """Return what ten walkers of n steps each are charged, way by way.

    A move asks for two energies, of the proposal and of where the walker is.  Network calls are those of the network's own density,
    one structure each, also where a table of it was used to save time; the density takes a Jacobian with every call.
    """
    density = NETWORK["n_steps"] * STAGES  # calls for the density of one structure, proposed or given
    dynamics = int(0.9 * n)
    charged = {
        "(a) pooled": (WALKERS * n, WALKERS * SEED_CALLS),
        "(b) model as a state": (WALKERS * dynamics + n, WALKERS * SEED_CALLS + (n + WALKERS * dynamics // STRIDE) * density),
        "(c) generative moves": (WALKERS * (n + 2 * (n // MOVE)), WALKERS * (SEED_CALLS + n // MOVE * 2 * density)),
        "(d) exchange along z2": (WALKERS * n, 0),
    }
    rows = []
    for name, (forces, calls) in charged.items():
        rows.append(Row(f"{name}: force evaluations of ten walkers and {n} steps", float(forces), ""))
        rows.append(Row(f"{name}: network calls, a structure each, at {NETWORK['n_steps']} steps of the density", float(calls), ""))
    return rows


def slope(errors: Array) -> float:
    """Return the exponent of the error between the third and the last budget: -0.5 is 1/sqrt(n), 0 is flat."""
    return float(np.polyfit(np.log(BUDGETS[2:]), np.log(errors[2:]), 1)[0])


def exact(repeats: int, solved: int, training: int) -> tuple[list[Row], Curves]:
    """Compare (a) to (d) with a good model and with a wrong one; ``solved`` repeats where every one needs MBAR."""
    kT, potential = 0.5, potentials.variable_barrier(4.0)
    engine, cells = driven(potential, kT, 1e-3), exact_cells(potential, kT, 5.0)
    truth, right = binned(cells), 0.5 * (EDGES[1:] + EDGES[:-1]) > 0
    data = long_run(potential, kT, 1e-3, seed=11)
    heavy = np.where(data[:, 0, 1] > 0, 10.0, 1.0)
    out, curves = [], {}
    exchanged = along_z2(engine, solved, seed=29)
    for kind, weights in (("good", None), ("wrong", heavy)):
        model = fit(data, 0, weights, steps=training)
        table = TabulatedModel.of(model, 5.0)
        share = float(binned(table.cells)[right].sum())
        z2 = draw(table.cells, repeats * WALKERS, stream(21, "seeds")).reshape(repeats, -1)
        values, _ = run(engine, z2, seed=22)
        moved, acceptance = run(engine, z2, 23, IndependenceMoves(table))
        reweighted, effective = as_state(values[:solved], table, engine, seed=24)
        found = {"(a) pooled": pooled(values), "(b) model as a state": reweighted, "(c) generative moves": pooled(moved)}
        for name, shares in (found | {"(d) exchange along z2": exchanged}).items():
            error, spread = mean_and_error(l1(shares, truth))
            # Moves forget the seeds within some steps, so their weights are taken from the second half.
            last = histogram(moved[:, :, moved.shape[2] // 2 :].reshape(repeats, -1)) if name.startswith("(c)") else shares[-1]
            weight, uncertain = mean_and_error(last[:, right].sum(axis=-1))
            curves[f"{kind} model: {name}"] = (error, spread)
            what = f"{kind} model ({share:.2f} on the right), {name}"
            for i, budget in enumerate(BUDGETS):
                out.append(Row(f"{what}: L1 after {budget} steps ({shares.shape[1]} repeats)", float(error[i]), "", float(spread[i])))
            falls, steep = not name.startswith("(a)"), slope(error)
            # Exchange alone is slow to begin with, so its exponent is only told.
            met = None if name.startswith("(d)") else abs(steep + 0.5) < 0.15 if falls else steep > -0.1
            target = None if met is None else -0.5 if falls else 0.0
            out.append(Row(f"{what}: exponent of L1 against steps, 1,000 to 10,000", steep, "", None, target, met))
            off = abs(weight - 0.5)
            right_within = bool(off < 4 * uncertain) if falls else None
            out.append(Row(f"{what}: weight of the right well at the end", float(weight), "", float(uncertain), 0.5, right_within))
        out += _checks(kind, model, table, engine, solved, share)
        out.append(Row(f"{kind} model, (b): effective share of the model's structures", float(effective[-1].mean()), ""))
        out.append(Row(f"{kind} model, (c): accepted moves", float(acceptance.mean()), ""))
        print(f"{kind}: " + "; ".join(f"{k} {np.round(mean_and_error(l1(v, truth))[0], 3)}" for k, v in found.items()), flush=True)
    return out + costs(), curves


def _checks(kind: str, model: FittedConditionalSGM, table: TabulatedModel, engine: ToyEngine, repeats: int, share: float) -> list[Row]:
    """Return how often pooled experiments are flagged, and what the network itself does in windows."""
    warned = flagged(engine, model, repeats, seed=31)
    what = f"{kind} model, (a) pooled: experiments of ten windows and {FEW} walkers each"
    out = [Row(f"{what} that warn of walkers that disagree ({repeats} repeats)", 100 * warned, "%", None, 95.0, warned >= 0.95)]
    off = denied(table, engine, ENERGIES, 1000, seed=32)
    what = f"{kind} model ({share:.2f} on the right): repeats in which energies of {ENERGIES} structures deny its weights"
    out.append(Row(what, 100 * off, "%", None, 95.0 if kind == "wrong" else 5.0, off >= 0.95 if kind == "wrong" else off <= 0.05))
    values, accepted = by_run(engine, model, NETWORK_WALKERS, seed=33)
    weight, uncertain = mean_and_error((values[:, values.shape[1] // 2 :] > 0).mean(axis=1))
    what = f"{kind} model, (c) by the network's own density in UmbrellaSampling.run, {NETWORK_WALKERS} walkers"
    out.append(Row(f"{what}: weight of the right well", float(weight), "", float(uncertain), 0.5, bool(abs(weight - 0.5) < 4 * uncertain)))
    out.append(Row(f"{what}: accepted moves", accepted, ""))
    return out
