r"""Blocks of a symmetric operator by species: the reduced set, and all ordered pairs.

A symmetric operator of one molecule is cut into kinds of atom-pair blocks (Nigam, Smidt, Dusson,
arXiv:2602.15345; Nigam, Willatt, Ceriotti, J. Chem. Phys. 156, 014115 (2022)):

====  ===========================  =============================================
kind  atoms                        block
====  ===========================  =============================================
0     i = j                        :math:`M_{ii}`, symmetric
+1    i < j of one element         :math:`(M_{ij} + M_{ji}) / \sqrt 2`, symmetric
-1    i < j of one element         :math:`(M_{ij} - M_{ji}) / \sqrt 2`, antisymmetric
2     elements Z_i < Z_j           :math:`M_{ij}`
====  ===========================  =============================================

With ``all_pairs`` every ordered pair :math:`i \ne j` is there, and kind 2 has both orders of
elements. In the reduced set permuting two atoms of one element changes at most a sign.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, BasisSpec
from ..basis.buckets import capacity
from ..errors import ConventionError, OpmlError
from ..numerics import Array, pytree, static
from .operator import Operator

SpeciesKey = tuple[int, int, int]
"""Kind, atomic number of the row atom, atomic number of the column atom."""


@functools.lru_cache(maxsize=256)
def species_pairs(layout: AOLayout, all_pairs: bool = False) -> dict[SpeciesKey, np.ndarray]:
    """Atoms ``(n_pairs, 2)`` of the blocks of each kind, in ascending order."""
    numbers = np.array(layout.numbers)
    i, j = (x.ravel() for x in np.indices((len(numbers),) * 2))
    zi, zj = numbers[i], numbers[j]
    chosen = {
        0: i == j,
        1: (zi == zj) & ((i != j) if all_pairs else (i < j)),
        2: (zi != zj) if all_pairs else (zi < zj),
    }
    chosen[-1] = chosen[1]
    out = {}
    for kind in (0, 1, -1, 2):
        found = chosen[kind]
        for a, b in sorted(set(zip(zi[found].tolist(), zj[found].tolist(), strict=True))):
            own = found & (zi == a) & (zj == b)
            out[kind, a, b] = np.stack([i[own], j[own]], axis=1)
    return out


def _of_molecule(layout: object) -> AOLayout:
    if not isinstance(layout, AOLayout):
        raise ConventionError(
            "operator", got="the operator of a batch", expected="that of one molecule"
        )
    return layout


def _aos(layout: AOLayout, atoms: np.ndarray) -> np.ndarray:
    """``(n, width)`` AOs of atoms of one element."""
    width = layout.spec.nao(layout.numbers[int(atoms[0])])
    return layout.offsets[atoms][:, None] + np.arange(width)


@pytree
class SpeciesTable:
    """Which AOs make the blocks of every kind, for the molecules of a batch: composition is data.

    Attributes:
      spec: the basis.
      all_pairs: every ordered pair, instead of each pair once.
      rows: ``{(kind, Z_i, Z_j): (n, nao_i)}`` AOs of the row atoms, for kinds 0, 1 and 2 (those
        of -1 are those of 1); padding points beyond the matrix.
      columns: likewise ``(n, nao_j)`` of the column atoms.
      molecule: likewise ``(n,)``, which molecule of the batch.
    """

    spec: BasisSpec = static()
    all_pairs: bool = static()
    rows: dict[SpeciesKey, Array]
    columns: dict[SpeciesKey, Array]
    molecule: dict[SpeciesKey, Array]


def _stored(layout: AOLayout, all_pairs: bool) -> dict[SpeciesKey, np.ndarray]:
    """Atoms of the kinds a table holds."""
    return {k: v for k, v in species_pairs(layout, all_pairs).items() if k[0] != -1}


def species_table(
    layouts: Sequence[AOLayout],
    *,
    all_pairs: bool = False,
    capacities: Mapping[SpeciesKey, int] | None = None,
) -> SpeciesTable:
    """The table of several molecules in the order of a batch (host side).

    Args:
      layouts: of the molecules.
      all_pairs: every ordered pair, instead of each pair once.
      capacities: rows for each kind (0, 1, 2), so that tables of other molecules have the same
        shapes and nothing compiles anew (:func:`species_capacities`). Default: what is needed.

    Raises:
      OpmlError: a capacity below what is needed.
    """
    spec = layouts[0].spec
    found: dict[SpeciesKey, list] = {}
    for m, layout in enumerate(layouts):
        for key, pairs in _stored(layout, all_pairs).items():
            ends = [_aos(layout, pairs[:, end]) for end in (0, 1)]
            found.setdefault(key, []).append((*ends, np.full(len(pairs), m)))
    needed = {k: sum(len(part[2]) for part in parts) for k, parts in found.items()}
    room = needed if capacities is None else dict(capacities)
    for key, n in needed.items():
        if room.get(key, 0) < n:
            raise OpmlError(f"capacities[{key}]", got=room.get(key, 0), expected=f"at least {n}")
    table: tuple[dict, dict, dict] = ({}, {}, {})
    for key, n in room.items():
        shapes = [(n, spec.nao(key[1])), (n, spec.nao(key[2])), (n,)]
        for i, (shape, fill) in enumerate(zip(shapes, (_BEYOND, _BEYOND, 0), strict=True)):
            full = np.full(shape, fill, np.int32)
            if key in found:
                full[: needed[key]] = np.concatenate([part[i] for part in found[key]])
            table[i][key] = full
    return SpeciesTable(spec, all_pairs, *table)


_BEYOND = np.iinfo(np.int32).max


def species_capacities(batches: Sequence[Sequence[AOLayout]]) -> dict[SpeciesKey, int]:
    """Rows of each kind that hold any one of several batches, rounded up."""
    most: dict[SpeciesKey, int] = {}
    for layouts in batches:
        own: dict[SpeciesKey, int] = {}
        for layout in layouts:
            for key, pairs in _stored(layout, False).items():
                own[key] = own.get(key, 0) + len(pairs)
        most = {k: max(own.get(k, 0), most.get(k, 0)) for k in {**most, **own}}
    return {k: capacity(n) for k, n in sorted(most.items())}


def gather_species(matrices: Array, table: SpeciesTable) -> dict[SpeciesKey, Array]:
    """Blocks by kind and elements, of symmetric matrices of the molecules of a batch.

    Args:
      matrices: ``(..., n_structures, nao, nao)`` in the order of the batch.
      table: of its molecules.

    Returns:
      ``{(kind, Z_i, Z_j): (..., n, nao_i, nao_j)}``, zero for padding.
    """
    matrices, out = jnp.asarray(matrices), {}
    n, nao = matrices.shape[-3:-1]
    flat = matrices.reshape(*matrices.shape[:-3], n * nao * nao)
    for key, m in table.molecule.items():
        r, c = table.rows[key][:, :, None], table.columns[key][:, None, :]
        place = jnp.where((r < nao) & (c < nao), (m[:, None, None] * nao + r) * nao + c, flat.size)
        block = flat.at[..., place].get(mode="fill", fill_value=0)
        if key[0] != 1:
            out[key] = block
            continue
        mirrored = jnp.matrix_transpose(block)  # that of the other order, of symmetric matrices
        for kind in (1, -1):
            out[(kind, *key[1:])] = (block + kind * mirrored) / 2**0.5
    return out


def scatter_species(
    blocks: Mapping[SpeciesKey, Array], table: SpeciesTable, n_structures: int, nao: int
) -> jax.Array:
    """Inverse of :func:`gather_species`, ``(n_structures, nao, nao)``; absent kinds are zero.

    Values of the two orders of a pair are averaged.
    """
    dtype = jnp.result_type(*blocks.values()) if blocks else float
    matrix = jnp.zeros((n_structures, nao, nao), dtype)
    for (kind, z, other), block in blocks.items():
        key = (abs(kind), z, other)
        if key not in table.molecule:
            continue
        m, r, c = table.molecule[key][:, None, None], table.rows[key], table.columns[key]
        block = block * (2**-0.5 if abs(kind) == 1 else 1.0)
        block = block * (0.5 if table.all_pairs and kind else 1.0)
        matrix = matrix.at[m, r[:, :, None], c[:, None, :]].add(block, mode="drop")
        if kind:
            mirrored = jnp.swapaxes(block, 1, 2)
            matrix = matrix.at[m, c[:, :, None], r[:, None, :]].add(mirrored, mode="drop")
    return matrix


def species_blocks(operator: Operator, *, all_pairs: bool = False) -> dict[SpeciesKey, Array]:
    """Blocks by kind and elements, of one molecule; see :func:`gather_species` for several.

    Args:
      operator: symmetric, of one molecule.
      all_pairs: every ordered pair, instead of each pair once.

    Returns:
      ``{(kind, Z_i, Z_j): (n_pairs, nao_i, nao_j)}``; the atoms are :func:`species_pairs`.

    Raises:
      ConventionError: the operator of a batch.
    """
    table = species_table([_of_molecule(operator.layout)], all_pairs=all_pairs)
    return gather_species(operator.to_dense()[None], table)


def from_species_blocks(
    blocks: dict[SpeciesKey, Array], layout: AOLayout, *, all_pairs: bool = False
) -> Operator:
    """Inverse of :func:`species_blocks`; absent kinds are zero.

    Args:
      blocks: as :func:`species_blocks` returns them.
      layout: of the molecule.
      all_pairs: as they were cut. Values of the two orders of a pair are averaged.
    """
    table = species_table([_of_molecule(layout)], all_pairs=all_pairs)
    matrix = scatter_species(blocks, table, 1, layout.nao)[0]
    return Operator(matrix, layout, symmetric=True)


def species_norm(blocks: dict[SpeciesKey, Array], *, all_pairs: bool = False) -> jax.Array:
    r"""Frobenius norm of the matrix whose blocks these are.

    :math:`\|M\|^2 = \sum_b w_b \|b\|^2`, with w = 1 for kinds 0 and +-1 and 2 for kind 2 in the
    reduced set; half of it for :math:`i \ne j` in the set of all pairs.
    """
    total = 0.0
    for (kind, _, _), block in blocks.items():
        weight = (2.0 if kind == 2 else 1.0) * (0.5 if all_pairs and kind else 1.0)
        total += weight * jnp.sum(block * block)
    return jnp.sqrt(total)
