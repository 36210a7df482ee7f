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

from ..data import Dataset
from ..models import Model, Op2Prop
from ..models.op2prop import Params, element_sums, project
from ..units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .cache import Cache
from .calibration import scale_of
from .closed_form import scaled
from .config import OptimConfig
from .residual import CHUNK

LAMBDAS = tuple(10.0**k for k in range(-10, 3))
"""Candidates, in units of the mean of the diagonal of A^T A."""


def fit_last_layer(
    definition: Op2Prop,
    params: Params,
    train: Cache,
    validation: Cache,
    held_out: Dataset,
    optim: OptimConfig,
    *,
    forces: bool,
) -> Params:
    """What :meth:`Op2Prop.readout` and ``Model.predict`` need for standard deviations.

    Args:
      definition: the model's functions.
      params: of the trained model.
      train: descriptors of the training set, with their derivatives in coordinates if forces are
        learned.
      validation: of the validation set.
      held_out: the validation set, with energies and, if learned, forces.
      optim: its sigmas weigh energies against forces.
      forces: whether they are learned.

    Returns:
      ``factor`` ``(n_features, n_features)``, the number ``energy`` and, if learned, ``forces``.
    """
    sigma = {
        "energy": optim.energy_sigma / EV_PER_HARTREE,
        "forces": optim.force_sigma / EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    }
    gram = np.zeros(())
    for start in range(0, len(train), CHUNK):
        part = train.subset(range(start, min(start + CHUNK, len(train))))
        rows = _rows(params, part, forces)
        for name, own in rows.items():
            gram = gram + (own.T @ own) / sigma[name] ** 2
    errors = _errors(definition, params, held_out, forces)
    seen = _rows(params, validation, forces)
    mean = np.trace(gram) / len(gram)
    best, chosen = np.inf, {}
    for lam in LAMBDAS:
        system = gram + lam * mean * np.eye(len(gram))
        factor = scipy.linalg.inv(scipy.linalg.cholesky(system, lower=True)).T
        spread = {name: np.linalg.norm(own @ factor, axis=1) for name, own in seen.items()}
        score = sum(_unlikely(errors[name], spread[name]) for name in seen)
        if score < best:
            best, chosen = score, {"factor": factor, **_calibration(errors, spread)}
    return chosen


def _rows(params: Params, cache: Cache, forces: bool) -> dict[str, np.ndarray]:
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


def _errors(
    definition: Op2Prop, params: Params, held_out: Dataset, forces: bool
) -> dict[str, np.ndarray]:
    """Absolute errors of the model, in the order of :func:`_rows`."""
    found = Model(definition, params).predict(held_out.structures)
    out = {"energy": np.abs(found["energy"] - np.array(held_out["energy"]))}
    if forces:
        parts = zip(found["forces"], held_out["forces"], strict=True)
        out["forces"] = np.concatenate([np.abs(a[: len(b)] - b).ravel() for a, b in parts])
    return out


def _unlikely(error: np.ndarray, spread: np.ndarray) -> float:
    """Minus the mean logarithm of the likelihood, with the scale that is best."""
    spread = np.maximum(spread, 1e-300)
    return float(np.mean(np.log(spread)) + 0.5 * np.log(np.mean((error / spread) ** 2)))


def _calibration(errors: Mapping[str, np.ndarray], spread: Mapping[str, np.ndarray]) -> Params:
    return {name: np.asarray(scale_of(errors[name], own)) for name, own in spread.items()}
