"""A crossing probability that still moves is said so; one that does not move raises an alarm as seldom as it says."""

import numpy as np
import pytest

from couloir.analysis.interface_drift import FALSE_ALARM, drift, settled
from couloir.analysis.interface_samples import InterfaceSamples


def sampled(seed, n_chains=8, n_steps=200, late=1.0):
    """Rows of [0+] and [1+]: the next interface is reached with probability 0.3, ``late`` times as often in the second half."""
    rng = np.random.default_rng(seed)
    chain, step, ensemble = (x.ravel() for x in np.indices((n_chains, n_steps, 2)))
    p = np.where(step >= n_steps // 2, 0.3 * late, 0.3)
    maximum = 0.1 + ensemble + (rng.random(len(p)) < p)
    return InterfaceSamples(
        interfaces=np.array([0.0, 1.0, 2.0]), along="x", unit="", ensemble=ensemble, chain=chain, step=step, maximum=maximum,
        minimum=np.full(len(p), -0.1), length=np.full(len(p), 5), ends_in_b=np.zeros(len(p), dtype=bool), stride=1.0,
    )  # fmt: skip


def test_a_probability_that_rises_is_reported_with_how_much():
    for seed in range(10):
        [finding] = drift(sampled(seed, late=2.0))
        assert finding.code == "drifting"
        assert 2.0 < float(finding.message.split(" times")[0].split()[-1]) < 8.0  # twice at either of two interfaces


def test_without_a_drift_an_alarm_is_as_rare_as_it_says():
    alarms = sum(bool(drift(sampled(seed))) for seed in range(400))
    assert alarms <= 10  # 2 are expected; binomial chance of more than 10: 1e-5
    assert FALSE_ALARM == 0.005


@pytest.mark.parametrize("n_chains", [1, 3])
def test_few_chains_cannot_tell(n_chains):
    assert drift(sampled(1, n_chains, late=3.0)) == ()


def test_an_interface_that_a_chain_never_reaches_is_not_compared():
    samples = sampled(1, late=2.0)
    stuck = np.where((samples.chain == 0) & (samples.ensemble == 0), 0.1, samples.maximum)
    low = InterfaceSamples(**{**vars(samples), "maximum": stuck})
    assert drift(low) == ()


def test_what_has_settled_is_kept_and_what_has_not_is_dropped():
    steady, rising = sampled(1), sampled(1, late=3.0)
    assert settled(steady).step.min() == 0
    kept = settled(rising)
    assert kept.step.min() == rising.step.max() // 2 + 1
    assert drift(kept) == ()
