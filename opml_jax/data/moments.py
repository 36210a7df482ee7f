"""Multipole moments about another origin."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from ..structures import centre_of_nuclear_charge
from .dataset import Dataset

CENTRED = 1e-6
"""Bohr; a centre of nuclear charge this close to the coordinate origin is there."""


def shifted_quadrupole(
    quadrupole: np.ndarray, dipole: np.ndarray, origin: np.ndarray
) -> np.ndarray:
    r"""Traceless quadrupole of neutral molecules about another origin.

    With charges that sum to zero, :math:`Q(O) = Q - \tfrac 3 2 (\mu O^T + O \mu^T) + \mu \cdot O`
    (Buckingham, Adv. Chem. Phys. 12, 107 (1967)).

    Args:
      quadrupole: ``(..., 3, 3)`` about the coordinate origin, e Bohr^2.
      dipole: ``(..., 3)`` e Bohr.
      origin: ``(..., 3)`` Bohr.

    Returns:
      ``(..., 3, 3)`` e Bohr^2.
    """
    outer = dipole[..., :, None] * origin[..., None, :]
    trace = np.sum(dipole * origin, axis=-1)[..., None, None]
    return quadrupole - 1.5 * (outer + np.swapaxes(outer, -1, -2)) + trace * np.eye(3)


def centred_quadrupoles(dataset: Dataset) -> np.ndarray:
    """Quadrupole labels about the centre of nuclear charge of each molecule.

    Args:
      dataset: with ``quadrupole`` about the coordinate origin, of neutral molecules, and with
        ``dipole`` unless the centres are there already.

    Returns:
      ``(n, 3, 3)`` e Bohr^2.

    Raises:
      DataError: no dipoles, and a centre elsewhere.
    """
    origins = np.array([centre_of_nuclear_charge(s) for s in dataset.structures])
    if "dipole" in dataset:
        quadrupole, dipole = (np.asarray(dataset[name]) for name in ("quadrupole", "dipole"))
        return shifted_quadrupole(quadrupole, dipole, origins)
    if np.abs(origins).max() > CENTRED:
        raise DataError(
            "quadrupole",
            got="labels about the coordinate origin, without dipoles",
            expected="dipoles beside them, or centres of nuclear charge at the origin",
        )
    return np.asarray(dataset["quadrupole"])
