"""The closed form of Op2Prop as a change of that of an earlier model.

What the earlier model, networks included, leaves of the labels is fitted by the same columns, in
the same scaling, and added to its weights. The ridge then draws towards them instead of zero, and
its lambda, infinite at most, is how much they are trusted. Where the earlier weights are no help,
as on molecules of which they say little, the scaling is: it tells which of thousands of columns
matter, which a few labels cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..base import Params
from .atomwise import AtomwiseDefinition
from .closed_form import SLOPES, ClosedForm, fit_energy, fit_irreps, fit_scalar, head_labels
from .config import AtomwiseFit
from .descriptors import Labelled
from .readout import HEADS, cartesian, linear_heads
from .residual import make_inputs, predict_residual
from .scaling import scaled

WORTH = 0.9
"""Weights of a model stay unless without them the error is below this part of that with them."""

BY_NETWORKS = ("energy", "dipole", *SLOPES)
"""Labels that networks have a part in."""

LEARNED = ("residual", "scale", "calibration", "last_layer")
"""Parameters of networks and doubts, which mean nothing beside other weights of a closed form."""


def what_is_there(definition: AtomwiseDefinition, params: Params, part: Labelled) -> Labelled:
    """A set with its labels, whose invariants are standardised as a model's."""
    return Labelled(scaled(part.cache, params["scaler"]), part.labels)


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


def fit_changes(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Labelled],
    origin: Params,
    *,
    weights: bool = True,
) -> ClosedForm:
    """All parameters of a model that starts from ``origin``, whose closed form alone is changed.

    Args:
      definition: the functions of both models.
      fit: settings.
      sets: ``train``, and ``validation``, which chooses lambda.
      origin: parameters of the earlier model.
      weights: whether the ridge draws to the earlier weights, and networks stay. Else it draws to
        zero, networks go, and all that is taken over are the columns and their scales.
    """
    left = what_is_left if weights else what_is_there
    train, validation = (left(definition, origin, sets[k]) for k in ("train", "validation"))
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
    changes, ridges = {"linear": linear}, {}
    if kernel is not None:
        changes["kernel"] = {"weights": kernel["weights"]}
    for name, labels in head_labels(train.labels).items():
        if name == "dipole" and dipole is not None:
            changes[name], ridges[name] = dipole, energy
            continue
        solve, precision = (fit_irreps if HEADS[name] else fit_scalar), fit.precisions.get(name, 0)
        changes[name], ridges[name] = solve(train.cache, labels, precision, changes=True)
    gone = () if weights else {*LEARNED, *HEADS} - set(changes)  # what new labels say nothing of
    stay = {k: v for k, v in origin.items() if k not in gone}
    changed = {
        part: {**stay[part], **{k: weights * stay[part][k] + v for k, v in of_part.items()}}
        for part, of_part in changes.items()
    }
    return ClosedForm({**stay, **changed}, energy, ridges)
