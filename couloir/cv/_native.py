"""What CVs share to become OpenMM forces: one bonded term where possible, a CustomCVForce over sums otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from couloir.errors import ConfigError

if TYPE_CHECKING:
    import openmm

LEPTON_FUNCTIONS = frozenset(
    {
        "sqrt", "exp", "log", "sin", "cos", "sec", "csc", "tan", "cot", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh",
        "erf", "erfc", "step", "delta", "square", "cube", "recip", "min", "max", "abs", "floor", "ceil", "select",
    }
)  # fmt: skip


def constant(values: Any, like: Any, xp: Any) -> Any:
    """Return ``values`` as an array of module ``xp`` with the precision (and device) of ``like``."""
    return np.asarray(values, dtype=like.dtype) if xp is np else xp.asarray(values, dtype=like.dtype, device=like.device)


def check_name(name: str) -> None:
    """Raise ConfigError unless ``name`` can be a variable in an OpenMM expression."""
    if not (name.isascii() and name.isidentifier()) or name in LEPTON_FUNCTIONS:
        raise ConfigError(f"{name!r} cannot name a collective variable", "use letters, digits and _ and no function name, e.g. 'phi'")


def define(expression: str, name: str, definition: str) -> str:
    """Return Lepton text in which ``name`` stands for ``definition``."""
    return expression if name == definition else f"{expression}; {name}={definition}"


def wrapped_text(text: str, period: float | None) -> str:
    """Return Lepton text of ``text`` (one symbol) wrapped into [-period/2, period/2)."""
    return text if period is None else f"({text}-{period!r}*floor({text}/{period!r}+0.5))"


def calls_table(expression: str) -> bool:
    """Return whether an expression calls a function that Lepton lacks, that is, a tabulated one."""
    return not LEPTON_FUNCTIONS.issuperset(re.findall(r"([A-Za-z_]\w*)\s*\(", expression))


def with_parameters(force: openmm.Force, parameters: Mapping[str, float]) -> openmm.Force:
    """Give a custom force its global parameters and return it."""
    for name, value in parameters.items():
        force.addGlobalParameter(name, value)
    return force


def bonded(kind: str, text: str, parameters: Mapping[str, float], atoms: Sequence[int]) -> openmm.Force:
    """Return a custom force of one bond, angle, torsion, particle or compound bond with energy ``text``."""
    import openmm

    if kind == "Compound":
        force = openmm.CustomCompoundBondForce(len(atoms), text)
        force.addBond(list(atoms), [])
    else:
        force = getattr(openmm, f"Custom{kind}Force")(text)
        add = {"Bond": "addBond", "Angle": "addAngle", "Torsion": "addTorsion", "External": "addParticle"}[kind]
        getattr(force, add)(*atoms, [])
    return with_parameters(force, parameters)


def collective(text: str, parameters: Mapping[str, float], variables: Mapping[str, openmm.Force]) -> openmm.Force:
    """Return a CustomCVForce with energy ``text`` in the energies of other forces."""
    import openmm

    force = openmm.CustomCVForce(text)
    for name, inner in variables.items():
        force.addCollectiveVariable(name, inner)
    return with_parameters(force, parameters)
