r"""Rows of the least squares of a learned functional: matrices, energies, forces.

All are linear in the weights. Of a density matrix P of the reference, what baseline and reference
differ by is to be

.. math::
    \sum_k \frac{\partial E}{\partial n_k} B_k, \qquad E, \qquad
    \sum_k \frac{\partial E}{\partial n_k} \frac{d\, n_k[P']}{dx} + \sum_k
    \Big(\frac{\partial E}{\partial n^0_k}\Big)_n \frac{d\, n^0_k}{dx}

where P' stays idempotent as the atoms move (:mod:`opml_jax.mean_field.kohn_sham`): the reference's
energy is stationary in P, so forces need no response of it. Of a matrix only what is a combination
of the B can be learned; its rows are in an orthogonal basis of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ...basis import Basis, Shell, layout_of
from ...data.reference import molecule
from ...integrals import three_center
from ...structures import Structure
from .words import FUNCTIONS, Maps, of_elements, words_of

SPAN = 1e-12
"""Directions of the metric of B below this part of the largest are rounding errors."""


@dataclasses.dataclass(frozen=True)
class Projected:
    """Projections at one geometry, and what the rows of a fit are made of.

    Attributes:
      numbers: of the atoms.
      change: ``(n_densities, n_atoms, 49)``, projections of densities less those of free atoms.
      atoms: ``(n_atoms, 49)``, of superposed free atoms.
      directions: ``(r, n_atoms 49)``, orthogonal directions of the matrices' space.
      wanted: ``(n_densities, r)``, what matrices are to be along them, Hartree over nao.
      slopes: ``(2, 3 n_atoms, n_atoms, 49)`` of change (the first density's) and atoms.
    """

    numbers: np.ndarray
    change: np.ndarray
    atoms: np.ndarray
    directions: np.ndarray
    wanted: np.ndarray
    slopes: np.ndarray


def projected(
    structure: Structure,
    basis: Basis,
    dms: Sequence[np.ndarray],
    differences: Sequence[np.ndarray],
    free_atoms: np.ndarray,
) -> Projected:
    """What rows need of a geometry, by libcint's integrals.

    Args:
      structure: molecule.
      basis: of the matrices.
      dms: density matrices, first the self-consistent one.
      differences: of each the reference's Fock matrix less the baseline's, Hartree.
      free_atoms: :func:`.functions.superposed`.
    """
    n, aux = len(structure.numbers), _auxiliary(basis)
    order = _order(structure, aux)
    b = three_center(structure, basis, aux, "overlap")[order]
    slope = -three_center(structure, basis, aux, "overlap_gradient")[:, order]
    atoms = np.einsum("kij,ij->k", b, free_atoms)
    change = np.array([np.einsum("kij,ij->k", b, p) for p in dms]) - atoms
    flat = b.reshape(len(b), -1)
    square, vectors = np.linalg.eigh(flat @ flat.T)
    there = square > SPAN * square[-1]
    root, vectors = np.sqrt(square[there]), vectors[:, there]
    nao = b.shape[-1]
    right = np.array([flat @ d.reshape(-1) for d in differences]) @ vectors
    moved_atoms = _moved(structure, basis, slope, free_atoms)
    moved = _moved(structure, basis, slope, dms[0]) - _idempotent(structure, basis, b, dms[0])
    slopes = np.stack([moved - moved_atoms, moved_atoms]).reshape(2, 3 * n, n, -1)
    return Projected(
        np.array(structure.numbers),
        change.reshape(len(dms), n, -1),
        atoms.reshape(n, -1),
        (vectors * root).T / nao,
        right / root / nao,
        slopes,
    )


def rows_of(
    maps: Maps, elements: Sequence[int], own: Projected
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Rows of matrices, of each density, of the energy and of the gradient.

    Args:
      maps: of :func:`.words.fit_maps`.
      elements: atomic numbers that have weights.
      own: the geometry.

    Returns:
      ``(r, n)`` each, ``(n,)`` and ``(3 n_atoms, n)``, n unknowns: words by element.
    """
    element = np.searchsorted(elements, own.numbers)
    of_atoms = of_elements(maps, element)
    n_elements, n_words = maps["scale"].shape

    def scattered(rows: np.ndarray) -> np.ndarray:
        """Of atoms ``(n_atoms, n_rows, n_words)``: ``(n_rows, n_elements n_words)``."""
        out = np.zeros((n_elements, *rows.shape[1:]))
        np.add.at(out, element, rows)
        return np.moveaxis(out, 0, 1).reshape(rows.shape[1], n_elements * n_words)

    directions = np.swapaxes(own.directions.reshape(-1, *own.atoms.shape), 0, 1)
    # of words in both projections, (n_atoms, 49, n_words) each
    slopes = [
        [np.swapaxes(x, 1, 2) for x in _slopes(of_atoms, change, own.atoms)]
        for change in own.change
    ]
    values = np.asarray(_values(of_atoms, own.change[0], own.atoms))
    moved = np.swapaxes(own.slopes, 1, 2)
    gradient = moved[0] @ slopes[0][0] + moved[1] @ slopes[0][1]
    matrices = [scattered(directions @ of_change) for of_change, _ in slopes]
    return matrices, scattered(values[:, None])[0], scattered(gradient)


_values = jax.jit(jax.vmap(words_of))
_slopes = jax.jit(jax.vmap(jax.jacfwd(words_of, (1, 2))))


def _auxiliary(basis: Basis) -> Basis:
    """The Gaussians of :data:`.words.FUNCTIONS` on every element of a basis."""
    own = [Shell(f.l, np.array([a]), np.array([1.0])) for f in FUNCTIONS for a in f.exponents]
    return Basis.from_shells("projections", dict.fromkeys(basis.elements, own))


def _order(structure: Structure, aux: Basis) -> np.ndarray:
    """Where ours are among the auxiliary functions, which have m within exponents."""
    naux = layout_of(structure, aux).nao
    each = np.arange(naux).reshape(len(structure.numbers), -1)
    parts, first = [], 0
    for f in FUNCTIONS:
        m, n = 2 * f.l + 1, len(f.exponents)
        part = each[:, first : first + m * n].reshape(len(each), n, m)
        parts.append(np.swapaxes(part, 1, 2).reshape(len(each), -1))
        first += m * n
    return np.concatenate(parts, axis=1).reshape(-1)


def _moved(structure: Structure, basis: Basis, slope: np.ndarray, dm: np.ndarray) -> np.ndarray:
    """Derivative of projections at a fixed matrix, ``(n_atoms, 3, n_atoms 49)``.

    Args:
      structure: molecule.
      basis: of the matrix.
      slope: ``(3, n_atoms 49, nao, nao)``, derivative in the place of the first orbital's atom.
      dm: the matrix.
    """
    n, atom = len(structure.numbers), layout_of(structure, basis).atom
    of_orbitals = 2 * np.einsum("xkij,ij->xki", slope, dm)
    out = np.zeros((n, 3, slope.shape[1]))
    np.add.at(out, atom, np.moveaxis(of_orbitals, -1, 0))
    whole, of_atom = out.sum(axis=0), np.repeat(np.arange(n), slope.shape[1] // n)
    for a in range(n):  # a molecule that moves as a whole changes nothing
        out[a] -= np.where(of_atom == a, whole, 0.0)
    return out


def _idempotent(structure: Structure, basis: Basis, b: np.ndarray, dm: np.ndarray) -> np.ndarray:
    """Tr B (P dS P) / 2, ``(n_atoms, 3, n_atoms 49)``: minus what Pulay's term makes of P."""
    n, layout = len(structure.numbers), layout_of(structure, basis)
    index = layout.from_pyscf_index
    slope = -molecule(structure, basis).intor("int1e_ipovlp")[:, index[:, None], index]
    of_orbitals = np.einsum("xij,kij->xki", slope, dm @ b @ dm)  # P dS P / 2, dS twice
    out = np.zeros((n, 3, len(b)))
    np.add.at(out, layout.atom, np.moveaxis(of_orbitals, -1, 0))
    return out
