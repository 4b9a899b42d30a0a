"""Seeded windows against dragged ones: error of the surface against simulated time.

    python -m benchmarks.seeding --scale small|paper [--only toy|alanine]

Two systems, the same windows, walkers and time steps for both ways of starting them, several repeats:

* ``hidden_barrier`` (exact answer): windows along x hide a barrier along y.  The model learns from one unbiased run,
  whose time is charged to the seeded side.
* alanine dipeptide, OBC2, 300 K, along phi, against the long reference.  The model learns from 2 ns in the left half of
  the Ramachandran plane; what that costs per walker stands in every row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.reference.data import alanine_dipeptide_surface
from benchmarks.results import Row, scale_parser, write_results
from couloir.analysis import BiasedSamples, free_energy_surface
from couloir.cv.geometric import Coordinate, Dihedral
from couloir.generative import ConditionalSGM, InternalCoordinates, Vector
from couloir.sampling import OpenMMEngine, ToyEngine, potentials, systems
from couloir.sampling.dragging import dragged_seeds
from couloir.sampling.seeding import seed_windows
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.trajectory import Array, State

TARGET = 0.3  # kT


def error_in_time(samples: BiasedSamples, times: Sequence[float], along: str, exact: object, **grid: object) -> Array:
    """Return the RMSE in kT below 8 kT of the surface from the first t ps of every walker, for each t."""
    out = []
    for time in times:
        surface = free_energy_surface(samples.until(time), along, n_bootstrap=0, **grid)  # type: ignore[arg-type]
        out.append(surface.rmse(exact, below=8.0) / surface.kT)  # type: ignore[arg-type]
    return np.array(out)


def first_time(times: Sequence[float], errors: Array) -> float:
    """Return the first time from which the error stays at or below the target, or infinity."""
    good = np.append(np.asarray(errors) <= TARGET, True)
    start = len(good) - np.argmin(good[::-1]) if not good.all() else 0
    return float(times[start]) if start < len(times) else float("inf")


def toy(repeats: int, longest: float) -> list[Row]:
    """The hidden barrier: time per walker until F(x) is known to 0.3 kT, seeded and dragged."""
    engine = ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=1e-3)
    x, y = Coordinate(0, "x"), Coordinate(1, "y")
    windows = UmbrellaSampling.grid(x, 14, 20.0, range=(-1.9, 2.0))
    per_window, training, enough = 24, 30_000.0, 60.0
    times = np.geomspace(2.0, longest, 13).round().tolist()
    early = [t for t in times if t <= enough]
    grid = {"bins": 39, "limits": (-1.95, 1.95)}

    def exact(points: Array) -> Array:
        return engine.potential.exact_free_energy(points, kT=1.0)

    seeded, dragged = [], []
    for repeat in range(repeats):
        left = engine.minimize([State(np.array([[-1.6, -1.0]]))])[0]
        data = engine.propagate([left] * 4, duration=training / 4, stride=0.5, seed=100 + repeat)
        model = ConditionalSGM(Vector(), label=x).fit(data, seed=repeat)
        for kind, results in (("model", seeded), ("dragged", dragged)):
            if kind == "model":
                seeds = seed_windows(model, engine, windows, per_window, seed=repeat, oversample=2, selection="model")
            else:
                seeds = dragged_seeds(engine, windows, left, per_window, seed=repeat)
            samples = windows.run(engine, seeds, longest, seed=repeat, record=(x, y), record_stride=0.5)
            results.append(error_in_time(samples, times, "x", exact, **grid))
            _progress(f"hidden barrier, repeat {repeat}, {kind}", times, results[-1])
    charge = training / (len(windows) * per_window)
    seeded_time = np.array([first_time(early, e[: len(early)]) for e in seeded]) + charge
    dragged_time = np.array([first_time(times, e) for e in dragged])
    unreached = int(np.isinf(dragged_time).sum())
    ratios = np.where(np.isinf(dragged_time), longest, dragged_time) / seeded_time
    bound = f" (a lower bound: {unreached} of {repeats} dragged repeats never reached it in {longest:g} ps)" if unreached else ""
    spread = float(ratios.std(ddof=1) / np.sqrt(repeats)) if repeats > 1 else None
    return [
        Row(
            f"hidden barrier: time to RMSE 0.3 kT, dragged over seeded, training data charged{bound}",
            float(np.median(ratios)), "x", spread, 5.0, bool(np.median(ratios) >= 5.0), "dragged windows", float(np.median(dragged_time)),
        ),
        *_table("hidden barrier", early[::2], [e[: len(early) : 2] for e in seeded], [e[: len(early) : 2] for e in dragged], charge),
    ]  # fmt: skip


def alanine(repeats: int, longest: float, training: float) -> list[Row]:
    """Alanine dipeptide along phi against the long reference."""
    molecule = systems.alanine_dipeptide(solvent="obc2")
    engine = OpenMMEngine(molecule, platform="Reference")
    phi, psi = Dihedral.phi(molecule.topology, residue=2), Dihedral.psi(molecule.topology, residue=2)
    windows = UmbrellaSampling.grid(phi, 36, "100 kJ/mol/rad^2")
    reference = alanine_dipeptide_surface("phi", n_bootstrap=0, bins=72)
    times = [t for t in (10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 800.0) if t <= longest]
    seeded, dragged = [], []
    for repeat in range(repeats):
        start = engine.minimize([molecule.state] * 2)
        data = engine.propagate(start, duration=training / 2, stride=1.0, seed=100 + repeat)
        model = ConditionalSGM(InternalCoordinates(molecule.topology, torsions=[phi.atoms]), label=phi).fit(data, seed=repeat)
        for kind, results in (("model", seeded), ("dragged", dragged)):
            if kind == "model":
                seeds = seed_windows(model, engine, windows, 2, seed=repeat)
            else:
                seeds = dragged_seeds(engine, windows, data[0].state(-1), 2, seed=repeat)
            samples = windows.run(engine, seeds, longest, seed=repeat, record=(phi, psi))
            results.append(error_in_time(samples, times, "phi", reference, bins=72))
            _progress(f"alanine, repeat {repeat}, {kind}", times, results[-1])
    return _table("alanine dipeptide", times, seeded, dragged, training / (2 * len(windows)))


def _table(system: str, times: Sequence[float], seeded: Sequence[Array], dragged: Sequence[Array], charge: float) -> list[Row]:
    rows = []
    for i, time in enumerate(times):
        a, b = np.array([e[i] for e in seeded]), np.array([e[i] for e in dragged])
        error = float(a.std(ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
        claim = f"{system}: RMSE after {time:g} ps per walker, seeded (learned from {charge:.0f} ps more per walker)"
        rows.append(Row(claim, float(a.mean()), "kT", error, peer="dragged", peer_value=float(b.mean())))
    return rows


def _progress(what: str, times: Sequence[float], errors: Array) -> None:
    print(f"{what}: " + " ".join(f"{t:g}:{e:.2f}" for t, e in zip(times, errors, strict=True)), flush=True)


def main() -> None:
    parser = scale_parser(__doc__)
    parser.add_argument("--only", choices=("toy", "alanine"))
    arguments = parser.parse_args()
    small = arguments.scale == "small"
    rows = []
    if arguments.only != "alanine":
        rows += toy(5, 1200.0 if small else 5000.0)
    if arguments.only != "toy":
        rows += alanine(5, 200.0 if small else 800.0, 2000.0)
    write_results("seeding" + (f"_{arguments.only}" if arguments.only else ""), rows, scale=arguments.scale)


if __name__ == "__main__":
    main()
