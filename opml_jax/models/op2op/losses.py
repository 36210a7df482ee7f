r"""Losses of predicted Fock matrices, and the sums of them that networks descend.

All are functions of a predicted matrix and a :class:`Reference`, in Hartree squared and divided by
the number of AOs, so that their weights have meaning. With C and :math:`\epsilon` the orbitals of
the reference and :math:`\Delta = C^T (F - F_{ref})\, C`, perturbation theory says what an error
does: occupied levels change by :math:`\Delta_{ii}`, and the density matrix by
:math:`\Delta_{ia} / (\epsilon_i - \epsilon_a)` between occupied i and virtual a.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ...numerics import Array, einsum, matmul
from ...observables import orbitals
from .config import OperatorLosses


class Reference(NamedTuple):
    """What predictions are held against; ``(..., nao, nao)`` and ``(..., nao)``.

    Attributes:
      fock: Hartree.
      overlap: S.
      mo_energy: ascending, padding last.
      mo_coeff: in columns.
      n_occupied: ``(...)`` doubly occupied orbitals.
      mask: True for functions that are not padding.
    """

    fock: Array
    overlap: Array
    mo_energy: Array
    mo_coeff: Array
    n_occupied: Array
    mask: Array


def reference(
    fock: Array, overlap: Array, n_electrons, mask: Array | None = None, with_orbitals: bool = True
) -> Reference:
    """The reference of Fock matrices; without orbitals (NaN) for :func:`matrix_loss` alone."""
    if mask is None:
        mask = jnp.ones(fock.shape[:-1], bool)
    if with_orbitals:
        energy, coefficients = orbitals(fock, overlap, mask=mask)
    else:
        energy, coefficients = jnp.full(mask.shape, jnp.nan), jnp.full(fock.shape, jnp.nan)
    return Reference(
        jnp.asarray(fock), overlap, energy, coefficients, jnp.asarray(n_electrons) // 2, mask
    )


def _kinds(r: Reference, frontier: int = 0) -> tuple[Array, Array]:
    """``(..., nao)`` of orbitals: occupied (and lowest virtual), and virtual ones."""
    index = jnp.arange(r.mask.shape[-1])
    occupied = r.n_occupied[..., None]
    real = index < jnp.sum(r.mask, axis=-1, keepdims=True)  # padding comes last
    return (index < occupied + frontier) & real, (index >= occupied) & real


def _between_orbitals(fock: Array, r: Reference) -> Array:
    error = jnp.where(r.mask[..., :, None] & r.mask[..., None, :], fock - r.fock, 0.0)
    return einsum("...ip,...ij,...jq->...pq", r.mo_coeff, error, r.mo_coeff)


def _an_ao(squares: Array, r: Reference) -> Array:
    axes = tuple(range(r.mask.ndim - 1, squares.ndim))
    return jnp.sum(squares, axis=axes) / jnp.sum(r.mask, axis=-1)


def matrix_loss(fock: Array, r: Reference) -> Array:
    r""":math:`\|F - F_{ref}\|^2 / n_{AO}`, ``(...)``."""
    real = r.mask[..., :, None] & r.mask[..., None, :]
    return _an_ao(jnp.where(real, fock - r.fock, 0.0) ** 2, r)


def occupied_loss(fock: Array, r: Reference, frontier: int = 0) -> Array:
    r""":math:`\sum_{ij} \Delta_{ij}^2 / n_{AO}` over occupied and ``frontier`` virtual orbitals."""
    counted, _ = _kinds(r, frontier)
    both = counted[..., :, None] & counted[..., None, :]
    return _an_ao(jnp.where(both, _between_orbitals(fock, r), 0.0) ** 2, r)


def mixing_loss(fock: Array, r: Reference) -> Array:
    r""":math:`\sum_{ia} [\Delta_{ia} / (\epsilon_a - \epsilon_i)]^2 / n_{AO}`, no unit, ``(...)``.

    An eighth of the squared norm of the first-order error of P between orthogonal functions.
    """
    occupied, virtual = _kinds(r)
    both = occupied[..., :, None] & virtual[..., None, :]
    gaps = r.mo_energy[..., None, :] - r.mo_energy[..., :, None]
    ratio = _between_orbitals(fock, r) / jnp.where(both, gaps, 1.0)
    return _an_ao(jnp.where(both, ratio, 0.0) ** 2, r)


def levels_loss(fock: Array, r: Reference, frontier: int = 0) -> Array:
    r""":math:`\sum_i (\epsilon_i - \epsilon_i^{ref})^2 / n_{AO}`, occupied and ``frontier``."""
    energy, _ = orbitals(fock, r.overlap, mask=r.mask)
    counted, _ = _kinds(r, frontier)
    return _an_ao(jnp.where(counted, energy - r.mo_energy, 0.0) ** 2, r)


def commutator_loss(fock: Array, dm: Array, r: Reference) -> Array:
    r""":math:`\|X^T (F P S - S P F) X\|^2 / n_{AO}` with :math:`X^T S X = 1`, ``(...)``.

    Zero if and only if F and P belong to each other; :attr:`Reference.fock` has no part in it but
    to choose X.
    """
    fps = matmul(matmul(fock, dm), r.overlap)
    real = r.mask[..., :, None] & r.mask[..., None, :]
    change = jnp.where(real, fps - jnp.matrix_transpose(fps), 0.0)
    return _an_ao(einsum("...ip,...ij,...jq->...pq", r.mo_coeff, change, r.mo_coeff) ** 2, r)


def density_of(r: Reference) -> Array:
    """Density matrix of the reference, ``(..., nao, nao)``."""
    occupied, _ = _kinds(r)
    c = jnp.where(occupied[..., None, :], r.mo_coeff, 0.0)
    return 2 * einsum("...ip,...jp->...ij", c, c)


def total_loss(weights: OperatorLosses, fock: Array, r: Reference) -> Array | int:
    """The weighted sum, ``(...)``; what has no weight is not computed."""
    parts = (
        (weights.matrix, lambda: matrix_loss(fock, r)),
        (weights.occupied, lambda: occupied_loss(fock, r, weights.frontier)),
        (weights.mixing, lambda: mixing_loss(fock, r)),
        (weights.levels, lambda: levels_loss(fock, r, weights.frontier)),
        (weights.commutator, lambda: commutator_loss(fock, density_of(r), r)),
    )
    return sum(weight * part() for weight, part in parts if weight)
