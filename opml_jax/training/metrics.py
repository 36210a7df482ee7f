"""Errors with their units in their names, and the check that a comparison is meaningful."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..conventions import CONVENTION
from ..data import Dataset
from ..data.moments import centred_quadrupoles
from ..errors import Code, ConventionError, UnitWarning, refusal
from ..models import DensityModel, Model
from ..units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .density_metrics import density_errors
from .operator_metrics import is_effective, observable_errors, operator_errors

LEVEL_KEYS = ("method", "basis", "convention")


def errors(
    predicted: Mapping[str, np.ndarray], dataset: Dataset, model: Model | None = None
) -> dict[str, float]:
    """Mean absolute and root mean square errors of what both sides have.

    Args:
      predicted: from :meth:`opml_jax.models.Model.predict` on ``dataset.structures``.
      dataset: references.
      model: what predicted it; needed for densities.

    Returns:
      ``energy_mae_mev``, ``energy_mae_mev_per_atom``, ``forces_mae_mev_per_angstrom``,
      ``dipole_mae_debye``, ``quadrupole_mae_ebohr2`` (about the centre of nuclear charge),
      ``polarizability_mae_bohr3`` (means over components), ``isotropic_polarizability_mae_bohr3``,
      their ``rmse``, and ``n_structures``. Labels that hold only the length of the dipole give
      ``dipole_norm_mae_debye``; Fock matrices what :func:`operator_errors` returns, or if they
      are in a larger basis than the predicted ones :func:`observable_errors`; densities what
      :func:`density_errors` does.
    """
    out: dict[str, float] = {"n_structures": len(dataset)}

    def add(name: str, unit: str, difference: np.ndarray) -> None:
        out[f"{name}_mae_{unit}"] = float(np.mean(np.abs(difference)))
        out[f"{name}_rmse_{unit}"] = float(np.sqrt(np.mean(difference**2)))

    if "energy" in dataset and "energy" in predicted:
        de = (predicted["energy"] - np.array(dataset.labels["energy"])) * 1e3 * EV_PER_HARTREE
        add("energy", "mev", de)
        n = np.array([s.n_atoms for s in dataset.structures])
        out["energy_mae_mev_per_atom"] = float(np.mean(np.abs(de) / n))
    if "forces" in dataset and "forces" in predicted:
        df = np.concatenate(
            [
                (predicted["forces"][i, : s.n_atoms] - dataset.labels["forces"][i]).ravel()
                for i, s in enumerate(dataset.structures)
            ]
        )
        add("forces", "mev_per_angstrom", df * 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE)
    if "dipole" in dataset and "dipole" in predicted:
        add("dipole", "debye", (predicted["dipole"] - dataset["dipole"]) * DEBYE_PER_EBOHR)
    elif "dipole_norm" in dataset and "dipole" in predicted:
        length = np.linalg.norm(predicted["dipole"], axis=-1)
        add("dipole_norm", "debye", (length - dataset["dipole_norm"]) * DEBYE_PER_EBOHR)
    if "quadrupole" in dataset and "quadrupole" in predicted:
        add("quadrupole", "ebohr2", predicted["quadrupole"] - centred_quadrupoles(dataset))
    for name in ("polarizability", "isotropic_polarizability"):
        if name in dataset and name in predicted:
            add(name, "bohr3", predicted[name] - dataset[name])
    if "fock" in dataset and "dm" in predicted:
        effective = is_effective(predicted, dataset)
        out |= (observable_errors if effective else operator_errors)(predicted, dataset)
    if isinstance(model, DensityModel):
        out |= density_errors(predicted, dataset, model.definition)
    return out


def _plain(name: object) -> str:
    """PySCF reads def2-SVP, def2svp and def2_svp as one basis."""
    return str(name).lower().replace("-", "").replace("_", "")


def check_compatible(model: Model, dataset: Dataset) -> None:
    """Refuse to compare a model with labels of another level of theory or convention.

    A data set that does not state its level only draws a warning.

    Raises:
      ConventionError: method, basis or convention of the labels differ.
      OpmlError: an element the model has not seen.
    """
    model.check_elements(dataset.structures)
    trained = model.card.get("reference", {})
    for key in LEVEL_KEYS:
        expected = CONVENTION if key == "convention" else trained.get(key)
        got = dataset.meta.get(key)
        if expected is None or got is None:
            continue
        if _plain(got) != _plain(expected):
            raise ConventionError(
                refusal(
                    f"{key} of the data set",
                    got=repr(got),
                    expected=f"{expected!r}, that of the model's labels",
                ),
                code=Code.LEVEL_OF_THEORY,
            )
    if trained.get("method") and "method" not in dataset.meta:
        warnings.warn(
            f"the data set does not state its level of theory; the model's labels are "
            f"{trained['method']}/{trained.get('basis')}.",
            UnitWarning,
            stacklevel=2,
        )


def evaluate(model: Model, dataset: Dataset, **options: Any) -> dict[str, float]:
    """Errors of a model on a data set of the same level of theory.

    Args:
      model: trained model.
      dataset: labelled structures.
      options: of ``model.predict``: ``linear=True`` judges the closed-form part alone (of an
        operator model ``guess=True``, the first guess).

    Raises:
      ConventionError: labels of another level of theory or convention.
    """
    check_compatible(model, dataset)
    return errors(model.predict(dataset.structures, **options), dataset, model)
