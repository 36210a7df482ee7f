"""Superposed densities of free atoms: what every density starts from."""

from __future__ import annotations

import numpy as np

from ..basis import Basis, layout_of
from ..data.reference import atomic_density
from ..structures import Structure
from .fitting import fit

_FOUND: dict[tuple[int, str, str], np.ndarray] = {}  # by element and both bases' fingerprints


def atomic_coefficients(z: int, basis: Basis, aux_basis: Basis) -> np.ndarray:
    """Coefficients of a free atom: spherically averaged restricted Hartree-Fock, Coulomb fit.

    Computed by PySCF once for each element and pair of basis sets, and kept.

    Args:
      z: atomic number.
      basis: orbital basis.
      aux_basis: auxiliary basis.

    Returns:
      ``(naux,)`` of one atom; only s functions have any. They hold Z electrons.

    Raises:
      BasisError: an element that a basis does not cover.
    """
    own, aux = (b.spec.fingerprints[b.spec.element_index(z)] for b in (basis, aux_basis))
    key = (z, own, aux)
    if key not in _FOUND:
        atom = Structure((z,), np.zeros((1, 3)), spin=z % 2)
        c = np.asarray(fit(atomic_density(z, basis), atom, basis, aux_basis))
        _FOUND[key] = np.where(layout_of(atom, aux_basis).l == 0, c, 0.0)
    return _FOUND[key]


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
