"""Whether the occupied levels of a Fock matrix are those of a molecule; on the host, by NumPy."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ..structures import Structure

SINGULAR = 1e-2
"""Eigenvalues of the overlap below this belong to functions that the basis nearly lacks."""

SHARE = 0.5
"""An occupied orbital that has more than this of its norm in such functions is none of a molecule.

Their kinetic energy is high, so that occupied orbitals avoid them: in converged PBE calculations
(STO-3G, def2-SVP, def2-TZVP, 6-311++G**; benzene, acetamide, butadiene, CO2, PH3 and others, with
up to 11 such functions) no occupied orbital has more than 0.002 there. A learned matrix that is
wrong by some uHa has levels there that are wrong by that over the eigenvalue, and one that falls
below the others is taken for occupied."""


def intruder(structure: Structure, fock: np.ndarray, overlap: np.ndarray) -> str:
    """What is wrong with an occupied level that no level of a molecule is; empty: with none.

    Two things are impossible. A level lies in nearly singular directions of the overlap
    (:data:`SHARE`). Or it lies below the 1s level of the heaviest nucleus with no other electron,
    -Z^2/2 Hartree: electrons lift it (oxygen's to -19), and screen the other nuclei but for the
    charge of a cation, which is given 1 Hartree an elementary charge (that of a charge at 1 Bohr).

    Args:
      structure: closed-shell molecule.
      fock: ``(nao, nao)`` Hartree.
      overlap: ``(nao, nao)``.
    """
    levels, orbitals = occupied_orbitals(structure, fock, overlap)
    values, vectors = np.linalg.eigh(overlap)
    near = values < SINGULAR
    shares = (values[near, None] * (vectors[:, near].T @ orbitals) ** 2).sum(axis=0)
    if (shares > SHARE).any():
        worst = int(np.argmax(shares))
        return (
            f"the occupied level at {levels[worst]:.2f} Hartree has {100 * shares[worst]:.0f} % of "
            f"its orbital in functions that the overlap nearly lacks (eigenvalues below {SINGULAR})"
        )
    bound = -(max(structure.numbers) ** 2) / 2 - max(structure.charge, 0)
    if levels.min(initial=0.0) < bound:
        return (
            f"an occupied level lies at {levels[0]:.1f} Hartree, below any that its nuclei can "
            f"bind ({bound:.1f})"
        )
    return ""


def occupied_orbitals(
    structure: Structure, fock: np.ndarray, overlap: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Occupied levels ``(n_pairs,)`` in Hartree and their orbitals ``(nao, n_pairs)``."""
    levels, orbitals = scipy.linalg.eigh(fock, overlap)
    pairs = structure.n_electrons // 2
    return levels[:pairs], orbitals[:, :pairs]


def gap_of(fock: np.ndarray, overlap: np.ndarray, dm: np.ndarray) -> float:
    """Lowest level of F outside of the occupied space of a density less the highest inside.

    In Hartree. Negative where the density, of another iterate, occupies others than the lowest
    orbitals of F. Infinite if there is no unoccupied level.
    """
    values, vectors = np.linalg.eigh(overlap)
    root, inverse = ((vectors * values**p) @ vectors.T for p in (0.5, -0.5))
    occupations, orbitals = np.linalg.eigh(root @ dm @ root)
    between = orbitals.T @ inverse @ fock @ inverse @ orbitals
    virtual, occupied = np.ix_(*[occupations < 1] * 2), np.ix_(*[occupations > 1] * 2)
    lowest = np.linalg.eigvalsh(between[virtual]).min(initial=np.inf)
    return float(lowest - np.linalg.eigvalsh(between[occupied]).max(initial=-np.inf))
