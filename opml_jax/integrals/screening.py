r"""Which primitive pairs matter for the potential, by a bound that holds.

A real harmonic is bounded, :math:`|Y_{lm}| \le \sqrt{(2l+1)/4\pi}`, and any part of the exponent
buys the polynomial: :math:`r^l e^{-\epsilon a r^2} \le (l / 2 e \epsilon a)^{l/2}`. What is left of
a pair is the product of two s functions of exponents a' = (1 - eps) a and b', whose attraction to
charges is at most :math:`2 \pi / p' \cdot e^{-\mu' R^2} \sum_C |q_C|`, wherever and however wide
these are. Pairs are dropped, smallest bound first, as long as what is dropped of one pair of
shells adds up to less than the tolerance: so no matrix element is wrong by more.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis, layout_of
from ..basis.primitives import Primitives
from ..errors import OpmlError
from ..numerics import Array, is_concrete, pytree, replace, static
from ..structures import Structure, StructureBatch
from .pairs import all_pairs, classes_of, shell_pair

_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # epsilon: any is valid, the best is taken


@pytree
class ScreenedPairs:
    """Primitive pairs of a molecule or a batch that the potential needs. Made by :func:`screen`.

    Attributes:
      tolerance: largest error of a matrix element, Hartree.
      charge: sum of absolute charges it holds for.
      skin: Bohr; the bound holds while no atom is further than ``skin / 2`` from ``reference``.
      first: for each class of angular momenta ``(B, capacity)`` the first primitive.
      second: the second.
      mask: True for pairs, False for padding.
      reference: ``(B, n_atoms, 3)`` positions the pairs were chosen for, Bohr.
      overflowed: True when :meth:`update` had to grow, so that compiled functions compile again.
    """

    tolerance: float = static()
    charge: float = static()
    skin: float = static()
    overflowed: bool = static()
    first: tuple[Array, ...]
    second: tuple[Array, ...]
    mask: tuple[Array, ...]
    reference: Array

    @property
    def capacity(self) -> tuple[int, ...]:
        """Room for pairs in each class."""
        return tuple(x.shape[-1] for x in self.first)

    @property
    def count(self) -> int:
        """Pairs kept, of all molecules."""
        return sum(int(np.asarray(m).sum()) for m in self.mask)

    def exceeded(self, charges: Array) -> Array:
        """True for molecules with more charge than the bound was made for: (B,)."""
        return jnp.sum(jnp.abs(charges), axis=-1) > self.charge * (1 + 1e-5)

    def moved(self, positions: Array) -> Array:
        """True for molecules in which an atom left the region where the bound holds: (B,)."""
        reference = jnp.asarray(self.reference)
        there = jnp.asarray(positions).reshape(reference.shape)
        step2 = jnp.sum((there - reference.astype(there.dtype)) ** 2, axis=-1)
        # A rounding error of slack, so that the very geometry it was made for counts as unmoved.
        return jnp.any(jnp.sqrt(step2) > 0.5 * self.skin + 1e-6, axis=-1)

    def update(self, structure: Structure | StructureBatch, basis: Basis) -> ScreenedPairs:
        """The same for another geometry (host side): same shapes, unless they no longer fit.

        If they do not, capacities grow by a quarter beyond what is needed and ``overflowed`` is
        set.
        """
        found = screen(
            structure, basis, tolerance=self.tolerance, charge=self.charge, skin=self.skin
        )
        fits = all(a <= b for a, b in zip(found.capacity, self.capacity, strict=True))
        room = (
            self.capacity
            if fits
            else tuple(
                max(old, math.ceil(1.25 * new))
                for old, new in zip(self.capacity, found.capacity, strict=True)
            )
        )
        return replace(_padded(found, room), overflowed=not fits)

    def __repr__(self) -> str:
        return f"ScreenedPairs(tolerance={self.tolerance:g}, capacity={sum(self.capacity)})"


def _padded(pairs: ScreenedPairs, room: tuple[int, ...]) -> ScreenedPairs:
    def grown(arrays):
        return tuple(
            np.pad(np.asarray(x), ((0, 0), (0, n - x.shape[-1])))
            for x, n in zip(arrays, room, strict=True)
        )

    return replace(
        pairs, first=grown(pairs.first), second=grown(pairs.second), mask=grown(pairs.mask)
    )


def _magnitude(l: int, a: np.ndarray, c: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bounds of a primitive by s functions: (prefactor, exponent) for each share."""
    harmonic = math.sqrt((2 * l + 1) / (4 * math.pi))
    if l == 0:
        return [(np.abs(c) * harmonic, a)]
    return [
        (np.abs(c) * harmonic * (l / (2 * math.e * eps * a)) ** (l / 2), (1 - eps) * a)
        for eps in _SHARES
    ]


