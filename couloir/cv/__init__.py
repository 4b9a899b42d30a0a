"""What to look along: collective variables, the biases and regions on them."""

from couloir.cv.base import CollectiveVariable, wrap
from couloir.cv.bias import Bias, FlatBottom, HarmonicBias, SumOfBiases, Tabulated, bias_from_dict
from couloir.cv.composite import FunctionOfCVs, LinearCombination, PathCV, path_s, path_z
from couloir.cv.custom import FunctionCV, check_gradient
from couloir.cv.geometric import RMSD, Angle, Coordinate, CoordinationNumber, Dihedral, Distance, RadiusOfGyration
from couloir.cv.region import Interval, Region
from couloir.cv.registry import from_config, from_dict
from couloir.cv.selection import select_atoms

__all__ = [
    "RMSD",
    "Angle",
    "Bias",
    "CollectiveVariable",
    "Coordinate",
    "CoordinationNumber",
    "Dihedral",
    "Distance",
    "FlatBottom",
    "FunctionCV",
    "FunctionOfCVs",
    "HarmonicBias",
    "Interval",
    "LinearCombination",
    "PathCV",
    "RadiusOfGyration",
    "Region",
    "SumOfBiases",
    "Tabulated",
    "bias_from_dict",
    "check_gradient",
    "from_config",
    "from_dict",
    "path_s",
    "path_z",
    "select_atoms",
    "wrap",
]
