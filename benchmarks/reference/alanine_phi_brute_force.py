"""How often long simulations of alanine dipeptide cross phi = 0 (the system of :mod:`benchmarks.systems.alanine_phi`).

    python -m benchmarks.reference.alanine_phi_brute_force a|b 40

simulates that many pieces of 2.5 ns more, begun in A (phi < -0.7 rad) or in B (phi > 0.55 rad), which takes half a minute of one core
each.  Both can go on at once.  What every piece shows becomes a line of ``alanine_phi_brute_force.jsonl``: arrivals and the time since the
first state was visited last (ps), both ways, and how far along ``onward`` every departure from A went.  A piece goes on from the end of
the last one if that ended where this begins, and is in ``runs/``, or else anew.  The first line sums up 195 pieces whose departures were
not kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.systems.alanine_phi import CUT, LIMITS, RUNS, STRIDE, engine, in_b, states, torsion
from couloir.analysis.samples import IntArray
from couloir.cv.region import Region
from couloir.sampling import OpenMMEngine
from couloir.trajectory import Array, State

COUNTS = Path(__file__).with_suffix(".jsonl")
PIECE = 2500.0
"""ps."""
FIRST = {"a": 200, "b": 400}
"""Numbers of the first pieces with a line of their own; the numbers before were used by those of the first line."""


@dataclass(frozen=True)
class Crossings:
    """What long simulations say about one direction: how often they arrived, and the time since they were in the first state last, ps."""

    arrivals: int
    time: float

    def __add__(self, other: Crossings) -> Crossings:
        """Return both together."""
        return Crossings(self.arrivals + other.arrivals, self.time + other.time)

    @property
    def rate(self) -> float:
        """Arrivals per ps."""
        return self.arrivals / self.time

    @property
    def relative_error(self) -> float:
        """Of the rate: arrivals are rare, so that their number is Poisson's."""
        return 1.0 / np.sqrt(self.arrivals) if self.arrivals else float("inf")

    def __str__(self) -> str:
        return f"{self.arrivals} in {self.time / 1000:.4g} ns"


def crossings(phi: Array) -> tuple[Crossings, Crossings]:
    """Return the crossings from A to B and from B to A of one run, phi (n,) every :data:`STRIDE`."""
    shift = np.pi - CUT
    along = (phi + shift + np.pi) % (2 * np.pi) - np.pi
    low, high = LIMITS[0] + shift, LIMITS[1] + shift
    at = np.where(along < low, 1, np.where(along > high, -1, 0))
    seen = np.maximum.accumulate(np.where(at != 0, np.arange(len(at)), -1))
    last = np.where(seen >= 0, at[seen], 0)
    changes = last[:-1] - last[1:]
    return (
        Crossings(int(((changes == 2) & (last[:-1] == 1)).sum()), float((last == 1).sum() * STRIDE)),
        Crossings(int(((changes == -2) & (last[:-1] == -1)).sum()), float((last == -1).sum() * STRIDE)),
    )


def departures(phi: Array) -> Array:
    """Return how far along ``onward`` (n,) one run, phi (n,) every :data:`STRIDE`, comes whenever it leaves A, before A or B."""
    shift = np.pi - CUT
    along = (phi + shift + np.pi) % (2 * np.pi) - np.pi
    in_a, arrived = along < LIMITS[0] + shift, along > LIMITS[1] + shift
    begin = np.flatnonzero(in_a[:-1] & ~in_a[1:]) + 1
    end = np.append(np.flatnonzero(in_a | arrived), len(along) - 1)
    stop = end[np.searchsorted(end[:-1], begin)]
    return np.array([along[i : j + 1].max() for i, j in zip(begin, stop, strict=True)])


def counted() -> tuple[Crossings, Crossings]:
    """Return the crossings there and back in all pieces; one between two pieces is not seen."""
    there, back = Crossings(0, 0.0), Crossings(0, 0.0)
    for line in _lines():
        there, back = there + Crossings(*line["there"]), back + Crossings(*line["back"])
    return there, back


def reach(levels: Array) -> IntArray:
    """Return the departures from A that come to each level, (n_levels,), in the pieces of which this is known."""
    farthest = np.concatenate([line["farthest"] for line in _lines() if line["farthest"] is not None])
    return np.asarray((farthest[:, None] >= levels).sum(axis=0), dtype=np.int64)


def simulate(begin: str, n_pieces: int) -> None:
    """Simulate ``n_pieces`` more, begun in ``"a"`` or ``"b"``, and write down what they show."""
    md = engine(workers=1)
    phi = torsion(md)
    first = 1 + max((line["piece"] for line in _lines() if line["begin"] == begin), default=FIRST[begin] - 1)
    for k in range(first, first + n_pieces):
        clock = time.perf_counter()
        start = _end(md, begin, k - 1) or _anew(md, begin, k)
        (run,) = md.propagate(start, duration=PIECE, record=[phi], record_stride=STRIDE, seed=(10_000 if begin == "a" else 20_000) + k)
        values = np.asarray(run.series["phi"])
        there, back = crossings(values)
        RUNS.mkdir(exist_ok=True)
        np.savez(_file(begin, k), positions=run.last.positions, velocities=run.last.velocities)
        line = {
            "begin": begin,
            "piece": k,
            "there": astuple(there),
            "back": astuple(back),
            "farthest": departures(values).round(4).tolist(),
        }
        with COUNTS.open("a", encoding="utf-8") as counts:
            counts.write(json.dumps(line) + "\n")
        print(f"{begin} {k}: {there.arrivals} there, {back.arrivals} back, {time.perf_counter() - clock:.0f} s", flush=True)


def _lines() -> list[dict[str, Any]]:
    """Return what is known of every piece; two processes that were begun alike write down the same pieces."""
    lines = [json.loads(line) for line in COUNTS.read_text(encoding="utf-8").splitlines()]
    return list({(line["begin"], line["piece"]): line for line in lines}.values())


def _file(begin: str, k: int) -> Path:
    return RUNS / f"alanine_phi_{begin}_{k:04d}.npz"


def _home(md: OpenMMEngine, begin: str) -> Region:
    return states(md)["ab".index(begin)]


def _end(md: OpenMMEngine, begin: str, k: int) -> State | None:
    """Return the end of a piece, if it is known and lies where pieces begin."""
    if not _file(begin, k).exists():
        return None
    with np.load(_file(begin, k)) as data:
        end = State(data["positions"], data["velocities"])
    return end if _home(md, begin).contains(end.positions[None])[0] else None


def _anew(md: OpenMMEngine, begin: str, k: int) -> State:
    """Return a state after 100 ps of dynamics that lies where pieces begin."""
    fresh = md.molecule.state if begin == "a" else in_b(md)
    for attempt in range(100):
        (warm,) = md.propagate(fresh, duration="100 ps", seed=(30_000 if begin == "a" else 400_000) + 100 * k + attempt)
        if _home(md, begin).contains(warm.last.positions[None])[0]:
            last: State = warm.last
            return last
    raise RuntimeError(f"no run of 100 ps from {begin} ends there")


def main() -> None:
    """Simulate, and say what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("begin", choices=("a", "b"))
    parser.add_argument("pieces", type=int)
    arguments = parser.parse_args()
    simulate(arguments.begin, arguments.pieces)
    print("A to B: {}; B to A: {}".format(*counted()))


if __name__ == "__main__":
    main()
