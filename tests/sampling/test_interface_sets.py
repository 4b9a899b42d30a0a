"""Sets of interface ensembles exchange their paths as they should, and notice what goes wrong in them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from walk_chain import LEVELS, WALK, Walk, X, first_path, walk_sampling

from couloir.cv.geometric import Coordinate
from couloir.sampling import TransitionInterfaceSampling
from couloir.sampling.interface_sets import InterfaceSets
from couloir.sampling.interface_starts import dealt
from couloir.sampling.path_moves import ShootingMove, Trial


class Brittle(Walk):
    """The same walk, whose dynamics breaks down when told."""

    breaks = False

    def propagate(self, states, **settings):
        runs = super().propagate(states, **settings)
        return [replace(run, ended="failed") for run in runs] if self.breaks else runs


def test_an_exchange_whose_dynamics_breaks_down_is_a_failure_and_not_one_that_takes_too_long():
    engine = Brittle()
    sampling = TransitionInterfaceSampling(engine, X < 1.5, X > 5.5, X, LEVELS, max_duration=2000)
    sets = InterfaceSets(sampling, dealt(sampling, [first_path()], 2, 1)[0], 2)
    engine.breaks = True
    sets.apply_exchange(sampling._exchange(sets, [1, 2]), 1)
    assert sets.exchanges["failed"].tolist() == [2, 0, 0]
    assert not sets.cut.any()
    sets.note(1)
    assert "paths-cut" not in [f.code for f in sets.samples(0).findings]


def test_every_way_to_give_out_paths_in_which_each_reaches_its_interface_is_as_likely():
    sampling = TransitionInterfaceSampling(WALK, X < 1.5, X > 5.5, X, LEVELS, max_duration=2000)
    tops = (3, 4, 4)  # the first may be in [0+] and [1+] only, so that 4 of 6 ways are possible
    paths = [first_path((2, 1, 2)), *[first_path((1, 2, *range(3, top + 1), 3, 2, 1)) for top in tops]]
    sets = InterfaceSets(sampling, list(paths), 1)
    seen, n = Counter(), 4000
    for k in range(n):
        sets.permute([np.random.default_rng(k)])
        assert sets.paths[0] is paths[0]
        seen[tuple(next(i for i, path in enumerate(paths) if path is held) for held in sets.paths[1:])] += 1
    assert set(seen) == {(1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 1, 2)}
    assert stats.chisquare(list(seen.values())).pvalue > 1e-5
    # [0+] holds the first path in half of the ways, which are drawn independently; [2+] holds either of the others
    for pair, share in ((1, 1 - (1 / 2**2 + 2 / 4**2)), (2, 1 / 2)):
        assert stats.binomtest(int(sets.exchanges["accepted"][pair]), n, share).pvalue > 1e-5
        assert sets.exchanges["accepted"][pair] + sets.exchanges["ensemble"][pair] == n


@pytest.mark.parametrize("top", [3.0, 2.0])
def test_a_path_that_touches_an_interface_may_pass_to_its_ensemble(top):
    sampling = TransitionInterfaceSampling(WALK, X < 1.5, X > 5.5, X, (1.5, 3.0), max_duration=2000)
    low, high = first_path((1, 2, top, 2, 1)), first_path()
    passed = set()
    for k in range(40):
        sets = InterfaceSets(sampling, [first_path((2, 1, 2)), low, high], 1)
        sets.permute([np.random.default_rng(k)])
        passed.add(sets.paths[2] is low)
        assert sets.exchanges["accepted"].tolist() == [0, int(sets.paths[2] is low)]
    assert passed == ({True, False} if top >= 3.0 else {False})


def test_jumps_from_a_to_b_between_frames_are_found():
    narrow = TransitionInterfaceSampling(WALK, X < 1.5, X > 1.6, X, (1.5,), max_duration=2000, swaps=False)
    sets = InterfaceSets(narrow, [first_path((2, 1, 2)), first_path((1, 1.55, 1))], 1)
    sets.note(1)
    assert "jumps-to-b" in [f.code for f in sets.samples(0).findings]
    wide = walk_sampling(ShootingMove.one_way()).run(first_path(), 40, seed=1)
    assert "jumps-to-b" not in [f.code for f in wide.findings]


def test_an_order_parameter_that_wraps_along_a_path_is_found():
    circle = Coordinate(0, "x", period=9.0)  # from site 5 on it is negative again, and looks like A
    sampling = TransitionInterfaceSampling(WALK, circle < 1.5, circle > 3.5, circle, (1.5,), max_duration=2000)
    for sites, wraps in (((1, 2, 3, 5), True), ((1, 2, 3, 1), False)):
        sets = InterfaceSets(sampling, [first_path((2, 1, 2)), first_path(sites)], 1)
        sets.note(1)
        assert ("wraps-around" in [f.code for f in sets.samples(0).findings]) == wraps


class Picks:
    """What draws permutations, and picks the first path that is left, or the last: then all stay where they are."""

    def __init__(self, first):
        self.first = first

    def integers(self, n):
        return 0 if self.first else n - 1


def test_passages_from_the_state_to_the_last_ensemble_are_counted():
    sampling = walk_sampling(ShootingMove.one_way())  # [0-], [0+], [1+], [2+]
    sets = InterfaceSets(sampling, [first_path((2, 1, 2)), *[first_path()] * 3], 1)
    rejected = [Trial(None, False, "ensemble", 0.0, -1, -1, "both", None, 0)] * 2
    back_and_out = first_path((3, 1, 2)), first_path((1, 2, 3, 4, 5, 6))
    taken = [Trial(path, True, "accepted", 0.0, -1, -1, "both", None, 0) for path in back_and_out]
    counted = []
    for cycle in range(1, 7):
        sets.permute([Picks(first=cycle in (3, 6))])  # then what is in [0+] comes to [2+]
        if cycle in (2, 5):
            sets.apply_exchange([*taken, *rejected], cycle)
        sets.note(cycle)
        counted.append(sets.passages)
    assert counted == [0, 0, 1, 1, 1, 2]
    assert "few-passages" in [f.code for f in sets.samples(0).findings]
    many = sampling.run(first_path(), 60, seed=1, n_sets=8)
    assert "few-passages" not in [f.code for f in many.findings]
