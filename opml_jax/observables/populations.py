"""Charges of atoms and orders of bonds from a density matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..basis import AOLayout, Basis, layout_of
from ..numerics import Array, einsum, matmul
from ..operators.eigen import sqrtm
from ..structures import Structure, StructureBatch


def _by_atom(structure: Structure | StructureBatch, basis: Basis, dtype) -> jax.Array:
    """``(..., nao, n_atoms)`` 1 where an AO belongs to an atom; zero rows for padding."""
    layout = layout_of(structure, basis)
    n_slots = layout.slots.shape[-1]
    n_atoms = layout.slots.shape[-2]
    atom = jnp.asarray(layout.atom if isinstance(layout, AOLayout) else layout.ao_slot // n_slots)
    return jax.nn.one_hot(atom, n_atoms, dtype=dtype)


def _charges(populations: Array, structure: Structure | StructureBatch, basis: Basis) -> jax.Array:
    """Nuclear charges minus populations ``(..., nao)`` summed over each atom."""
    own = _by_atom(structure, basis, populations.dtype)
    numbers = jnp.asarray(structure.numbers, populations.dtype)
    return numbers - einsum("...p,...pa->...a", populations, own)


def mulliken_charges(
    dm: Array, overlap: Array, structure: Structure | StructureBatch, basis: Basis
) -> jax.Array:
    """Mulliken's charges, ``Z_A - sum_{p on A} (P S)_pp``.

    R. S. Mulliken, J. Chem. Phys. 23, 1833 (1955).

    Args:
      dm: ``(nao, nao)`` density matrix in AO order; a batch adds a leading axis.
      overlap: the same shape.
      structure: molecule or batch.
      basis: what the matrices are in.

    Returns:
      ``(n_atoms,)`` in e; a batch adds a leading axis. Their sum is the charge.
    """
    return _charges(einsum("...ij,...ji->...i", dm, overlap), structure, basis)


def lowdin_charges(
    dm: Array, overlap: Array, structure: Structure | StructureBatch, basis: Basis
) -> jax.Array:
    """Löwdin's charges, ``Z_A - sum_{p on A} (S^1/2 P S^1/2)_pp``; arguments and result as above.

    P.-O. Löwdin, J. Chem. Phys. 18, 365 (1950). Differentiable to any order, as the root of S is;
    padding of the overlap must be 1 on the diagonal (``integrals.overlap(..., padding=1.0)``).
    """
    root = sqrtm(overlap)
    return _charges(einsum("...ij,...jk,...ki->...i", root, dm, root), structure, basis)


def mayer_bond_orders(
    dm: Array, overlap: Array, structure: Structure | StructureBatch, basis: Basis
) -> jax.Array:
    """Mayer's bond orders, ``sum_{p on A, q on B} (P S)_pq (P S)_qp``.

    I. Mayer, Chem. Phys. Lett. 97, 270 (1983). Arguments as for :func:`mulliken_charges`.

    Returns:
      ``(n_atoms, n_atoms)``, zero on the diagonal; a batch adds a leading axis.
    """
    ps = matmul(dm, overlap)
    own = _by_atom(structure, basis, ps.dtype)
    orders = einsum("...pa,...pq,...qp,...qb->...ab", own, ps, ps, own)
    return orders * (1.0 - jnp.eye(orders.shape[-1], dtype=orders.dtype))
