"""What Fock and density matrices lose when blocks of distant atoms are left out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import scipy.linalg

from ..basis import Basis, layout_of
from ..errors import ConfigError, OpmlError
from ..numerics import Array
from ..observables import (
    density_matrix,
    dipole,
    electron_number,
    idempotency_error,
    lowdin_charges,
    project,
)
from ..operators import overlap
from ..structures import Structure


def cutoff_weights(
    structure: Structure, basis: Basis, cutoff: float, width: float = 0.0
) -> np.ndarray:
    r"""Factors of the elements of a matrix by the distance of their atoms.

    Args:
      structure: the molecule.
      basis: covers its elements.
      cutoff: Bohr; blocks of atoms farther apart get 0.
      width: Bohr; from ``cutoff - width`` factors fall as a cosine. 0: they are 1 or 0.

    Returns:
      ``(nao, nao)``, 1 on an atom.
    """
    if not cutoff > 0 or not 0 <= width <= cutoff:
        raise ConfigError(
            "cutoff",
            got=f"cutoff {cutoff}, width {width}",
            expected="a positive cutoff and a width between 0 and it",
        )
    positions = np.asarray(structure.positions)
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    factor = (distance <= cutoff).astype(float)
    if width and np.isfinite(cutoff):
        inside = np.clip((distance - cutoff) / width + 1, 0, 1)
        factor = 0.5 * (1 + np.cos(np.pi * inside))
    np.fill_diagonal(factor, 1.0)
    atom = layout_of(structure, basis).atom
    return factor[np.ix_(atom, atom)]


def matrix_cutoff_study(
    structure: Structure,
    fock: Array,
    basis: Basis,
    cutoffs: Sequence[float],
    *,
    width: float = 0.0,
    orthogonal: bool = False,
) -> dict[str, np.ndarray]:
    r"""Errors of observables when F, or P, keeps only blocks of atoms within a cutoff.

    F and the P of its closed shell are restricted one at a time; the overlap stays whole. With
    ``orthogonal`` it is :math:`S^{-1/2} F S^{-1/2}` and :math:`S^{1/2} P S^{1/2}` that are.

    Args:
      structure: closed-shell molecule.
      fock: ``(nao, nao)`` Hartree, from a calculation or predicted, the library's AO order.
      basis: of the matrix.
      cutoffs: Bohr.
      width: Bohr, see :func:`cutoff_weights`.
      orthogonal: restrict the matrices in Löwdin's basis.

    Returns:
      ``{"cutoff": ..., "kept": ..., name: ...}``, arrays over the cutoffs. ``kept`` is the mean of
      the factors. Of F restricted, whose orbitals are made anew: ``F: occupied levels`` and
      ``F: gap`` (mean absolute and absolute error, Hartree), ``F: dipole`` (length of the error, e
      Bohr), ``F: charges`` (Löwdin's, mean absolute error, e), ``F: trace`` (error of the sum of
      occupied levels, Hartree). Of P restricted: ``P: electrons`` (how many are lost), ``P:
      idempotency`` (largest element of PSP/2 - P), ``P: dipole``, ``P: charges``, ``P: trace``
      (error of Tr P F with the whole F), and of the closed shell nearest to it ``P projected:
      dipole``, ``charges`` and ``trace``; NaN where it is not defined.

    Raises:
      ConfigError: a cutoff that is not positive, or a width beyond it.
      OpmlError: an open shell, or no empty level.
    """
    electrons = sum(structure.numbers) - structure.charge
    pairs, fock = electrons // 2, np.asarray(fock)
    if structure.spin or electrons % 2 or pairs >= len(fock):
        got = f"{electrons} electrons, spin {structure.spin}, {len(fock)} functions"
        raise OpmlError("structure", got=got, expected="a closed shell with a gap")
    s = np.asarray(overlap(structure, basis).to_dense())
    w, u = np.linalg.eigh(s)
    root, inverse = (u * w**p @ u.T for p in (0.5, -0.5))

    @jax.jit
    def measured(dm, positions, s):  # positions are traced, or XLA folds integrals as constants
        here = structure.replace(positions=positions)
        return {
            "dipole": dipole(dm, here, basis),
            "charges": lowdin_charges(dm, s, here, basis),
            "electrons": electron_number(dm, s),
            "idempotency": idempotency_error(dm, s),
        }

    def of_density(dm):
        return measured(dm, structure.positions, s) | {"trace": np.sum(np.asarray(dm) * fock)}

    shell = jax.jit(lambda f, s: density_matrix(f, s, electrons))
    nearest = jax.jit(lambda dm, s: project(dm, s, electrons))

    def restricted(matrix, factors, to, back):
        return back @ (factors * (to @ matrix @ to)) @ back if orthogonal else factors * matrix

    def lost(name, found, target):
        return {
            f"{name}: dipole": np.linalg.norm(found["dipole"] - target["dipole"]),
            f"{name}: charges": np.abs(found["charges"] - target["charges"]).mean(),
            f"{name}: trace": abs(float(found["trace"] - target["trace"])),
        }

    dm = np.asarray(shell(fock, s))
    target = of_density(dm)
    levels = scipy.linalg.eigh(fock, s, eigvals_only=True)
    rows: list[dict[str, float]] = []
    for cutoff in cutoffs:
        factors = cutoff_weights(structure, basis, float(cutoff), width)
        row = {"cutoff": float(cutoff), "kept": factors.mean()}
        f = restricted(fock, factors, inverse, root)
        left = scipy.linalg.eigh(f, s, eigvals_only=True) - levels
        row["F: occupied levels"] = np.abs(left[:pairs]).mean()
        row["F: gap"] = abs(left[pairs] - left[pairs - 1])
        row |= lost("F", of_density(shell(f, s)), target)
        row["F: trace"] = abs(2 * left[:pairs].sum())
        p = restricted(dm, factors, root, inverse)
        found = of_density(p)
        row["P: electrons"] = float(target["electrons"] - found["electrons"])
        row["P: idempotency"] = float(found["idempotency"])
        row |= lost("P", found, target)
        row |= lost("P projected", of_density(nearest(p, s)), target)
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
