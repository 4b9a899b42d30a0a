"""What physics says: engines, systems, seeding and umbrella windows."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ToyEngine": "toy",
    "ToyPotential": "potentials",
    "potentials": "",
    "MolecularSystem": "molecule",
    "OpenMMEngine": "openmm_engine",
    "benchmark_platforms": "platforms",
    "systems": "",
    "Seeds": "seeds",
    "FixedLengthEnsemble": "path_ensembles",
    "GaussianSelector": "selectors",
    "IndependenceMoves": "independence",
    "LorentzianSelector": "selectors",
    "Pilot": "interface_placement",
    "ShootingMove": "path_moves",
    "TabulatedSelector": "selectors",
    "TransitionEnsemble": "path_ensembles",
    "TransitionInterfaceSampling": "interface_sampling",
    "TransitionPathSampling": "path_sampling",
    "UniformSelector": "selectors",
    "UmbrellaSampling": "umbrella",
    "density_ratio_selector": "selectors",
    "dragged_seeds": "dragging",
    "adapt_windows": "planning",
    "assisted_sampling": "assisted",
    "coarse_windows": "planning",
    "committor": "committors",
    "committor_histogram_test": "committors",
    "frontier_rounds": "frontier",
    "initial_paths": "interface_starts",
    "pair_overlaps": "window_overlap",
    "place_windows": "planning",
    "reactive_seeds": "reactive",
    "sample_adaptively": "adaptive_labels",
    "sample_model": "model_samples",
    "score_paths": "path_scores",
    "seed_windows": "seeding",
    "stored_ensemble": "path_chains",
    "two_way_shots": "shots",
    "with_windows": "model_samples",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
