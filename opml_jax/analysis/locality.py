"""How far operators reach: norms of blocks against distance."""

from __future__ import annotations

import numpy as np

from ..basis import AOLayout
from ..errors import ConventionError
from ..operators import Operator
from ..structures import Structure


def block_norms(
    operator: Operator, structure: Structure
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Frobenius norms of atom-pair blocks against distance.

    Args:
      operator: of one molecule.
      structure: the molecule.

    Returns:
      ``{(Z_i, Z_j): (distance, norm)}`` for Z_i <= Z_j and i != j: ``(n_pairs,)`` Bohr, and the
      norms.

    Raises:
      ConventionError: the operator of a batch.
    """
    layout = operator.layout
    if not isinstance(layout, AOLayout):
        got = "the operator of a batch"
        raise ConventionError("operator", got=got, expected="that of one molecule")
    starts = layout.offsets[:-1]
    squares = np.asarray(operator.to_dense(), float) ** 2
    norms = np.add.reduceat(np.add.reduceat(squares, starts, axis=0), starts, axis=1) ** 0.5
    positions, numbers = np.asarray(structure.positions), np.array(structure.numbers)
    i, j = np.triu_indices(len(numbers), 1)
    distance = np.linalg.norm(positions[i] - positions[j], axis=1)
    low, high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    out = {}
    for a, b in sorted(set(zip(low.tolist(), high.tolist(), strict=True))):
        own = (low == a) & (high == b)
        out[a, b] = (distance[own], norms[i, j][own])
    return out
