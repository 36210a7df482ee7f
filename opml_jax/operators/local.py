r"""The part of a matrix that is the matrix of a local potential.

.. math::
    \Pi M = \sum_k c_k B_k, \qquad
    c = \mathrm{argmin}\, |M - \sum_k c_k B_k|_F^2 + \epsilon \sum_k |B_k|_F^2\, c_k^2

B are matrices of the potentials of charges on the atoms, the integrals of density fitting
(:mod:`opml_jax.integrals.density_fitting`). Exchange and correlation of a semilocal functional is
such a matrix for every density; most of the error of a learned one is not, and above all what it
says of functions that the overlap nearly lacks. :math:`\Pi` is linear, equivariant, and fixed by
the geometry.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..integrals import DensityFit, combined, packed, unpacked
from ..numerics import Array, einsum, pytree

RIDGE = 1e-10
"""Epsilon: matrices of the sharpest and of neighbouring functions are nearly dependent. Of PBE's
matrices 3.0e-6 Hartree are lost. With 1e-12 it would be 2.2e-6, and rounding errors would move
predictions by 5e-10 of their size."""

ROWS = 4
"""The metric is computed in so many bands of rows, each from the diagonal on."""


@pytree
class LocalProjection:
    r""":math:`\Pi` of one geometry, for any number of matrices.

    Attributes:
      matrices: ``(..., n_functions, n_pairs)``, B of pairs i >= j of orbitals.
      scale: ``(..., n_functions)``, one over their norms; 0 of padding.
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


def local_projection(fit: DensityFit) -> LocalProjection:
    """The projection on matrices of local potentials, differentiable in positions.

    Args:
      fit: integrals of a molecule or batch with fine functions
        (:func:`opml_jax.integrals.density_fit`).
    """
    found = jnp.asarray(fit.integrals)
    n_pairs = found.shape[-1]
    nao = (math.isqrt(8 * n_pairs + 1) - 1) // 2
    i, j = np.tril_indices(nao)
    twice = found * np.where(i == j, 1.0, 2.0).astype(found.dtype)
    products = _products(twice, found)
    square = jnp.diagonal(products, axis1=-2, axis2=-1)
    there = square > 0
    scale = jnp.where(there, 1 / jnp.sqrt(jnp.where(there, square, 1.0)), 0.0)
    diagonal = jnp.where(there, RIDGE, 1.0).astype(found.dtype)
    metric = scale[..., :, None] * products * scale[..., None, :]
    metric = metric + diagonal[..., None] * jnp.eye(found.shape[-2], dtype=found.dtype)
    return LocalProjection(found, scale, metric, lapack.cholesky(metric))


def _products(rows: Array, columns: Array) -> jax.Array:
    """``(..., n, n)`` symmetric products of ``(..., n, m)``, each computed once, nearly."""
    n = rows.shape[-2]
    cuts = [round(n * i / ROWS) for i in range(ROWS + 1)]
    bands = []
    for start, stop in itertools.pairwise(cuts):
        band = einsum("...km,...lm->...kl", rows[..., start:stop, :], columns[..., start:, :])
        bands.append(jnp.pad(band, [(0, 0)] * (band.ndim - 1) + [(start, 0)]))
    upper = jnp.triu(jnp.concatenate(bands, axis=-2))
    return upper + jnp.matrix_transpose(jnp.triu(upper, 1))
