"""Configurations of version 0.1, in which ``model.density`` named a model of densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..op2prop.legacy import fit_of

READ = ("operator", "powers", "metric", "resolve", "others")
"""Settings that say which operators are read beside the density, and how."""

INERT = ("basis", "gram_powers", "vectors", "density_beside")
"""Settings that had no part: the basis is that of the density, whose dipole has no gates."""

OF_DIPOLES = ("dipole_weight", "dipole_precision", "field_dipole_sigma", "consistency_sigma")
"""Settings of training that had none either."""


def migrated(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``model`` section for energies as functions of a predicted density."""
    model = tree.get("model") or {}
    others = any(tree.get(k) is not None for k in ("network", "operator", "density"))
    if others or not model.get("density"):
        return None
    fit = {k: v for k, v in fit_of(tree).items() if k not in OF_DIPOLES}
    return {**functions(model), "fit": fit}


def functions(model: Mapping[str, Any]) -> dict[str, Any]:
    """Today's settings of the functions, from those of version 0.1."""
    read = {k: v for k, v in model.items() if k in READ}
    rest = {k: v for k, v in model.items() if k not in READ + INERT}
    return {**rest, "beside": read if model.get("density_beside") else None}
