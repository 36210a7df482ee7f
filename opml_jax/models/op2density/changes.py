"""Kernels of Op2Density as a change of an earlier model's.

What the earlier model leaves of the coefficients is fitted by kernels with its reference
environments and further ones of the new molecules, in its principal components, and added to its
weights. The penalty then draws to its densities instead of the baseline; validation chooses how
much: as the configuration says, more, or that nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ...learn.references import farthest_points
from ...learn.ridge import stated
from ...learn.run import Run
from ..base import Params
from .closed_form import on_components, parameters, spanned, training_problem
from .config import Op2DensityFit
from .functions import Op2Density, kernel
from .labels import Environments, Labelled, residuals
from .problem import STATE, conjugate_gradients
from .variance import variance_parameters

STRONGER = (1e0, 1e2, 1e4, 1e6)
"""Penalties that are tried, in units of the configuration's."""

WEAKEST = 1e-10
"""The configuration's, if it leaves the choice to the validation set."""

_kernel = jax.jit(kernel, static_argnums=(0, 1))


def solve_changes(
    definition: Op2Density,
    settings: Op2DensityFit,
    sets: Mapping[str, Labelled],
    origin: Params,
    run: Run,
) -> tuple[Params, dict[str, Any]]:
    """Parameters of the origin whose kernels are changed, and what the card says of it.

    Raises:
      ConvergenceError: conjugate gradients did not reach the tolerance.
    """
    fixed = without_widths(origin)
    target = residuals(definition, fixed, sets["train"])
    bases = {
        str(z): _with_references(definition, origin[str(z)], atoms)
        for z, atoms in sets["train"].environments.items()
    }
    problem = training_problem(definition, sets["train"], bases, 0.0)
    problem = dataclasses.replace(problem, target=target)
    best, penalty, params = _error(definition, fixed, sets["validation"]), np.inf, origin
    for i, factor in enumerate(STRONGER):
        eta = np.float64((settings.penalty or WEAKEST) * factor)
        problem = dataclasses.replace(problem, penalty=eta)
        limits = {"tolerance": settings.tolerance, "cycles": settings.cycles}
        solution = conjugate_gradients(problem, **limits, run=run, name=f"{STATE}_{i}")
        changed = {**origin, **_added(origin, parameters(bases, solution.weights))}
        error = _error(definition, without_widths(changed), sets["validation"])
        if error < best:
            best, penalty, params = error, float(eta), changed
            if definition.config.uncertainty:
                variances = variance_parameters(problem, bases, solution.weights)
                params = {**params, **_certain(definition, origin, params, variances)}
    return params, {"change_penalty": stated(penalty)}


def without_widths(params: Params) -> Params:
    """Parameters of a fixed basis: networks without their widths."""

    def fixed(of_element: Params) -> Params:
        network = {k: v for k, v in of_element.get("network", {}).items() if k != "widths"}
        return {**of_element, **({"network": network} if network else {})}

    return {z: fixed(of_element) for z, of_element in params.items()}


def _with_references(definition: Op2Density, start: Params, atoms: Environments) -> Params:
    """One element's parameters with references of new environments, and what these span."""
    x = on_components(definition, start, atoms)
    chosen = farthest_points(x["0"][..., 0], definition.config.references)
    references = {l: np.concatenate([start["references"][l], v[chosen]]) for l, v in x.items()}
    kept = {k: start[k] for k in ("baseline", "components")}
    bases = spanned(definition, atoms, references)
    return {**kept, "references": references, "bases": bases}


def _added(origin: Params, changes: Params) -> Params:
    """Changes with the weights of the origin added, which has the first of their references."""
    out = {}
    for z, change in changes.items():
        weights = dict(change["weights"])
        for l, earlier in origin[z].get("weights", {}).items():
            whole = weights.get(l)
            if whole is None:
                n = len(change["references"]["0"])
                whole = np.zeros((n, *earlier.shape[1:]))
            whole = whole.copy()
            whole[: len(earlier)] += earlier
            weights[l] = whole
        out[z] = {**origin[z], **change, "weights": weights}
    return out


def _error(definition: Op2Density, params: Params, held_out: Labelled) -> float:
    """Squared error of a set in the metric."""
    error = residuals(definition, params, held_out)
    return float(np.einsum("sp,spq,sq->", error, held_out.metric, error))


def _certain(
    definition: Op2Density, origin: Params, params: Params, variances: Mapping[str, Params]
) -> Params:
    """Elements with variances of what both training sets say of them.

    What the first one said beyond its prior, as the inverse of a covariance, is added to that of
    the new one; both are known between columns of one element and degree.
    """
    out = {}
    for z, of_element in variances.items():
        both = {}
        for l, new in of_element.items():
            both[l] = new
            if (old := origin[z]["variance"].get(l)) is None:
                continue
            references = params[z]["references"]
            k = np.asarray(_kernel(definition.config, int(l), references, references))
            k = k.reshape(len(new["basis"]), -1)
            between = new["basis"].T @ k[:, : len(old["basis"])] @ old["basis"]
            known = _information(old) - np.eye(old["basis"].shape[1]) / old["prior"]
            values, vectors = np.linalg.eigh(known)
            known = (vectors * np.maximum(values, 0.0)) @ vectors.T
            total = _information(new) + between @ known @ between.T
            values, vectors = np.linalg.eigh(total)
            root = vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1]))
            both[l] = {**new, "weights": new["basis"] @ root}
        out[z] = {**params[z], "variance": both}
    return out


def _information(process: Params) -> np.ndarray:
    """Inverse of the covariance of columns, ``(n_columns, n_columns)``."""
    root = np.linalg.lstsq(process["basis"], process["weights"], rcond=None)[0]
    values, vectors = np.linalg.eigh(root @ root.T)
    return (vectors / np.maximum(values, 1e-12 * values[-1])) @ vectors.T
