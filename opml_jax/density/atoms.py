"""Superposed densities of free atoms: what every density starts from."""

from __future__ import annotations

import functools

import numpy as np

from ..basis import Basis
from ..data.reference import molecule
from ..errors import OpmlError
from ..structures import Structure
from ..structures.elements import symbol
from .fitting import fitting


def atomic_coefficients(z: int, basis: Basis, aux_basis: Basis) -> np.ndarray:
    """Coefficients of a free atom: spherically averaged restricted Hartree-Fock, Coulomb fit.

    Computed by PySCF once for each element and pair of basis sets, and kept.

    Args:
      z: atomic number.
      basis: orbital basis.
      aux_basis: auxiliary basis.

    Returns:
      ``(naux,)`` of one atom; only s functions have any. They hold Z electrons.
    """
    key = [b.spec.fingerprints[b.spec.element_index(z)] for b in (basis, aux_basis)]
    return _atom(z, _Held(basis, key[0]), _Held(aux_basis, key[1]))


class _Held:
    """A basis that is known by the hash of the functions of one element."""

    def __init__(self, basis: Basis, key: str):
        self.basis, self.key = basis, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.key == other.key


@functools.lru_cache(maxsize=256)
def _atom(z: int, basis: _Held, aux_basis: _Held) -> np.ndarray:
    from pyscf.scf import atom_hf

    atom = Structure((z,), np.zeros((1, 3)), spin=z % 2)
    mol = molecule(atom, basis.basis)
    energy, _, orbitals, occupations = atom_hf.get_atm_nrhf(mol)[symbol(z)]
    if not np.isfinite(energy):
        raise OpmlError(f"The free atom {symbol(z)} in {basis.basis!r} did not converge.")
    dm = (orbitals * occupations) @ orbitals.T  # spherical: its order of p does not matter
    c = np.asarray(fitting(atom, basis.basis, aux_basis.basis)(dm))
    l = np.concatenate([[s.l] * (2 * s.l + 1) for s in aux_basis.basis.element_shells(z)])
    return np.where(l == 0, c, 0.0)


def superposed_atoms(structure: Structure, basis: Basis, aux_basis: Basis) -> np.ndarray:
    """Coefficients of superposed free atoms.

    Args:
      structure: molecule; its positions do not matter.
      basis: orbital basis.
      aux_basis: auxiliary basis.

    Returns:
      ``(naux,)``, which hold as many electrons as the neutral molecule.
    """
    return np.concatenate([atomic_coefficients(z, basis, aux_basis) for z in structure.numbers])
