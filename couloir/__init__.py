"""Couloir: generative diffusion models propose, OpenMM physics decides, reweighting certifies."""

__version__ = "0.1.0"
