"""What it means: reweighting, free-energy surfaces, diagnostics."""

from couloir.analysis.samples import BiasedSamples

__all__ = ["BiasedSamples"]
