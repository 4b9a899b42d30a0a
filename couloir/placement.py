"""Windows placed by sampling, as ``[umbrella] overlap`` asks: coarse ones, short pilots, new ones where neighbours share too little.

Whatever has been placed is kept in the run's store and never moves again, so a run may be killed at any instant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from couloir.build import build_windows
from couloir.cv import CollectiveVariable
from couloir.cv.bias import HarmonicBias, bias_from_dict
from couloir.run import Run
from couloir.sampling.dragging import dragged
from couloir.sampling.planning import place_windows
from couloir.sampling.seeds import Seeds, load_seeds, save_seeds, window_centers
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.streams import integer_seed
from couloir.trajectory import Array, State

PILOT_STEPS = 10_000
"""Length of a pilot, time steps."""
PILOT_RECORD_STEPS = 20
_KEY, _SEEDS = "placed-windows", "pilot-seeds"


def placed_windows(
    run: Run, engine: Any, cvs: dict[str, CollectiveVariable], start: State, explored: Array, say: Callable[[str], None]
) -> UmbrellaSampling:
    """Return the windows of ``[umbrella]``: those written there, or, with an ``overlap``, those found by pilots.

    Pilots start from the unbiased frames nearest to their windows, or are dragged there.  A pair that shares less than half
    of the overlap gets windows in between.

    Parameters
    ----------
    start : where windows are dragged from when there are no unbiased data.
    explored : (n, n_atoms, 3) unbiased data, perhaps none.
    say : told in one line what came of it.

    Raises
    ------
    ConfigError : a range is missing and there are no unbiased data.
    SimulationError : a pilot blew up.
    """
    table = run.config.umbrella
    assert table is not None
    windows = build_windows(run, engine, cvs, explored)
    if table.overlap is None:
        return windows
    if run.store.get(_KEY) is None:
        if not run.store.count(_SEEDS):
            save_seeds(run.store, _pilot_seeds(run, engine, windows, start, explored), _SEEDS)
        placed = place_windows(
            engine, windows, load_seeds(run.store, _SEEDS), PILOT_STEPS * engine.time_step, seed=integer_seed(run.config.seed, "placement"),
            overlap=table.overlap, least=table.overlap / 2, record_stride=PILOT_RECORD_STEPS * engine.time_step, store=run.store,
        )  # fmt: skip
        run.note_findings("placement", placed.findings)
        run.store[_KEY] = [window.to_dict() for window in placed.windows.windows]
        say(f"placement: {len(windows)} windows became {len(placed.windows)} in {placed.n_rounds} rounds of pilots")
        for finding in placed.findings:
            say(str(finding))
    biases = [bias_from_dict(window) for window in run.store.get(_KEY)]
    return UmbrellaSampling(windows.cvs, [bias for bias in biases if isinstance(bias, HarmonicBias)])


def _pilot_seeds(run: Run, engine: Any, windows: UmbrellaSampling, start: State, explored: Array) -> Seeds:
    """Return one state per window: the nearest unbiased frame where frames are nearest to it, dragged from there elsewhere."""
    frames = explored if len(explored) else start.positions[None]
    values = np.stack([cv.evaluate(frames) for cv in windows.cvs], axis=1)
    far = np.stack([windows.distance(values, center) for center in windows.centers])
    homes = np.unique(far.argmin(axis=0))
    nearest = {int(w): State(frames[int(far[w].argmin())], None, start.box) for w in homes}
    missing = {w: 1 for w in range(len(windows)) if w not in nearest or len(explored) == 0}
    found = {w: state for w, state in nearest.items() if w not in missing}
    found |= dict(dragged(engine, windows, {w: [s] for w, s in nearest.items()}, missing, seed=integer_seed(run.config.seed, "pilots")))
    order = range(len(windows))
    return Seeds(tuple(found[w] for w in order), np.arange(len(windows)), ("dragged",) * len(windows), centers=window_centers(windows))
