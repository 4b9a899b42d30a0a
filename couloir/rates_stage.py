"""The stage behind ``[rates]``: interface sampling from either state, started from the reactive paths of ``[paths]``.

Everything is in the run's store, so the same call goes on where it stopped: the reactive paths that both sides start from, where
interfaces are, every step.  What the sides start from is kept because ``paths.n_paths`` may be raised later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.cv import CollectiveVariable, FunctionOfCVs, LinearCombination, Region
from couloir.cv.base import wrap
from couloir.errors import ConfigError, DataError, Finding, SimulationError
from couloir.paths_stage import keep_paths, kept_paths, states_of
from couloir.rates_maps import free_energy_file, save_maps
from couloir.rates_numbers import as_json, channels_of, finite, summary, tried
from couloir.run import Run, write_json
from couloir.sampling.interface_checkpoint import stored_cycles as checkpointed
from couloir.sampling.interface_starts import evenly, free_of_first
from couloir.sampling.path_store import packed
from couloir.streams import integer_seed
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    from couloir.analysis.interface_samples import InterfaceSamples
    from couloir.analysis.path_ensemble import PathEnsemble
    from couloir.sampling.interface_sampling import TransitionInterfaceSampling

Say = Callable[[str], None]

NAMES = {"from_a": "rates/from A", "from_b": "rates/from B"}
"""What each side is called in ``results/rates.json``, and in the store."""
_TIMES = 20  # the longest reactive path, that paths may take by default; as TransitionInterfaceSampling.from_paths has it
_MOST_GIVEN = 64  # reactive paths that interfaces are placed from
_LEVELS = 300  # points of a crossing probability that are saved
_GIVEN, _DONE = "rates/given", "rates/done"
_FIXES = {
    "rate-uncertain": "raise rates.n_cycles: the run goes on from its store",
    "first-path-remains": "raise rates.n_cycles: the run goes on from its store",
    "few-passages": "raise rates.n_cycles: the run goes on from its store",
    "drifting": "raise rates.n_cycles: the run goes on from its store",
    "few-blocks": "raise rates.n_cycles: the run goes on from its store",
    "paths-cut": "raise rates.max_duration, in a new run",
    "jumps-to-b": "lower paths.stride, or move paths.from and paths.to apart, in a new run: the rate is too low",
    "wraps-around": 'cut the circle where the system does not go, by a CV of type "function" such as "phi + 1.05" with a period',
}
"""What to do about findings of the sampling, in words of the run file."""


@dataclass(frozen=True)
class Side:
    """One of the two states that paths leave.

    Attributes
    ----------
    key : in :data:`NAMES`.
    region, other : the state, and the one where paths end that do not come back; both along ``along``.
    along : grows from the one to the other.
    sign : ``along`` is this times the CV of ``rates.along``.
    """

    key: str
    region: Region
    other: Region
    along: CollectiveVariable
    sign: int

    @property
    def name(self) -> str:
        """Of the side's series in the store."""
        return NAMES[self.key]

    def seen(self, values: Any) -> Array:
        """Return values of ``along`` as those of the CV of ``rates.along``."""
        return wrap(self.sign * np.asarray(values, dtype=np.float64), self.along.period)


