"""Self-consistent matrices and their derivatives, by extrapolation (DIIS).

The solution is a primitive of its own for derivatives: what it takes to find it is not
differentiated, but linear equations are solved at it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .. import lapack
from ..numerics import Array, einsum

LINEAR_CYCLES, LINEAR_TOLERANCE = 100, 1e-11
"""Most steps of the equations of derivatives, and the largest element left, relative."""


def fixed_point(step, guess: Array, cycles: int, tolerance: float, history: int):
    r"""Matrices with :math:`F = g(F)`, by extrapolation, and what was left of g(F) - F.

    Derivatives solve :math:`(1 - dg/dF)\, dF = dg` in the same way.

    Args:
      step: g, of ``(n, nao, nao)``; the n matrices are independent.
      guess: where to start.
      cycles: most steps.
      tolerance: largest element of the residual that is left.
      history: how many matrices are combined.

    Returns:
      ``(n, nao, nao)``, and ``(n,)`` the residual before the last extrapolation.
    """

    def solve(residual, start):
        return extrapolate(residual, start, cycles, tolerance, history)

    def tangent(linear, right):
        def krylov(matvec, right):
            scale = jnp.max(jnp.abs(right))
            scale = jnp.where(scale > 0, scale, 1.0)
            found, _ = extrapolate(
                lambda x: matvec(x) - right,
                -right,
                LINEAR_CYCLES,
                LINEAR_TOLERANCE * scale,
                history,
            )
            return found

        return jax.lax.custom_linear_solve(linear, right, solve=krylov, transpose_solve=krylov)

    def residual(fock):
        return step(fock) - fock

    fock, left = jax.lax.custom_root(residual, guess, solve, tangent, has_aux=True)
    return fock, jax.lax.stop_gradient(left)


def extrapolate(residual, start: Array, cycles: int, tolerance, history: int):
    """Roots by Pulay's direct inversion in the iterative subspace (DIIS).

    P. Pulay, Chem. Phys. Lett. 73, 393 (1980): the next matrix is the combination of earlier ones,
    each with its residual added, whose residual is smallest. ``residual`` is called at one place,
    because every call is a copy of it in the compiled program.
    Arguments are those of :func:`fixed_point`, with the residual in place of g.

    Returns:
      ``(n, nao, nao)``, and ``(n,)`` the largest residual before the last extrapolation.
    """
    n = start.shape[0]

    def go_on(state):
        count, _, _, worst = state
        return (count < cycles) & (jnp.max(worst) > tolerance)

    def cycle(state):
        count, x, past, _ = state
        r = residual(x)
        past = past.at[count % history].set(jnp.stack([x + r, r]))
        used = jnp.arange(history) < count + 1
        gram = einsum("anij,bnij->nab", past[:, 1], past[:, 1])
        size = jnp.max(jnp.where(used, jnp.diagonal(gram, axis1=1, axis2=2), 0.0), axis=1)
        gram = gram / jnp.where(size > 0, size, 1.0)[:, None, None]
        both = used[:, None] & used[None, :]
        eye = jnp.eye(history, dtype=start.dtype)
        system = jnp.where(both, gram + 1e-13 * eye, eye)
        ones = jnp.broadcast_to(used.astype(start.dtype), (n, history))
        c = lapack.solve(system, ones[..., None])[..., 0]
        c = c / jnp.sum(c, axis=1, keepdims=True)
        x = einsum("na,anij->nij", c, past[:, 0])
        return count + 1, x, past, jnp.max(jnp.abs(r), axis=(1, 2))

    past = jnp.zeros((history, 2, *start.shape), start.dtype)
    worst = jnp.full(n, jnp.inf, start.dtype)
    _, x, _, worst = jax.lax.while_loop(go_on, cycle, (0, start, past, worst))
    return x, worst
