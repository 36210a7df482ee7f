r"""The part of a matrix that is the matrix of a local potential, or of other given matrices.

.. math::
    \Pi M = \sum_k c_k B_k, \qquad
    c = \mathrm{argmin}\, |M - \sum_k c_k B_k|_F^2 + \epsilon \sum_k |B_k|_F^2\, c_k^2

with :math:`|B_k|_F^2` averaged over the functions of a shell, so that the ridge turns with the
molecule too.

B are matrices of the potentials of charges on the atoms, the integrals of density fitting
(:mod:`opml_jax.integrals.density_fitting`). Exchange and correlation of a semilocal functional is
such a matrix for every density; that of a meta-GGA has a further potential between gradients of
orbitals, whose matrices are among B then. Most of the error of a learned matrix is not such a one,
and above all what it says of functions that the overlap nearly lacks. :math:`\Pi` is linear,
equivariant, and fixed by the geometry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..integrals import combined, packed, unpacked
from ..numerics import Array, einsum, pytree

RIDGE = 1e-10
"""Epsilon: matrices of the sharpest and of neighbouring functions are nearly dependent. Of PBE's
matrices 3.0e-6 Hartree are lost. With 1e-12 it would be 2.2e-6, and rounding errors would move
predictions by 5e-10 of their size."""

ROWS, PAIRS = 4, 1024
"""The metric is computed in so many bands of rows, each from the diagonal on, and as a sum over so
many pairs of orbitals at a time: no copy of the integrals is made."""


@pytree
class LocalProjection:
    r""":math:`\Pi` of one geometry, for any number of matrices.

    Attributes:
      matrices: ``(..., n_functions, n_pairs)``, B of pairs i >= j of orbitals.
      scale: ``(..., n_functions)``, one over their norms (of a shell's); 0 of padding.
      metric: ``(..., n_functions, n_functions)``, traces of their products over norms, and the
        ridge.
      factor: its lower Cholesky factor.
    """

    matrices: Array
    scale: Array
    metric: Array
    factor: Array

    def __call__(self, matrix: Array) -> jax.Array:
        """The local part of symmetric matrices ``(..., nao, nao)``."""
        right = self.scale * einsum("...kp,...p->...k", self.matrices, packed(matrix, 2.0))
        c = lapack.solve_factored(self.metric, self.factor, right[..., None])[..., 0]
        return unpacked(combined(self.matrices, self.scale * c))


def local_projection(*matrices: Array, shells: np.ndarray) -> LocalProjection:
    """The projection on the span of matrices, differentiable in what they are functions of.

    Args:
      matrices: ``(..., n_functions, n_pairs)``, pairs i >= j of orbitals: integrals of potentials
        (:func:`opml_jax.integrals.local_potentials`), each kind in a scale of its own.
      shells: ``(n_functions,)``, the shell of each (:func:`opml_jax.integrals.shells_of`), the same
        of every kind of matrices.
    """
    found = jnp.concatenate(matrices, axis=-2)
    shells = np.concatenate([i * (shells.max() + 1) + shells for i in range(len(matrices))])
    n_pairs = found.shape[-1]
    nao = (math.isqrt(8 * n_pairs + 1) - 1) // 2
    i, j = np.tril_indices(nao)
    products = _products(found, jnp.asarray(np.where(i == j, 1.0, 2.0), found.dtype))
    square = _averaged(jnp.diagonal(products, axis1=-2, axis2=-1), shells)
    there = square > 0
    scale = jnp.where(there, 1 / jnp.sqrt(jnp.where(there, square, 1.0)), 0.0)
    diagonal = jnp.where(there, RIDGE, 1.0).astype(found.dtype)
    metric = scale[..., :, None] * products * scale[..., None, :]
    metric = metric + diagonal[..., None] * jnp.eye(found.shape[-2], dtype=found.dtype)
    return LocalProjection(found, scale, metric, lapack.cholesky(metric))


def _averaged(values: Array, shells: np.ndarray) -> jax.Array:
    """Values ``(..., n_functions)``, each that of its shell in the mean."""
    sums = jnp.zeros((*values.shape[:-1], shells.max() + 1), values.dtype)
    sums = sums.at[..., shells].add(values)
    return (sums / np.bincount(shells).astype(values.dtype))[..., shells]


@jax.custom_jvp
def _products(matrices: Array, weights: Array) -> jax.Array:
    """``(..., n, n)`` products of rows, weighted ``(m,)``, each computed once, nearly."""
    n, m = matrices.shape[-2:]
    bands = list(itertools.pairwise(round(n * i / ROWS) for i in range(ROWS + 1)))

    def add(total: Sequence[Array], part: Array, weights: Array) -> list[Array]:
        weighted = part * weights
        return [
            own + einsum("...km,...lm->...kl", weighted[..., start:stop, :], part[..., start:, :])
            for own, (start, stop) in zip(total, bands, strict=True)
        ]

    def step(i, total):
        cut = jax.lax.dynamic_slice_in_dim
        part = cut(matrices, i * PAIRS, PAIRS, matrices.ndim - 1)
        return add(total, part, cut(weights, i * PAIRS, PAIRS, 0))

    lead, whole = matrices.shape[:-2], m // PAIRS
    total = [jnp.zeros((*lead, stop - start, n - start), matrices.dtype) for start, stop in bands]
    if whole:
        total = jax.lax.fori_loop(0, whole, step, total)
    total = add(total, matrices[..., whole * PAIRS :], weights[whole * PAIRS :])
    room = [(0, 0)] * (len(lead) + 1)
    total = [
        jnp.pad(own, [*room, (start, 0)]) for own, (start, _) in zip(total, bands, strict=True)
    ]
    upper = jnp.triu(jnp.concatenate(total, axis=-2))
    return upper + jnp.matrix_transpose(jnp.triu(upper, 1))


@_products.defjvp
def _products_jvp(primals, tangents):
    matrices, weights = primals
    change = einsum("...km,...lm->...kl", tangents[0] * weights, matrices)
    return _products(matrices, weights), change + jnp.matrix_transpose(change)
