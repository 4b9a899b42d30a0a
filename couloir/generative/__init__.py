from importlib import import_module
from typing import Any

_HOMES = {
    "Cartesian": "representation",
    "ConditionalSGM": "conditional_sgm",
    "Cosine": "schedule",
    "EDM": "schedule",
    "FittedConditionalSGM": "conditional_sgm",
    "FittedTrajectoryDiffusion": "fitted_trajectories",
    "Guided": "denoiser",
    "HeavyAtoms": "heavy_atoms",
    "HeavyInternal": "heavy_internal",
    "InternalCoordinates": "internal",
    "MixtureLabels": "model_state",
    "ModelState": "model_state",
    "NoiseSchedule": "schedule",
    "PAPER_PLAN": "trajectory_diffusion",
    "ProposedStructures": "conditional_sgm",
    "Representation": "representation",
    "TrainingPlan": "training",
    "TrajectoryDiffusion": "trajectory_diffusion",
    "UniformLabels": "model_state",
    "VPLinear": "schedule",
    "Vector": "representation",
    "representation_from": "representation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
