r"""Exchange and correlation of density matrices on a grid: energies and Kohn-Sham matrices.

.. math::
    E_{xc} = \sum_g w_g\, e(\rho_g, |\nabla\rho_g|^2), \qquad
    V_{ij} = \frac{\partial E_{xc}}{\partial P_{ij}}

with :math:`\rho_g = \sum_{ij} P_{ij} \chi_i(r_g) \chi_j(r_g)`. Grids move with the atoms, so that
derivatives of the energy in positions have those of points and weights (PySCF's
``grid_response``) and agree with finite differences.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import integrals
from ..basis import Basis
from ..errors import OpmlError, one_of
from ..numerics import Array, einsum, pytree, static
from ..structures import Structure, StructureBatch
from .becke import BLOCK, AtomicGrids
from .functionals import FUNCTIONALS, SEMILOCAL, VANISHING

LARGEST_BYTES = 2 * 2**30
"""Values of orbitals are kept for all densities of a geometry up to this memory."""


@pytree
class ExchangeCorrelation:
    """Exchange and correlation of any density of one geometry, or of one of each in a batch.

    Attributes:
      functional: one of :data:`.FUNCTIONALS`.
      structure: with its positions.
      basis: of the orbitals.
      points: ``(..., n_points, 3)`` Bohr.
      weights: ``(..., n_points)`` Bohr^3.
      values: ``(n_blocks, ..., BLOCK, n, nao)`` values of orbitals (n = 1), and of their
        derivatives (n = 4) if the functional needs them; None if they are not kept.
    """

    functional: str = static()
    structure: Structure | StructureBatch
    basis: Basis
    points: Array
    weights: Array
    values: Array | None = None

    def __call__(self, dm: Array) -> tuple[jax.Array, jax.Array]:
        """Energy and its derivative of symmetric density matrices of closed shells.

        Args:
          dm: ``(..., nao, nao)``, in the library's AO order.

        Returns:
          Hartree, ``(...)``, and the matrix, ``(..., nao, nao)``.
        """
        dm = 0.5 * (dm + jnp.matrix_transpose(dm))
        is_semilocal = SEMILOCAL[self.functional]

        @jax.checkpoint
        def step(total, block):
            points, weights, values = block
            if values is None:
                values = _values(self.structure, self.basis, points, is_semilocal)
            energy, matrix = _of_block(self.functional, dm, weights, values)
            return (total[0] + energy, total[1] + matrix), None

        start = jnp.zeros(dm.shape[:-2], dm.dtype), jnp.zeros_like(dm)
        blocks = _in_blocks(self.points, 2), _in_blocks(self.weights, 1), self.values
        (energy, matrix), _ = jax.lax.scan(step, start, blocks)
        return energy, matrix


def exchange_correlation(
    structure: Structure | StructureBatch,
    basis: Basis,
    grids: AtomicGrids,
    functional: str = "lda",
    *,
    largest_bytes: int = LARGEST_BYTES,
) -> ExchangeCorrelation:
    """Exchange and correlation of the densities of one geometry, differentiable in positions.

    Args:
      structure: molecule, positions in Bohr, or a batch.
      basis: of the orbitals.
      grids: of this molecule or batch (:func:`.atomic_grids`, outside jit).
      functional: ``lda`` or ``pbe``.
      largest_bytes: memory up to which values of orbitals are kept, in place of being computed
        for each density anew.

    Raises:
      OpmlError: an unknown functional.
      BasisError: an element the basis does not cover.
    """
    one_of("functional", functional, FUNCTIONALS, OpmlError)
    points, weights = grids.at(structure.positions)
    values, is_semilocal = None, SEMILOCAL[functional]
    shape = jax.eval_shape(lambda p: integrals.values(structure, basis, p), points).shape
    if (4 if is_semilocal else 1) * np.prod(shape) * points.dtype.itemsize <= largest_bytes:

        @jax.checkpoint
        def of_block(points):
            return _values(structure, basis, points, is_semilocal)

        values = jax.lax.map(of_block, _in_blocks(points, 2))
    return ExchangeCorrelation(functional, structure, basis, points, weights, values)


def _in_blocks(x: Array, trailing: int) -> jax.Array:
    """``(n_blocks, ..., BLOCK, ...)``; points are the axis ``trailing`` from the end."""
    axis = x.ndim - trailing
    split = jnp.reshape(x, (*x.shape[:axis], -1, BLOCK, *x.shape[axis + 1 :]))
    return jnp.moveaxis(split, axis, 0)


def _values(
    structure: Structure | StructureBatch, basis: Basis, points: Array, is_semilocal: bool
) -> jax.Array:
    """Of orbitals, and perhaps of their derivatives along x, y, z: ``(..., BLOCK, n, nao)``."""

    def at(points):
        return integrals.values(structure, basis, points)

    if not is_semilocal:
        return at(points)[..., None, :]
    value, along = jax.linearize(at, points)
    axes = [jnp.broadcast_to(axis, points.shape) for axis in np.eye(3, dtype=points.dtype)]
    return jnp.stack([value, *map(along, axes)], axis=-2)


def _of_block(
    functional: str, dm: Array, weights: Array, values: Array
) -> tuple[jax.Array, jax.Array]:
    """Part of the energy and of the matrix."""
    half = einsum("...gi,...ij->...gj", values[..., 0, :], dm)
    moments = einsum("...gi,...gni->...gn", half, values)
    rho, slope = moments[..., 0], 2 * moments[..., 1:]
    there = rho > VANISHING
    rho = jnp.where(there, rho, 1.0)
    sigma = jnp.sum(jnp.where(there[..., None], slope, 0.0) ** 2, axis=-1)
    weights = jnp.where(there, weights, 0.0)
    density, back = jax.vjp(FUNCTIONALS[functional], rho, sigma)
    by_rho, by_sigma = back(jnp.ones_like(rho))
    along = 2 * (weights * by_sigma)[..., None] * slope
    factors = jnp.concatenate([0.5 * (weights * by_rho)[..., None], along], axis=-1)
    weighted = einsum("...gn,...gni->...gi", factors, values)
    matrix = einsum("...gi,...gj->...ij", values[..., 0, :], weighted)
    return jnp.sum(weights * density, axis=-1), matrix + jnp.matrix_transpose(matrix)
