"""Whether crossing probabilities still move, the second half of every chain against its first, and whether a rate is known well enough."""

from __future__ import annotations

import numpy as np
from scipy import stats

from couloir.analysis.interface_samples import MINUS, InterfaceSamples
from couloir.analysis.path_weights import product_limit
from couloir.errors import DataError, Finding
from couloir.trajectory import Array

FALSE_ALARM = 0.005
"""Chance to say so where nothing drifts."""
LEAST_CHAINS = 4
DROPPED = (0.0, 0.25, 0.5)
"""Shares of the steps that are left out in turn."""


def drift(samples: InterfaceSamples) -> tuple[Finding, ...]:
    """Return a finding when chains together reach far interfaces more or less often in the second half of their steps than in the first.

    The logarithm of the probability to reach the farthest interface that every chain reaches in both halves is compared by a
    paired t test over chains.  Chains that all start from the same paths drift together, and do not disagree.
    """
    chains, middle = np.unique(samples.chain), np.median(samples.step)
    if len(chains) < LEAST_CHAINS:
        return ()
    halves = [np.stack([_reach(samples, c, late=late, middle=middle) for c in chains]) for late in (False, True)]
    reached = np.flatnonzero((halves[0] > 0).all(axis=0) & (halves[1] > 0).all(axis=0))
    if not len(reached) or reached[-1] == 0:
        return ()
    level = reached[-1]
    before, after = (np.log(half[:, level]) for half in halves)
    if not (after - before).std() or stats.ttest_rel(after, before).pvalue > FALSE_ALARM:
        return ()
    times = float(np.exp((after - before).mean()))
    text = (
        f"{samples.along} = {samples.interfaces[level]:.4g} is reached {times:.2g} times as often in the second half as in the first: "
        "paths still remember the first ones"
    )
    return (Finding("drifting", text, "sample more cycles, and discard these"),)


def settled(samples: InterfaceSamples) -> InterfaceSamples:
    """Return the samples without their first quarter, or half, where they drift with it; :func:`drift` tells whether that was enough."""
    first, last = int(samples.step.min()), int(samples.step.max())
    for share in DROPPED:
        part = samples.after(first - 1 + round(share * (last - first + 1)))
        if not drift(part):
            break
    return part


def uncertain(samples: InterfaceSamples, relative_error: float) -> Finding | None:
    """Return why the rate is not yet known to ``relative_error`` by enough blocks, or None when it is."""
    remains = [f.message for f in samples.findings if f.code in ("first-path-remains", "few-passages")]
    try:
        rate = samples.rate
    except DataError as error:
        text = error.message
    else:
        few = [f.message for f in rate.findings if f.code in ("few-blocks", "drifting")]
        if rate.rate.relative_error <= relative_error and not few and not remains:
            return None
        text = (remains + few)[0] if remains or few else f"its relative error is {rate.rate.relative_error:.2g}"
    text = f"the rate is not known to {relative_error:g} after {samples.step.max()} cycles: {text}"
    return Finding("rate-uncertain", text, "the same call with a larger n_cycles goes on from its store")


def _reach(samples: InterfaceSamples, chain: int, *, late: bool, middle: float) -> Array:
    """Return the probability to reach each interface by one half of one chain; 0 where it cannot tell."""
    n = len(samples.interfaces)
    rows = (samples.chain == chain) & (samples.ensemble != MINUS) & ((samples.step > middle) == late)
    entered, ended = (np.bincount(column[rows], minlength=n).astype(float) for column in (samples.ensemble, samples.bin))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(product_limit(entered, ended)[0])
