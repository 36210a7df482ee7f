"""Configurations of version 0.1, which had ``density`` and, for its network, ``optim``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...learn.config import DescentConfig

OF_SOLVER = ("penalty", "tolerance", "cycles")
"""Settings that training alone reads."""

OF_LOSS = ("dipole_weight", "real_space_weight", "points")
"""Likewise of the network."""


def migrated(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``model`` section for an Op2Density model."""
    if tree.get("density") is None:
        return None
    model = dict(tree["density"])
    fit = {k: model.pop(k) for k in OF_SOLVER if k in model}
    if model.get("network") is not None:
        network = dict(model["network"])
        known = {f.name for f in dataclasses.fields(DescentConfig)}
        of_network = {k: v for k, v in (tree.get("optim") or {}).items() if k in known}
        of_network |= {k: network.pop(k) for k in OF_LOSS if k in network}
        if not (of_network.get("real_space_weight") or network.get("widths")):
            of_network.pop("points", None)  # which nothing read
        model["network"] = {**network, "fit": of_network}
    return {**model, "fit": fit}
