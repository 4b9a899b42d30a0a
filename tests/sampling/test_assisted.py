"""The closed loop carries a model from one end of a hidden barrier to the other, and weighs what it makes."""

from typing import Any

import numpy as np
import pytest

from couloir.cv.geometric import Coordinate
from couloir.errors import DataError
from couloir.generative import ConditionalSGM, TrainingPlan, Vector
from couloir.sampling import ToyEngine, UmbrellaSampling, assisted_sampling, potentials
from couloir.sampling.assisted import AssistedResult
from couloir.store import Store
from couloir.trajectory import Array, State

X, Y = Coordinate(0, "x"), Coordinate(1, "y")
WINDOWS = UmbrellaSampling.grid(X, 10, 20.0, range=(-1.9, 1.2))


def engine() -> ToyEngine:
    return ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=2e-3, threads=1)


def fit(positions: Array, weights: Array, seed: int) -> Any:
    plan = TrainingPlan(steps=200, patience=None)
    return ConditionalSGM(Vector(), label=X, width=32, depth=2).fit(positions, weights=weights, seed=seed, plan=plan)


@pytest.fixture(scope="module")
def left() -> Array:
    """Return 500 structures left of x = -1, where both modes of y are visited and y < 0 is the likelier one."""
    runs = engine().propagate([State(np.array([[-1.6, -1.0]]))] * 4, duration=4000.0, stride=1.0, seed=1)
    x = np.concatenate([run.positions for run in runs])
    return x[x[:, 0, 0] < -1.0][::4]


def run(left: Array, **options: Any) -> AssistedResult:
    return assisted_sampling(
        fit, engine(), WINDOWS, left, **{"seed": 1, "record": (Y,), "burst": 2.0, "per_window": 4, "settings": {"n_steps": 20}, **options}
    )


def test_one_end_is_enough_to_know_the_whole_range(left: Array) -> None:
    """p(y > 0) grows from 0.15 on the left to 0.9995 on the right, where no data were; F(x) is right within its errors."""
    said: list[str] = []
    done = run(left, on_round=said.append)
    assert done.findings == ()
    assert len(done.rounds) == len(said) > 2
    surface = done.surface("x", bins=16, limits=(-1.9, 1.3), n_bootstrap=60)
    exact = engine().potential.exact_free_energy(surface.grid[0], kT=1.0)
    off = surface.free_energy - exact
    off -= np.average(off, weights=surface.standard_error**-2)
    assert (np.abs(off) < 4.5 * surface.standard_error).all()
    assert surface.rmse(lambda x: engine().potential.exact_free_energy(x, kT=1.0)) < 0.35
    # 60,000 force evaluations: 120 ps of one walker, who crosses the barrier of 9 kT once in some thousand ps.
    assert done.force_evaluations < 60_000
    assert done.force_evaluations == sum(r.force_evaluations for r in done.rounds) + len(done.generated)
    assert str(done.force_evaluations) in str(done)


def test_an_interrupted_loop_goes_on_where_it_was(left: Array) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    store, fewer = Store(), {"max_rounds": 2, "final": 20}
    whole = run(left, **fewer)
    with pytest.raises(KeyboardInterrupt):
        run(left, store=store, on_round=stop, **fewer)
    assert store.count("assisted") == 1
    again = run(left, store=store, **fewer)
    np.testing.assert_array_equal(whole.generated.positions, again.generated.positions)
    assert whole.force_evaluations == again.force_evaluations


def test_what_was_not_reached_is_named(left: Array) -> None:
    done = run(left, max_rounds=1, final=20)
    assert [f.code for f in done.findings if f.code == "assisted-incomplete"]
    assert "was never reached" in str(done)


def test_data_outside_of_all_windows_are_refused() -> None:
    with pytest.raises(DataError, match="no window"):
        run(np.full((30, 1, 2), 40.0))
