"""Electric moments of a density matrix, and how they answer a field."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .. import integrals
from ..basis import Basis
from ..numerics import Array, einsum
from ..structures import Structure, StructureBatch, centred
from .orbitals import density_matrix


def dipole(dm: Array, structure: Structure | StructureBatch, basis: Basis) -> jax.Array:
    r"""Dipole :math:`\sum_A Z_A R_A - \mathrm{Tr}\, P r` about the centre of nuclear charge.

    Args:
      dm: ``(nao, nao)`` density matrix in AO order; a batch adds a leading axis.
      structure: molecule or batch.
      basis: what the matrix is in.

    Returns:
      ``(3,)`` in e Bohr, x, y, z; a batch adds a leading axis. The nuclei contribute nothing about
      that centre; for neutral molecules it does not matter where it is.
    """
    r = integrals.position(centred(structure), basis)
    return -einsum("...xij,...ji->...x", r, dm)


def quadrupole(dm: Array, structure: Structure | StructureBatch, basis: Basis) -> jax.Array:
    r"""Traceless quadrupole :math:`\frac12 \sum q (3 r r^T - r^2)`, arguments as above.

    Buckingham's convention (Adv. Chem. Phys. 12, 107 (1967)), about the centre of nuclear charge.

    Returns:
      ``(3, 3)`` in e Bohr^2; a batch adds a leading axis.
    """
    s = centred(structure)
    numbers = jnp.asarray(s.numbers, s.positions.dtype)
    second = einsum("...a,...ax,...ay->...xy", numbers, s.positions, s.positions)
    second -= einsum("...xyij,...ji->...xy", integrals.second_moments(s, basis), dm)
    trace = jnp.trace(second, axis1=-2, axis2=-1)[..., None, None]
    return 1.5 * second - 0.5 * trace * jnp.eye(3, dtype=second.dtype)


def polarizability(
    fock: Array,
    overlap: Array,
    n_electrons,
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    mask: Array | None = None,
) -> jax.Array:
    r"""Polarizability of independent electrons: derivative of the dipole in a field added to F.

    :math:`\alpha_{xy} = 4 \sum_{ia} x_{ia} y_{ia} / (\epsilon_a - \epsilon_i)`: F itself does not
    answer the field, as it would in a self-consistent calculation. An effective matrix is trained
    so that this is the answer.

    Args:
      fock: ``(nao, nao)`` Hartree; a batch adds a leading axis.
      overlap: the same shape.
      n_electrons: even, one number or one for each molecule.
      structure: molecule or batch.
      basis: what the matrices are in.
      mask: ``(n_structures, nao)`` of a batch, True for functions that are not padding.

    Returns:
      ``(3, 3)`` in Bohr^3; a batch adds a leading axis.
    """
    r = integrals.position(centred(structure), basis)

    def dipole_in(field):
        in_field = fock + einsum("x,...xij->...ij", field, r)
        p = density_matrix(in_field, overlap, n_electrons, mask=mask)
        return -einsum("...xij,...ji->...x", r, p)

    return jax.jacfwd(dipole_in)(jnp.zeros(3, r.dtype))
