"""The closed-form part of Op2Prop: scaling, composition offsets, ridge for energy and dipole."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import OpmlError, refusal
from ..models import Op2Prop
from ..models.linear import Ridge, composition_offsets, ridge_leave_one_out, ridge_validated
from ..models.op2prop import Params
from ..units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .cache import Cache
from .config import OptimConfig

CONSTANT = 1e-9
"""Invariants whose standard deviation is below this fraction of their mean are constant."""

MAX_NOISE = 1e-8
"""Invariants whose rounding exceeds this fraction of their standard deviation are dropped."""

CHUNK = 64


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Parameters of the closed form, and the ridge fits behind them."""

    params: Params
    energy: Ridge
    dipole: Ridge | None


def fit_scaler(cache: Cache, noise: np.ndarray) -> Params:
    """Mean and inverse standard deviation of the invariants over all atoms of each element.

    Constant and noisy columns get an inverse of zero and vanish from everything that follows.

    Args:
      cache: training cache.
      noise: ``(n_elements, n_invariants)`` from :func:`~opml_jax.training.cache.rounding_noise`.

    Raises:
      OpmlError: an element of the basis without atoms.
    """
    means, inverses = [], []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        if not len(rows):
            raise OpmlError(
                refusal(
                    "training set",
                    got=f"no atom of element number {e}",
                    expected="every element of the basis",
                )
            )
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        varies = (std > CONSTANT * np.maximum(np.abs(mean), 1e-12)) & (std * MAX_NOISE > noise[e])
        means.append(mean)
        inverses.append(np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0))
    return {"mean": np.array(means), "inverse_std": np.array(inverses)}


def scaled(cache: Cache, scaler: Params) -> Cache:
    """The cache with standardised invariants, zero for padding."""
    mask = cache.one_hot.sum(axis=-1)
    mean, inverse = cache.one_hot @ scaler["mean"], cache.one_hot @ scaler["inverse_std"]
    x = (cache.x - mean) * inverse * mask[..., None]
    dx = None if cache.dx is None else cache.dx * (inverse * mask[..., None])[:, None]
    return dataclasses.replace(cache, x=x, dx=dx)


def _energy_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n, n_used)``: for each element the sum of its atoms' standardised invariants."""
    rows = np.einsum("nie,nik->nek", cache.one_hot, cache.x, optimize=True)
    return rows.reshape(len(rows), -1)[:, used]


