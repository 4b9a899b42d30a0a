"""Naming atoms: by index, as ``"ALA2:CA"`` (residue name and number as in the PDB), or in mdtraj's selection language."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from couloir.errors import SelectionError

if TYPE_CHECKING:
    import mdtraj


def select_atoms(topology: mdtraj.Topology, selectors: int | str | Iterable[int | str]) -> tuple[int, ...]:
    """Return atom indices in the order of the selectors.

    Parameters
    ----------
    topology : mdtraj topology.
    selectors : each an index from 0, ``"ALA2:CA"``, ``"2:CA"``, or mdtraj's language after ``"select "`` (may match several).

    Raises
    ------
    SelectionError : a selector matches nothing, cannot be read, or names an atom that exists in several chains.
    """
    chosen = [selectors] if isinstance(selectors, (int, str)) else list(selectors)
    if not chosen:
        raise SelectionError("the list of atom selectors is empty", 'give atoms like ["ALA2:N", "ALA2:CA"]')
    return tuple(index for selector in chosen for index in _resolve(topology, selector))


def find_residue(topology: mdtraj.Topology, label: str | int) -> Any:
    """Return the one residue called ``label``: its number (2, ``"2"``) or name and number (``"ALA2"``).

    Raises
    ------
    SelectionError : no residue, or more than one, is called so.
    """
    wanted = str(label)
    found = [r for r in topology.residues if wanted in (str(r.resSeq), f"{r.name}{r.resSeq}")]
    if not found:
        labels = [f"{r.name}{r.resSeq}" for r in topology.residues]
        raise SelectionError(f"no residue is called {wanted!r} (there are {len(labels)}){_hint(wanted, labels)}")
    if len(found) > 1:
        raise SelectionError(
            f"{len(found)} residues are called {wanted!r}, in chains {', '.join(str(r.chain.index) for r in found)}",
            'name the chain, e.g. "select chainid 0 and resSeq 2 and name CA", or give atom indices',
        )
    return found[0]


def atom_of(residue: Any, name: str) -> int:
    """Return the index of the atom ``name`` of an mdtraj residue.

    Raises
    ------
    SelectionError : the residue has no such atom.
    """
    for atom in residue.atoms:
        if atom.name == name:
            return int(atom.index)
    names = [atom.name for atom in residue.atoms]
    raise SelectionError(f"residue {residue.name}{residue.resSeq} has no atom {name!r}{_hint(name, names)}")


def _resolve(topology: mdtraj.Topology, selector: int | str) -> list[int]:
    n_atoms = topology.n_atoms
    if not isinstance(selector, str):
        index = int(selector)
        if not 0 <= index < n_atoms:
            raise SelectionError(f"atom index {index} does not exist: there are {n_atoms} atoms", f"use 0 ... {n_atoms - 1}")
        return [index]
    if selector.startswith("select "):
        return _select(topology, selector)
    residue, colon, atom = selector.partition(":")
    if not colon or not residue or not atom:
        raise SelectionError(
            f"cannot read the atom selector {selector!r} ({n_atoms} atoms)",
            'write it like "ALA2:CA" (residue name and number, atom name), "2:CA", or "select name CA"',
        )
    try:
        return [atom_of(find_residue(topology, residue.strip()), atom.strip())]
    except SelectionError as error:
        raise SelectionError(f"{selector!r} among {n_atoms} atoms: {error.message}", error.fix) from None


def _select(topology: mdtraj.Topology, selector: str) -> list[int]:
    try:
        found = [int(i) for i in topology.select(selector.removeprefix("select "))]
    except Exception as error:  # mdtraj's parser raises several kinds, some of pyparsing
        raise SelectionError(f"cannot read the selection {selector!r}: {error}", 'write it like "select resSeq 2 and name CA"') from None
    if not found:
        raise SelectionError(f"{selector!r} matches none of the {topology.n_atoms} atoms", "residue numbers are 'resSeq' in mdtraj")
    return found


def _hint(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    shown = choices if len(choices) <= 30 else [*choices[:3], "...", *choices[-3:]]
    return f"; choices are {', '.join(shown)}"
