"""The closed form of Op2Prop as a change of that of an earlier model.

What the earlier model, networks included, leaves of the labels is fitted by the same columns, in
the same scaling, and added to its weights. The ridge then draws towards them instead of zero, and
its lambda, infinite at most, is how much they are trusted.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ...errors import DataWarning
from ..base import Params
from .atomwise import AtomwiseDefinition
from .closed_form import SLOPES, ClosedForm, fit_energy, fit_irreps, fit_scalar, head_labels
from .config import AtomwiseFit
from .descriptors import Labelled
from .readout import HEADS, cartesian, linear_heads
from .residual import make_inputs, predict_residual
from .scaling import fit_scaler, scaled

WORTH = 0.9
"""Errors from nothing that are below this part of those from a model are said."""

BY_NETWORKS = ("energy", "dipole", *SLOPES)
"""Labels that networks have a part in."""


def with_numbers(params: Params) -> Params:
    """Parameters whose scales are numbers ``()``, of which files make ``(1,)``."""
    scales = {k: np.reshape(v, ()) for k, v in params.get("scale", {}).items()}
    return {**params, "scale": scales} if scales else params


def what_is_left(definition: AtomwiseDefinition, params: Params, part: Labelled) -> Labelled:
    """A set whose labels are what a model leaves of them, and whose invariants are standardised."""
    inputs = make_inputs(params, part)
    left: dict[str, Any] = {k: inputs[k] for k in BY_NETWORKS if k in part.labels}
    if "residual" in params:
        module = definition.network(dipole="dipole" in params)

        @jax.vmap
        def of_member(weights: Params) -> Params:
            network = functools.partial(module.apply, {"params": weights})
            return predict_residual(network, params["scale"], inputs)

        for name, of_members in of_member(params["residual"]).items():
            left[name] = left[name] - np.asarray(of_members).mean(axis=0)
    cache = scaled(part.cache, params["scaler"])
    irreps: Any = cache.v
    heads: Any = {k: params[k] for k, l in HEADS.items() if k in params and (not l or l in cache.v)}
    linear = cartesian(linear_heads(heads, cache.x, irreps, cache.one_hot))
    for name, labels in part.labels.items():
        if name not in BY_NETWORKS:
            left[name] = labels - np.asarray(linear[name])
    return Labelled(cache, {k: np.reshape(left[k], np.shape(v)) for k, v in part.labels.items()})


def _compare(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Labelled],
    noise: np.ndarray,
    score: float,
) -> None:
    """Warn if energies and forces of the validation set are better learned from nothing."""
    cache = sets["train"].cache
    if not cache.one_hot.any(axis=(0, 1)).all():
        return  # from nothing, elements that are not there cannot be learned
    scaler = fit_scaler(cache, noise)
    scaler["inverse_std"] = scaler["inverse_std"] * definition.prior
    train, validation = (
        Labelled(scaled(sets[k].cache, scaler), sets[k].labels) for k in ("train", "validation")
    )
    alone = fit_energy(train, validation, fit.sigmas, fit.force_precision / fit.force_sigma)[-1]
    if alone.score < WORTH * score:
        warnings.warn(
            f"the model that training starts from does not help: without it the closed form's "
            f"error of energies and forces on the validation set is {alone.score / score:.2f} "
            "times as large. Train from nothing, or on labels of both.",
            DataWarning,
            stacklevel=2,
        )


def fit_changes(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Labelled],
    noise: np.ndarray,
    origin: Params,
) -> ClosedForm:
    """All parameters of a model that starts from ``origin``, whose closed form alone is changed.

    Other arguments as for :func:`~.closed_form.fit_closed_form`. A solution from nothing that is
    better on the validation set is a ``DataWarning``.
    """
    train, validation = (what_is_left(definition, origin, sets[k]) for k in ("train", "validation"))
    kernel = origin.get("kernel")
    linear, kernel, dipole, energy = fit_energy(
        train,
        validation,
        fit.sigmas,
        fit.force_precision / fit.force_sigma,
        kernel,
        refit=not (fit.epochs or definition.config.last_layer or "calibration" in origin),
        changes=True,
    )
    _compare(definition, fit, sets, noise, energy.score)
    changes, ridges = {"linear": linear}, {}
    if kernel is not None:
        changes["kernel"] = {"weights": kernel["weights"]}
    for name, labels in head_labels(train.labels).items():
        if name == "dipole" and dipole is not None:
            changes[name], ridges[name] = dipole, energy
            continue
        solve, precision = (fit_irreps if HEADS[name] else fit_scalar), fit.precisions.get(name, 0)
        changes[name], ridges[name] = solve(train.cache, labels, precision, changes=True)
    changed = {
        part: {**origin[part], **{k: origin[part][k] + v for k, v in of_part.items()}}
        for part, of_part in changes.items()
    }
    return ClosedForm({**origin, **changed}, energy, ridges)
