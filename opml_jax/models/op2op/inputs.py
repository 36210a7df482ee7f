"""What Op2Op reads of a molecule: its blocks, known operators, and the irreps of their words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import integrals, lapack
from ...basis import Basis, Bucket, batch, bucket_of, buckets, layout_of
from ...features.couple import IrrepKey, couple_species, species_channels
from ...numerics import Array, pytree
from ...operators.local import local_projection
from ...operators.species import (
    SpeciesKey,
    SpeciesTable,
    gather_species,
    scatter_species,
    species_capacities,
    species_table,
)
from ...operators.words import spell
from ...programs import COMPILING
from ...structures import Structure, StructureBatch
from .config import PIECES, Op2OpConfig

KEPT_BYTES = 2**30
"""Integrals of the coarsely fitted Coulomb matrix that need more memory are made again in every
cycle."""

MOST_SHAPES = 6
"""Shapes of batches of one list of molecules, at most."""

Irreps = dict[IrrepKey, Array]
"""``{key: (n_blocks, 2 L + 1, n_columns)}``."""

Operators = dict[str, Any]
"""By letter ``(n_structures, nao, nao)``, and those in an input basis under ``inputs``."""


@pytree
class InputTable(SpeciesTable):
    """The blocks of the matrices, and those of operators in an input basis.

    Attributes:
      inputs: the blocks of the same molecules in the input basis.
      structures: the molecules laid out in it; None for a single molecule.
    """

    inputs: SpeciesTable
    structures: StructureBatch | None


def table_of(
    molecules: Sequence[Structure],
    basis: Basis,
    input_basis: Basis | None,
    n_atoms: int | None = None,
    *,
    capacities: Mapping[SpeciesKey, int] | None = None,
    bucket: Bucket | None = None,
) -> SpeciesTable:
    """The blocks of a batch of ``n_atoms`` (None: of one molecule), ``bucket`` of the inputs."""

    def blocks_in(basis: Basis) -> SpeciesTable:
        return species_table([layout_of(s, basis) for s in molecules], capacities=capacities)

    blocks = blocks_in(basis)
    if input_basis is None:
        return blocks
    parts = {f.name: getattr(blocks, f.name) for f in dataclasses.fields(blocks)}
    laid_out = None
    if n_atoms is not None:
        laid_out = batch(molecules, input_basis, bucket=bucket, n_atoms=n_atoms)
    return InputTable(**parts, inputs=blocks_in(input_basis), structures=laid_out)


def batches_of(
    structures: Sequence[Structure],
    size: int,
    basis: Basis,
    input_basis: Basis | None,
    shapes: int = MOST_SHAPES,
) -> Iterator[tuple[StructureBatch, SpeciesTable, np.ndarray]]:
    """Structures in batches of few shapes, each of which saves more work than it is to compile.

    Args:
      structures: molecules of any composition.
      size: of a batch, at most.
      basis: of the matrices.
      input_basis: of the operators that make the words, if it is another.
      shapes: most shapes.

    Yields:
      the batch, filled up by repeats of its last structure, its table, and the indices of the
      structures in it, without the repeats.
    """
    size = min(size, len(structures))
    layouts = [layout_of(s, basis) for s in structures]
    for bucket, inside in buckets(structures, basis, n=shapes, each=COMPILING, chunk=size):
        nao = [layouts[i].nao for i in inside.tolist()]
        order = inside[np.argsort(nao, kind="stable")]
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        full = [np.append(p, np.repeat(p[-1], size - len(p))) for p in parts]
        room = species_capacities([[layouts[i] for i in p.tolist()] for p in full])
        inputs = input_basis and bucket_of([structures[i] for i in inside.tolist()], input_basis)
        for index, part in zip(full, parts, strict=True):
            molecules = [structures[i] for i in index.tolist()]
            padded = batch(molecules, basis, bucket=bucket)
            bases = basis, input_basis
            table = table_of(molecules, *bases, padded.n_atoms, capacities=room, bucket=inputs)
            yield padded, table, part


def molecules_of(structures: StructureBatch) -> list[Structure]:
    """The molecules of a batch, as far as AO layouts are concerned: placed anywhere."""
    out = []
    both = map(np.asarray, (structures.numbers, structures.charge))
    for padded, charge in zip(*both, strict=True):
        numbers, charge = padded[padded > 0], int(charge)
        anywhere = 10.0 * np.arange(3 * len(numbers)).reshape(-1, 3)
        out.append(Structure(numbers, anywhere, charge, int(numbers.sum() - charge) % 2))
    return out


def known_operators(
    structure: Structure | StructureBatch, basis: Basis, exponents: Sequence[float]
) -> Operators:
    """``S``, ``S^-1``, ``T``, ``V``, ``W``, and ``E`` ``(n_pieces, n_structures, nao, nao)``."""
    s = integrals.overlap(structure, basis)
    eye = jnp.broadcast_to(jnp.eye(s.shape[-1], dtype=s.dtype), s.shape)
    padded = s
    if isinstance(structure, StructureBatch):  # padding has no overlap, not even with itself
        padded = s + jnp.where(structure.layout.ao_mask, 0.0, 1.0)[..., None] * eye
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


def fitted_operators(
    structure: Structure | StructureBatch, basis: Basis, config: Op2OpConfig
) -> Operators:
    """What a model needs of density fitting: see :meth:`.Op2Op.operators`."""
    if config.is_local or config.exchange:
        fit = integrals.density_fit(structure, basis, exchange=bool(config.exchange))
        operators: Operators = {"density_fit": fit}
        if config.is_local:
            matrices = [fit.integrals]
            if config.projected_on == "meta_gga":
                of_gradients = integrals.local_potentials(
                    structure, basis, integrals.FINE, of_gradients=True
                )
                matrices.append(of_gradients[0])
            shells = integrals.shells_of(structure, basis, integrals.FINE)
            operators["projection"] = local_projection(*matrices, shells=shells)
        return operators
    needed = integrals.density_fit_bytes(structure, basis, integrals.COARSE)
    if config.is_self_consistent and needed <= KEPT_BYTES:
        return {"density_fit": integrals.density_fit(structure, basis, integrals.COARSE)}
    return {}


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
    """Irreps ``(n_blocks, 2 L + 1, n * n_pairs)`` of ``(n, n_structures, nao, nao)`` operators."""
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


def n_electrons(structure: Structure | StructureBatch) -> Any:
    """Electrons of a molecule, an int, or ``(n_structures,)``."""
    if isinstance(structure, Structure):
        return structure.n_electrons
    return jnp.sum(jnp.asarray(structure.numbers), axis=-1) - jnp.asarray(structure.charge)


def most_occupied(structure: Structure | StructureBatch, basis: Basis) -> int:
    """As many orbitals as are occupied at most in a molecule, or in one of a batch's shape.

    A batch has room for other molecules than those in it; four more electron pairs than those of
    neutral atoms are allowed for.
    """
    if isinstance(structure, Structure):
        return (structure.n_electrons + 1) // 2
    share = max(z / (2 * basis.spec.nao(z)) for z in basis.elements)
    return min(structure.layout.nao, int(share * structure.layout.nao) + 4)


def superposed(atoms: Mapping[str, Any], table: SpeciesTable, like: Array) -> Array:
    """Density matrices of free atoms side by side, ``(n_structures, nao, nao)``."""
    blocks = {}
    for key, rows in table.rows.items():
        if key[0] == 0:
            dm = jnp.asarray(atoms[str(key[1])], like.dtype)
            blocks[key] = jnp.broadcast_to(dm, (len(rows), *dm.shape))
    return scatter_species(blocks, table, like.shape[0], like.shape[-1])
