"""Compiled kernels of the toy systems: potential formulas, random numbers and integrators, in one loop over walkers.

Everything a kernel calls lives in this file: compiled code is cached on disk and renewed when this file changes.
Each walker carries its own xoshiro256++ state (Blackman & Vigna, ACM Trans. Math. Softw. 47, 36 (2021)) and no walker
reads another's data, so results do not depend on the batch or on how many threads share it.  Kernels release the GIL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from couloir.trajectory import Array


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use and cache on disk; where no folder is writable, compile again in every process."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


# --- potentials: each returns the energy at x and writes its gradient to g; p are the parameters --------------------


@_compiled
def _polynomial_well(p: Array, x: Array, g: Array) -> float:
    """a x^2 + b x^3 + c x^4 + 1/2 k y^2 (y if present)."""
    u = x[0]
    energy = u * u * (p[0] + u * (p[1] + u * p[2]))
    g[0] = u * (2 * p[0] + u * (3 * p[1] + u * 4 * p[2]))
    for i in range(1, len(x)):
        energy += 0.5 * p[3] * x[i] * x[i]
        g[i] = p[3] * x[i]
    return float(energy)


@_compiled
def _harmonic(p: Array, x: Array, g: Array) -> float:
    """sum over coordinates of 1/2 k_i x_i^2."""
    energy = 0.0
    for i in range(len(x)):
        energy += 0.5 * p[i] * x[i] * x[i]
        g[i] = p[i] * x[i]
    return energy


@_compiled
def _gaussians(p: Array, x: Array, g: Array) -> float:
    """s (x^2+y^2)^2 + sum_j A_j exp(a_j dx^2 + b_j dx dy + c_j dy^2); p = s, then A, a, b, c, x0, y0 of each term."""
    r2 = x[0] * x[0] + x[1] * x[1]
    energy = p[0] * r2 * r2
    g[0] = 4 * p[0] * r2 * x[0]
    g[1] = 4 * p[0] * r2 * x[1]
    for j in range(1, len(p), 6):
        dx, dy = x[0] - p[j + 4], x[1] - p[j + 5]
        term = p[j] * math.exp(p[j + 1] * dx * dx + p[j + 2] * dx * dy + p[j + 3] * dy * dy)
        energy += term
        g[0] += term * (2 * p[j + 1] * dx + p[j + 2] * dy)
        g[1] += term * (p[j + 2] * dx + 2 * p[j + 3] * dy)
    return float(energy)


@_compiled
def _evolving_wells(p: Array, x: Array, g: Array) -> float:
    """(z2^2 - 1)^2 + (t0 + t1 z1) z2."""
    z1, z2 = x[0], x[1]
    tilt, well = p[0] + p[1] * z1, z2 * z2 - 1
    g[0] = p[1] * z2
    g[1] = tilt + 4 * z2 * well
    return float(well * well + tilt * z2)


@_compiled
def _variable_barrier(p: Array, x: Array, g: Array) -> float:
    """(1+z2)^2 (z2^4 + (3k/4-2) z2^3 + (h-k+1) z2^2 - 2h z2 + h), p = h, k."""
    h, k, z = p[0], p[1], x[1]
    c3, c2, c1 = 0.75 * k - 2, h - k + 1, -2 * h
    inner = h + z * (c1 + z * (c2 + z * (c3 + z)))
    slope = c1 + z * (2 * c2 + z * (3 * c3 + 4 * z))
    g[0] = 0.0
    g[1] = 2 * (1 + z) * inner + (1 + z) * (1 + z) * slope
    return float((1 + z) * (1 + z) * inner)


@_compiled
def _hidden_barrier(p: Array, x: Array, g: Array) -> float:
    """h ((x/a)^2-1)^2 + B(x) (y^2-1)^2 + (t0 + t1 x) y with B(x) = b0 + (b1-b0)/(1+exp(-(x-xp)/w))."""
    h, a, b0, b1, xp, w, t0, t1 = p
    u, y = x[0], x[1]
    q, well, s = (u / a) ** 2 - 1, y * y - 1, 1 / (1 + math.exp(-(u - xp) / w))
    barrier, tilt = b0 + (b1 - b0) * s, t0 + t1 * u
    g[0] = h * 4 * q * u / (a * a) + (b1 - b0) * s * (1 - s) / w * well * well + t1 * y
    g[1] = 4 * barrier * y * well + tilt
    return float(h * q * q + barrier * well * well + tilt * y)


@_compiled
def _hidden_torsion(p: Array, x: Array, g: Array) -> float:
    """h (1-cos 2x)/2 + B(x) (y^2-1)^2 + t0 y + t1 y cos x, x periodic, B(x) = b1 - (b1-b0) exp(c (cos(x-xp) - 1))."""
    h, b0, b1, xp, c, t0, t1 = p
    u, y = x[0], x[1]
    well, dip = y * y - 1, (b1 - b0) * math.exp(c * (math.cos(u - xp) - 1))
    barrier, tilt = b1 - dip, t0 + t1 * math.cos(u)
    g[0] = h * math.sin(2 * u) + dip * c * math.sin(u - xp) * well * well - t1 * math.sin(u) * y
    g[1] = 4 * barrier * y * well + tilt
    return float(0.5 * h * (1 - math.cos(2 * u)) + barrier * well * well + tilt * y)


KINDS = {
    "polynomial_well": 0, "harmonic": 1, "gaussians": 2, "evolving_wells": 3, "variable_barrier": 4, "hidden_barrier": 5,
    "hidden_torsion": 6,
}  # fmt: skip


@_compiled
def evaluate(kind: int, p: Array, x: Array, g: Array) -> float:
    """Return the energy of potential ``kind`` at x (n_dim,) and write its gradient to g."""
    if kind == 0:
        return _polynomial_well(p, x, g)  # type: ignore[no-any-return]
    if kind == 1:
        return _harmonic(p, x, g)  # type: ignore[no-any-return]
    if kind == 2:
        return _gaussians(p, x, g)  # type: ignore[no-any-return]
    if kind == 3:
        return _evolving_wells(p, x, g)  # type: ignore[no-any-return]
    if kind == 4:
        return _variable_barrier(p, x, g)  # type: ignore[no-any-return]
    if kind == 5:
        return _hidden_barrier(p, x, g)  # type: ignore[no-any-return]
    return _hidden_torsion(p, x, g)  # type: ignore[no-any-return]


@_compiled
def evaluate_many(kind: int, p: Array, x: Array, energy: Array, g: Array) -> None:
    """Energies (n,) and gradients (n, n_dim) of points x (n, n_dim)."""
    for i in range(len(x)):
        energy[i] = evaluate(kind, p, x[i], g[i])


# --- random numbers: xoshiro256++ and the ziggurat (Marsaglia & Tsang, J. Stat. Softw. 5 (8), 2000; 256 layers) ------


def _ziggurat() -> tuple[Array, Array]:
    """Return the edges x_0 > ... > x_256 = 0 of layers of equal area under exp(-x^2/2), and exp(-x_i^2/2)."""
    right, area = 3.6541528853610088, 4.92867323399e-3
    x = np.zeros(257)
    x[0], x[1] = area / math.exp(-0.5 * right * right), right
    for i in range(2, 256):
        x[i] = math.sqrt(-2 * math.log(area / x[i - 1] + math.exp(-0.5 * x[i - 1] ** 2)))
    return x, np.exp(-0.5 * x * x)


_EDGE, _HEIGHT = _ziggurat()
_RIGHT = 3.6541528853610088
_U = np.uint64


@_compiled
def seed_state(seed: int, state: Any) -> None:
    """Fill the four words of a xoshiro256++ state from an integer with splitmix64."""
    z = _U(seed)
    for i in range(4):
        z += _U(0x9E3779B97F4A7C15)
        w = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
        w = (w ^ (w >> _U(27))) * _U(0x94D049BB133111EB)
        state[i] = w ^ (w >> _U(31))


@_compiled
def _next(s: Any) -> Any:
    total = s[0] + s[3]
    result = ((total << _U(23)) | (total >> _U(41))) + s[0]
    t = s[1] << _U(17)
    s[2] ^= s[0]
    s[3] ^= s[1]
    s[1] ^= s[2]
    s[0] ^= s[3]
    s[2] ^= t
    s[3] = (s[3] << _U(45)) | (s[3] >> _U(19))
    return result


@_compiled
def _uniform(s: Any) -> float:
    """A number in (0, 1)."""
    return (float(_next(s) >> _U(11)) + 0.5) * 1.1102230246251565e-16


@_compiled
def normal(s: Any) -> float:
    """A standard normal number from the random state ``s`` (4,)."""
    while True:
        bits = _next(s)
        layer = np.int64(bits & _U(255))
        # 53 bits that share none with the layer's 8 and the 1 of the sign: reusing low bits correlates layer and value.
        sign = -1.0 if (bits >> _U(8)) & _U(1) else 1.0
        x = float(bits >> _U(11)) * 1.1102230246251565e-16 * _EDGE[layer]
        if x < _EDGE[layer + 1]:
            return float(sign * x)
        if layer == 0:
            while True:
                a = -math.log(_uniform(s)) / _RIGHT
                if -2 * math.log(_uniform(s)) > a * a:
                    return float(sign * (_RIGHT + a))
        if _HEIGHT[layer] + _uniform(s) * (_HEIGHT[layer + 1] - _HEIGHT[layer]) < math.exp(-0.5 * x * x):
            return float(sign * x)


@_compiled
def normals(states: Any, out: Array) -> None:
    """Fill out (n, n_dim): row i from random state i."""
    for i in range(len(out)):
        for j in range(out.shape[1]):
            out[i, j] = normal(states[i])


# --- dynamics --------------------------------------------------------------------------------------------------------


@_compiled
def _wrapped(value: float, period: float) -> float:
    """``value`` in [-period/2, period/2); a period of 0 means none."""
    if period == 0.0 or (-0.5 * period <= value < 0.5 * period):
        return value
    return (value + 0.5 * period) % period - 0.5 * period


@_compiled
def _along(direction: Array, x: Array) -> float:
    """The linear combination of coordinates with the coefficients ``direction`` (n_dim,)."""
    value = 0.0
    for i in range(len(x)):
        value += direction[i] * x[i]
    return value


# --- functions of coordinates: programs that ``toy_programs`` writes ---------------------------------------------------

# in three groups, which ``run_program`` tells apart by number: on slots, from 5 on two operands, from 13 on one
OPERATIONS = (
    "coordinate", "number", "copy", "wrap", "select",
    "add", "subtract", "multiply", "divide", "power", "atan2", "min", "max",
    "sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "abs", "floor", "ceil", "step",
)  # fmt: skip


@_compiled
def _of_one(code: int, a: float) -> Any:
    """An operation on one number; the numbers of ``code`` are places in OPERATIONS, here and below."""
    if code == 13:
        return np.sqrt(a)
    if code == 14:
        return np.exp(a)
    if code == 15:
        return np.log(a)
    if code == 16:
        return np.sin(a)
    if code == 17:
        return np.cos(a)
    if code == 18:
        return np.tan(a)
    if code == 19:
        return np.arcsin(a)
    if code == 20:
        return np.arccos(a)
    if code == 21:
        return np.arctan(a)
    if code == 22:
        return np.sinh(a)
    if code == 23:
        return np.cosh(a)
    if code == 24:
        return np.tanh(a)
    if code == 25:
        return abs(a)
    if code == 26:
        return np.floor(a)
    if code == 27:
        return np.ceil(a)
    return 1.0 if a >= 0 else 0.0


@_compiled
def _of_two(code: int, a: float, b: float) -> Any:
    if code == 5:
        return a + b
    if code == 6:
        return a - b
    if code == 7:
        return a * b
    if code == 8:
        return a / b
    if code == 9:
        return a**b
    if code == 10:
        return np.arctan2(a, b)
    if code == 11:
        return np.minimum(a, b)
    return np.maximum(a, b)


@_compiled
def run_program(codes: Any, numbers: Array, first: int, last: int, x: Array, slots: Array) -> Any:
    """The value at coordinates x (n_dim,) of instructions ``first`` to ``last``; ``slots`` is room to work in."""
    for k in range(first, last):
        code, s, index = codes[k, 0], codes[k, 1], codes[k, 2]
        if code >= 13:
            slots[s] = _of_one(code, slots[s])
        elif code >= 5:
            slots[s] = _of_two(code, slots[s], slots[s + 1])
        elif code == 0:
            slots[s] = x[index]
        elif code == 1:
            slots[s] = numbers[k]
        elif code == 2:
            slots[s] = slots[index]
        elif code == 3:
            slots[s] = _wrapped(slots[s], numbers[k])
        else:  # what is not a number selects the first, as in NumPy
            slots[s] = slots[s + 1] if slots[s] != 0 else slots[s + 2]
    return slots[0]


@_compiled
def _run_programs(starts: Any, codes: Any, numbers: Array, x: Array, slots: Array, values: Array) -> None:
    """Write the values of the CVs that have a program."""
    for k in range(len(values)):
        if starts[k] < starts[k + 1]:
            values[k] = run_program(codes, numbers, starts[k], starts[k + 1], x, slots)


@_compiled
def _force(kind: int, p: Array, x: Array, driven: Any, drift: Array, along: Array, terms: Array, f: Array) -> float:
    """Write the force with biases and drift to f; return the potential energy (without them)."""
    energy = evaluate(kind, p, x, f)
    for i in range(len(x)):
        f[i] = drift[i] if driven[i] else drift[i] - f[i]
    for t in range(len(along)):  # terms: centre, force constant, half width, period
        delta = _wrapped(_along(along[t], x) - terms[t, 0], terms[t, 3])
        outside = abs(delta) - terms[t, 2]
        if outside > 0:
            slope = terms[t, 1] * math.copysign(outside, delta)
            for i in range(len(x)):
                f[i] -= along[t, i] * slope
    return energy  # type: ignore[no-any-return]


@_compiled
def _inside(values: Array, low: Array, high: Array, takes_nan: Any) -> bool:
    for b in range(len(low)):
        inside = True
        for c in range(len(values)):
            value = values[c]
            if value < low[b, c] or value > high[b, c] or (math.isnan(value) and not takes_nan[b, c]):
                inside = False
                break
        if inside:
            return True
    return False


@_compiled
def propagate_block(
    kind: int, p: Array, periods: Array, driven: Any, drift: Array, underdamped: bool, coefficients: Array,
    along: Array, terms: Array, directions: Array, cv_period: Array, starts: Any, codes: Any, numbers: Array,
    low: Array, high: Array, takes_nan: Any, n_steps: int, per_frame: int,
    x: Array, v: Array, rng: Any, left: Any, finished: Any, done: Any,
    values: Array, energies: Array, frames: Array, frame_velocities: Array,
) -> None:  # fmt: skip
    """Advance walkers by up to ``energies.shape[1]`` records, at most ``left``, of ``n_steps`` steps; see ``ToyEngine``.

    ``finished``: 0 goes on, 1 entered one of the stop boxes, 2 stopped being finite (x and v stay at the last record).
    ``done``: number of records written.  ``coefficients`` rows, per coordinate: overdamped (mobility dt, noise
    sqrt(dt)); underdamped BAOAB (dt/2m, dt/2, exp(-friction dt), width of the O step).  A CV is the combination
    ``directions`` of coordinates, or its program where it has one: instructions ``starts[k]`` to ``starts[k + 1]``.
    """
    n_dim = x.shape[1]
    f, y, u = np.empty(n_dim), np.empty(n_dim), np.empty(n_dim)
    c, slots = coefficients, np.empty(len(codes))  # no program needs more slots than it has instructions
    for w in range(len(x)):
        y[:] = x[w]
        u[:] = v[w]
        _force(kind, p, y, driven, drift, along[w], terms[w], f)
        for r in range(min(energies.shape[1], left[w])):
            energy = 0.0
            for _ in range(n_steps):
                for i in range(n_dim):
                    if underdamped:
                        half = u[i] + c[0, i] * f[i]
                        y[i] += c[1, i] * half
                        u[i] = c[2, i] * half + c[3, i] * normal(rng[w])
                        y[i] = _wrapped(y[i] + c[1, i] * u[i], periods[i])
                    else:
                        y[i] = _wrapped(y[i] + c[0, i] * f[i] + c[1, i] * normal(rng[w]), periods[i])
                energy = _force(kind, p, y, driven, drift, along[w], terms[w], f)
                if underdamped:
                    for i in range(n_dim):
                        u[i] += c[0, i] * f[i]
            total = energy
            for i in range(n_dim):
                total += y[i] + u[i]
            if not math.isfinite(total):
                finished[w] = 2
                break
            x[w] = y
            v[w] = u
            energies[w, r] = energy
            for k in range(len(directions)):
                values[w, r, k] = _wrapped(_along(directions[k], y), cv_period[k])
            if len(codes):
                _run_programs(starts, codes, numbers, y, slots, values[w, r])
            if per_frame > 0 and (r + 1) % per_frame == 0:
                frames[w, (r + 1) // per_frame - 1] = y
                if len(frame_velocities):
                    frame_velocities[w, (r + 1) // per_frame - 1] = u
            done[w] = r + 1
            if _inside(values[w, r], low, high, takes_nan):
                finished[w] = 1
                break
