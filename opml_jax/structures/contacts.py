"""How close pairs of elements come: what training has seen, and what lies outside of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

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


def bonds(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of bonded atoms ``(n_bonds, 2)`` and their lengths ``(n_bonds,)`` in Bohr."""
    from ase.data import covalent_radii

    radii = covalent_radii[list(structure.numbers)] / ANGSTROM_PER_BOHR
    first, second = np.triu_indices(structure.n_atoms, 1)
    x = np.asarray(structure.positions)
    lengths = np.linalg.norm(x[first] - x[second], axis=-1)
    bonded = lengths < BONDED * (radii[first] + radii[second])
    return np.stack([first, second], axis=-1)[bonded], lengths[bonded]


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
            f"{name} at {distance * ANGSTROM_PER_BOHR:.2f} A in structure {name_of(i)} (training: "
            + (f"{known[name] * ANGSTROM_PER_BOHR:.2f} A)" if name in known else "never)")
            for name, (distance, i) in sorted(far.items())
        )
        warnings.warn(
            f"pairs of elements are closer than the model has seen them: {text}. Predictions are "
            "extrapolations there.",
            DataWarning,
            stacklevel=5,
        )
