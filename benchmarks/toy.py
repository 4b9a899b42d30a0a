"""Speed of the toy engine: steps per second of both integrators, plain and as umbrella windows with a recorded CV.

python -m benchmarks.toy --scale small|paper
"""

from __future__ import annotations

import time

from benchmarks.results import Row, scale_parser, write_results
from couloir.cv import HarmonicBias
from couloir.sampling import ToyEngine, potentials


def rate(engine: ToyEngine, n_steps: int, windows: bool) -> float:
    """Return millions of steps per second over 16 walkers; compilation happens before the clock starts."""
    x = engine.potential.cvs()[0]
    states = [engine.state(-1.5 + 0.2 * i, 1.0) for i in range(16)]
    biases = [HarmonicBias.on(x, -1.5 + 0.2 * i, 50.0) for i in range(16)] if windows else None
    call = {"stride": 100 * engine.time_step, "record": [x], "bias": biases, "seed": 1}
    engine.propagate(states, duration=1.0, **call)
    start = time.perf_counter()
    engine.propagate(states, duration=n_steps * engine.time_step, **call)
    return 16e-6 * n_steps / (time.perf_counter() - start)


def main() -> None:
    scale = scale_parser(__doc__).parse_args().scale
    n_steps = {"small": 200_000, "paper": 5_000_000}[scale]
    rows = []
    for name, friction in (("overdamped", None), ("BAOAB", 5.0)):
        engine = ToyEngine(potentials.hidden_barrier(), kT=1.0, time_step=1e-3, friction=friction)
        for kind in ("plain", "umbrella windows"):
            speed = rate(engine, n_steps, windows=kind != "plain")
            rows.append(Row(f"toy engine, hidden barrier, {name}, {kind}, CV every 100 steps, 16 walkers", speed, "million steps/s"))
    write_results("toy", rows, scale=scale)


if __name__ == "__main__":
    main()
