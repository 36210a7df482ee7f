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

import dataclasses

import jax
import numpy as np

from ...errors import DataError
from ...learn.references import farthest_points
from ...learn.run import Run
from ..base import Params
from .config import Op2DensityFit
from .functions import Op2Density, kernel, reduced
from .labels import Environments, Labelled
from .problem import Problem, Solution, Weights, conjugate_gradients, factors
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
    gaussian, out = definition.config.kernel == "gaussian", {}
    mean = features[0].mean(axis=0) if gaussian else np.zeros(features[0].shape[1:])
    centred = {**features, 0: features[0] - mean}
    spreads = {l: np.sqrt((x**2).mean(axis=(0, 2))) for l, x in centred.items()}
    largest = max(spread.max() for spread in spreads.values())
    for l, x in centred.items():
        scale = np.ones(x.shape[1])
        if gaussian:
            least = max(NOISE * spreads[l].max(), ROUNDING * largest)
            scale = np.where(spreads[l] > least, spreads[l], np.inf)
        x = x / scale[:, None]
        values, vectors = np.linalg.eigh(np.einsum("iqm,ipm->qp", x, x) / len(x))
        leading = slice(None, -definition.config.components - 1, -1)
        total = values.sum()
        matrix = vectors[:, leading] / scale[:, None] / np.sqrt(total if total > 0 else 1.0)
        out[str(l)] = {"matrix": matrix}
    if gaussian:
        out["0"]["mean"] = mean[:, 0]
    return out


def subtract_baselines(
    definition: Op2Density, labelled: Labelled, atoms: dict[int, np.ndarray] | None = None
) -> tuple[dict[str, Params], np.ndarray]:
    """What nothing is solved for, and what remains; arguments as for :func:`problem_of`.

    ``{element: {"baseline", "components"}}``, and ``(n_structures, naux)`` coefficients less their
    baseline.
    """
    average, known = definition.config.baseline == "average", atoms or {}
    if not average and not set(labelled.environments) <= set(known):
        got = f"elements {sorted(known)}"
        expected = f"coefficients of free atoms of {sorted(labelled.environments)}"
        hint = "Or set model.baseline: average."
        raise DataError("atoms", got=got, expected=expected, hint=hint)
    starts = {}
    for z, of_element in labelled.environments.items():
        isotropic = of_element.flat(labelled.target.shape[1])[0]
        if average:
            baseline = labelled.target.reshape(-1)[isotropic][..., 0].mean(axis=0)
        else:
            baseline = known[z][: isotropic.shape[1]]  # s functions come first
        features = {l: of_element.features[l] for l in of_element.places}
        components = principal_components(definition, features)
        starts[str(z)] = {"baseline": baseline, "components": components}
    return starts, _less(labelled, starts)


def _less(labelled: Labelled, starts: dict[str, Params]) -> np.ndarray:
    """``(n_structures, naux)`` coefficients less the baseline of the elements."""
    target = labelled.target.copy()
    for z, of_element in labelled.environments.items():
        isotropic = of_element.flat(target.shape[1])[0]
        target.reshape(-1)[isotropic] -= starts[str(z)]["baseline"][:, None]
    return target


def problem_of(
    definition: Op2Density,
    penalty: float,
    labelled: Labelled,
    atoms: dict[int, np.ndarray] | None = None,
) -> tuple[Problem, dict[str, Params]]:
    """The loss of a training set, and the parameters that do not depend on its minimum.

    Args:
      definition: the model's functions.
      penalty: eta.
      labelled: training set.
      atoms: ``{Z: (naux,)}`` of free atoms (:func:`opml_jax.density.atomic_coefficients`), for the
        baseline ``"atoms"``.

    Raises:
      DataError: free atoms that are missing.
    """
    starts, _ = subtract_baselines(definition, labelled, atoms)
    for z, of_element in labelled.environments.items():
        start = starts[str(z)]
        x = on_components(definition, start, of_element)
        chosen = farthest_points(x["0"][..., 0], definition.config.references)
        references = {l: v[chosen] for l, v in x.items()}
        start |= {"references": references, "bases": spanned(definition, of_element, references)}
    return training_problem(definition, labelled, starts, penalty), starts


def spanned(
    definition: Op2Density, of_element: Environments, references: Params
) -> dict[str, np.ndarray]:
    """Orthonormal combinations of an element's references, by degree; none of vanishing irreps."""
    bases = {}
    for l in of_element.places:
        kernels = np.asarray(_kernel(definition.config, l, references, references))
        if (basis := orthonormal(kernels)) is not None:
            bases[str(l)] = basis
    return bases


def training_problem(
    definition: Op2Density, labelled: Labelled, starts: dict[str, Params], penalty: float
) -> Problem:
    """The loss of molecules whose references and bases are known, with a preconditioner."""
    problem = held_out_problem(definition, labelled, starts)
    of_atoms = {}
    for key, psi in problem.psi.items():
        z, l = map(int, key.split("_"))
        on_atom = labelled.environments[z].on_atom(labelled.metric, l)
        of_atoms[key] = factors(np.asarray(psi), on_atom, len(problem.target))
    return dataclasses.replace(problem, penalty=np.float64(penalty), factors=of_atoms)


def held_out_problem(
    definition: Op2Density, labelled: Labelled, bases: dict[str, Params]
) -> Problem:
    """The loss of other molecules as a function of the weights of a training set's problem.

    Args:
      definition: the model's functions.
      labelled: the molecules; atoms of elements that training lacked keep their coefficients.
      bases: beside the problem of the training set, from :func:`problem_of`.
    """
    psi, places, n = {}, {}, labelled.target.shape[1]
    known = {z: e for z, e in labelled.environments.items() if str(z) in bases}
    for z, of_element in known.items():
        start, flat = bases[str(z)], of_element.flat(n)
        x = on_components(definition, start, of_element)
        for l, basis in start["bases"].items():
            rows = np.asarray(_kernel(definition.config, int(l), x, start["references"]))
            psi[f"{z}_{l}"] = rows.reshape(*rows.shape[:2], -1) @ basis
            places[f"{z}_{l}"] = flat[int(l)].swapaxes(1, 2)
    target = _less(dataclasses.replace(labelled, environments=known), bases)
    return Problem(psi, places, labelled.metric, target, np.float64(0.0), {})


def on_components(definition: Op2Density, start: Params, of_element: Environments) -> Params:
    """Principal components of the irreps of an element's atoms."""
    x = reduced(start["components"], of_element.features, definition.config.kernel)
    return {l: np.asarray(v) for l, v in x.items()}


def orthonormal(k: np.ndarray) -> np.ndarray | None:
    """Combinations of references, ``(n (2 l + 1), n_columns)``, orthonormal in the space they span.

    Of a kernel of references ``(n, 2 l + 1, n, 2 l + 1)``; None of irreps that vanish identically.
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
    return solved(definition, problem, bases, solution.weights, run), solution


def solved(
    definition: Op2Density,
    problem: Problem,
    bases: dict[str, Params],
    weights: Weights,
    run: Run,
) -> Params:
    """Parameters of a model from weights of its problem, with variances if asked for."""
    params = parameters(bases, weights)
    if definition.config.uncertainty:
        run.progress("variances", 0, 1)
        variances = variance_parameters(problem, bases, weights)
        params = {z: {**p, "variance": variances[z]} for z, p in params.items()}
        run.progress("variances", 1, 1)
    return params


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
