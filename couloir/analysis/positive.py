"""Estimates of quantities with bounds: intervals of positive ones, such as rates, belong in the logarithm, those of shares in the logit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from couloir.analysis.surface import Estimate


@dataclass(frozen=True)
class PositiveEstimate(Estimate):
    """A positive number with its standard error and unit; its logarithm is what scatters evenly.

    Attributes
    ----------
    relative_error : standard error of the logarithm; infinite where 0 is not excluded.
    freedom : degrees of freedom behind the error, which few independent blocks make uncertain itself.
    """

    relative_error: float
    freedom: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: exp(ln value -+ t relative_error), with t of Student's distribution."""
        factor = math.exp(min(quantile(self.freedom) * self.relative_error, 700.0)) if self.relative_error < math.inf else math.inf
        return self.value / factor, self.value * factor if self.value > 0 else math.inf


@dataclass(frozen=True)
class ShareEstimate(Estimate):
    """A number between 0 and 1, a share of time or of paths, with its standard error; its logit is what scatters evenly."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: p / (p + (1 - p) f) and p / (p + (1 - p) / f) with f = exp(1.96 standard_error / (p (1 - p)))."""
        p, error = self.value, self.standard_error
        if error == 0:
            return p, p
        if not (0 < p < 1 and error < math.inf):
            return 0.0, 1.0
        factor = math.exp(min(quantile(math.inf) * error / (p * (1 - p)), 700.0))
        return p / (p + (1 - p) * factor), p / (p + (1 - p) / factor)


def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's distribution; 1.96 for infinitely many degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 0.975) if freedom < math.inf else ndtri(0.975))
