r"""Square roots of overlap matrices whose derivatives are right at degeneracies, to any order.

``jnp.linalg.eigh`` divides by differences of eigenvalues when it is differentiated, and symmetric
molecules have equal ones. Here the root R of S obeys R R = S, so dR solves the Lyapunov equation
R dR + dR R = dS, whose solution divides by *sums* of eigenvalues; it is posed as a linear solve,
which JAX differentiates again by itself (Higham, Functions of Matrices, SIAM 2008, section 6.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import Code, OpmlError
from ..lapack import eigh
from ..numerics import Array, is_concrete, matmul

LINEAR_DEPENDENCE = 1e-10
"""Smallest eigenvalue of an overlap matrix whose inverse root is computed, in float64.

An inverse root amplifies rounding by the condition number, which this bounds to about 1e10.
"""


def lyapunov(r: Array, q: Array, apart: tuple[Array, Array] | None = None) -> jax.Array:
    """Solution Y of ``R Y + Y R = Q`` for a symmetric positive definite R.

    Args:
      r: ``(..., n, n)``.
      q: ``(..., n, n)``.
      apart: eigenvalues ``(..., n)`` and eigenvectors ``(..., n, n)`` of R, if they are known,
        derivatives stopped.

    Returns:
      ``(..., n, n)``; differentiable in R and Q, to any order.
    """
    w, u = eigh(r) if apart is None else apart
    sums = w[..., :, None] + w[..., None, :]

    def solve(_, b):
        inner = matmul(matmul(jnp.matrix_transpose(u), b), u) / sums
        return matmul(matmul(u, inner), jnp.matrix_transpose(u))

    def both(y):
        return matmul(r, y) + matmul(y, r)

    return jax.lax.custom_linear_solve(both, q, solve, symmetric=True)


def _power(w: Array, u: Array, exponent: float) -> jax.Array:
    return matmul(u * (w**exponent)[..., None, :], jnp.matrix_transpose(u))


@jax.custom_jvp
def _root(s: Array, w: Array, u: Array) -> jax.Array:
    """S^(1/2) from the eigenvalues and eigenvectors of S, as a function of S."""
    return _power(w, u, 0.5)


@_root.defjvp
def _root_jvp(primals, tangents):
    s, w, u = primals
    root = _root(s, w, u)
    return root, lyapunov(root, tangents[0], (w**0.5, u))


@jax.custom_jvp
def _inverse_root(s: Array, w: Array, u: Array) -> jax.Array:
    return _power(w, u, -0.5)


@_inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):
    s, w, u = primals
    y = _inverse_root(s, w, u)
    change = lyapunov(_root(s, w, u), tangents[0], (w**0.5, u))
    return y, -matmul(matmul(y, change), y)


def sqrtm(s: Array) -> jax.Array:
    """Square root of a symmetric positive definite matrix, ``(..., n, n)``.

    The derivative is exact at equal eigenvalues, to any order, forward and reverse.
    """
    return _root(s, *eigh(s))


def inverse_sqrt(s: Array, *, threshold: float | None = None) -> jax.Array:
    """Inverse square root of an overlap matrix (Löwdin's orthogonalisation).

    Args:
      s: ``(..., n, n)`` symmetric positive definite.
      threshold: smallest eigenvalue accepted. Default: ``LINEAR_DEPENDENCE``, in float32 1e-5.

    Returns:
      ``(..., n, n)``, differentiable to any order. Under ``jit``, where nothing can be raised, NaN
      if an eigenvalue is below the threshold.

    Raises:
      OpmlError: nearly linearly dependent functions: an eigenvalue below the threshold.
    """
    if threshold is None:
        threshold = LINEAR_DEPENDENCE if s.dtype == jnp.float64 else 1e-5
    w, u = eigh(s)
    lowest = w[..., 0]
    if is_concrete(lowest) and np.min(lowest) < threshold:
        raise OpmlError(
            "overlap",
            got=f"smallest eigenvalue {np.min(lowest):.1e}",
            expected=f"at least {threshold:.0e}: the basis is nearly linearly dependent",
            hint="Use a less diffuse basis, or canonical_orthogonalisation.",
            code=Code.SINGULAR,
        )
    fit = (lowest >= threshold)[..., None, None]
    return jnp.where(fit, _inverse_root(s, w, u), jnp.nan)


def canonical_orthogonalisation(s: Array, cut: float = 1e-7) -> jax.Array:
    r"""Eigenvectors of S over the roots of their eigenvalues, those below ``cut`` set to zero.

    :math:`X X^T = S^{-1}` on the space kept (Szabo and Ostlund, Modern Quantum Chemistry, 3.4.5).
    The number of columns kept depends on the geometry, so this is for analysis, not for features
    that are to be differentiated: its derivative is stopped.

    Args:
      s: ``(..., n, n)`` symmetric.
      cut: smallest eigenvalue kept.

    Returns:
      ``(..., n, n)``; columns in ascending order of eigenvalue, dropped ones zero.
    """
    w, u = eigh(s)
    keep = w > cut
    return u * jnp.where(keep, jnp.where(keep, w, 1.0) ** -0.5, 0.0)[..., None, :]
