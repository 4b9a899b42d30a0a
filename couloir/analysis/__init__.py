"""What it means: reweighting, free-energy surfaces, diagnostics."""

from couloir.analysis._mbar_torch import MbarSolution, solve_mbar
from couloir.analysis.allocation import allocate
from couloir.analysis.channels import Channels
from couloir.analysis.connectivity import WindowGraph, window_graph
from couloir.analysis.crossing import CrossingProbability, InterfaceRate, crossing_probability, interface_rate
from couloir.analysis.diagnostics import convergence, diagnose
from couloir.analysis.expectation import Expectation, expectation
from couloir.analysis.free_energy import free_energy_surface
from couloir.analysis.interface_samples import InterfaceSamples
from couloir.analysis.landscape import Landscape, landscape
from couloir.analysis.mbar import MbarResult, mbar, reweight
from couloir.analysis.mfep import MinimumFreeEnergyPath, minimum_free_energy_path
from couloir.analysis.multiple_states import RateMatrix, rate_matrix
from couloir.analysis.path_density import PathDensity
from couloir.analysis.path_ensemble import PathEnsemble
from couloir.analysis.positive import PositiveEstimate, ShareEstimate
from couloir.analysis.reduced import ReducedState, Reweighted
from couloir.analysis.reweighted_paths import CommittorMap, ReweightedPaths, reweighted_paths
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.streaming import StreamedWham
from couloir.analysis.surface import Estimate, FreeEnergySurface
from couloir.analysis.timeseries import detect_equilibration, equilibrated, equilibration, statistical_inefficiency
from couloir.analysis.wham import WhamResult, wham

__all__ = [
    "BiasedSamples", "Channels", "CommittorMap", "CrossingProbability", "Estimate", "Expectation", "FreeEnergySurface", "InterfaceRate",
    "InterfaceSamples", "Landscape", "MbarResult", "MbarSolution", "MinimumFreeEnergyPath", "PathDensity", "PathEnsemble",
    "PositiveEstimate", "RateMatrix", "ReducedState", "Reweighted", "ReweightedPaths", "ShareEstimate",
    "StreamedWham", "WhamResult", "WindowGraph",
    "allocate", "convergence",
    "crossing_probability", "detect_equilibration", "diagnose", "equilibrated", "equilibration", "expectation", "free_energy_surface",
    "interface_rate", "landscape", "mbar", "minimum_free_energy_path", "rate_matrix", "reweight", "reweighted_paths", "solve_mbar",
    "statistical_inefficiency", "wham", "window_graph",
]  # fmt: skip
