"""From the tables of a run file to the objects they describe: engine, CVs, windows, representation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from couloir.cv import CollectiveVariable
from couloir.cv.diffusion_map import plan_from_config
from couloir.cv.geometric import Coordinate
from couloir.cv.registry import from_config, from_dict
from couloir.errors import ConfigError, nearest
from couloir.run import Run
from couloir.sampling.planning import coarse_windows
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

LEARNED = ("diffusion_map",)
"""Types of CV that are learned from the unbiased data."""
SAVED = ("learned_committor",)
"""Types of CV that were learned before and are read from a file, which the run keeps."""
COARSE_1D, COARSE_ND = 12, 8
"""Windows along one CV, or along each of several, that further ones are placed between."""
EXPLORED_PERCENTILES = (1.0, 99.0)
"""Of the unbiased data, what windows without a range span."""


def build_engine(run: Run) -> tuple[Any, State]:
    """Return the engine a run file asks for and the state it starts from."""
    from couloir.sampling.potentials import LIBRARY

    system, table = run.config.system, run.config.engine
    if system.name in LIBRARY:
        return _toy_engine(run, LIBRARY[system.name])
    if system.name is not None and system.name not in _molecules():
        raise ConfigError(f"system.name = {system.name!r} is unknown{nearest(system.name, [*_molecules(), *LIBRARY])}")
    if table.kT is not None:
        raise ConfigError(f"engine.kT belongs to toy systems ({', '.join(LIBRARY)})", "set engine.temperature for a molecule")
    from couloir.sampling.openmm_engine import OpenMMEngine

    molecule = _molecule(run)
    # Platforms differ in rounding and speeds fluctuate: a run stays on the platform that was chosen for it.
    platform = run.store.get("engine", {}).get("platform", table.platform) if table.platform == "auto" else table.platform
    engine = OpenMMEngine(
        molecule, table.temperature, table.time_step or 0.002, table.friction or 1.0, platform=platform, workers=table.workers
    )
    return engine, molecule.state


def _toy_engine(run: Run, make: Callable[..., Any]) -> tuple[Any, State]:
    from couloir.sampling.toy import ToyEngine

    table, parameters = run.config.engine, run.config.system.parameters
    try:
        potential = make(**parameters)
    except TypeError as error:
        raise ConfigError(f"system.parameters do not fit {make.__name__}: {error}") from None
    engine = ToyEngine(potential, kT=table.kT or 1.0, time_step=table.time_step or 1e-3, friction=table.friction, threads=table.workers)
    center = np.mean(np.asarray(potential.bounds, dtype=float), axis=1)
    (start,) = engine.minimize([State(center[None])])
    return engine, start


def _molecules() -> list[str]:
    from couloir.sampling import systems
    from couloir.sampling.potentials import LIBRARY

    return [name for name in systems.__all__ if name not in LIBRARY and name not in ("alkane", "structure_file")]


def _molecule(run: Run) -> Any:
    from couloir.sampling import systems
    from couloir.sampling.molecule import MolecularSystem

    system = run.config.system
    if system.name is not None:
        return getattr(systems, system.name)(**({} if system.solvent is None else {"solvent": system.solvent}))
    options: dict[str, Any] = {
        "constraints": system.constraints, "nonbonded_cutoff": system.nonbonded_cutoff, "hydrogen_mass": system.hydrogen_mass,
    }  # fmt: skip
    if system.pdb is not None:
        force_field = tuple(str(run.folder / f) if (run.folder / f).exists() else f for f in system.force_field)
        return MolecularSystem.from_pdb(run.folder / system.pdb, force_field, add_hydrogens=system.add_hydrogens, **options)
    if system.prmtop is not None and system.inpcrd is not None:
        files = run.folder / system.prmtop, run.folder / system.inpcrd
        return MolecularSystem.from_amber(*files, implicit_solvent=system.implicit_solvent, **options)
    assert system.top is not None
    assert system.gro is not None
    return MolecularSystem.from_gromacs(run.folder / system.top, run.folder / system.gro, **options)


def build_cvs(run: Run, topology: Any) -> dict[str, CollectiveVariable]:
    """Return the CVs of the ``[cv.*]`` tables by name and in order; those that wait for data are checked, not made."""
    cvs: dict[str, CollectiveVariable] = {}
    waiting: dict[str, CollectiveVariable] = {}
    for name, table in run.config.cv.items():
        if table.get("type") in LEARNED:
            plan_from_config(table, topology, name)
            waiting[name] = stand_in(name)
            continue
        kept = run.store.get(f"learned/{name}") if table.get("type") in SAVED and run.store.series() else None
        made = from_config(table, topology, name, cvs=cvs | waiting, folder=run.folder) if kept is None else from_dict(kept)
        if set(table.get("of", ())) & set(waiting):
            waiting[name] = stand_in(name)
        else:
            cvs[name] = made
    return cvs


def keep_saved(run: Run, topology: Any, cvs: dict[str, CollectiveVariable]) -> None:
    """Keep the CVs that were read from files in the run, which then no longer depends on the files.

    Raises
    ------
    ConfigError : a file holds something else than when the run began.
    """
    for name, table in run.config.cv.items():
        if table.get("type") not in SAVED:
            continue
        kept = run.store.get(f"learned/{name}")
        if kept is None or not run.store.series():
            run.store[f"learned/{name}"] = cvs[name].to_dict()
        elif (run.folder / table["file"]).exists():
            now = from_config(table, topology, name, folder=run.folder)
            if json.loads(json.dumps(now.to_dict())) != kept:
                raise ConfigError(
                    f"[cv.{name}]: {run.folder / table['file']} has changed since the run began",
                    "restore the file, or start a new run with --directory",
                )


def stand_in(name: str) -> CollectiveVariable:
    """Return a CV that takes the place of one that is not learned yet, where only its name matters."""
    return Coordinate(0, name)


def stored_cvs(run: Run, topology: Any) -> dict[str, CollectiveVariable]:
    """Return the CVs of a run that exist so far: those of its tables, and those already learned."""
    known = build_cvs(run, topology)
    missing = {n for n, t in run.config.cv.items() if t.get("type") in LEARNED and run.store.get(f"learned/{n}") is None}
    return known if missing else learn_cvs(run, topology, known, np.empty((0, 0, 3)))


def learn_cvs(run: Run, topology: Any, cvs: dict[str, CollectiveVariable], frames: Array) -> dict[str, CollectiveVariable]:
    """Return all CVs in the order of the run file, learning the missing ones from ``frames`` (or reading what was learned).

    Raises
    ------
    ConfigError : there are no frames to learn from.
    """
    out: dict[str, CollectiveVariable] = {}
    for name, table in run.config.cv.items():
        if name in cvs:
            out[name] = cvs[name]
        elif table.get("type") in LEARNED:
            out[name] = _learned(run, topology, name, frames)
        else:
            out[name] = from_config(table, topology, name, cvs=out, folder=run.folder)
    return out


def _learned(run: Run, topology: Any, name: str, frames: Array) -> CollectiveVariable:
    stored = run.store.get(f"learned/{name}")
    if stored is None:
        if len(frames) == 0:
            raise ConfigError(f"[cv.{name}] is learned from data, and there are none", "add [explore]")
        plan = plan_from_config(run.config.cv[name], topology, name)
        fitted, coordinate = plan.fit(frames, seed=integer_seed(run.config.seed, "cv", name))
        run.note_findings(name, fitted.warnings)
        run.log(str(fitted))
        run.store[f"learned/{name}"] = stored = coordinate.to_dict()
    return from_dict(stored)


def build_windows(run: Run, engine: Any, cvs: dict[str, CollectiveVariable], frames: Array | None = None) -> UmbrellaSampling:
    """Return the windows of ``[umbrella]``.

    Without a force constant, neighbours are one window width apart.  With an overlap to reach these are the few windows to start
    from (see :func:`couloir.placement.placed_windows`).  Without a range, windows along a CV that has no
    period span ``EXPLORED_PERCENTILES`` of its values in the unbiased data.

    Parameters
    ----------
    frames : (n, n_atoms, 3) unbiased data; None (before there are any) puts windows that wait for them anywhere.

    Raises
    ------
    ConfigError : a range is missing and there are, or will be, no unbiased data.
    """
    table = run.config.umbrella
    assert table is not None
    along = [cvs[name] for name in table.along]
    ranges: list[Any] = list(table.range) if table.range is not None else [_explored_range(run, cv, frames) for cv in along]
    grid_range: Any = ranges[0] if len(along) == 1 else ranges
    if table.overlap is not None:
        return coarse_windows(along, [COARSE_1D if len(along) == 1 else COARSE_ND] * len(along), engine.kT, grid_range, table.overlap)
    numbers = list(table.windows) * (len(along) if len(table.windows) == 1 else 1)
    constants: Any = table.force_constant
    if constants is None:
        trial = UmbrellaSampling.grid(along, numbers, 1.0, grid_range)
        constants = [_spaced_constant(np.unique(trial.centers[:, i].round(12)), cv, engine.kT) for i, cv in enumerate(along)]
    elif isinstance(constants, tuple):
        constants = list(constants)
    return UmbrellaSampling.grid(along, numbers, constants, grid_range)


def _explored_range(run: Run, cv: CollectiveVariable, frames: Array | None) -> tuple[float, float] | None:
    if cv.period is not None:
        return None
    if run.config.explore is None or (frames is not None and len(frames) == 0):
        raise ConfigError(
            f"umbrella.range is missing: {cv.name} has no period, and there are no unbiased data to take its range from",
            "add range = [low, high] to [umbrella], or add [explore]",
        )
    if frames is None:
        return 0.0, 1.0
    # The windows of a run must not move: the range is computed once, whatever a later machine's rounding makes of it.
    key = f"explored-range/{cv.name}"
    if run.store.get(key) is None:
        run.store[key] = np.percentile(cv.evaluate(frames), EXPLORED_PERCENTILES).tolist()
    low, high = run.store.get(key)
    return low, high


def _spaced_constant(centers: Array, cv: CollectiveVariable, kT: float) -> float:
    """Force constant that makes a flat window's standard deviation equal the spacing, so neighbours share 60 % of their area."""
    if len(centers) > 1:
        return float(kT / np.diff(centers).min() ** 2)
    if cv.period is not None:
        return float(kT / (cv.period / 6) ** 2)
    raise ConfigError(f"a single window along {cv.name} has no spacing", "give umbrella.force_constant")


def model_labels(run: Run, windows: UmbrellaSampling, cvs: dict[str, CollectiveVariable]) -> list[CollectiveVariable]:
    """Return the CVs a model is conditioned on: ``model.label``, or those of the windows."""
    table = run.config.model
    return [cvs[table.label]] if table is not None and table.label is not None else list(windows.cvs)


def build_representation(run: Run, engine: Any, label: list[CollectiveVariable]) -> Any:
    """Return how structures become vectors: ``model.representation``, or what suits the system."""
    from couloir.generative.internal import InternalCoordinates
    from couloir.generative.representation import Cartesian, Vector

    table = run.config.model
    kind = table.representation if table is not None else None
    if kind is None:
        kind = "vector" if engine.topology is None else "internal"
    if kind == "vector":
        return Vector(periods=tuple(engine.potential.periods)) if engine.topology is None else Vector()
    if engine.topology is None:
        raise ConfigError(f"model.representation = {kind!r} needs a molecule", 'use representation = "vector" for toy systems')
    if kind == "cartesian":
        return Cartesian(engine.topology)
    torsions = [cv.atoms for cv in label if hasattr(cv, "atoms") and len(cv.atoms) == 4]
    return InternalCoordinates(engine.topology, torsions=torsions)