def sample_rates(run: Run, engine: Any, paths: PathEnsemble, cvs: dict[str, CollectiveVariable], say: Say) -> dict[str, Any]:
    """Sample interfaces from A and from B, and save rates, free energies and committors in ``results``; returns ``rates.json``.

    A run that has them already as asked for is left alone.

    Parameters
    ----------
    paths : reactive paths to start from.
    say : told in one line what came of it.

    Raises
    ------
    SimulationError : too few paths were sampled to tell a rate.
    """
    if finished(run):
        found = saved_rates(run)
        if found is not None:
            say(summary(found))
            return found
    from couloir.analysis import reweighted_paths

    table = run.config.rates
    assert table is not None
    names = recorded(run)
    given = _given(run, engine, paths)
    sides = sides_of(run, cvs)
    placed = [_placed(run, engine, side, given, say) for side in sides]
    samples, spent = [], []
    for side, (sampling, before) in zip(sides, placed, strict=True):
        settings: dict[str, Any] = {"relative_error": table.relative_error, "n_cycles": table.n_cycles, "n_sets": table.n_sets}
        seed = integer_seed(run.config.seed, side.name, "run")
        frames = run.store.count(f"{side.name}/steps") > 0  # of a run that began when all frames were kept
        # of all CVs, which a run cannot change, so that rates.record may change
        record = [cvs[name] for name in names] if frames else list(cvs.values())
        some = sampling.run(seed=seed, record=record, store=run.store, keep_frames=frames, **settings)
        run.log(str(some))
        samples.append(some)
        spent.append(before)
    try:
        found = _found(run, sides, [sampling for sampling, _ in placed], samples, spent)
        both = reweighted_paths(*samples)
        found |= {"population": as_json(both.population), "reactive_flux": as_json(both.reactive_flux)}
        found["freedom"] = finite(min(side.weights.freedom for side in both.sides))
        found["channels"] = channels_of(both, names)
        save_maps(run, both, names, engine.temperature)
    except DataError as error:
        raise SimulationError(f"no rate follows from the paths so far: {error.message}", _FIXES["rate-uncertain"]) from None
    findings = [finding for side, some in zip(sides, samples, strict=True) for finding in _findings(side, some)]
    found["findings"] = [[finding.code, finding.message, finding.fix] for finding in findings]
    run.note_findings("rates", findings)
    write_json(rates_file(run), found)
    run.store[_DONE] = wanted(run)
    say(summary(found))
    for finding in findings:
        say(str(finding))
    return found


def recorded(run: Run) -> tuple[str, ...]:
    """Return the names of the CVs along which free energy and committor are reported."""
    table = run.config.rates
    assert table is not None
    return table.record if table.record is not None else (table.along,)


def wanted(run: Run) -> dict[str, Any]:
    """Return the settings of ``[rates]`` as JSON."""
    assert run.config.rates is not None
    settings: dict[str, Any] = run.config.rates.model_dump(mode="json")
    return settings


def finished(run: Run) -> bool:
    """Return whether rates were computed as the run file asks now."""
    return bool(run.store.get(_DONE) == wanted(run))


