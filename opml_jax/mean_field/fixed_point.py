"""Self-consistent matrices and their derivatives, by extrapolation (DIIS).

The solution is a primitive of its own for derivatives: what it takes to find it is not
differentiated, but linear equations are solved at it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .. import lapack
from ..numerics import Array, einsum

LINEAR_CYCLES, LINEAR_TOLERANCE = 100, 1e-11
"""Most steps of the equations of derivatives, and the largest element left, relative."""


Step = Callable[[Array], tuple[Array, Array, Array]]
"""From F to g(F), an error that vanishes where they are equal, and a number of each matrix that is
to be known of the last step."""


def fixed_point(step: Step, guess: Array, cycles: int, tolerance: float, history: int):
    r"""Matrices with :math:`F = g(F)`, by extrapolation, and what was left of the error.

    Derivatives solve :math:`(1 - dg/dF)\, dF = dg`, by the difference of both sides.

    Args:
      step: g, of ``(n, nao, nao)``, an error ``(n, m, m)`` that vanishes where F is g(F): their
        difference, or another that says better how far it is; and ``(n,)`` numbers. The n matrices
        are independent.
      guess: where to start.
      cycles: most steps.
      tolerance: largest element of the error that is left.
      history: how many matrices are combined.

    Returns:
      ``(n, nao, nao)``, and before the last extrapolation ``(n,)`` the error, and the numbers.
    """

    def solve(_, start):
        return extrapolate(step, start, cycles, tolerance, history)

    def tangent(linear, right):
        def krylov(matvec, right):
            scale = jnp.max(jnp.abs(right))
            scale = jnp.where(scale > 0, scale, 1.0)

            def linear_step(x):
                r = matvec(x) - right
                return x + r, r, jnp.zeros(r.shape[0], r.dtype)

            left = LINEAR_TOLERANCE * scale
            return extrapolate(linear_step, -right, LINEAR_CYCLES, left, history)[0]

        return jax.lax.custom_linear_solve(linear, right, solve=krylov, transpose_solve=krylov)

    def residual(fock):
        return step(fock)[0] - fock

    fock, last = jax.lax.custom_root(residual, guess, solve, tangent, has_aux=True)
    return fock, *jax.lax.stop_gradient(last)


def extrapolate(step: Step, start: Array, cycles: int, tolerance, history: int):
    """Fixed points by Pulay's direct inversion in the iterative subspace (DIIS).

    P. Pulay, Chem. Phys. Lett. 73, 393 (1980), and J. Comput. Chem. 3, 556 (1982), where the error
    is a commutator: the next F is the combination of earlier g(F) whose error is smallest. ``step``
    is called at one place, because every call is a copy of it in the compiled program.
    Arguments are those of :func:`fixed_point`.

    Returns:
      ``(n, nao, nao)``, and before the last extrapolation ``(n,)`` the largest error, and the
      step's numbers.
    """
    n = start.shape[0]

    def go_on(state):
        count, _, _, (worst, _) = state
        return (count < cycles) & (jnp.max(worst) > tolerance)

    def cycle(state):
        count, x, past, _ = state
        new, error, numbers = step(x)
        past = past.at[count % history].set(jnp.stack([new, error]))
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
        return count + 1, x, past, (jnp.max(jnp.abs(error), axis=(1, 2)), numbers)

    past = jnp.zeros((history, 2, *start.shape), start.dtype)
    worst = jnp.full(n, jnp.inf, start.dtype)
    last = worst, jnp.zeros_like(worst)
    _, x, _, last = jax.lax.while_loop(go_on, cycle, (0, start, past, last))
    return x, last
