r"""Closed form of Op2Density: weights of the kernels that make the error of densities least.

.. math::
    L(b) = \frac1N \sum_A (\Psi_A b + \bar c_A - c_A)^T M_A (\Psi_A b + \bar c_A - c_A)
    + \eta\, b^T b

(Grisafi, Lewis, Rossi, Ceriotti, arXiv:2206.14087). The columns of Psi are kernels between atoms
and reference environments in an orthonormal basis of the space that these span. Functions of one
atom overlap with those of another, so all weights are coupled, and the metrics M are ill
conditioned (1e9 for Coulomb's). The sum is minimised by conjugate gradients on products of Psi and
M alone; what makes them converge is that between functions of *one* atom M is known beforehand: the
same for all atoms of an element, diagonal in m. That part of the Hessian is a Kronecker product,
inverted through two small eigenproblems.
"""

from __future__ import annotations

import jax
import numpy as np

from ...errors import DataError, refusal
from ...learn.references import farthest_points
from ...learn.run import Run
from ..base import Params
from .config import Op2DensityFit
from .environments import ls_of
from .functions import Op2Density
from .kernels import kernel, reduced
from .labels import Labelled
from .solver import Problem, Solution, Weights, conjugate_gradients, factors
from .variance import variance_parameters

NOISE = 1e-6
"""Channels whose spread is less, relative to the largest of their degree, say nothing."""
ROUNDING = 1e-12
"""And those less than this, relative to the largest of all degrees: they vanish identically."""
RANK = 1e-10
"""Eigenvalues of the kernel of references that are less, relative to the largest, are left out."""

_kernel = jax.jit(kernel, static_argnums=(0, 1))


def principal_components(definition: Op2Density, features: dict[int, np.ndarray]) -> Params:
    """Components of one element's irreps, ``{l: {"matrix", "mean"}}``; squares sum to 1 in mean.

    For the Gaussian kernel channels are first brought to unit variance (scalars without their
    mean); for the polynomial one they are taken as they are, as its inventors do.
    """
    config, out = definition.config, {}
    centred, spreads = dict(features), {}
    if config.kernel == "gaussian":
        mean = features[0].mean(axis=0)
        centred[0] = features[0] - mean
        spreads = {l: np.sqrt((x**2).mean(axis=(0, 2))) for l, x in centred.items()}
        largest = max(spread.max() for spread in spreads.values())
    for l, x in centred.items():
        scale = np.ones(x.shape[1])
        if l in spreads:
            least = max(NOISE * spreads[l].max(), ROUNDING * largest)
            scale = np.where(spreads[l] > least, spreads[l], np.inf)
        x = x / scale[:, None]
        values, vectors = np.linalg.eigh(np.einsum("iqm,ipm->qp", x, x) / len(x))
        leading = slice(None, -config.components - 1, -1)
        total = values.sum()
        matrix = vectors[:, leading] / scale[:, None] / np.sqrt(total if total > 0 else 1.0)
        out[str(l)] = {"matrix": matrix}
    if config.kernel == "gaussian":
        out["0"]["mean"] = mean[:, 0]
    return out


def subtract_baselines(
    definition: Op2Density, labelled: Labelled, atoms: dict[int, np.ndarray] | None = None
) -> tuple[dict[str, Params], np.ndarray]:
    """Baseline and components of every element, which nothing is solved for, and what remains.

    Arguments as for :func:`problem_of`.

    Returns:
      ``{element: {"baseline", "components"}}``, and ``(n_structures, naux)`` coefficients less
      their baseline.

    Raises:
      DataError: free atoms that are missing.
    """
    _check_atoms(definition, labelled, atoms)
    target, starts = labelled.target.copy(), {}
    for z, of_element in labelled.environments.items():
        isotropic = of_element.flat(target.shape[1])[0]
        if definition.config.baseline == "average":
            baseline = target.reshape(-1)[isotropic][..., 0].mean(axis=0)
        else:
            assert atoms is not None  # or they were refused
            baseline = atoms[z][np.array(ls_of(definition, z)) == 0]
        target.reshape(-1)[isotropic] -= baseline[:, None]
        features = {l: of_element.features[l] for l in of_element.places}
        components = principal_components(definition, features)
        starts[str(z)] = {"baseline": baseline, "components": components}
    return starts, target


