"""Spherical electron clouds of free atoms, as a few Gaussians each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLOUDS: dict[int, tuple[tuple[float, float], ...]] = {z: ((float(z), 1.0),) for z in range(1, 37)}
"""``{atomic number: ((charge in e, width sigma in Bohr), ...)}``; charges add up to Z."""


def clouds_of(elements: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tables ``(largest Z + 1, n_gaussians)`` of charges and widths, 0 and 1 where there is none."""
    n = max(elements) + 1
    most = max(len(CLOUDS[z]) for z in elements)
    charge, width = np.zeros((n, most)), np.ones((n, most))
    for z in elements:
        for g, (c, sigma) in enumerate(CLOUDS[z]):
            charge[z, g], width[z, g] = c, sigma
    return charge, width
