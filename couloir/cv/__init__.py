"""What to look along: collective variables, the biases and regions on them."""

from typing import TYPE_CHECKING, Any

from couloir.cv.base import CollectiveVariable, wrap
from couloir.cv.bias import Bias, FlatBottom, HarmonicBias, SumOfBiases, Tabulated, bias_from_dict
from couloir.cv.composite import FunctionOfCVs, LinearCombination, PathCV, path_s, path_z
from couloir.cv.custom import FunctionCV, check_gradient
from couloir.cv.geometric import RMSD, Angle, Coordinate, CoordinationNumber, Dihedral, Distance, RadiusOfGyration
from couloir.cv.region import Interval, Region
from couloir.cv.registry import from_config, from_dict
from couloir.cv.selection import select_atoms

if TYPE_CHECKING:
    from couloir.cv.diffusion_map import DiffusionCoordinate, DiffusionMap, FittedDiffusionMap
    from couloir.cv.features import Features
    from couloir.cv.learned_committor import CommittorCoordinate, FittedCommittor, LearnedCommittor

__all__ = [
    "RMSD",
    "Angle",
    "Bias",
    "CollectiveVariable",
    "CommittorCoordinate",
    "Coordinate",
    "CoordinationNumber",
    "DiffusionCoordinate",
    "DiffusionMap",
    "Dihedral",
    "Distance",
    "Features",
    "FittedCommittor",
    "FittedDiffusionMap",
    "FlatBottom",
    "FunctionCV",
    "FunctionOfCVs",
    "HarmonicBias",
    "Interval",
    "LearnedCommittor",
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

_LAZY = {
    "CommittorCoordinate": "couloir.cv.learned_committor",
    "DiffusionCoordinate": "couloir.cv.diffusion_map",
    "DiffusionMap": "couloir.cv.diffusion_map",
    "Features": "couloir.cv.features",
    "FittedCommittor": "couloir.cv.learned_committor",
    "FittedDiffusionMap": "couloir.cv.diffusion_map",
    "LearnedCommittor": "couloir.cv.learned_committor",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