def _force_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n * 3 n_atoms, n_used)``: minus the derivative of :func:`_energy_rows`."""
    rows = -np.einsum("nie,ndik->ndek", cache.one_hot, cache.dx, optimize=True)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:, used]


def fit_energy(
    train: Cache,
    validation: Cache,
    labels,
    held_out,
    sigma_energy: float,
    sigma_force: float,
    tolerance: float,
) -> tuple[Params, Ridge]:
    """Offsets by composition, then one ridge on energies and forces together.

    Args:
      train: standardised training cache.
      validation: standardised validation cache; chooses lambda.
      labels: ``energy`` (n,) and, if forces are a target, ``forces`` padded (n, n_atoms, 3).
      held_out: the same for validation.
      sigma_energy: Hartree; energies enter divided by it.
      sigma_force: Hartree/Bohr; forces enter divided by it.
      tolerance: precision of the labels in these units.
    """
    n_elements, n_columns = train.one_hot.shape[-1], train.x.shape[-1]
    offsets = composition_offsets(train.one_hot.sum(axis=1), labels["energy"])
    used = np.flatnonzero(
        (np.einsum("nie,nik->ek", train.one_hot, train.x**2, optimize=True) > 0).ravel()
    )

    def rows(cache: Cache, own, index):
        part = cache.subset(index)
        baseline = part.one_hot.sum(axis=1) @ offsets
        a = [_energy_rows(part, used) / sigma_energy]
        y = [(own["energy"][index] - baseline) / sigma_energy]
        if "forces" in own:
            a.append(_force_rows(part, used) / sigma_force)
            y.append(own["forces"][index].reshape(-1) / sigma_force)
        return np.concatenate(a), np.concatenate(y)

    chunks = (
        rows(train, labels, np.arange(i, min(i + CHUNK, len(train))))
        for i in range(0, len(train), CHUNK)
    )
    held_out_rows = rows(validation, held_out, np.arange(len(validation)))
    fit = ridge_validated(chunks, held_out_rows, tolerance=tolerance)
    weights = np.zeros(n_elements * n_columns)
    weights[used] = fit.weights
    return {"offsets": offsets, "weights": weights.reshape(n_elements, n_columns)}, fit


def fit_dipole(
    cache: Cache, dipole: np.ndarray, n_mixed: int, tolerance: float
) -> tuple[Params, Ridge]:
    """Ridge on the 1o irreps, lambda by leave-one-out; and principal vectors for the gates.

    Args:
      cache: training cache.
      dipole: ``(n, 3)`` e Bohr.
      n_mixed: how many principal vectors to keep per element.
      tolerance: precision of the labels, e Bohr.
    """
    n_elements, n_vectors = cache.one_hot.shape[-1], cache.v.shape[2]
    square = np.einsum("nie,nicx->ec", cache.one_hot, cache.v**2, optimize=True)
    rms = np.sqrt(square / (3 * cache.one_hot.sum(axis=(0, 1)))[:, None])
    used = rms > 1e-9 * rms.max(axis=1, keepdims=True)
    inverse = np.where(used, 1.0 / np.where(used, rms, 1.0), 0.0)
    rows = np.einsum("nie,nicx->nxec", cache.one_hot, cache.v, optimize=True) * inverse
    flat = rows.reshape(len(rows) * 3, -1)[:, used.ravel()]
    fit = ridge_leave_one_out(flat, dipole.reshape(-1), tolerance=tolerance)
    weights = np.zeros(n_elements * n_vectors)
    weights[used.ravel()] = fit.weights
    mixing = []
    for e in range(n_elements):
        own = cache.v[cache.one_hot[..., e] > 0] * inverse[e][:, None]
        values, u = np.linalg.eigh(np.einsum("acx,adx->cd", own, own) / (3 * len(own)))
        top = u[:, ::-1][:, :n_mixed] / np.sqrt(np.maximum(values[::-1][:n_mixed], 1e-12))
        top = np.where(values[::-1][:n_mixed] > 1e-10 * values[-1], top, 0.0)
        padded = np.zeros((n_vectors, n_mixed))
        padded[:, : top.shape[1]] = top * inverse[e][:, None]
        mixing.append(padded)
    params = {
        "weights": weights.reshape(n_elements, n_vectors) * inverse,
        "mixing": np.array(mixing),
    }
    return params, fit


def fit_components(cache: Cache, k: int) -> np.ndarray:
    """Half-whitened principal components of each element's invariants, unit mean variance.

    ``(n_elements, n_invariants, k)``; an eigenvalue e is scaled to sqrt(e). Full whitening would
    blow up the noise of the last components.
    """
    out = []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        _, s, vt = np.linalg.svd(rows, full_matrices=False)
        s, vt = s[:k] / len(rows) ** 0.5, vt[:k]
        keep = s > 1e-10 * s[0]
        scale = np.where(keep, np.where(keep, s, 1.0) ** -0.5, 0.0)
        scale = scale / np.sqrt(np.mean((scale * s)[keep] ** 2))
        padded = np.zeros((rows.shape[1], k))
        padded[:, : len(s)] = vt.T * scale
        out.append(padded)
    return np.array(out)


def fit_closed_form(
    definition: Op2Prop,
    train: Cache,
    validation: Cache,
    labels,
    held_out,
    optim: OptimConfig,
    noise: np.ndarray,
) -> ClosedForm:
    """All closed-form parameters of the model (see :class:`~opml_jax.models.Op2Prop`)."""
    scaler = fit_scaler(train, noise)
    train, validation = scaled(train, scaler), scaled(validation, scaler)
    sigma = optim.force_sigma / EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    linear, energy = fit_energy(
        train,
        validation,
        labels,
        held_out,
        optim.energy_sigma / EV_PER_HARTREE,
        sigma,
        optim.force_precision / optim.force_sigma,
    )
    params: Params = {
        "scaler": scaler,
        "linear": linear,
        "components": fit_components(train, definition.config.components),
    }
    dipole = None
    if "dipole" in labels:
        params["dipole"], dipole = fit_dipole(
            train,
            labels["dipole"],
            definition.config.vectors,
            optim.dipole_precision / DEBYE_PER_EBOHR,
        )
    return ClosedForm(params, energy, dipole)
