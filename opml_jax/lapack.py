"""Decompositions by LAPACK, one matrix of a batch after another where the CPU does them.

jaxlib spreads a batched LAPACK call over the threads of the very pool it runs on and waits for
them there. Two such calls that do not depend on each other, in one program on two threads, wait
for ever (seen in jaxlib 0.10.1: ``ParallelBatchMap`` of two kernels, no thread left). A loop of
single calls does not wait. Accelerators take whole batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .numerics import Array, matmul


def _one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` of single matrices, which any ``vmap`` turns into a loop on CPU.

    Not differentiable in reverse: callers stop derivatives or give their own.
    """

    @jax.custom_batching.custom_vmap
    def single(*matrices):
        return f(*matrices)

    @single.def_vmap
    def _(n, batched, *matrices):
        whole = [
            m if own else jnp.broadcast_to(m, (n, *m.shape))
            for m, own in zip(matrices, batched, strict=True)
        ]
        out = jax.lax.platform_dependent(
            *whole,
            cpu=lambda *m: jax.lax.map(lambda own: single(*own), m),
            default=jax.vmap(f),
        )
        return out, jax.tree.map(lambda _: True, out)

    return single


_eigh = jnp.vectorize(
    _one_by_one(lambda x: tuple(jnp.linalg.eigh(x))), signature="(n,n)->(n),(n,n)"
)
_solve = jnp.vectorize(_one_by_one(jnp.linalg.solve), signature="(n,n),(n,m)->(n,m)")
_solve_positive = jnp.vectorize(
    _one_by_one(lambda a, b: jax.scipy.linalg.solve(a, b, assume_a="pos")),
    signature="(n,n),(n,m)->(n,m)",
)
_solve_lower = jnp.vectorize(
    _one_by_one(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True)),
    signature="(n,n),(n,m)->(n,m)",
)
_solve_upper = jnp.vectorize(
    _one_by_one(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True, trans=1)),
    signature="(n,n),(n,m)->(n,m)",
)
_cholesky = jnp.vectorize(_one_by_one(jnp.linalg.cholesky), signature="(n,n)->(n,n)")


def eigh(x: Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices ``(..., n, n)``.

    Derivatives are stopped: those of eigenvectors are wrong where eigenvalues are equal.
    """
    return _eigh(jax.lax.stop_gradient(x))


def solve(a: Array, b: Array, *, positive: bool = False) -> jax.Array:
    """X with ``A X = B``, differentiable in both to any order.

    Args:
      a: ``(..., n, n)``.
      b: ``(..., n, m)``.
      positive: A is symmetric and positive definite.

    Returns:
      ``(..., n, m)``; not finite if A is singular (not positive definite).
    """
    fixed = jax.lax.stop_gradient(a)
    factor = _solve_positive if positive else _solve
    return jax.lax.custom_linear_solve(
        lambda x: matmul(a, x),
        b,
        solve=lambda _, y: factor(fixed, y),
        transpose_solve=lambda _, y: factor(jnp.matrix_transpose(fixed), y),
        symmetric=positive,
    )


_solve_factored = jnp.vectorize(
    _one_by_one(lambda factor, b: jax.scipy.linalg.cho_solve((factor, True), b)),
    signature="(n,n),(n,m)->(n,m)",
)


def solve_factored(a: Array, factor: Array, b: Array) -> jax.Array:
    """X with ``A X = B`` for a symmetric positive definite A that was factorised before.

    Differentiable in A and B to any order.

    Args:
      a: ``(..., n, n)``.
      factor: its lower factor by :func:`cholesky`, whose derivatives are stopped.
      b: ``(..., n, m)``.

    Returns:
      ``(..., n, m)``.
    """
    fixed = jax.lax.stop_gradient(factor)
    return jax.lax.custom_linear_solve(
        lambda x: matmul(a, x), b, solve=lambda _, y: _solve_factored(fixed, y), symmetric=True
    )


def solve_lower(factor: Array, b: Array) -> jax.Array:
    """X with ``L X = B``, L lower triangular ``(..., n, n)``, B ``(..., n, m)``.

    Differentiable in L and B to any order.
    """
    fixed = jax.lax.stop_gradient(factor)
    return jax.lax.custom_linear_solve(
        lambda x: matmul(factor, x),
        b,
        solve=lambda _, y: _solve_lower(fixed, y),
        transpose_solve=lambda _, y: _solve_upper(fixed, y),
    )


@jax.custom_jvp
def cholesky(a: Array) -> jax.Array:
    r"""Lower factor L of symmetric positive definite matrices ``(..., n, n)``, ``A = L L^T``.

    Differentiable to any order: :math:`dL = L\,\Phi(L^{-1} dA\, L^{-T})`, with :math:`\Phi` the
    lower triangle with half the diagonal (Murray, arXiv:1602.07527, eq. 10).
    """
    return _cholesky(a)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    factor = cholesky(primals[0])

    def inside(x):
        return jax.scipy.linalg.solve_triangular(factor, x, lower=True)

    y = jnp.tril(inside(jnp.matrix_transpose(inside(tangents[0]))))
    half = 0.5 * jnp.eye(y.shape[-1], dtype=y.dtype)
    return factor, matmul(factor, y * (1 - half))