def pair_bounds(la: int, lb: int, a, b, ca, cb, distance: np.ndarray) -> np.ndarray:
    r"""Bound of :math:`|\langle a | 1/|r - C| | b \rangle|` for any C and any m.

    Args:
      la: angular momentum of the first primitives.
      lb: of the second.
      a: ``(n,)`` exponents.
      b: ``(n,)``.
      ca: ``(n,)`` coefficients of ``r^l exp(-a r^2)``.
      cb: ``(n,)``.
      distance: ``(n,)`` least distance of their centres, Bohr.
    """
    best = np.full(np.shape(distance), np.inf)
    for (x, a1), (y, b1) in itertools.product(_magnitude(la, a, ca), _magnitude(lb, b, cb)):
        p = a1 + b1
        best = np.minimum(best, x * y * 2 * np.pi / p * np.exp(-a1 * b1 / p * distance**2))
    return best


def _screen_one(
    topology: Primitives, table: tuple, positions: np.ndarray, tolerance: float, skin: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs kept of one molecule, class by class; tolerance is for a unit of charge."""
    exponents, coefficients = table
    kept = []
    for la, lb in classes_of(topology.counts):
        same = la == lb
        i, j = all_pairs(topology.counts[la], topology.counts[lb], same)
        row_a, row_b = topology.table[la][i], topology.table[lb][j]
        shell_a, shell_b = topology.shell[la][i], topology.shell[lb][j]
        r = (
            positions[topology.shell_atom[la][shell_a]]
            - positions[topology.shell_atom[lb][shell_b]]
        )
        distance = np.maximum(np.sqrt((r * r).sum(axis=1)) - skin, 0.0)
        bound = pair_bounds(
            la,
            lb,
            exponents[row_a],
            exponents[row_b],
            coefficients[row_a],
            coefficients[row_b],
            distance,
        )
        target = shell_pair(shell_a, shell_b, topology.shell_counts[lb], same)
        # Clipped, so that large bounds do not swamp the sum of small ones in rounding.
        bound = np.minimum(bound, 2 * tolerance)
        order = np.lexsort((bound, target))
        running = np.cumsum(bound[order])
        first = np.searchsorted(target[order], target[order], side="left")
        before = np.where(first > 0, running[first - 1], 0.0)
        keep = np.sort(order[running - before > tolerance])
        kept.append((i[keep], j[keep]))
    return kept


def screen(
    structure: Structure | StructureBatch,
    basis: Basis,
    *,
    tolerance: float = 1e-12,
    charge: float | None = None,
    skin: float = 0.0,
) -> ScreenedPairs:
    """Primitive pairs that the potential of this geometry needs (host side).

    Args:
      structure: molecule or batch, with concrete positions.
      basis: covers its elements.
      tolerance: largest error allowed in any matrix element, Hartree.
      charge: sum of the absolute charges of everything that attracts: nuclei, neutralising
        clouds, point charges. Default: twice the nuclear charges, enough for nuclei and for
        neutral atoms.
      skin: Bohr; the pairs also serve geometries in which no atom has moved by more than half.

    Returns:
      Pairs for ``external_potential(..., pairs=...)``.

    Raises:
      OpmlError: a tolerance that is not positive, a negative skin, or traced positions or basis.
    """
    if not tolerance > 0:
        raise OpmlError("tolerance", got=tolerance, expected="a positive number")
    if not skin >= 0:
        raise OpmlError("skin", got=skin, expected="zero or more")
    layout = layout_of(structure, basis)
    table: Any = basis.flat()
    if not (is_concrete(structure.positions) and isinstance(table[0], np.ndarray)):
        raise OpmlError(
            "structure",
            got="traced positions or basis",
            expected="numbers",
            hint="Call screen outside jit and pass its result in.",
        )
    single = isinstance(layout, AOLayout)
    positions = np.asarray(structure.positions, np.float64)
    positions = positions[None] if single else positions
    numbers = np.asarray(structure.numbers).reshape(positions.shape[:2])
    if charge is None:
        charge = 2.0 * float(numbers.sum(axis=1).max())
    kept = []
    for k, own in enumerate(positions):
        topology = layout.primitives
        if not single:
            topology = jax.tree.map(lambda x, k=k: np.asarray(x[k]), topology)
        kept.append(_screen_one(topology, table, own, tolerance / max(charge, 1e-300), skin))
    n_classes = len(kept[0])
    first, second, mask = [], [], []
    for c in range(n_classes):
        room = max(1, *(len(own[c][0]) for own in kept))
        arrays = np.zeros((2, len(kept), room), np.int32)
        used = np.zeros((len(kept), room), bool)
        for k, own in enumerate(kept):
            n = len(own[c][0])
            arrays[:, k, :n] = own[c]
            used[k, :n] = True
        first.append(arrays[0])
        second.append(arrays[1])
        mask.append(used)
    return ScreenedPairs(
        float(tolerance),
        charge,
        float(skin),
        False,
        tuple(first),
        tuple(second),
        tuple(mask),
        positions,
    )
