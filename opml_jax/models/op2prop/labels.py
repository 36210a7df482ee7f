"""Labels as arrays, and what of them is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...data import Dataset
from ...data.moments import centred_quadrupoles
from ...data.plausibility import check_finite
from ...errors import Code, DataError, refusal

OF_NEUTRAL = ("dipole", "quadrupole")
"""Labels that depend on the origin of coordinates for ions."""


def check_labels(sets: Mapping[str, Dataset], targets: Sequence[str]) -> None:
    """Refuse sets whose targets cannot be learned.

    Raises:
      DataError: a target that a set lacks, moments of an ion, or NaN among the labels.
    """
    for name, dataset in sets.items():
        padded_labels(dataset, targets, max(s.n_atoms for s in dataset.structures))
        where = f"the data set ({name} split)"
        check_finite(where, {k: dataset.labels[k] for k in targets})


def padded_labels(dataset: Dataset, targets: Sequence[str], n_atoms: int) -> dict[str, np.ndarray]:
    """Targets as arrays with structures first, forces padded to ``n_atoms``.

    Raises:
      DataError: a target the data lacks, or moments of an ion (they depend on the origin).
    """
    labels = {}
    for name in targets:
        if name not in dataset:
            have = ", ".join(dataset.labels) or "no labels"
            raise DataError(
                refusal(
                    "model.fit.targets",
                    got=f"{name!r}, which the data set lacks",
                    expected=f"labels it has: {have}",
                ),
                code=Code.LABEL,
            )
        if name in OF_NEUTRAL and any(s.charge for s in dataset.structures):
            raise DataError(
                refusal(
                    "model.fit.targets",
                    got=f"{name!r} for charged molecules",
                    expected=f"neutral ones: an ion's {name} depends on the origin",
                )
            )
        if name == "forces":
            labels[name] = _padded(dataset.labels[name], n_atoms)
        elif name == "quadrupole":
            labels[name] = centred_quadrupoles(dataset)
        else:
            labels[name] = np.array(dataset.labels[name])
    return labels


def _padded(forces: Sequence[np.ndarray], n_atoms: int) -> np.ndarray:
    """``(n_structures, n_atoms, 3)``."""
    out = np.zeros((len(forces), n_atoms, 3))
    for row, of_structure in zip(out, forces, strict=True):
        row[: len(of_structure)] = of_structure
    return out
