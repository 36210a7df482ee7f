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

import functools
import itertools
from typing import TYPE_CHECKING

import jax
import numpy as np
import scipy.linalg

from ...errors import ConvergenceError
from ..base import Params
from .functions import Op2Density
from .labels import Labelled, residuals

if TYPE_CHECKING:
    from .problem import Problem, Weights

EXACT = 8192
"""Up to so many weights the Hessian is formed and inverted (0.5 GB); beyond, its blocks between
functions of one atom stand for it, which are known in factors."""

PAIRS = 256
"""Pairs of atoms at a time when the Hessian is formed."""


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
    matrix, parts = hessian_matrix(problem)
    factor, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=1, overwrite_a=1)
    if not failed:
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise ConvergenceError(
            "the Hessian is not positive definite to rounding. Raise model.fit.penalty."
        )
    out = {}
    for k, at in parts.items():
        c, n = problem.psi[k].shape[-1], problem.places[k].shape[-1]
        lower = np.tril(inverse[at, at])
        block = (lower + np.tril(lower, -1).T).reshape(c, n, c, n)
        traced = np.einsum("cndr,nr->cd", block, _radial_metric(problem, k))
        out[k] = traced * noise / len(problem.target)
    return out


def hessian_matrix(problem: Problem) -> tuple[np.ndarray, dict[str, slice]]:
    """Half the Hessian of the loss, and the rows of each key.

    Assembled from pairs of atoms: Psi is sparse, and products with its zeros would be most of the
    work.
    """
    keys = sorted(problem.psi)
    sizes = [problem.psi[k].shape[-1] * problem.places[k].shape[-1] for k in keys]
    ends = np.cumsum([0, *sizes])
    parts = dict(zip(keys, map(slice, ends, ends[1:]), strict=False))
    matrix = np.zeros((ends[-1], ends[-1]))
    for b, a in itertools.combinations_with_replacement(keys, 2):
        block = _hessian_block(problem, a, b) / len(problem.target)
        matrix[parts[a], parts[b]] = block
        matrix[parts[b], parts[a]] = block.T
    matrix.flat[:: len(matrix) + 1] += float(problem.penalty)
    return matrix, parts


def _hessian_block(problem: Problem, a: str, b: str) -> np.ndarray:
    """Sum over structures between two keys, ``(columns * radial of a, columns * radial of b)``."""
    naux = problem.target.shape[1]
    psi, at = ([np.asarray(v[k]) for k in (a, b)] for v in (problem.psi, problem.places))
    metric = np.asarray(problem.metric).reshape(-1, naux)
    first, second = (p[:, 0, 0] // naux for p in at)
    i, j = np.nonzero(first[:, None] == second)  # pairs of atoms of one structure
    (_, _, c), (_, m, d) = psi[0].shape, psi[1].shape
    n, r = (p.shape[-1] for p in at)
    out = np.zeros((c * n * r, d))
    for part in np.array_split(np.arange(len(i)), max(1, len(i) // PAIRS)):
        rows, columns = at[0][i[part]], at[1][j[part]] % naux
        between = metric[rows[..., None, None], columns[:, None, None]]  # (pairs, m, n, m', n')
        between = between.reshape(*between.shape[:2], -1)
        half = (psi[0][i[part]].swapaxes(1, 2) @ between).reshape(len(part), c, n, m, r)
        half = half.transpose(1, 2, 4, 0, 3).reshape(c * n * r, -1)
        out += half @ psi[1][j[part]].reshape(-1, d)
    return out.reshape(c * n, r, d).swapaxes(1, 2).reshape(c * n, d * r)


def _of_atoms(problem: Problem, key: str, scale: float) -> np.ndarray:
    """Likewise, by what functions of one atom make of the Hessian."""
    u, v, values = map(np.asarray, problem.factors[key])
    metric = np.einsum("nr,nm,mr->r", v, _radial_metric(problem, key), v)
    return scale * (u * ((1 / (values + float(problem.penalty))) @ metric)) @ u.T


def calibrated(definition: Op2Density, params: Params, held_out: Labelled) -> tuple[Params, float]:
    """Parameters whose variances are, in mean, the squared errors of a set.

    Returns:
      The parameters, and what their standard deviations were multiplied by.
    """
    error = residuals(definition, params, held_out)
    errors = np.einsum("sp,spq,sq->", error, held_out.metric, error)
    of_element = jax.jit(definition.variances_of_element)
    of_elements = held_out.environments.items()
    total = sum(float(of_element(params[str(z)], x.features).sum()) for z, x in of_elements)
    factor = float(np.sqrt(errors / total))
    powers = {"basis": 0, "weights": 1, "prior": 2}

    def scaled(path, x):
        return np.asarray(x * factor ** powers[path[-1].key])

    scale = functools.partial(jax.tree_util.tree_map_with_path, scaled)
    return {z: {**p, "variance": scale(p["variance"])} for z, p in params.items()}, factor
