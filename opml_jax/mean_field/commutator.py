"""How far a Fock matrix and a density matrix are from belonging to each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..numerics import Array, einsum
from ..operators import inverse_sqrt


def orthogonal(overlap: Array, mask: Array | None = None) -> jax.Array:
    """S^-1/2 ``(..., nao, nao)`` of overlaps whose padding, where the mask is False, is 0."""
    if mask is not None:
        missing = jnp.where(mask, 0.0, 1.0).astype(overlap.dtype)
        overlap = overlap + missing[..., None] * jnp.eye(overlap.shape[-1], dtype=overlap.dtype)
    return inverse_sqrt(overlap)


def commutator(orthogonal: Array, overlap: Array, fock: Array, dm: Array) -> jax.Array:
    """F P S - S P F between orthogonal functions, ``(..., nao, nao)``; Hartree.

    P. Pulay, J. Comput. Chem. 3, 556 (1982). It vanishes where the density is that of F.

    Args:
      orthogonal: S^-1/2 (:func:`orthogonal`).
      overlap: S.
      fock: F.
      dm: P, occupation 2.
    """
    half = einsum("...ij,...jk,...kl->...il", orthogonal, fock, dm)
    half = einsum("...ij,...jk,...kl->...il", half, overlap, orthogonal)
    return half - jnp.matrix_transpose(half)