def problem_of(
    definition: Op2Density,
    settings: Op2DensityFit,
    labelled: Labelled,
    atoms: dict[int, np.ndarray] | None = None,
) -> tuple[Problem, dict[str, Params]]:
    """The loss of a training set, and the parameters that do not depend on its minimum.

    Args:
      definition: the model's functions.
      settings: with the penalty.
      labelled: training set.
      atoms: ``{Z: (naux,)}`` of free atoms (:func:`opml_jax.density.atomic_coefficients`), for the
        baseline ``"atoms"``.

    Raises:
      DataError: free atoms that are missing.
    """
    config, metric = definition.config, labelled.metric
    starts, target = subtract_baselines(definition, labelled, atoms)
    n, naux = target.shape
    psi, places, inverses, bases = {}, {}, {}, {}
    for z, of_element in labelled.environments.items():
        start, flat = starts[str(z)], of_element.flat(naux)
        x = reduced(start["components"], of_element.features, config.kernel)
        x = {l: np.asarray(v) for l, v in x.items()}
        chosen = farthest_points(x["0"][..., 0], config.references)
        references = {l: v[chosen] for l, v in x.items()}
        bases[str(z)] = {**start, "references": references, "bases": {}}
        for l in of_element.places:
            basis = _orthonormal(np.asarray(_kernel(config, l, references, references)))
            if basis is None:
                continue
            key = f"{z}_{l}"
            rows = np.asarray(_kernel(config, l, x, references))
            psi[key] = rows.reshape(*rows.shape[:2], -1) @ basis
            places[key] = flat[l].swapaxes(1, 2)
            on_atom = of_element.on_atom(metric, l)
            inverses[key] = factors(psi[key], on_atom, n, settings.penalty)
            bases[str(z)]["bases"][str(l)] = basis
    return Problem(psi, places, metric, target, np.float64(settings.penalty), inverses), bases


def _orthonormal(k: np.ndarray) -> np.ndarray | None:
    """Combinations of references that are orthonormal in the space that they span.

    Args:
      k: kernel of the references, ``(n, 2 l + 1, n, 2 l + 1)``.

    Returns:
      ``(n (2 l + 1), n_columns)``; None of irreps that vanish identically.
    """
    k = k.reshape(len(k) * k.shape[1], -1)
    values, vectors = np.linalg.eigh(0.5 * (k + k.T))
    spanned = values > RANK * values[-1]
    return vectors[:, spanned] / np.sqrt(values[spanned]) if spanned.any() else None


def solve_problem(
    definition: Op2Density,
    settings: Op2DensityFit,
    problem: Problem,
    bases: dict[str, Params],
    run: Run,
) -> tuple[Params, Solution]:
    """Parameters of the minimum of what :func:`problem_of` gave, with variances if asked for.

    Raises:
      ConvergenceError: conjugate gradients did not reach ``settings.tolerance``.
    """
    limits = {"tolerance": settings.tolerance, "cycles": settings.cycles}
    solution = conjugate_gradients(problem, **limits, run=run)
    params = parameters(bases, solution.weights)
    if definition.config.uncertainty:
        run.progress("variances", 0, 1)
        variances = variance_parameters(problem, bases, solution.weights)
        params = {z: {**p, "variance": variances[z]} for z, p in params.items()}
        run.progress("variances", 1, 1)
    return params, solution


def parameters(bases: dict[str, Params], weights: Weights) -> Params:
    """What prediction needs, from what :func:`problem_of` gives beside the problem."""
    out: Params = {}
    for z, start in bases.items():
        rows = {}
        for l, basis in start["bases"].items():
            w = basis @ weights[f"{z}_{l}"]
            rows[l] = np.ascontiguousarray(w.reshape(-1, 2 * int(l) + 1, w.shape[-1]))
        out[z] = {k: v for k, v in start.items() if k != "bases"} | {"weights": rows}
    return out


def _check_atoms(
    definition: Op2Density, labelled: Labelled, atoms: dict[int, np.ndarray] | None
) -> None:
    """Refuse free atoms that are missing."""
    if definition.config.baseline == "atoms" and not set(labelled.environments) <= set(atoms or {}):
        raise DataError(
            refusal(
                "atoms",
                got=f"elements {sorted(atoms or {})}",
                expected=f"coefficients of free atoms of {sorted(labelled.environments)}",
                hint="Or set model.baseline: average.",
            )
        )
