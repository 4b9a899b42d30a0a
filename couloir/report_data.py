"""What a report is made of: everything a run directory holds, read once; a run may be half finished."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.analysis import diagnose, equilibrated, equilibration, free_energy_surface
from couloir.analysis.exchange import ExchangeReport, findings_that_matter
from couloir.analysis.overlap import describe_place
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import FreeEnergySurface
from couloir.analysis.timeseries import WalkerEquilibration
from couloir.cv import CollectiveVariable, Region, wrap
from couloir.cv.bias import HarmonicBias, bias_from_dict
from couloir.errors import CouloirError, DataError, Finding
from couloir.paths_stage import about_first, stored_paths
from couloir.rates_stage import saved_rates
from couloir.run import Run
from couloir.sampling.seeds import Seeds, load_seeds
from couloir.sampling.umbrella import stored_exchange
from couloir.trajectory import Array

if TYPE_CHECKING:
    import mdtraj

    from couloir.analysis.path_ensemble import PathEnsemble
    from couloir.sampling.potentials import ToyPotential

PROVISIONAL_REPLICAS = 50


@dataclass(frozen=True, eq=False)
class Explored:
    """Unbiased series: CV names, units, periods, values (n_records, n_cvs) per walker, and ps between records."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    walkers: tuple[Array, ...]
    stride: float

    @property
    def duration(self) -> float:
        """Simulated time of all walkers together, ps."""
        return self.stride * sum(len(values) for values in self.walkers)