def saved_rates(run: Run) -> dict[str, Any] | None:
    """Return what ``results/rates.json`` holds; None before it is written, and when a file beside it is gone.

    Raises
    ------
    DataError : it cannot be read.
    """
    if not rates_file(run).exists() or not all(free_energy_file(run, (name,)).exists() for name in recorded(run)):
        return None
    try:
        found = json.loads(rates_file(run).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {rates_file(run)}: {error}", "remove it, and give couloir run again") from None
    return dict(found)


def stored_cycles(run: Run) -> tuple[int, int]:
    """Return how many cycles either side has taken.

    Where all frames are kept, every shot is a step that is written, and so is the exchange of an even cycle.
    """
    out = []
    for name in NAMES.values():
        if not run.store.count(f"{name}/steps"):
            out.append(checkpointed(run.store, name))
            continue
        last = run.store.chunk(f"{name}/steps", -1)  # of a run that began when all frames were kept
        steps = int(last["begin"][0]) + len(last["reason"])
        shots = int((run.store.get(f"{name}/plan") or {}).get("shots", 1))
        pairs, rest = divmod(steps, 2 * shots + 1)
        out.append(2 * pairs + int(rest >= shots))
    return out[0], out[1]


def backward(cv: CollectiveVariable) -> CollectiveVariable:
    """Return minus a CV: the order parameter seen from B."""
    name = f"{cv.name}_back"
    if cv.period is None:
        return LinearCombination((cv,), (-1.0,), name, unit=cv.unit)
    return FunctionOfCVs((cv,), f"-{cv.name}", name=name, unit=cv.unit, period=cv.period)


def limits_of(a: Region, b: Region, along: CollectiveVariable, texts: tuple[str, str]) -> tuple[float, float]:
    """Return the value of ``along`` below which everything is A, and the one above which everything is B.

    Parameters
    ----------
    texts : A and B as the run file has them.

    Raises
    ------
    ConfigError : A or B is not that; says what to change.
    """
    name = along.name
    if _is_side(a, along, below=False) and _is_side(b, along, below=True):
        raise ConfigError(
            f"rates.along = {name!r} falls from A to B (paths.from = {texts[0]!r}, paths.to = {texts[1]!r})",
            f'exchange paths.from and paths.to, or give minus it: type = "linear", of = ["{name}"], coefficients = [-1]',
        )
    for key, letter, region, below, text in (("from", "A", a, True, texts[0]), ("to", "B", b, False, texts[1])):
        if not _is_side(region, along, below=below):
            limits = region.limits.get(name, ())
            limit = f"{limits[-1 if below else 0]:g}" if limits else "..."
            example = f"{name} {'<' if below else '>'} {limit}"
            cut = "; a circle is cut by a CV of type function with a period" if along.period is not None else ""
            raise ConfigError(
                f'paths.{key} = "{text}": [rates] needs {letter} to be everything {"below" if below else "above"} one value of {name}, '
                f'such as "{example}"',
                f'set paths.{key} = "{example}"{cut}',
            )
    low, high = a.limits[name][0], b.limits[name][0]
    if low >= high:
        raise ConfigError(f"A ({texts[0]}) and B ({texts[1]}) overlap along {name}", "leave room between paths.from and paths.to")
    return low, high


def sides_of(run: Run, cvs: Mapping[str, CollectiveVariable]) -> tuple[Side, Side]:
    """Return A's side, and B's along minus the order parameter."""
    paths, rates = run.config.paths, run.config.rates
    assert paths is not None
    assert rates is not None
    along = cvs[rates.along]
    a, b = states_of(run, dict(cvs))
    low, high = limits_of(a, b, along, (paths.region_a, paths.region_b))
    back = backward(along)
    return Side("from_a", a, b, along, 1), Side("from_b", back < -high, back > -low, back, -1)


def _is_side(region: Region, along: CollectiveVariable, *, below: bool) -> bool:
    """Return whether a region is everything on one side of its only limit, and is on no other CV."""
    if [cv.name for cv in region.cvs] != [along.name] or len(region.limits[along.name]) != 1:
        return False
    limit = region.limits[along.name][0]
    step = 1e-6 * (1.0 + abs(limit))
    inside = region.contains_values({along.name: np.array([limit - step, limit + step])})
    return bool(inside[0] == below and inside[1] != below)


def _given(run: Run, engine: Any, paths: PathEnsemble) -> list[Trajectory]:
    """Return reactive paths to start from: those of the first call, some that hold no frame of a first path if there are any."""
    if not run.store.count(_GIVEN):
        keep_paths(run.store, _GIVEN, evenly(free_of_first(paths), _MOST_GIVEN))
    return kept_paths(run, engine, run.store.chunk(_GIVEN, 0))


def _placed(run: Run, engine: Any, side: Side, given: list[Trajectory], say: Say) -> tuple[TransitionInterfaceSampling, int]:
    """Return a side's sampling with its interfaces, placed once, and the steps of dynamics that this took."""
    from couloir.sampling import TransitionInterfaceSampling

    assert run.config.rates is not None
    asked = run.config.rates.max_duration
    key = f"{side.name}/placed"
    if not run.store.count(key):
        say(f"{side.name}: looks for where interfaces go, by dynamics from {'A' if side.sign > 0 else 'B'} and pilot runs")
        seed = integer_seed(run.config.seed, side.name)
        sampling = TransitionInterfaceSampling.from_paths(
            given, engine, side.region, side.other, along=side.along, seed=seed, max_duration=asked, store=run.store, name=side.name
        )
        spent = sampling.placement_force_evaluations
        more = {
            "interfaces": np.array(sampling.interfaces), "shots": np.array([sampling.shots]), "spent": np.array([spent]),
            "longest": np.array([sampling.max_duration]),
        }  # fmt: skip
        # what led here is needed no more, and leaves its room to what follows
        used = [series for series in run.store.series() if series.startswith((f"{side.name}/pilot", f"{side.name}/around A"))]
        run.store.append({key: packed(sampling.first, **more)}, replace=(key, *used))
        where = ", ".join(f"{x:.3g}" for x in side.seen(sampling.interfaces))
        say(f"{side.name}: {len(sampling.interfaces)} interfaces at {where}; {spent} force evaluations to place them")
    stored = run.store.chunk(key, 0)
    if "longest" in stored:
        longest = float(stored["longest"][0])
    else:  # of a run that was placed before it was kept
        longest = asked if asked is not None else _TIMES * max((len(path) - 1) * path.stride for path in given)
    return TransitionInterfaceSampling(
        engine, side.region, side.other, side.along, stored["interfaces"].tolist(), max_duration=longest,
        shots=int(stored["shots"][0]), first=tuple(kept_paths(run, engine, stored)), name=side.name,
    ), int(stored["spent"][0])  # fmt: skip


def _found(
    run: Run,
    sides: Sequence[Side],
    samplings: Sequence[TransitionInterfaceSampling],
    samples: Sequence[InterfaceSamples],
    spent: Sequence[int],
) -> dict[str, Any]:
    """Return what either side tells, as JSON."""
    paths = run.config.paths
    assert paths is not None
    about = {}
    for side, sampling, some, before in zip(sides, samplings, samples, spent, strict=True):
        crossing = some.rate.crossing
        # paths end with their first frame in the other state, so how deep in it that is says nothing
        top = min(crossing.levels[-1], side.other.limits[side.along.name][0])
        levels = np.linspace(crossing.levels[0], top, _LEVELS)
        rows = crossing.to_dataframe()
        rows["interface"] = side.seen(rows["interface"])
        about[side.key] = {
            **{name: as_json(getattr(some.rate, name)) for name in ("flux", "time_in", "time_out")},
            "crossing": as_json(crossing.total),
            "interfaces": [{key: finite(value) for key, value in row.items()} for row in rows.to_dict("records")],
            "curve": {
                "value": side.seen(levels).tolist(),
                "probability": crossing.curve[np.searchsorted(crossing.levels, levels)].tolist(),
            },
            "tried": tried(some),
            "cycles": int(some.step.max()),
            "cycles_that_count": len(np.unique(some.step)),
            "sets": len(np.unique(some.chain)),
            "max_duration": float(sampling.max_duration),
            "force_evaluations": some.force_evaluations,
            "force_evaluations_of_placement": before,
        }
    return {
        "format": "couloir-rates-1",
        "along": sides[0].along.name,
        "unit": sides[0].along.unit,
        "from": paths.region_a,
        "to": paths.region_b,
        "stride": samples[0].stride,
        "rates": {side.key: as_json(some.rate.rate) for side, some in zip(sides, samples, strict=True)},
        "sides": about,
        "force_evaluations": sum(some.force_evaluations for some in samples) + sum(spent),
        "asked": wanted(run),
    }


def _findings(side: Side, samples: InterfaceSamples) -> list[Finding]:
    """Return what is unsure about a side, saying which, in words of the run file."""
    where = "from A" if side.sign > 0 else "from B"
    found = dict.fromkeys(samples.rate.findings)
    return [replace(f, message=f"paths {where}: {f.message}", fix=_FIXES.get(f.code, f.fix)) for f in found]


def rates_file(run: Run) -> Path:
    """Return where ``rates.json`` is."""
    return run.path / "results" / "rates.json"
