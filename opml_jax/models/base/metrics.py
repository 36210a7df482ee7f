"""Errors of whatever quantities both a prediction and a data set have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...data import Dataset
from ...data.moments import centred_quadrupoles
from ...quantities import QUANTITIES, metric

COMPARED = tuple(
    name for name, q in QUANTITIES.items() if q.label and q.heading and set(q.axes) <= {"atom", 3}
)
"""Quantities whose errors are means over their numbers; matrices and densities have their own."""


def quantity_errors(predicted: Mapping[str, np.ndarray], dataset: Dataset) -> dict[str, float]:
    """Mean absolute and root mean square errors of the quantities that both sides have.

    Args:
      predicted: of a list of structures, from ``model.predict``.
      dataset: references, of the same structures.

    Returns:
      ``<name>_mae_<unit>`` and ``<name>_rmse_<unit>`` with the units of
      :mod:`opml_jax.quantities`, for energies also ``energy_mae_mev_per_atom``; of data that hold
      only the length of the dipole those of ``dipole_norm``.
    """
    out: dict[str, float] = {}
    for name in COMPARED:
        if name in dataset and name in predicted:
            out |= _of(name, _differences(name, predicted, dataset))
    if "energy" in dataset and "energy" in predicted:
        n = np.array([s.n_atoms for s in dataset.structures])
        each = QUANTITIES["energy"].factor * _differences("energy", predicted, dataset)
        out["energy_mae_mev_per_atom"] = float(np.mean(np.abs(each) / n))
    if "dipole" not in dataset and "dipole_norm" in dataset and "dipole" in predicted:
        length = np.linalg.norm(predicted["dipole"], axis=-1)
        out |= _of("dipole_norm", length - dataset["dipole_norm"])
    return out


def _of(name: str, difference: np.ndarray) -> dict[str, float]:
    scaled = QUANTITIES[name].factor * difference
    return {
        metric(name): float(np.mean(np.abs(scaled))),
        metric(name, "rmse"): float(np.sqrt(np.mean(scaled**2))),
    }


def _differences(name: str, predicted: Mapping[str, np.ndarray], dataset: Dataset) -> np.ndarray:
    reference, values = paired(name, predicted, dataset)
    return values - reference


def paired(
    name: str, predicted: Mapping[str, np.ndarray], dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """References and predictions of a quantity of :data:`COMPARED` that both sides have.

    Returns:
      Two arrays of one shape, atomic units: a row a structure, or without one, if it belongs to
      atoms, all numbers of all structures without padding.
    """
    if name == "quadrupole":  # predictions are about the centre of nuclear charge
        return centred_quadrupoles(dataset), predicted[name]
    if "atom" not in QUANTITIES[name].axes:
        return np.asarray(dataset[name]), predicted[name]
    references = dataset.labels[name]
    pairs = [(x, row[: len(x)]) for x, row in zip(references, predicted[name], strict=True)]
    known, values = (np.concatenate([*map(np.ravel, part)]) for part in zip(*pairs, strict=True))
    return known, values
