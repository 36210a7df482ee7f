"""Geometries that occur twice, and what of the training set is found again elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..structures import Structure
from ..units import ANGSTROM_PER_BOHR
from .dataset import Dataset

TOLERANCE = 1e-4 / ANGSTROM_PER_BOHR
"""Distances of equal geometries agree to this, Bohr: files keep four digits or more."""
FRAMES = 10
"""Frames of a trajectory this close are one geometry for a model (MD17: 5 fs)."""


def fingerprint(structure: Structure) -> np.ndarray:
    """Interatomic distances in Bohr, by pair of elements, ascending: ``(n (n + 1) / 2,)``.

    Unchanged by translation, rotation, reflection and the order of the atoms. Not a proof:
    different geometries may share all distances, though not by accident.
    """
    order = np.argsort(structure.numbers, kind="stable")
    z, x = np.array(structure.numbers)[order], np.asarray(structure.positions)[order]
    i, j = np.triu_indices(len(z))  # with the diagonal, so that an atom alone has one too
    d = np.linalg.norm(x[i] - x[j], axis=-1)
    return d[np.lexsort((d, z[j], z[i]))]


def _composition(structure: Structure) -> tuple:
    """What must agree before geometries are compared."""
    return tuple(sorted(structure.numbers)), structure.charge, structure.spin


def duplicates(structures: Sequence[Structure], *, tolerance: float = TOLERANCE) -> np.ndarray:
    """Pairs of equal geometries, up to rotation, reflection and the order of like atoms.

    Args:
      structures: molecules; only those of equal composition, charge and spin are compared.
      tolerance: largest difference of sorted interatomic distances, Bohr.

    Returns:
      ``(n_pairs, 2)`` indices, the smaller first, ascending.
    """
    from scipy.spatial import cKDTree

    groups: dict[tuple, list[int]] = {}
    for i, s in enumerate(structures):
        groups.setdefault(_composition(s), []).append(i)
    pairs = [np.zeros((0, 2), int)]
    for index in groups.values():
        tree = cKDTree([fingerprint(structures[i]) for i in index])
        found = tree.query_pairs(tolerance, p=np.inf, output_type="ndarray")
        pairs.append(np.array(index)[found])
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What a held-out set shares with the training set.

    Attributes:
      duplicates: ``(n_pairs, 2)`` index of the training and of the held-out structure, where the
        geometries are equal.
      neighbours: indices of held-out structures within a few frames of a training structure;
        ``None`` where the frames are not known.
    """

    duplicates: np.ndarray
    neighbours: np.ndarray | None


def leakage(
    train: Dataset, held_out: Dataset, *, tolerance: float = TOLERANCE, frames: int = FRAMES
) -> Leakage:
    """Geometries of the training set that are found again, or nearly so, in a held-out set.

    Args:
      train: training structures.
      held_out: validation or test structures.
      tolerance: see :func:`duplicates`.
      frames: with the label ``frame`` in both sets (rMD17 has it), structures of one composition
        at most this many frames apart are neighbours.
    """
    n = len(train)
    pairs = duplicates([*train.structures, *held_out.structures], tolerance=tolerance)
    across = pairs[(pairs[:, 0] < n) & (pairs[:, 1] >= n)] - [0, n]
    if "frame" not in train or "frame" not in held_out:
        return Leakage(across, None)
    times: dict[tuple, list[float]] = {}
    for s, t in zip(train.structures, train.labels["frame"], strict=True):
        times.setdefault(_composition(s), []).append(float(t))
    known = {key: np.array(t) for key, t in times.items()}
    near = [
        j
        for j, (s, t) in enumerate(zip(held_out.structures, held_out.labels["frame"], strict=True))
        if _composition(s) in known and np.abs(known[_composition(s)] - t).min() <= frames
    ]
    return Leakage(across, np.array(near, int))
