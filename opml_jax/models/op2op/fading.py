"""Learned matrices that say nothing of functions which the overlap nearly lacks."""

from __future__ import annotations

import jax.numpy as jnp

from ... import lapack
from ...numerics import Array, einsum


def faded(matrix: Array, overlap: Array, scale: Array | float) -> Array:
    r"""A learned matrix without what it says of functions that the overlap nearly lacks.

    :math:`f M f` with :math:`f = S^2 (S^2 + \epsilon^2)^{-1}`. A matrix element of an operator is
    small where the overlap is: an eigenvector of S with eigenvalue s has a norm of root s. Errors
    of a learned one are not, and make levels wrong by their size over s. f keeps what belongs to
    eigenvalues well above epsilon, and lets the rest fade into the baseline, which is an operator.

    Args:
      matrix: ``(..., nao, nao)`` symmetric.
      overlap: likewise, zero for padding.
      scale: epsilon; 0 changes nothing.
    """
    eye = jnp.eye(overlap.shape[-1], dtype=overlap.dtype)
    padded = (
        overlap
        + jnp.where(jnp.diagonal(overlap, axis1=-2, axis2=-1) == 0, 1.0, 0.0)[..., None] * eye
    )
    squares = padded @ padded + scale**2 * eye
    whole = jnp.broadcast_to(eye, squares.shape)
    f = eye - scale**2 * lapack.solve(squares, whole, positive=True)
    return einsum("...ij,...jk,...lk->...il", f, matrix, f)
