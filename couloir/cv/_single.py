"""Geometric CVs of one frame, in plain floats: on a handful of atoms this beats array functions by an order of magnitude.

The formulas are those of :mod:`couloir.cv.geometric`, which batches, gradients and everything written down use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Point = list[float]


def distance(a: Point, b: Point) -> float:
    """Distance of two points."""
    x, y, z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    return math.sqrt(x * x + y * y + z * z)


def angle(a: Point, b: Point, c: Point) -> float:
    """Angle at the middle one of three points."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - b[0], c[1] - b[1], c[2] - b[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    return math.atan2(math.sqrt(x * x + y * y + z * z), -(ux * vx + uy * vy + uz * vz))


def dihedral(a: Point, b: Point, c: Point, d: Point) -> float:
    """Dihedral angle of four points, in [-pi, pi)."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz), (dx, dy, dz) = a, b, c, d
    ux, uy, uz = bx - ax, by - ay, bz - az
    vx, vy, vz = cx - bx, cy - by, cz - bz
    wx, wy, wz = dx - cx, dy - cy, dz - cz
    px, py, pz = vy * wz - vz * wy, vz * wx - vx * wz, vx * wy - vy * wx
    qx, qy, qz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    sine = (ux * px + uy * py + uz * pz) * math.sqrt(vx * vx + vy * vy + vz * vz)
    cosine = px * qx + py * qy + pz * qz
    value = 0.0 if sine == 0 and cosine == 0 else math.atan2(sine, cosine)
    return value - math.tau if value >= math.pi else value


FORMULAS: dict[str, Callable[..., float]] = {"distance": distance, "angle": angle, "dihedral": dihedral}
