"""What Op2Op reads of a molecule: operators that are known, and the irreps of their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from ... import integrals, lapack
from ...basis import Basis
from ...features.couple import IrrepKey, couple_species, species_channels
from ...numerics import Array
from ...operators.species import SpeciesTable, gather_species
from ...operators.words import spell
from ...structures import Structure, StructureBatch
from .config import PIECES

Irreps = dict[IrrepKey, Array]
"""``{key: (n_blocks, 2 L + 1, n_columns)}``."""

Operators = dict[str, Array]
"""By letter, ``(n_structures, nao, nao)`` each, a molecule being one structure."""


def known_operators(
    structure: Structure | StructureBatch, basis: Basis, exponents: Sequence[float]
) -> Operators:
    """``S``, ``S^-1``, ``T``, ``V``, ``W``, and ``E`` ``(n_pieces, n_structures, nao, nao)``.

    Args:
      structure: molecule or batch.
      basis: of the matrices.
      exponents: of the Gaussians that cut the potential of the nuclei into pieces.
    """
    s = integrals.overlap(structure, basis)
    eye = jnp.broadcast_to(jnp.eye(s.shape[-1], dtype=s.dtype), s.shape)
    if isinstance(structure, StructureBatch):  # padding has no overlap, not even with itself
        padded = s + jnp.where(structure.layout.ao_mask, 0.0, 1.0)[..., None] * eye
    else:
        padded = s
    inverse = lapack.solve(padded, eye, positive=True)
    potentials = _potentials(structure, basis, exponents, s)
    pieces = potentials[:, :-1] - potentials[:, 1:]
    operators: Operators = {
        "S": s,
        "S^-1": 0.5 * (inverse + jnp.matrix_transpose(inverse)),
        "T": integrals.kinetic(structure, basis),
        "V": jnp.sum(potentials[:, 0], axis=0),
        "W": integrals.neutral_atom_potential(structure, basis),
        "E": pieces.reshape(pieces.shape[0] * pieces.shape[1], *s.shape),
    }
    if isinstance(structure, Structure):
        return {k: v[None] if k != "E" else v[:, None] for k, v in operators.items()}
    return operators


def _potentials(
    structure: Structure | StructureBatch, basis: Basis, exponents: Sequence[float], like: Array
) -> Array:
    """Potentials of the nuclei of each element, as points and smeared: ``(n, n_widths, ...)``."""
    numbers = jnp.asarray(structure.numbers)
    elements = np.repeat(basis.elements, len(exponents) + 1)
    charges = jnp.where(numbers == elements.reshape(-1, *[1] * numbers.ndim), numbers, 0)
    widths = np.concatenate([[0.0], (0.5 / np.array(exponents)) ** 0.5])
    potentials = jax.vmap(
        lambda q, w: integrals.external_potential(structure, basis, charges=q, widths=w)
    )(charges.astype(like.dtype), jnp.asarray(np.tile(widths, len(basis.elements)), like.dtype))
    return potentials.reshape(len(basis.elements), len(widths), *like.shape)


def spelled(words: Sequence[str], letters: Sequence[str], operators: Operators) -> Array:
    """Matrices of all words, ``(n, n_structures, nao, nao)``; a word of pieces is one of each."""
    products = spell(words, {k: operators[k] for k in letters})
    pairs = zip(words, products, strict=True)
    return jnp.concatenate([x if PIECES in word.split() else x[None] for word, x in pairs])


def operator_irreps(matrices: Array, table: SpeciesTable) -> Irreps:
    """Irreps of several operators, ``{key: (n_blocks, 2 L + 1, n_operators * n_pairs)}``.

    Args:
      matrices: ``(n_operators, n_structures, nao, nao)``.
      table: of the molecules.
    """
    coupled = couple_species(gather_species(matrices, table), table.spec)
    return {  # channels before shell pairs
        k: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for k, x in coupled.items()
    }


def joined(known: Irreps, density: Irreps) -> Irreps:
    """Columns of known words, then those of the density's."""
    both = {k: jnp.concatenate([x, density[k]], axis=-1) for k, x in known.items() if k in density}
    return {**density, **known, **both}


def n_shell_pairs(basis: Basis, key: IrrepKey) -> int:
    """How many irreps of a key a block of one matrix has, 0 if the basis has none."""
    return len(species_channels(basis.spec, key[:3]).get(key[3:], ()))


@overload
def n_electrons(structure: Structure) -> int: ...
@overload
def n_electrons(structure: StructureBatch) -> jax.Array: ...
@overload
def n_electrons(structure: Structure | StructureBatch) -> int | jax.Array: ...
def n_electrons(structure: Structure | StructureBatch):
    """Electrons of a molecule, or ``(n_structures,)``."""
    if isinstance(structure, Structure):
        return structure.n_electrons
    return jnp.sum(jnp.asarray(structure.numbers), axis=-1) - jnp.asarray(structure.charge)
