"""OBC2 implicit solvent as OpenMM's native force.

Force-field XML and Amber files describe the generalized Born model of Onufriev, Bashford and Case (Proteins 55, 383 (2004),
model II) to OpenMM as a ``CustomGBForce`` with parameters charge, offset radius ``or`` and scaled offset radius ``sr``.
``GBSAOBCForce`` computes the same energy many times faster from charge, radius = or + 0.009 nm and scale = sr / or.
"""

from __future__ import annotations

import re
from typing import Any

_OFFSET = 0.009
_INTEGRAL = "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
_BORN_RADIUS = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius);psi=I*or;radius=or+offset;offset=0.009"
_SELF = "-0.5*138.935485*(1/soluteDielectric-1/solventDielectric)*charge^2/B"
_PAIR = "-138.935485*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f;f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
_SURFACE = "28.3919551*(radius+0.14)^2*(radius/B)^6;radius=or+offset"
_SURFACE_ENERGY = 28.3919551 / (4 * 3.141592653589793)
_CONSTANT = re.compile(r";(solventDielectric|soluteDielectric|kappa|offset)=([-+.0-9e]+)")


def native_obc(system: Any) -> bool:
    """Replace a custom OBC2 force of an ``openmm.System``, in place, by the equivalent ``GBSAOBCForce``.

    Only a force without a cutoff and salt, with exactly the OBC2 expressions, is replaced; any other generalized Born
    model, such as HCT or GBn2, is left as it is.

    Returns
    -------
    Whether a force was replaced.
    """
    import openmm

    for index, force in enumerate(system.getForces()):
        if isinstance(force, openmm.CustomGBForce):
            constants = _obc2_constants(force)
            if constants is not None:
                native = _native_force(force, constants)
                system.removeForce(index)
                system.addForce(native)
                return True
    return False


def _native_force(custom: Any, constants: dict[str, float]) -> Any:
    import openmm

    native = openmm.GBSAOBCForce()
    native.setForceGroup(custom.getForceGroup())
    native.setSoluteDielectric(constants["soluteDielectric"])
    native.setSolventDielectric(constants["solventDielectric"])
    native.setSurfaceAreaEnergy(constants["surface"])
    native.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    for atom in range(custom.getNumParticles()):
        charge, offset_radius, scaled_radius = custom.getParticleParameters(atom)
        native.addParticle(charge, offset_radius + _OFFSET, scaled_radius / offset_radius)
    return native


def _obc2_constants(force: Any) -> dict[str, float] | None:
    """Return dielectric constants and surface-area energy (kJ/mol/nm^2) of an OBC2 force, None for any other force."""
    import openmm

    parameters = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    values = [force.getComputedValueParameters(i) for i in range(force.getNumComputedValues())]
    terms = [force.getEnergyTermParameters(i) for i in range(force.getNumEnergyTerms())]
    pair, single = openmm.CustomGBForce.ParticlePairNoExclusions, openmm.CustomGBForce.SingleParticle
    plain = (
        parameters == ["charge", "or", "sr"]
        and force.getNonbondedMethod() == openmm.CustomGBForce.NoCutoff
        and force.getNumExclusions() == force.getNumGlobalParameters() == force.getNumFunctions() == 0
    )
    if not plain or [(n, _tight(e), t) for n, e, t in values] != [("I", _INTEGRAL, pair), ("B", _BORN_RADIUS, single)]:
        return None
    constants: dict[str, float] = {}
    found = []
    for expression, kind in terms:
        text = _tight(expression)
        constants |= {name: float(value) for name, value in _CONSTANT.findall(text)}
        found.append((_CONSTANT.sub("", text), kind))
    with_surface = (_SURFACE, single) in found
    expected = {(_SELF, single), (_PAIR, pair)} | ({(_SURFACE, single)} if with_surface else set())
    if set(found) != expected or len(found) != len(expected) or constants.get("kappa", 0.0) != 0.0:
        return None
    if not {"soluteDielectric", "solventDielectric"} <= constants.keys() or abs(constants.get("offset", _OFFSET) - _OFFSET) > 1e-9:
        return None
    return constants | {"surface": _SURFACE_ENERGY if with_surface else 0.0}


def _tight(expression: str) -> str:
    return re.sub(r"\s+", "", expression)
