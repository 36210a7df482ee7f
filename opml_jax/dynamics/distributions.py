"""Distributions of distances and angles over a trajectory."""

from __future__ import annotations

import itertools

import numpy as np

from ..errors import OpmlError
from ..structures.elements import atomic_number
from ..units import ANGSTROM_PER_BOHR
from .trajectory import Trajectory


def radial_distribution(
    trajectory: Trajectory,
    first: str,
    second: str,
    *,
    bins: int = 200,
    longest: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs of two elements are at which distance, mean of frames and replicas.

    Args:
      trajectory: of a molecule in free space, so there is no density to divide by.
      first: symbol of an element.
      second: of another, or the same.
      bins: number of them.
      longest: distance in Angstrom. Default: of all there are.

    Returns:
      ``(distances, density)``, ``(bins,)`` centres in Angstrom, and pairs per Angstrom; the
      integral is the number of pairs (up to ``longest``).

    Raises:
      OpmlError: the molecule has no such pair.
      StructureError: no such element.
    """
    a, b = _atoms(trajectory, first), _atoms(trajectory, second)
    pairs = [
        p for p in itertools.product(a, b) if p[0] != p[1] and (first != second or p[0] < p[1])
    ]
    _some(pairs, f"{first}-{second} pairs")
    i, j = np.transpose(pairs)
    x = trajectory["positions"]
    distances = np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1) * ANGSTROM_PER_BOHR
    return _histogram(distances, bins, longest and (0.0, longest))


def angular_distribution(
    trajectory: Trajectory, first: str, centre: str, last: str, *, cutoff: float, bins: int = 180
) -> tuple[np.ndarray, np.ndarray]:
    """How many angles between three elements are how wide, mean of frames and replicas.

    Args:
      trajectory: of a molecule.
      first: symbol of an element.
      centre: of the atom at the vertex.
      last: of the third.
      cutoff: both arms are shorter, in Angstrom.
      bins: between 0 and 180 degrees.

    Returns:
      ``(angles, density)``, ``(bins,)`` centres in degrees, and angles per degree; the integral is
      their number.

    Raises:
      OpmlError: the molecule has no such angle.
      StructureError: no such element.
    """
    arms = itertools.product(*(_atoms(trajectory, e) for e in (first, centre, last)))
    triples = [t for t in arms if len(set(t)) == 3 and (first != last or t[0] < t[2])]
    _some(triples, f"{first}-{centre}-{last} angles")
    i, j, k = np.transpose(triples)
    x = trajectory["positions"]
    a, b = x[..., i, :] - x[..., j, :], x[..., k, :] - x[..., j, :]
    length = [np.linalg.norm(v, axis=-1) for v in (a, b)]
    cosine = np.einsum("...x,...x", a, b) / (length[0] * length[1])
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    near = np.maximum(*length) * ANGSTROM_PER_BOHR < cutoff
    return _histogram(angles, bins, (0.0, 180.0), near)


def _atoms(trajectory: Trajectory, element: str) -> np.ndarray:
    return np.flatnonzero(np.array(trajectory.numbers) == atomic_number(element))


def _some(found: list, what: str) -> None:
    if not found:
        raise OpmlError("trajectory", got=f"a molecule without {what}", expected="some")


def _histogram(values: np.ndarray, bins: int, limits, weights=None):
    n_frames = values.shape[0] * values.shape[1]
    weights = None if weights is None else weights.ravel().astype(float)
    count, edges = np.histogram(values.ravel(), bins=bins, range=limits, weights=weights)
    return (edges[1:] + edges[:-1]) / 2, count / (n_frames * np.diff(edges))
