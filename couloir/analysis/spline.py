"""A free energy as a cubic B-spline, by maximum likelihood (Shirts & Ferguson, J. Chem. Theory Comput. 16, 4107 (2020)).

With F(s) = sum_i c_i B_i(s) in kT, m(s) the weighted mass of samples and any fixed tilt r(s) > 0, the coefficients minimize

    J(c) = sum_s m(s) r(s) F(s) / sum_s m(s) r(s) + log sum_s r(s) exp(-F(s)),

the negative log-likelihood per sample of a density proportional to r exp(-F).  It is convex: its Hessian is the covariance of the
B-splines under that density.  r = 1 is the likelihood of an unbiased run, in which barriers weigh next to nothing; with r the density of
rows over that of the unbiased state it is the likelihood of the rows as they were sampled, so barriers count as much as they were visited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import BSpline

from couloir.errors import DataError
from couloir.trajectory import Array

_RIDGE = 1e-7
"""Penalty on second differences of coefficients: decides those that no sample decides, and no others."""
CHOICES = (6, 8, 10, 12, 14, 17, 20, 24, 28, 33, 40, 48)


@dataclass(frozen=True, eq=False)
class SplineFit:
    """A fitted spline.

    Attributes
    ----------
    coefficients : (n_basis,) kT.
    basis : (n_points, n_basis) B-splines at the points.
    tilt : (n_points,).
    knots : number of intervals.
    loss : J at the minimum.
    """

    coefficients: Array
    basis: Array
    tilt: Array
    knots: int
    loss: float

    def refit(self, mass: Array) -> Array:
        """Return the probability of each point (n_points,) with the spline fitted to other mass, started from this one."""
        c, _ = _minimize(self.basis, mass, self.tilt, self.coefficients)
        f = self.basis @ c
        p = np.exp(-(f - f.min()))
        return np.asarray(p / p.sum())


def fit_spline(
    x: Array, mass: Array, tilt: Array, n: float, *, low: float, high: float, periodic: bool = False, knots: int | None = None
) -> SplineFit:
    """Return the spline that maximizes the likelihood.

    Parameters
    ----------
    x : (n_points,) equally spaced points between ``low`` and ``high``.
    mass : (n_points,) weight of samples at each.
    tilt : (n_points,) r in the module's text; 0 where no sample is near.
    n : effective number of samples in the tilted density, for BIC.
    periodic : whether ``low`` and ``high`` are one point.
    knots : number of intervals; None for the number of least BIC = 2 n J + (number of coefficients - 1) log n.

    Raises
    ------
    DataError : fewer than 4 intervals, or so many that they cannot be told apart on the points.
    """
    most = len(x) // 4
    if knots is not None:
        if not 4 <= int(knots) <= most:
            raise DataError(f"knots = {knots}", f"give between 4 and {most} intervals, or None")
        return _fit(x, mass, tilt, int(knots), low, high, periodic)
    best, lowest, worse = None, np.inf, 0
    for number in CHOICES:
        if number > most:
            break
        fit = _fit(x, mass, tilt, number, low, high, periodic)
        bic = 2 * n * fit.loss + (len(fit.coefficients) - 1) * np.log(max(n, 2.0))
        worse = 0 if bic < lowest else worse + 1
        if bic < lowest:
            best, lowest = fit, bic
        if worse == 3:
            break
    if best is None:
        raise DataError(f"a grid of {len(x)} points is too coarse for a spline", "use more bins")
    return best


def _fit(x: Array, mass: Array, tilt: Array, knots: int, low: float, high: float, periodic: bool) -> SplineFit:
    basis = bspline_basis(x, knots, low, high, periodic)
    c, loss = _minimize(basis, mass, tilt, np.zeros(basis.shape[1]))
    return SplineFit(c, basis, tilt, knots, loss)


def bspline_basis(x: Array, knots: int, low: float, high: float, periodic: bool) -> Array:
    """Return cubic B-splines on equal intervals at points x, (n_points, n_basis); every row sums to 1."""
    step = (high - low) / knots
    t = low + step * np.arange(-3, knots + 4)
    basis = BSpline.design_matrix(x, t, 3).toarray()
    if periodic:
        basis[:, :3] += basis[:, knots:]
        basis = basis[:, :knots]
    return np.asarray(basis)


def _minimize(basis: Array, mass: Array, tilt: Array, start: Array) -> tuple[Array, float]:
    """Return the coefficients with the least J, by damped Newton steps, and J (without the ridge)."""
    weight = mass * tilt
    mean = basis.T @ (weight / weight.sum())
    log_tilt = np.log(np.where(tilt > 0, tilt, 1.0))
    n = basis.shape[1]
    second = np.diff(np.eye(n), 2, axis=0)
    ridge = _RIDGE * second.T @ second

    def evaluate(c: Array) -> tuple[float, float, Array]:
        exponent = np.where(tilt > 0, log_tilt - basis @ c, -np.inf)
        top = exponent.max()
        p = np.exp(exponent - top)
        total = p.sum()
        loss = float(c @ mean + top + np.log(total))
        return loss + 0.5 * float(c @ ridge @ c), loss, p / total

    c = start
    value, loss, p = evaluate(c)
    for _ in range(100):
        expected = basis.T @ p
        gradient = mean - expected + ridge @ c
        hessian = (basis.T * p) @ basis - np.outer(expected, expected) + ridge
        # A constant added to F changes nothing: give it curvature.
        hessian += np.full((n, n), 1.0 / n) + 1e-12 * np.eye(n)
        step: Any = -np.linalg.solve(hessian, gradient)
        step *= min(1.0, 10.0 / max(float(np.abs(step).max()), 1e-300))
        slope, scale = float(gradient @ step), 1.0
        while True:
            trial, trial_loss, trial_p = evaluate(c + scale * step)
            if trial <= value + 1e-4 * scale * slope + 1e-13 * abs(value) or scale < 1e-6:
                break
            scale *= 0.5
        c, value, loss, p = c + scale * step, trial, trial_loss, trial_p
        if -slope < 1e-12:
            break
    return c, loss
