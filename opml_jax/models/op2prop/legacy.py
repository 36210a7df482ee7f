"""Configurations of version 0.1, which had ``model``, ``optim`` and ``targets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fit_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training, from two sections of then."""
    targets = {"targets": tree["targets"]} if "targets" in tree else {}
    return {**targets, **(tree.get("optim") or {})}


def migrated(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``model`` section for a configuration of energies that reads no predicted density."""
    model = dict(tree.get("model") or {})
    density, _ = model.pop("density", ""), model.pop("density_beside", None)
    if density or any(tree.get(k) is not None for k in ("network", "operator", "density")):
        return None
    return {**model, "fit": fit_of(tree)}
