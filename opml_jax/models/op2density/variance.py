r"""Variances of densities: the kernels of Op2Density as a Gaussian process.

The loss of :mod:`.closed_form` is minus the logarithm of a posterior whose noise is
:math:`\sigma^2 M^{-1}` for a structure and whose prior for a weight is
:math:`\tau^2 = \sigma^2 / (N \eta)`. The covariance of the weights is then

.. math::
    \frac{\sigma^2}{N} (H + \eta)^{-1}, \qquad H = \frac1N \sum_A \Psi_A^T M_A \Psi_A,

and the likelihood of the training set is largest for :math:`\sigma^2 = N L(b) / n`, L being the
least loss and n the number of coefficients (Rasmussen, Williams, Gaussian Processes for Machine
Learning, sections 2.7 and 5.4). The variance of an atom's density,
:math:`\mathrm{tr}\, M_{ii}\, \Sigma_{ii}`, needs only what the inverse has between weights of one
element and degree, because M between functions of one atom is zero between degrees and between m.
"""

from __future__ import annotations

import jax
import numpy as np
import scipy.linalg

from ...errors import ConvergenceError
from ..base import Params
from .functions import Op2Density
from .labels import Labelled, residuals
from .solver import Problem, Weights, hessian_matrix

EXACT = 8192
"""Up to so many weights the Hessian is formed and inverted (0.5 GB); beyond, its blocks between
functions of one atom stand for it, which are known in factors."""


def variance_parameters(
    problem: Problem, bases: dict[str, Params], weights: Weights, exact: int = EXACT
) -> dict[str, Params]:
    """Parameters that :meth:`opml_jax.models.Op2Density.variances` needs.

    Args:
      problem: the loss, from :func:`opml_jax.models.op2density.closed_form.problem_of`.
      bases: from there too.
      weights: at the minimum.
      exact: most weights for which the Hessian is inverted.

    Returns:
      ``{element: {l: {"basis", "weights", "prior"}}}``: matrices ``(n_references (2 l + 1),
      n_columns)`` on kernels, whose squares sum to what the references span of the prior, and to
      the variance of the weights; the prior's variance of an m, in the metric.
    """
    loss, n = float(problem.loss(weights)), len(problem.target)
    observed = int((np.abs(np.asarray(problem.metric)).sum(axis=-1) > 0).sum())
    noise = n * loss / observed
    total = sum(np.size(w) for w in weights.values())
    if total <= exact:
        covariances = _exact(problem, noise)
    else:
        covariances = {k: _of_atoms(problem, k, noise / n) for k in problem.factors}
    out: dict[str, Params] = {}
    for key, covariance in covariances.items():
        z, l = key.split("_")
        values, vectors = np.linalg.eigh(covariance)
        basis = bases[z]["bases"][l]
        trace = np.sum(_radial_metric(problem, key).diagonal())
        out.setdefault(z, {})[l] = {
            "basis": basis,
            "weights": basis @ (vectors * np.sqrt(np.maximum(values, 0))),
            "prior": np.float64(noise / (n * float(problem.penalty)) * trace),
        }
    return out


def _radial_metric(problem: Problem, key: str) -> np.ndarray:
    """``(n_radial, n_radial)`` between functions of one atom and m."""
    naux = problem.target.shape[1]
    at = np.asarray(problem.places[key])[0, 0]
    return np.asarray(problem.metric)[at[0] // naux][at[:, None] % naux, at % naux]


def _exact(problem: Problem, noise: float) -> dict[str, np.ndarray]:
    """Covariances of weights of one key, traced with the metric: ``(n_columns, n_columns)``."""
    matrix, keys = hessian_matrix(problem)
    factor, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=1, overwrite_a=1)
    if not failed:
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise ConvergenceError(
            "the Hessian is not positive definite to rounding. Raise model.fit.penalty."
        )
    out, start = {}, 0
    for k in keys:
        c, n = problem.psi[k].shape[-1], problem.places[k].shape[-1]
        lower = np.tril(inverse[start : start + c * n, start : start + c * n])
        block = (lower + np.tril(lower, -1).T).reshape(c, n, c, n)
        traced = np.einsum("cndr,nr->cd", block, _radial_metric(problem, k))
        out[k] = traced * noise / len(problem.target)
        start += c * n
    return out


def _of_atoms(problem: Problem, key: str, scale: float) -> np.ndarray:
    """Likewise, by what functions of one atom make of the Hessian."""
    u, v, inverse = map(np.asarray, problem.factors[key])
    metric = np.einsum("nr,nm,mr->r", v, _radial_metric(problem, key), v)
    return scale * (u * (inverse @ metric)) @ u.T


def calibrated(definition: Op2Density, params: Params, held_out: Labelled) -> tuple[Params, float]:
    """Parameters whose variances are, in mean, the squared errors of a set.

    Returns:
      The parameters, and what their standard deviations were multiplied by.
    """
    error = residuals(definition, params, held_out)
    errors = np.einsum("sp,spq,sq->", error, held_out.metric, error)
    of_element = jax.jit(definition.variances_of_element)
    total = 0.0
    for z, atoms in held_out.environments.items():
        total += float(of_element(params[str(z)], atoms.features).sum())
    factor = float(np.sqrt(errors / total))
    powers = {"basis": 0, "weights": 1, "prior": 2}
    out = {}
    for z, p in params.items():
        scaled = {
            l: {k: np.asarray(x * factor ** powers[k]) for k, x in process.items()}
            for l, process in p["variance"].items()
        }
        out[z] = {**p, "variance": scaled}
    return out, factor
