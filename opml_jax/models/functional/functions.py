r"""A functional of the density that is learned: energies, whose derivatives are Fock matrices.

.. math::
    E[P] = E_\mathrm{LDA}[P] + \sum_a w_{Z_a} \cdot \phi(\delta n_a, n^0_a), \qquad
    F[P] = F_\mathrm{LDA}[P] + \sum_k \frac{\partial E}{\partial n_k} B_k

with words :math:`\phi` of the density's projections (:mod:`.words`) on Gaussians, whose matrices
are B: what is learned is a local potential, and the derivative of an energy. Matrices, densities,
energies and forces of one model belong together, therefore. The form is that of NeuralXC (Dick and
Fernandez-Serra, Nat. Commun. 11, 3509 (2020)); its weights are linear, and solved (:mod:`.fit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ... import integrals
from ...basis import Basis, layout_of
from ...errors import OpmlError
from ...numerics import Array, einsum, pytree
from ...structures import Structure, StructureBatch
from .words import FUNCTIONS, Maps, of_elements, words_of


@pytree
class LearnedFunctional:
    """What is learned, as a functional of the densities of one geometry, or of each of a batch.

    Attributes:
      maps: of :func:`.words.fit_maps`, of every atom ``(..., n_atoms, ...)``.
      weights: ``(..., n_atoms, n_words)``, Hartree; 0 of padding.
      matrices: ``(..., n_atoms 49, n_pairs)``, of the Gaussians.
      atoms: ``(..., n_atoms, 49)``, projections of superposed free atoms.
    """

    maps: Maps
    weights: Array
    matrices: Array
    atoms: Array

    def projections(self, dm: Array) -> jax.Array:
        """Of density matrices, ``(..., n_atoms, 49)``."""
        found = einsum("...kp,...p->...k", self.matrices, integrals.packed(dm, 2.0))
        return found.reshape(self.atoms.shape)

    def __call__(self, dm: Array) -> tuple[jax.Array, jax.Array]:
        """Energy ``(...)`` of density matrices ``(..., nao, nao)``, and its derivative; Hartree."""
        dm = 0.5 * (dm + jnp.matrix_transpose(dm))
        energy, back = jax.vjp(self.energy, self.projections(dm))
        (potential,) = back(jnp.ones_like(energy))
        potential = potential.reshape(*potential.shape[:-2], -1)
        return energy, integrals.unpacked(integrals.combined(self.matrices, potential))

    def energy(self, projections: Array) -> jax.Array:
        """Of projections ``(..., n_atoms, 49)``: ``(...)``."""
        values = words_of
        for _ in range(projections.ndim - 1):
            values = jax.vmap(values)
        words = values(self.maps, projections - self.atoms, self.atoms)
        return jnp.sum(self.weights * words, axis=(-2, -1))


def learned_functional(
    params: Mapping[str, Any],
    structure: Structure | StructureBatch,
    basis: Basis,
    free_atoms: Array,
) -> LearnedFunctional:
    """The learned functional at a geometry, differentiable in positions and parameters.

    Args:
      params: ``maps`` and ``weights`` ``(n_elements, n_words)`` of the elements of the basis.
      structure: molecule, positions in Bohr, or a batch.
      basis: of the density matrices.
      free_atoms: density matrices of superposed free atoms, ``(..., nao, nao)``
        (:func:`superposed`).

    Raises:
      OpmlError: weights of other elements than those of the basis.
      BasisError: an element the basis does not cover.
    """
    if len(params["weights"]) != len(basis.elements):
        raise OpmlError(
            "weights",
            got=f"those of {len(params['weights'])} elements",
            expected=f"of the {len(basis.elements)} of the basis, in its order",
        )
    numbers = jnp.asarray(structure.numbers)
    element = jnp.minimum(
        jnp.searchsorted(jnp.asarray(basis.elements), numbers), len(basis.elements) - 1
    )
    matrices, _ = integrals.local_densities(structure, basis, FUNCTIONS)
    weights = jnp.where((numbers > 0)[..., None], jnp.asarray(params["weights"])[element], 0.0)
    of_atoms = einsum("...kp,...p->...k", matrices, integrals.packed(free_atoms, 2.0))
    atoms = of_atoms.reshape(*numbers.shape, -1)
    return LearnedFunctional(of_elements(params["maps"], element), weights, matrices, atoms)


def superposed(
    atoms: Mapping[str, np.ndarray], structure: Structure, basis: Basis, nao: int | None = None
) -> np.ndarray:
    """Density matrices of free atoms side by side, ``(nao, nao)``.

    Args:
      atoms: of every element by its number as text
        (:func:`opml_jax.data.reference.atomic_densities`).
      structure: molecule; its positions do not matter.
      basis: of the matrices.
      nao: room in a batch.
    """
    own = scipy.linalg.block_diag(*(atoms[str(z)] for z in structure.numbers))
    n = (nao or layout_of(structure, basis).nao) - len(own)
    return np.pad(own, (0, n))
