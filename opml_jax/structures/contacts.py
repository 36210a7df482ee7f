"""How close pairs of elements come: what training has seen, and what lies outside of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import DataWarning
from ..units import ANGSTROM_PER_BOHR
from .elements import symbol
from .names import name_of
from .structure import Structure

BONDED = 1.25
"""Atoms closer than this times the sum of their covalent radii are bonded. Each of 2000 frames at
500 K of ethanol, aspirin, benzene, naphthalene, salicylic acid and toluene (rMD17) then has the
bonds of the molecule; from 1.2 down and from 1.3 up some frames have others."""

CLOSER = 0.9
"""Closer than this times the closest pair of training is another kind of contact, a bond that no
molecule had, say; vibrations of known bonds stay within."""


class Bonds(NamedTuple):
    """Bonds of a pair of elements: how many molecules have any, shortest and longest, in Bohr."""

    molecules: int
    shortest: float
    longest: float


def bonds(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of bonded atoms ``(n_bonds, 2)`` and their lengths ``(n_bonds,)`` in Bohr."""
    from ase.data import covalent_radii

    radii = covalent_radii[list(structure.numbers)] / ANGSTROM_PER_BOHR
    first, second = np.triu_indices(structure.n_atoms, 1)
    x = np.asarray(structure.positions)
    lengths = np.linalg.norm(x[first] - x[second], axis=-1)
    bonded = lengths < BONDED * (radii[first] + radii[second])
    return np.stack([first, second], axis=-1)[bonded], lengths[bonded]


def bonds_by_pair(structures: Sequence[Structure]) -> dict[str, Bonds]:
    """Bonds of molecules by their pair of elements, ``{"H-O": Bonds(...), ...}``."""
    out: dict[str, Bonds] = {}
    for structure in structures:
        lengths: dict[str, list[float]] = {}
        for pair, length in zip(*bonds(structure), strict=True):
            a, b = sorted(structure.numbers[i] for i in pair)
            lengths.setdefault(f"{symbol(a)}-{symbol(b)}", []).append(float(length))
        for name, some in lengths.items():
            n, shortest, longest = out.get(name, (0, np.inf, 0.0))
            out[name] = Bonds(n + 1, min(shortest, *some), max(longest, *some))
    return dict(sorted(out.items()))


def lacking_bonds(structure: Structure, known: Mapping[str, float]) -> dict[str, float]:
    """Shortest bond of each pair of elements that training lacked, or had nowhere as close.

    Args:
      structure: a molecule.
      known: from :func:`closest_pairs` of the training set.

    Returns:
      ``{"N-N": length, ...}`` in Bohr.
    """
    return {
        name: of_pair.shortest
        for name, of_pair in bonds_by_pair([structure]).items()
        if of_pair.shortest < CLOSER * known.get(name, np.inf)
    }


def in_words(name: str, distance: float, known: Mapping[str, float], where: str = "") -> str:
    """A contact beside the closest one of training: ``"N-N at 1.27 A (training: 2.24 A)"``."""
    training = f"{known[name] * ANGSTROM_PER_BOHR:.2f} A" if name in known else "never"
    return f"{name} at {distance * ANGSTROM_PER_BOHR:.2f} A{where} (training: {training})"


def cover(lacking: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> list[int]:
    """The fewest molecules, chosen greedily, that have every bond some molecule has.

    A bond stands for others of its pair of elements that are as long, up to :data:`CLOSER`:
    a triple bond does not stand for a single one.

    Args:
      lacking: of each molecule the bonds to cover, from :func:`lacking_bonds`.
      sizes: of the molecules; of two that cover as many bonds the smaller one is taken.

    Returns:
      Indices, the one that covers most first.
    """
    names = {name for of_one in lacking for name in of_one}
    lengths = {n: np.sort([of_one[n] for of_one in lacking if n in of_one]) for n in names}
    uncovered = {name: np.ones(len(lengths[name]), bool) for name in names}

    def alike(name: str, length: float) -> np.ndarray:
        ends = np.searchsorted(lengths[name], [CLOSER * length, length / CLOSER])
        return uncovered[name][slice(*ends)]

    chosen: list[int] = []
    while any(of_pair.any() for of_pair in uncovered.values()):
        gains = [sum(int(alike(*bond).sum()) for bond in of_one.items()) for of_one in lacking]
        chosen.append(min(range(len(lacking)), key=lambda i: (-gains[i], sizes[i])))
        for bond in lacking[chosen[-1]].items():
            alike(*bond)[:] = False
    return chosen


def closest_pairs(structures: Sequence[Structure]) -> dict[str, float]:
    """Smallest distance of every pair of elements.

    Args:
      structures: molecules.

    Returns:
      ``{"H-O": distance, ...}`` in Bohr, elements in the order of their atomic numbers.
    """
    out: dict[str, float] = {}
    for structure in structures:
        for name, distance in _closest(structure).items():
            out[name] = min(out.get(name, np.inf), distance)
    return dict(sorted(out.items()))


def _closest(structure: Structure) -> dict[str, float]:
    z, r = np.array(structure.numbers), np.asarray(structure.positions)
    first, second = np.triu_indices(len(z), 1)
    distance = np.linalg.norm(r[first] - r[second], axis=-1)
    low, high = np.minimum(z[first], z[second]), np.maximum(z[first], z[second])
    return {
        f"{symbol(a)}-{symbol(b)}": float(distance[(low == a) & (high == b)].min())
        for a, b in {*zip(low.tolist(), high.tolist(), strict=True)}
    }


def warn_of_contacts(
    structures: Sequence[Structure], known: Mapping[str, float], *, unseen: bool = True
) -> None:
    """Warn of pairs of elements that a model has not seen, or not nearly as close.

    Args:
      structures: molecules to predict.
      known: from :func:`closest_pairs` of the training set; empty: nothing is known, no warning.
      unseen: also of pairs that are not in it, at any distance.
    """
    far: dict[str, tuple[float, int]] = {}
    for i, structure in enumerate(structures) if known else ():
        for name, distance in _closest(structure).items():
            least = known.get(name, np.inf if unseen else 0.0)
            if distance < min(CLOSER * least, far.get(name, (np.inf, 0))[0]):
                far[name] = distance, i
    if far:
        text = "; ".join(
            in_words(name, distance, known, f" in structure {name_of(i)}")
            for name, (distance, i) in sorted(far.items())
        )
        warnings.warn(
            f"pairs of elements are closer than the model has seen them: {text}. Predictions are "
            "extrapolations there.",
            DataWarning,
            stacklevel=5,
        )
