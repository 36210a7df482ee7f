"""The closed form of a learned functional: normal equations of matrices, energies and forces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg

from .rows import Projected, rows_of
from .words import Maps

PARTS = ("matrices", "energy", "gradient")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A geometry of the reference, less the baseline at the reference's density.

    Attributes:
      projected: of its density matrices, first the self-consistent one.
      energy: Hartree.
      gradient: ``(3 n_atoms,)`` Hartree/Bohr.
    """

    projected: Projected
    energy: float
    gradient: np.ndarray


@dataclasses.dataclass
class NormalEquations:
    """Gram matrices of rows, what they are to make, and squares of that, in the mean of geometries.

    Attributes:
      gram: by part ``(n, n)``.
      right: by part ``(n,)``.
      square: by part.
    """

    gram: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    square: dict[str, float]

    def loss(self, weights: np.ndarray) -> dict[str, float]:
        """Mean squares of what is left, by part."""
        return {
            k: float(weights @ (g @ weights) - 2 * weights @ self.right[k] + self.square[k])
            for k, g in self.gram.items()
        }

    def solve(self, ridge: float, *, energy: float, gradient: float) -> np.ndarray:
        """Weights ``(n,)`` of least squares, with what energies and gradients count."""
        worth = {"matrices": 1.0, "energy": energy, "gradient": gradient}
        system = np.zeros_like(self.gram["energy"])
        right = np.zeros(len(system))
        for k, w in worth.items():
            system += w * self.gram[k]
            right += w * self.right[k]
        system[np.diag_indices_from(system)] += ridge
        factor = scipy.linalg.cho_factor(system, lower=True, overwrite_a=True)
        return scipy.linalg.cho_solve(factor, right)


def normal_equations(
    maps: Maps, elements: Sequence[int], geometries: Iterable[Labelled], begun: float = 0.25
) -> NormalEquations:
    """Normal equations of the rows of some geometries, streamed.

    Args:
      maps: of :func:`.words.fit_maps`.
      elements: atomic numbers that have weights.
      geometries: of the reference.
      begun: weight of the matrices of densities that are not self-consistent.
    """
    n = maps["scale"].size
    out = NormalEquations(
        {k: np.zeros((n, n)) for k in PARTS},
        {k: np.zeros(n) for k in PARTS},
        dict.fromkeys(PARTS, 0.0),
    )
    count = 0
    for own in geometries:
        count += 1
        matrices, energy, gradient = rows_of(maps, elements, own.projected)
        weights = np.where(np.arange(len(matrices)) == 0, 1.0, np.sqrt(begun))
        rows = np.concatenate([w * m for w, m in zip(weights, matrices, strict=True)])
        wanted = (weights[:, None] * own.projected.wanted).reshape(-1)
        size = np.sqrt(len(own.gradient))
        parts = {
            "matrices": (rows, wanted),
            "energy": (energy[None], np.array([own.energy])),
            "gradient": (gradient / size, own.gradient / size),
        }
        for k, (x, y) in parts.items():
            there = x.any(axis=0)  # elements of the molecule
            some = x[:, there]
            out.gram[k][np.ix_(there, there)] += some.T @ some
            out.right[k][there] += some.T @ y
            out.square[k] += float(y @ y)
    for k in PARTS:
        out.gram[k] /= count
        out.right[k] /= count
        out.square[k] /= count
    return out
