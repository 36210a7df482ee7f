"""What is kept of a learned matrix: its local part, or what the overlap supports."""

from __future__ import annotations

import jax.numpy as jnp

from ... import lapack
from ...numerics import Array, einsum
from ..base.definition import Params
from .inputs import Operators


def sensible(
    matrix: Array, operators: Operators, params: Params, fade: str = "functional_fade"
) -> tuple[Array, Array]:
    """A learned matrix reduced to what can be right of it, and what cannot.

    That is its local part if the operators have a ``projection``, and ``nonlocal`` of the rest;
    else what :func:`faded` leaves with the scale that ``params[fade]`` is, or all of it.
    """
    if "projection" in operators:
        local, part = operators["projection"](matrix), params.get("nonlocal")
        rest = matrix - local
        return (local if part is None else local + part * rest), rest
    scale = params.get(fade)
    kept = matrix if scale is None else faded(matrix, operators["S"], scale)
    return kept, matrix - kept


def faded(matrix: Array, overlap: Array, scale: Array | float) -> Array:
    r"""A learned matrix without what it says of functions that the overlap nearly lacks.

    :math:`f M f` with :math:`f = S^2 (S^2 + \epsilon^2)^{-1}`, epsilon the ``scale``, ``(..., nao,
    nao)`` each; padding of S is zero. A matrix element of an operator is small where the overlap
    is: an eigenvector of S with eigenvalue s has a norm of root s. Errors of a learned one are not,
    and make levels wrong by their size over s. f keeps what belongs to eigenvalues well above
    epsilon, and lets the rest fade into the baseline, which is an operator.
    """
    eye = jnp.eye(overlap.shape[-1], dtype=overlap.dtype)
    lacking = jnp.where(jnp.diagonal(overlap, axis1=-2, axis2=-1) == 0, 1.0, 0.0)
    padded = overlap + lacking[..., None] * eye
    squares = padded @ padded + scale**2 * eye
    whole = jnp.broadcast_to(eye, squares.shape)
    f = eye - scale**2 * lapack.solve(squares, whole, positive=True)
    return einsum("...ij,...jk,...lk->...il", f, matrix, f)
