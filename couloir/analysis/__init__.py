"""What it means: reweighting, free-energy surfaces, diagnostics."""

from couloir.analysis.diagnostics import convergence, diagnose
from couloir.analysis.free_energy import free_energy_surface
from couloir.analysis.mbar import MbarResult, mbar
from couloir.analysis.samples import BiasedSamples
from couloir.analysis.surface import Estimate, FreeEnergySurface
from couloir.analysis.timeseries import detect_equilibration, equilibrated, equilibration, statistical_inefficiency
from couloir.analysis.wham import WhamResult, wham

__all__ = [
    "BiasedSamples", "Estimate", "FreeEnergySurface", "MbarResult", "WhamResult", "convergence", "detect_equilibration", "diagnose",
    "equilibrated", "equilibration", "free_energy_surface", "mbar", "statistical_inefficiency", "wham",
]  # fmt: skip
