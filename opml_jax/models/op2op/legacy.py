"""Configurations of version 0.1: ``operator``, ``effective``, ``losses`` and ``optim``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...learn.config import DescentConfig

BEFORE_PROJECTION = {"projection": "none", "extrapolation": "difference"}
"""What model files without these settings are: written before there were any others."""

OF_MATRIX_NETWORK = ("kind", "channels", "layers")
"""Settings of networks of version 0.1 that a kind had which there is no more, and its name."""


def migrated(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``model`` section for an Op2Op model.

    Raises:
      ConfigError: a network of a kind that there is no more.
    """
    if tree.get("operator") is None:
        return None
    model = dict(tree["operator"])
    if model.get("network") is not None:
        model["network"] = _network(dict(model["network"]), tree)
    if tree.get("effective") is not None:
        targets = {"targets": tree["targets"]} if "targets" in tree else {}
        model["fit"] = {"observables": {**targets, **tree["effective"]}}
    return model


def _network(network: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    if (kind := network.get("kind", "gated")) != "gated":
        raise ConfigError(
            "operator.network.kind",
            got=f"{kind}, which was removed (gated is better)",
            expected="gated",
        )
    network = {k: v for k, v in network.items() if k not in OF_MATRIX_NETWORK}
    known = {f.name for f in dataclasses.fields(DescentConfig)}
    fit = {k: v for k, v in (tree.get("optim") or {}).items() if k in known}
    if tree.get("losses"):
        fit["losses"] = dict(tree["losses"])
    return {**network, "fit": fit}
