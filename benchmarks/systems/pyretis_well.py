"""The double well of PyRETIS' example "RETIS in a 1D potential" and what was published of it (used by ``benchmarks.interface_sampling``).

x^4 - 2x^2 at kT = 0.07, Langevin dynamics, mass 1, friction 0.3, time step 0.002, every step a frame; A is x < -0.9, B is
x > 1.0.  PyRETIS: Lervik, Riccardi & van Erp, J. Comput. Chem. 38, 2439 (2017); the settings are those of its documentation.
"""

from __future__ import annotations

from couloir.cv import Coordinate
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, potentials

TIME_STEP = 2e-3
INTERFACES = (-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3)
B = 1.0
MAX_DURATION = 400.0
PUBLISHED = (9.73e-7, 0.029)
"""Total crossing probability and its relative error, from 1 million cycles."""


def engine(kT: float = 0.07) -> ToyEngine:
    """Return the simulator; its integrator is BAOAB."""
    return ToyEngine(potentials.double_well(), kT=kT, time_step=TIME_STEP, friction=0.3)


def sampling(interfaces: tuple[float, ...] = INTERFACES, kT: float = 0.07) -> TransitionInterfaceSampling:
    """Return interface sampling by one-way shooting and exchanges."""
    x = Coordinate(0, "x")
    return TransitionInterfaceSampling(engine(kT), x < interfaces[0], x > B, x, interfaces, max_duration=MAX_DURATION)
