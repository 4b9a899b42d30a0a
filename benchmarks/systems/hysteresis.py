"""The wells of PyRETIS' example "RETIS in a 2D potential", along three order parameters: see ``benchmarks.interface_sampling``.

Two narrow, tilted wells at (-0.2, -0.4) and (0.2, 0.4), kT = 0.4, Langevin dynamics, mass 1, friction 0.3, time step 0.002, every
step a frame.  A system is in a state when the order parameter says so *and* its potential energy is below -9; in front of a
state, above that energy, the order parameter stays where it was set.  Settings are those of the example's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from couloir.cv import FunctionOfCVs
from couloir.sampling import ToyEngine, TransitionInterfaceSampling, potentials

TIME_STEP, KT, DEEP, MAX_DURATION = 2e-3, 0.4, -9.0, 400.0
PUBLISHED = (7.3e-7, 8.6e-7)
"""Rates along the three order parameters lie in this range, per time."""
ENERGY = "((x^2 + y^2)^2 - 10*exp(-30*(x - 0.2)^2 - 3*(y - 0.4)^2) - 10*exp(-30*(x + 0.2)^2 - 3*(y + 0.4)^2))"


@dataclass(frozen=True)
class Along:
    """An order parameter: its formula, where it stays above the energy of the states, its interfaces, and where B begins."""

    formula: str
    stays: tuple[float, float]
    interfaces: tuple[float, ...]
    b: float


ALONG = {
    "x": Along("x", (-0.15, 0.18), (-0.16, -0.135, -0.11, -0.085, -0.06, -0.03), 0.20),
    "y": Along("y", (-0.30, 0.37), (-0.32, -0.21, -0.13, -0.08, -0.03, 0.03, 0.10), 0.40),
    "x + y": Along("((0.4*(x + 0.2) + 0.8*(y + 0.4))/sqrt(0.8))", (0.12, 0.78), (0.1, 0.2, 0.3, 0.4, 0.5), 0.8),
}
"""The third is the distance along the line from one minimum to the other."""


def engine() -> ToyEngine:
    """Return the simulator; its integrator is BAOAB."""
    return ToyEngine(potentials.hysteresis(), kT=KT, time_step=TIME_STEP, friction=0.3)


def sampling(name: str) -> TransitionInterfaceSampling:
    """Return interface sampling along ``"x"``, ``"y"`` or ``"x + y"`` by one-way shooting and exchanges."""
    one, md = ALONG[name], engine()
    low, high = one.stays
    # max and min act only in front of a state, and only above its energy
    text = f"select(step({ENERGY} + {-DEEP:g}), max({low:g}, min({high:g}, {one.formula})), {one.formula})"
    along = FunctionOfCVs(tuple(md.potential.cvs()), text, name="progress")
    return TransitionInterfaceSampling(md, along < one.interfaces[0], along > one.b, along, one.interfaces, max_duration=MAX_DURATION)
