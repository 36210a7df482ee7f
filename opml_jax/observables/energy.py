"""Energies of operators."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .. import integrals
from ..basis import Basis
from ..numerics import Array, einsum
from ..structures import Structure, StructureBatch


def nuclear_repulsion(structure: Structure | StructureBatch) -> jax.Array:
    r"""Repulsion of the nuclei, :math:`\sum_{A<B} Z_A Z_B / |R_A - R_B|`.

    Returns:
      ``()`` in Hartree, ``(n_structures,)`` for a batch; differentiable in positions.
    """
    r = jnp.asarray(structure.positions)
    charges = jnp.asarray(structure.numbers, r.dtype)
    between = r[..., :, None, :] - r[..., None, :, :]
    square = jnp.sum(between**2, axis=-1)
    product = charges[..., :, None] * charges[..., None, :]
    pairs = (product > 0) & ~jnp.eye(r.shape[-2], dtype=bool)  # padding has no charge
    inverse = jnp.where(pairs, jnp.where(pairs, square, 1.0) ** -0.5, 0.0)
    return 0.5 * jnp.sum(product * inverse, axis=(-1, -2))


def hartree_fock_energy(
    fock: Array, dm: Array, structure: Structure | StructureBatch, basis: Basis
) -> jax.Array:
    r"""Total energy of a closed shell, :math:`\frac12 \mathrm{Tr}\, P (T + V + F) + E_{nn}`.

    Szabo and Ostlund, Modern Quantum Chemistry, eq. 3.184. It is the energy of F of Hartree-Fock;
    of a Kohn-Sham matrix it is not, because exchange and correlation are no quadratic form.

    Args:
      fock: ``(nao, nao)`` in Hartree, the library's AO order; a batch adds a leading axis.
      dm: density matrix, occupation 2, likewise.
      structure: molecule or batch.
      basis: what the matrices are in.

    Returns:
      ``()`` in Hartree, ``(n_structures,)`` for a batch.
    """
    h = integrals.kinetic(structure, basis) + integrals.external_potential(structure, basis)
    return 0.5 * einsum("...ij,...ji->...", h + fock, dm) + nuclear_repulsion(structure)
