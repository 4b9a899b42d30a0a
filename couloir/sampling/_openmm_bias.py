"""Biases as OpenMM forces: which forces a bias needs, and the parameters that change without a new Context."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import openmm

from couloir.cv.base import CollectiveVariable
from couloir.cv.bias import Bias, HarmonicBias, LeptonTerm, SumOfBiases


@dataclass(frozen=True)
class BiasPlan:
    """The forces of a bias, up to the values of their parameters.

    Attributes
    ----------
    key : equal for two biases that can share one Context.
    terms : per force, the CVs it acts on and its Lepton expression.
    cvs : name -> CV.
    """

    key: str
    terms: tuple[tuple[tuple[str, ...], LeptonTerm], ...]
    cvs: Mapping[str, CollectiveVariable] = field(compare=False)


def separate(bias: Bias) -> list[Bias]:
    """Return biases on as few CVs as possible whose sum is ``bias``: one native force each is the fastest form."""
    if isinstance(bias, SumOfBiases):
        return [part for term in bias.terms for part in separate(term)]
    if isinstance(bias, HarmonicBias):
        rows = zip(bias.names, bias.centers, bias.force_constants, bias.periods, strict=True)
        return [HarmonicBias((name,), (center,), (constant,), (period,)) for name, center, constant, period in rows]
    return [bias]


def plan_bias(bias: Bias, cvs: Mapping[str, CollectiveVariable]) -> tuple[BiasPlan, dict[str, float]]:
    """Return the forces that ``bias`` needs and the values of their parameters."""
    import cloudpickle  # type: ignore[import-untyped]

    grouped: dict[tuple[str, ...], list[Bias]] = {}
    for part in separate(bias):
        grouped.setdefault(part.names, []).append(part)
    terms = tuple(
        (names, (parts[0] if len(parts) == 1 else SumOfBiases(tuple(parts))).lepton(f"bias{i}_"))
        for i, (names, parts) in enumerate(grouped.items())
    )
    used = {name: cvs[name] for name in bias.names}
    content = cloudpickle.dumps(([(names, term.structure) for names, term in terms], used))
    parameters = {k: v for _, term in terms for k, v in term.parameters.items()}
    return BiasPlan(hashlib.sha256(content).hexdigest(), terms, used), parameters


def bias_forces(plan: BiasPlan) -> list[openmm.Force]:
    """Return one native force per term; several CVs in one expression become a CustomCVForce."""
    forces = []
    for names, term in plan.terms:
        force = plan.cvs[names[0]].to_openmm_energy(term.expression, term.parameters) if len(names) == 1 else None
        if force is None or (term.tables and not hasattr(force, "addTabulatedFunction")):
            force = openmm.CustomCVForce(term.expression)
            for name in names:
                force.addCollectiveVariable(name, plan.cvs[name].to_openmm())
            for name, value in term.parameters.items():
                force.addGlobalParameter(name, value)
        for name, (low, high, periodic, values) in term.tables.items():
            force.addTabulatedFunction(name, openmm.Continuous1DFunction(values, low, high, periodic))
        forces.append(force)
    return forces
