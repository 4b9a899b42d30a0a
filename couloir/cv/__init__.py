"""What to look along: collective variables, the biases and regions on them."""

from couloir.cv.base import CollectiveVariable, wrap
from couloir.cv.bias import Bias, FlatBottom, HarmonicBias, SumOfBiases, Tabulated, bias_from_dict
from couloir.cv.region import Interval, Region

__all__ = [
    "Bias",
    "CollectiveVariable",
    "FlatBottom",
    "HarmonicBias",
    "Interval",
    "Region",
    "SumOfBiases",
    "Tabulated",
    "bias_from_dict",
    "wrap",
]
