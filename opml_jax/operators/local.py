r"""The part of a matrix that is the matrix of a local potential.

.. math::
    \Pi M = \sum_k c_k B_k, \qquad
    c = \mathrm{argmin}\, |M - \sum_k c_k B_k|_F^2 + \epsilon \sum_k |B_k|_F^2\, c_k^2

B are matrices of Gaussians on the atoms (:func:`opml_jax.integrals.local_potentials`). Exchange and
correlation of a semilocal functional is such a matrix for every density; most of the error of a
learned one is not, and above all what it says of functions that the overlap nearly lacks.
:math:`\Pi` is linear, equivariant, and fixed by the geometry.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .. import lapack
from ..basis import Basis, layout_of
from ..errors import Code, OpmlError
from ..integrals import FUNCTIONS, Shells, local_potentials, packed, unpacked
from ..integrals.local import atoms_of
from ..numerics import Array, einsum, pytree
from ..structures import Structure, StructureBatch

RIDGE = 1e-10
"""Epsilon: matrices of the sharpest and of neighbouring functions are nearly dependent."""

LARGEST_BYTES = 16 * 2**30
"""Memory of the matrices B, at most. A molecule of 30 atoms heavier than helium needs half of it in
def2-SVP."""

ROWS = 4
"""The metric is computed in so many bands of rows, each from the diagonal on."""


@pytree
class LocalProjection:
    r""":math:`\Pi` of one geometry, for any number of matrices.

    Attributes:
      matrices: ``(..., n_functions, n_pairs)``, B of norm 1, pairs i >= j of orbitals.
      metric: ``(..., n_functions, n_functions)``, traces of their products, and the ridge.
      factor: its lower Cholesky factor.
    """

    matrices: Array
    metric: Array
    factor: Array

    def __call__(self, matrix: Array) -> jax.Array:
        """The local part of symmetric matrices ``(..., nao, nao)``."""
        right = einsum("...kp,...p->...k", self.matrices, packed(matrix, 2**0.5))
        c = lapack.solve_factored(self.metric, self.factor, right[..., None])[..., 0]
        found = unpacked(einsum("...kp,...k->...p", self.matrices, c))
        off_diagonal = np.where(np.eye(found.shape[-1], dtype=bool), 1.0, 0.5**0.5)
        return found * off_diagonal.astype(found.dtype)


def local_projection(
    structure: Structure | StructureBatch,
    basis: Basis,
    functions: tuple[Shells, ...] = FUNCTIONS,
) -> LocalProjection:
    """The projection on matrices of local potentials, differentiable in positions.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: of the matrices.
      functions: Gaussians that potentials are made of.

    Raises:
      OpmlError: matrices that need more than :data:`LARGEST_BYTES`.
      BasisError: an element the basis does not cover.
    """
    _check_size(structure, basis, functions)
    found, real = local_potentials(structure, basis, functions)
    nao = layout_of(structure, basis).nao
    i, j = np.tril_indices(nao)
    found = found * np.where(i == j, 1.0, 2**0.5).astype(found.dtype)
    square = jnp.sum(found * found, axis=-1)
    there = real & (square > 0)
    scale = jnp.where(there, 1 / jnp.sqrt(jnp.where(there, square, 1.0)), 0.0)
    found = found * scale[..., None]
    diagonal = jnp.where(there, RIDGE, 1.0).astype(found.dtype)
    metric = _products(found) + diagonal[..., None] * jnp.eye(found.shape[-2], dtype=found.dtype)
    return LocalProjection(found, metric, lapack.cholesky(metric))


def _check_size(
    structure: Structure | StructureBatch, basis: Basis, functions: tuple[Shells, ...]
) -> None:
    n_functions = 0
    for f in functions:
        index, _ = atoms_of(structure, basis, f.heavy)
        n_functions += index.size * (2 * f.l + 1) * len(f.exponents)
    nao, size = layout_of(structure, basis).nao, jnp.asarray(structure.positions).dtype.itemsize
    if (needed := n_functions * (nao * (nao + 1) // 2) * size) > LARGEST_BYTES:
        raise OpmlError(
            "structure",
            got=f"matrices of local potentials of {needed / 2**30:.0f} GiB",
            expected=f"at most {LARGEST_BYTES / 2**30:.0f} GiB",
            hint="Take a smaller molecule or fewer of them at once, or train with "
            "model.projection=none.",
            code=Code.MEMORY,
        )


def _products(rows: Array) -> jax.Array:
    """``(..., n, n)`` scalar products of ``(..., n, m)``, each computed once, nearly."""
    n = rows.shape[-2]
    cuts = [round(n * i / ROWS) for i in range(ROWS + 1)]
    bands = []
    for start, stop in itertools.pairwise(cuts):
        band = einsum("...km,...lm->...kl", rows[..., start:stop, :], rows[..., start:, :])
        bands.append(jnp.pad(band, [(0, 0)] * (band.ndim - 1) + [(start, 0)]))
    upper = jnp.triu(jnp.concatenate(bands, axis=-2))
    return upper + jnp.matrix_transpose(jnp.triu(upper, 1))
