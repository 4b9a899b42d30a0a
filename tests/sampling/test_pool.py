"""Tasks give the same results one by one and in groups, and only short ones are grouped."""

import time

import pytest

from couloir.sampling import _pool
from couloir.sampling._pool import run_tasks


def square(x):
    return x * x


def nap(x):
    time.sleep(0.03)
    return x


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(_pool, "_seconds", {})


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_every_result_comes_once_and_in_order(short, n):
    for _ in range(3):  # the first time nothing is known of how long tasks take
        told = {}
        assert run_tasks(square, range(n), 2, processes=False, on_done=told.__setitem__, short=short) == [x * x for x in range(n)]
        assert told == {x: x * x for x in range(n)}


def test_tasks_that_were_short_are_handed_over_in_groups_of_which_each_worker_gets_two():
    assert _pool._group_size(square, 40, 2) == 1
    run_tasks(square, range(40), 2, processes=False, short=True)
    assert square in _pool._seconds
    _pool._seconds[square] = 1e-5
    assert _pool._group_size(square, 40, 2) == 10
    assert _pool._group_size(square, 3, 2) == 1


def test_tasks_that_were_long_are_handed_over_one_by_one():
    run_tasks(nap, range(4), 2, processes=False, short=True)
    assert _pool._group_size(nap, 40, 2) == 1


def test_an_error_in_a_group_is_the_callers():
    run_tasks(square, range(40), 2, processes=False, short=True)
    with pytest.raises(TypeError):
        run_tasks(square, [*range(39), None], 2, processes=False, short=True)
