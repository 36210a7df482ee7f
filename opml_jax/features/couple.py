r"""Coupling of shell-pair blocks to irreps, with real Clebsch-Gordan coefficients.

A block :math:`B_{m_1 m_2}` of shells l1, l2 becomes :math:`b^{LM} = \sum C^{LM}_{l_1 m_1 l_2 m_2}
B_{m_1 m_2}` for L = \|l1 - l2\| .. l1 + l2: an irrep of O(3) with parity (-1)^(l1 + l2). The
coefficients are e3nn's, scaled to an orthonormal change of basis, so the inverse is the transpose
and norms are kept.
"""

from __future__ import annotations

import functools

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np

from ..numerics import Array, einsum


@functools.cache
def clebsch_gordan(l1: int, l2: int, l: int) -> np.ndarray:
    """Real coefficients ``(2 l1 + 1, 2 l2 + 1, 2 l + 1)``, float64, orthonormal over (m1, m2)."""
    c = np.asarray(e3nn.clebsch_gordan(l1, l2, l), np.float64) * (2 * l + 1) ** 0.5
    c.setflags(write=False)
    return c


@functools.cache
def coupling_matrix(l1: int, l2: int) -> np.ndarray:
    """All L side by side: ``(2 l1 + 1, 2 l2 + 1, (2 l1 + 1)(2 l2 + 1))``, an orthogonal matrix."""
    c = [clebsch_gordan(l1, l2, l) for l in range(abs(l1 - l2), l1 + l2 + 1)]
    return np.concatenate(c, axis=-1)


def couple(block: Array, l1: int, l2: int) -> dict[int, Array]:
    """Irreps of shell-pair blocks.

    Args:
      block: ``(..., 2 l1 + 1, 2 l2 + 1)``, m = -l..l.
      l1: angular momentum of the rows.
      l2: angular momentum of the columns.

    Returns:
      ``{L: (..., 2 L + 1)}``, parity (-1)^(l1 + l2).
    """
    flat = einsum("...mn,mnk->...k", block, coupling_matrix(l1, l2))
    ls = range(abs(l1 - l2), l1 + l2 + 1)
    cuts = np.cumsum([2 * l + 1 for l in ls])[:-1]
    return dict(zip(ls, jnp.split(flat, cuts, axis=-1), strict=True))


def uncouple(irreps: dict[int, Array], l1: int, l2: int) -> Array:
    """Inverse of :func:`couple`: blocks ``(..., 2 l1 + 1, 2 l2 + 1)``."""
    flat = jnp.concatenate([irreps[l] for l in range(abs(l1 - l2), l1 + l2 + 1)], axis=-1)
    return einsum("...k,mnk->...mn", flat, coupling_matrix(l1, l2))
