"""How close pairs of elements come: what training has seen, and what lies outside of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DataWarning
from ..units import ANGSTROM_PER_BOHR
from .elements import symbol
from .structure import Structure

CLOSER = 0.9
"""Closer than this times the closest pair of training is another kind of contact, a bond that no
molecule had, say; vibrations of known bonds stay within."""


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
            f"{name} at {distance * ANGSTROM_PER_BOHR:.2f} A in structure {i} (training: "
            + (f"{known[name] * ANGSTROM_PER_BOHR:.2f} A)" if name in known else "never)")
            for name, (distance, i) in sorted(far.items())
        )
        warnings.warn(
            f"pairs of elements are closer than the model has seen them: {text}. Predictions are "
            "extrapolations there.",
            DataWarning,
            stacklevel=4,
        )
