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

import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout
from ..errors import ConventionError, refusal
from ..numerics import Array
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
            refusal("operator", got="the operator of a batch", expected="that of one molecule")
        )
    return layout


def _aos(layout: AOLayout, atoms: np.ndarray) -> np.ndarray:
    """``(n, width)`` AOs of atoms of one element."""
    width = layout.spec.nao(layout.numbers[int(atoms[0])])
    return layout.offsets[atoms][:, None] + np.arange(width)


def species_blocks(operator: Operator, *, all_pairs: bool = False) -> dict[SpeciesKey, Array]:
    """Blocks by kind and elements.

    Args:
      operator: symmetric, of one molecule.
      all_pairs: every ordered pair, instead of each pair once.

    Returns:
      ``{(kind, Z_i, Z_j): (n_pairs, nao_i, nao_j)}``; the atoms are :func:`species_pairs`.

    Raises:
      ConventionError: the operator of a batch.
    """
    layout = _of_molecule(operator.layout)
    matrix = operator.to_dense()
    out = {}
    for key, pairs in species_pairs(layout, all_pairs).items():
        rows, columns = (_aos(layout, pairs[:, end]) for end in (0, 1))
        block = matrix[rows[:, :, None], columns[:, None, :]]
        if abs(key[0]) == 1:
            mirrored = matrix[columns[:, :, None], rows[:, None, :]]
            block = (block + key[0] * mirrored) / 2**0.5
        out[key] = block
    return out


def from_species_blocks(
    blocks: dict[SpeciesKey, Array], layout: AOLayout, *, all_pairs: bool = False
) -> Operator:
    """Inverse of :func:`species_blocks`; absent kinds are zero.

    Args:
      blocks: as :func:`species_blocks` returns them.
      layout: of the molecule.
      all_pairs: as they were cut. Values of the two orders of a pair are averaged.
    """
    _of_molecule(layout)
    dtype = jnp.result_type(*blocks.values()) if blocks else float
    matrix = jnp.zeros((layout.nao, layout.nao), dtype)
    for key, pairs in species_pairs(layout, all_pairs).items():
        if key not in blocks:
            continue
        rows, columns = (_aos(layout, pairs[:, end]) for end in (0, 1))
        block = blocks[key] * (2**-0.5 if abs(key[0]) == 1 else 1.0)
        block = block * (0.5 if all_pairs and key[0] else 1.0)
        matrix = matrix.at[rows[:, :, None], columns[:, None, :]].add(block)
        if key[0]:
            mirrored = jnp.swapaxes(block, 1, 2)
            matrix = matrix.at[columns[:, :, None], rows[:, None, :]].add(mirrored)
    return Operator(matrix, layout, symmetric=True)


def species_norm(blocks: dict[SpeciesKey, Array], *, all_pairs: bool = False) -> Array:
    r"""Frobenius norm of the matrix whose blocks these are.

    :math:`\|M\|^2 = \sum_b w_b \|b\|^2`, with w = 1 for kinds 0 and +-1 and 2 for kind 2 in the
    reduced set; half of it for :math:`i \ne j` in the set of all pairs.
    """
    total = 0.0
    for (kind, _, _), block in blocks.items():
        weight = (2.0 if kind == 2 else 1.0) * (0.5 if all_pairs and kind else 1.0)
        total += weight * jnp.sum(block * block)
    return jnp.sqrt(total)