@dataclass(frozen=True, eq=False)
class Places:
    """Where windows are: biased CVs with units and periods, and window centres (n_windows, n_cvs)."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    centers: Array

    def between(self, a: int, b: int) -> str:
        """Return the place halfway between two windows as text."""
        delta = [float(wrap(np.array(x), p)) for x, p in zip(self.centers[b] - self.centers[a], self.periods, strict=True)]
        return describe_place(self.centers[a] + 0.5 * np.array(delta), self.names, self.units, self.periods)


@dataclass(frozen=True, eq=False)
class RunData:
    """Everything found in a run; what is not there yet is None or empty.

    Attributes
    ----------
    cvs : by name; empty when they could not be built again.
    samples, kept : all rows of the windows, and those after each walker's transient.
    table : equilibration of every walker.
    exchange : what windows exchanged; None also when they were not asked to.
    surfaces : free-energy surfaces; ``provisional`` when made here because the run has not come that far.
    notes : what could not be read, and why.
    paths : reactive paths sampled so far; None before the first step, or when none were asked for.
    first_paths : how the paths that chains were started from came about; None before they were found.
    rates : what ``results/rates.json`` holds; None before.
    """

    run: Run
    finished: bool
    engine: Any = None
    cvs: dict[str, CollectiveVariable] = field(default_factory=dict)
    explored: Explored | None = None
    seeds: Seeds | None = None
    samples: BiasedSamples | None = None
    kept: BiasedSamples | None = None
    table: tuple[WalkerEquilibration, ...] = ()
    exchange: ExchangeReport | None = None
    surfaces: tuple[FreeEnergySurface, ...] = ()
    provisional: bool = False
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    paths: PathEnsemble | None = None
    first_paths: dict[str, Any] | None = None
    rates: dict[str, Any] | None = None

    @property
    def topology(self) -> mdtraj.Topology | None:
        """Of the molecule; None for toy systems, or when the system could not be built again."""
        return getattr(self.engine, "topology", None)

    @property
    def potential(self) -> ToyPotential | None:
        """Of a toy system, else None."""
        return getattr(self.engine, "potential", None)

    @property
    def along(self) -> tuple[str, ...]:
        """Names of the biased CVs."""
        return () if self.run.config.umbrella is None else self.run.config.umbrella.along

    @cached_property
    def n_independent(self) -> float:
        """Effectively independent reactive paths by durations or the CV that tells the fewest; 0 without paths."""
        return 0.0 if self.paths is None else self.paths.n_independent(tuple(self.cvs.values()))

    @property
    def places(self) -> Places:
        """Of the windows; there must be samples."""
        assert self.samples is not None
        columns = [self.samples.column(name) for name in self.along]
        units, periods = tuple(self.samples.units[c] for c in columns), tuple(self.samples.periods[c] for c in columns)
        centers = [bias.centers for bias in self.samples.biases if isinstance(bias, HarmonicBias)]
        return Places(self.along, units, periods, np.array(centers))

    @property
    def sampled(self) -> float:
        """Simulated time in windows, all walkers together, ps."""
        return 0.0 if self.samples is None else record_stride(self.samples) * len(self.samples)


def read_run(run: Run) -> RunData:
    """Read whatever a run holds so far; nothing that is missing or damaged stops it."""
    notes: list[str] = []
    engine, cvs = _system(run, notes)
    explored = _try(notes, "unbiased dynamics", lambda: _explored(run, cvs))
    seeds = _try(notes, "seeds", lambda: load_seeds(run.store) if run.store.count("seeds") else None)
    samples, stale, finished = None, False, bool(run.store.get("finished", False))
    stored = _try(notes, "samples of the windows", lambda: stored_samples(run, cvs))
    saved = _try(notes, "results/samples.npz", lambda: _saved_samples(run))
    # While windows run on, results on disk are those of the shorter run: never show one beside the other.  A finished
    # run's results are what was asked for, even where the store holds more (an earlier, longer request).
    if saved is not None and (finished or stored is None or len(saved) >= len(stored)):
        samples = saved
    elif stored is not None:
        samples, stale = stored, True
    table: tuple[WalkerEquilibration, ...] = ()
    kept: BiasedSamples | None = None
    surfaces: tuple[FreeEnergySurface, ...] = ()
    if samples is not None:
        table = tuple(equilibration(samples))
        kept = equilibrated(samples, list(table))
        surfaces = _surfaces(run, cvs, kept, stale, notes)
    exchange = read_exchange(run, dict(zip(samples.names, samples.units, strict=True))) if samples is not None else None
    paths = _try(notes, "paths", lambda: stored_paths(run, engine)) if engine is not None and run.config.paths is not None else None
    rates = _try(notes, "rates", lambda: saved_rates(run)) if run.config.rates is not None else None
    about_paths = () if paths is None else tuple(paths.diagnose(tuple(cvs.values())))
    findings = _findings(run, seeds, samples, exchange, surfaces) + about_paths
    return RunData(
        run, finished and not stale, engine, cvs, explored, seeds, samples, kept, table, exchange, surfaces, stale, findings, tuple(notes),
        paths, about_first(run), rates,
    )  # fmt: skip


def read_exchange(run: Run, units: Mapping[str, str]) -> ExchangeReport | None:
    """Return what windows exchanged so far, or None where there was no exchange yet, or none was asked for.

    Parameters
    ----------
    units : of the CVs by name, for the places that findings name.
    """
    if not (run.store.get("umbrella/plan") or {}).get("groups"):
        return None
    try:
        return stored_exchange(run.store, units=units)
    except DataError:  # there were no two windows, or no two chunks
        return None


def record_stride(samples: BiasedSamples) -> float:
    """Return the time between records of one walker, ps."""
    return float(samples.time.min())


def stored_samples(run: Run, cvs: dict[str, CollectiveVariable]) -> BiasedSamples | None:
    """Return the rows that the windows have committed so far (walkers may be of unequal length), or None."""
    plan = run.store.get("umbrella/plan")
    if plan is None:
        return None
    biases = {int(w[1:5]): bias_from_dict(b) for w, b in zip(plan["walkers"], plan["biases"], strict=True)}
    names = tuple(plan["record"])
    stride = plan["record_steps"] * plan["time_step"]
    parts: dict[str, list[Array]] = {key: [] for key in ("values", "potential", "window", "walker", "time")}
    for number, walker in enumerate(plan["walkers"]):
        chunks = list(run.store.chunks(f"umbrella/{walker}"))
        if not chunks:
            continue
        values = np.concatenate([c["values"] for c in chunks])
        parts["values"].append(values)
        parts["potential"].append(np.concatenate([c["potential"] for c in chunks]))
        parts["window"].append(np.full(len(values), int(walker[1:5])))
        parts["walker"].append(np.full(len(values), number))
        parts["time"].append(stride * np.arange(1, len(values) + 1))
    if not parts["values"]:
        return None
    units, periods = _units(names, cvs, biases)
    arrays: dict[str, Any] = {key: np.concatenate(values) for key, values in parts.items()}
    ordered = tuple(biases[w] for w in range(len(biases)))
    return BiasedSamples(names, units, periods, biases=ordered, temperatures=np.full(len(ordered), plan["temperature"]), **arrays)


def _system(run: Run, notes: list[str]) -> tuple[Any, dict[str, CollectiveVariable]]:
    from couloir.build import build_engine, stored_cvs

    built = _try(notes, "the system (no pictures of it, and CVs without units)", lambda: build_engine(run)[0])
    if built is None:
        return None, {}
    return built, _try(notes, "the CVs", lambda: stored_cvs(run, built.topology)) or {}


def _try(notes: list[str], what: str, read: Any) -> Any:
    try:
        return read()
    except CouloirError as error:
        notes.append(f"could not read {what}: {error.message}")
        return None


def _saved_samples(run: Run) -> BiasedSamples | None:
    file = run.path / "results" / "samples.npz"
    return BiasedSamples.load(file) if file.exists() else None


def _units(
    names: tuple[str, ...], cvs: dict[str, CollectiveVariable], biases: dict[int, Any] | None = None
) -> tuple[tuple[str, ...], tuple[float | None, ...]]:
    known: dict[str, float | None] = {}
    for bias in (biases or {}).values():
        known |= dict(zip(bias.names, getattr(bias, "periods", (None,) * len(bias.names)), strict=True))
    known |= {name: cv.period for name, cv in cvs.items()}
    return tuple(cvs[n].unit if n in cvs else "" for n in names), tuple(known.get(n) for n in names)


def _explored(run: Run, cvs: dict[str, CollectiveVariable]) -> Explored | None:
    plan, table = run.store.get("explore/plan"), run.config.explore
    if plan is None or table is None:
        return None
    stride = plan["record_steps"] * plan["time_step"]
    asked = math.ceil(round(table.duration / table.walkers / stride, 6))  # chunks are whole: the store may hold more
    walkers = []
    for walker in plan["walkers"]:
        chunks = [chunk["values"] for chunk in run.store.chunks(f"explore/{walker}")]
        if chunks:
            walkers.append(np.concatenate(chunks)[:asked])
    if not walkers:
        return None
    names = tuple(plan["record"])
    return Explored(names, *_units(names, cvs), tuple(walkers), stride)


def _surfaces(
    run: Run, cvs: dict[str, CollectiveVariable], kept: BiasedSamples, stale: bool, notes: list[str]
) -> tuple[FreeEnergySurface, ...]:
    files = [] if stale else sorted((run.path / "results").glob("free_energy_*.npz"))
    assert run.config.umbrella is not None
    out = []
    if files:
        loaded = [_try(notes, file.name, lambda file=file: FreeEnergySurface.load(file)) for file in files]
        out = [surface for surface in loaded if surface is not None]
    else:
        table = run.config.surface
        for entry in table.along or (run.config.umbrella.along[:2],):
            names = (entry,) if isinstance(entry, str) else entry
            options: dict[str, Any] = {"bins": table.bins, "n_bootstrap": PROVISIONAL_REPLICAS, "seed": run.config.seed}
            made = _try(
                notes,
                f"a surface along {', '.join(names)}",
                lambda n=names, o=options: free_energy_surface(kept, n, equilibrate=False, **o),
            )
            out += [] if made is None else [made]
    return tuple(surface.with_basins(**_basins(run, cvs, surface, notes)) for surface in out)


def _basins(run: Run, cvs: dict[str, CollectiveVariable], surface: FreeEnergySurface, notes: list[str]) -> dict[str, Any]:
    out = {}
    for name, text in run.config.surface.basins.items() if cvs else ():
        region = _try(notes, f"the basin {name}", lambda text=text: Region.parse(text, cvs))
        if region is not None and {cv.name for cv in region.cvs} <= set(surface.names):
            out[name] = region
    return out


def _findings(
    run: Run, seeds: Seeds | None, samples: BiasedSamples | None, exchange: ExchangeReport | None, surfaces: tuple[FreeEnergySurface, ...]
) -> tuple[Finding, ...]:
    found, of_surfaces = run.findings(), [f for surface in surfaces for f in surface.findings]
    found += [*findings_that_matter(exchange, of_surfaces), *of_surfaces]
    if samples is not None:
        try:
            # Surfaces judge the rows that were kept; how many were not only shows in all of them.
            found += [f for f in diagnose(samples) if f.code == "not-equilibrated"]
        except DataError as error:
            found.append(Finding("not-diagnosed", error.message, error.fix or ""))
    found += list(seeds.findings) if seeds is not None else []
    return tuple(dict.fromkeys(found))
