r"""How many bodies a featuriser correlates, measured.

A function f of a central atom and its neighbours is a sum over subsets of neighbours,
:math:`f(N) = \sum_{S \subseteq N} m(S)`, with :math:`m(S) = \sum_{T \subseteq S} (-1)^{|S| - |T|}
f(T)`: the terms of a many-body expansion. The largest subset with a term tells the body order.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..errors import OpmlError
from ..structures import Structure
from .degeneracy import Featuriser

MAX_NEIGHBOURS = 10


def body_order(
    featuriser: Featuriser, structure: Structure, *, centre: int = 0, tolerance: float = 1e-9
) -> tuple[int, np.ndarray]:
    """Body order of the features of one atom, by inclusion and exclusion of its neighbours.

    Args:
      featuriser: a function of a structure: features of its atoms ``(n_atoms, n)``, as many columns
        for every composition. Every subset of neighbours is evaluated: 2^(n_atoms - 1) calls.
      structure: with at least as many neighbours as are to be probed, at no special positions.
      centre: the atom.
      tolerance: terms below this fraction of the largest are rounding.

    Returns:
      ``(order, terms)``: the order, counting the centre (so 2 for sums over neighbours), at most
      ``n_atoms``; and ``(n_atoms,)`` the largest term of each order over the largest of all.

    Raises:
      OpmlError: more than ten neighbours, or no such atom.
    """
    n = structure.n_atoms
    if not 0 <= centre < n or n - 1 > MAX_NEIGHBOURS:
        got = f"{n - 1} neighbours, centre {centre}"
        raise OpmlError("structure", got=got, expected=f"at most {MAX_NEIGHBOURS}")
    neighbours = [a for a in range(n) if a != centre]
    positions, numbers = np.asarray(structure.positions), np.asarray(structure.numbers)
    values = {}
    for size in range(n):
        for subset in itertools.combinations(neighbours, size):
            atoms = [centre, *subset]
            spin = int(numbers[atoms].sum()) % 2
            part = Structure(numbers[atoms], positions[atoms], spin=spin)
            values[subset] = np.asarray(featuriser(part), float)[0]
    largest = np.zeros(n)
    for subset in values:
        term = sum(
            (-1) ** (len(subset) - size) * values[inner]
            for size in range(len(subset) + 1)
            for inner in itertools.combinations(subset, size)
        )
        largest[len(subset)] = max(largest[len(subset)], np.abs(term).max())
    terms = largest / largest.max()
    return int(np.flatnonzero(terms > tolerance).max()) + 1, terms
