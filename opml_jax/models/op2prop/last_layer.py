r"""Standard deviations of one model's energies and forces from its last linear layer.

The energy is linear in features :math:`f`, for every element the sums over its atoms of what the
networks read, and how many atoms there are. With the rows :math:`A` of these features and their
derivatives in the training set, divided by the errors that count as one,

.. math::
    \sigma^2 = \alpha^2\, f^T (A^T A + \lambda)^{-1} f,

the posterior variance of Bayesian linear regression, and likewise for derivatives of f (prediction
rigidity: Bigi, Chong, Ceriotti, Grasselli, arXiv:2403.02251). The validation set chooses lambda, by
the likelihood of its errors, and for energies and forces each :math:`\alpha`, so that 68 % of its
errors are below sigma (or molecules for that alone do, :mod:`opml_jax.training.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg

from ...data import Dataset
from ...learn.calibration import scale_of
from ..base import EnergyModel, Params
from ..base.metrics import paired
from .atomwise import AtomwiseDefinition
from .config import AtomwiseFit
from .descriptors import Cache, Labelled
from .readout import element_sums, project
from .residual import CHUNK
from .scaling import scaled

LAMBDAS = tuple(10.0**k for k in range(-10, 3))
"""Candidates, in units of the mean of the diagonal of A^T A."""


def fit_last_layer(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    params: Params,
    sets: Mapping[str, Labelled],
    held_out: Dataset,
) -> tuple[Params, float]:
    """What a model needs for standard deviations of energies and, if learned, forces.

    ``factor`` ``(n_features, n_features)``, the number ``energy`` and, if learned, ``forces``; and
    lambda. What ``params`` of a model that training starts from have seen counts with the training
    set.
    """
    forces, train = "forces" in fit.targets, sets["train"]
    gram = gram_of(params, train, forces, fit.sigmas, np.arange(len(train)))
    if (known := params.get("last_layer")) is not None:
        root = np.linalg.pinv(known["factor"])  # of the earlier A^T A + lambda
        gram = gram + root.T @ root
    rows = feature_rows(params, sets["validation"].cache, forces)
    predicted = EnergyModel(definition, params).predict(held_out.structures)
    errors = {k: np.abs(np.subtract(*paired(k, predicted, held_out))) for k in rows}
    best, least, chosen = np.inf, LAMBDAS[0], {}
    for lam in LAMBDAS:
        factor = factor_of(gram, lam)
        spread = {k: np.linalg.norm(features @ factor, axis=1) for k, features in rows.items()}
        score = sum(_unlikely(errors[k], spread[k]) for k in rows)
        if score < best:
            scales = {k: np.asarray(scale_of(errors[k], spread[k])) for k in rows}
            best, least, chosen = score, lam, {"factor": factor, **scales}
    return chosen, least


def gram_of(
    params: Params, part: Labelled, forces: bool, sigma: Mapping[str, float], index: np.ndarray
) -> np.ndarray:
    """A^T A of the molecules at ``index``, each row divided by the error that counts as one."""
    gram = np.zeros(())
    for start in range(0, len(index), CHUNK):
        few = part.cache.subset(index[start : start + CHUNK])
        for name, features in feature_rows(params, few, forces).items():
            gram = gram + (features.T @ features) / sigma[name] ** 2
    return gram


def factor_of(gram: np.ndarray, lam: float) -> np.ndarray:
    """A matrix whose product with its transpose is (A^T A + lambda)^-1."""
    system = gram + lam * np.trace(gram) / len(gram) * np.eye(len(gram))
    return scipy.linalg.inv(scipy.linalg.cholesky(system, lower=True)).T


def feature_rows(params: Params, cache: Cache, forces: bool) -> dict[str, np.ndarray]:
    """Features of molecules, and minus their derivatives in the coordinates of real atoms."""
    s = scaled(cache, params["scaler"])
    z = np.asarray(project(params["components"], s.x, s.one_hot))
    rows = {"energy": np.asarray(element_sums(z, s.one_hot))}
    if not forces:
        return rows
    n, n_atoms = s.one_hot.shape[:2]
    dx = np.asarray(s.dx)[:, : 3 * n_atoms]
    slopes = np.einsum("nie,ndik,eko->ndeo", s.one_hot, dx, params["components"], optimize=True)
    counts = np.zeros((*slopes.shape[:3], 1))  # the numbers of atoms stay
    slopes = np.concatenate([slopes, counts], axis=-1).reshape(n, 3 * n_atoms, -1)
    real = np.repeat(s.one_hot.sum(axis=-1) > 0, 3, axis=1)
    return rows | {"forces": -slopes[real]}


def _unlikely(error: np.ndarray, spread: np.ndarray) -> float:
    """Minus the mean logarithm of the likelihood, with the scale that is best."""
    spread = np.maximum(spread, 1e-300)
    return float(np.mean(np.log(spread)) + 0.5 * np.log(np.mean((error / spread) ** 2)))
