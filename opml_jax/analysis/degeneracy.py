r"""Pairs of different molecules that some descriptors cannot tell apart, for any featuriser.

Invariants of the neighbour density of order nu (2: distances and angles, as in the SOAP power
spectrum; 3: the bispectrum) are equal for the two members of these pairs, at the central atom
(Pozdnyakov et al., Phys. Rev. Lett. 125, 166001 (2020)). Whether others see a difference is a
matter of body order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import OpmlError
from ..numerics import Array
from ..structures import Structure
from ..units import ANGSTROM_PER_BOHR

Featuriser = Callable[[Structure], Array]


@dataclasses.dataclass(frozen=True)
class DegeneratePair:
    """Two different molecules whose central atoms have equal invariants up to order nu.

    Attributes:
      name: what it is.
      nu: highest order of density invariants of the central atom that are equal.
      first: one member; its central atom is atom 0.
      second: the other.
    """

    name: str
    nu: int
    first: Structure
    second: Structure


def _molecule(symbols: Sequence[int], angstrom: np.ndarray) -> Structure:
    centred = np.concatenate([np.zeros((1, 3)), angstrom])
    return Structure(symbols, centred / ANGSTROM_PER_BOHR, spin=int(sum(symbols)) % 2)


def _ring(phi: np.ndarray, radius: float, z: float) -> np.ndarray:
    return np.stack([radius * np.cos(phi), radius * np.sin(phi), np.full(len(phi), z)], axis=1)


@functools.cache
def degenerate_pairs() -> tuple[DegeneratePair, ...]:
    """The pairs, in Bohr.

    *planar*: CH4 with its hydrogens on a circle of 1.1 Angstrom at 0, 1, 4, 7 and at 0, 1, 3, 4
    eighths of a turn, sets with equal differences. *tetrapod*: CH4 of figure 1b of the paper above,
    one unit of its coordinates being 0.1868 Angstrom. *rings*: two rings of three atoms, turned by
    0.6 against each other, and an apex above or below: mirror images but for the apex, which no
    triple of the ring atoms sees; once as CH6O and once with eight equal atoms.
    """
    eighths = np.pi / 4 * np.array([[0, 1, 4, 7], [0, 1, 3, 4]])
    tetrapod = [[5, 0, 5], [5, 5, 5], [-5, -5, 5], [0, 5, 5]]
    mirrored = [*tetrapod[:3], [0, -5, 5]]
    phi = np.array([0.0, 2.0, 3.7])
    rings = np.concatenate([_ring(phi, 1.6, 0.9), _ring(phi + 0.6, 1.6, -0.9)])
    apex = [np.concatenate([rings, [[0, 0, z]]]) for z in (1.9, -1.9)]
    shapes = [
        ("planar CH4", 2, [6, 1, 1, 1, 1], [_ring(p, 1.1, 0.0) for p in eighths]),
        ("tetrapod CH4", 2, [6, 1, 1, 1, 1], [0.1868 * np.array(x) for x in (tetrapod, mirrored)]),
        ("rings CH6O", 3, [6, 1, 1, 1, 1, 1, 1, 8], apex),
        ("rings B8", 3, [5] * 8, apex),
    ]
    return tuple(
        DegeneratePair(name, nu, *(_molecule(symbols, x) for x in both))
        for name, nu, symbols, both in shapes
    )


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    norm = np.linalg.norm(a)
    return float(np.linalg.norm(a - b) / norm) if norm > 0 else 0.0


def degeneracy(
    featuriser: Featuriser, pairs: Sequence[DegeneratePair] | None = None
) -> dict[str, dict[str, float]]:
    """How far a featuriser tells degenerate pairs apart.

    Args:
      featuriser: a function of a structure: rotation-invariant features of its atoms
        ``(n_atoms, n)``, or of the whole ``(n,)``.
      pairs: which ones. Default: :func:`degenerate_pairs`.

    Returns:
      ``{name: {"centre": d, "structure": d}}``: norm of the difference over the norm, for the
      central atom (per-atom features only) and for the sum over atoms. Zero to rounding: the
      featuriser cannot tell.

    Raises:
      OpmlError: features that are neither per atom nor per structure.

    Example:
      >>> degeneracy(lambda s: my_soap(s))["planar CH4"]["centre"]     # doctest: +SKIP
    """
    out = {}
    for pair in degenerate_pairs() if pairs is None else pairs:
        a, b = (np.asarray(featuriser(s), float) for s in (pair.first, pair.second))
        if a.ndim not in (1, 2) or (a.ndim == 2 and len(a) != pair.first.n_atoms):
            expected = f"(n,) or (n_atoms, n) for {pair.first.n_atoms} atoms"
            raise OpmlError("featuriser", got=f"shape {a.shape}", expected=expected)
        if a.ndim == 1:
            out[pair.name] = {"structure": _difference(a, b)}
        else:
            whole = _difference(a.sum(axis=0), b.sum(axis=0))
            out[pair.name] = {"centre": _difference(a[0], b[0]), "structure": whole}
    return out
