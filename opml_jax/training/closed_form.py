"""The closed-form part of Op2Prop: scaling, composition offsets, ridge for energy and dipole."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..errors import OpmlError, refusal
from ..models import Op2Prop
from ..models.linear import Ridge, composition_offsets, ridge_leave_one_out, ridge_validated
from ..models.op2prop import Params, kernel_features
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
    dx = cache.dx
    if dx is not None:
        dx = dx * (inverse * mask[..., None])[:, None].astype(dx.dtype)
    return dataclasses.replace(cache, x=x, dx=dx)


def _energy_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n, n_used)``: for each element the sum of its atoms' standardised invariants."""
    rows = np.einsum("nie,nik->nek", cache.one_hot, cache.x, optimize=True)
    return rows.reshape(len(rows), -1)[:, used]


def _force_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n * 3 n_atoms, n_used)``: minus the derivative of :func:`_energy_rows`."""
    rows = -np.einsum("nie,ndik->ndek", cache.one_hot, cache.dx, optimize=True)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:, used].astype(np.float64)


def farthest_points(y: np.ndarray, m: int) -> np.ndarray:
    """Indices of up to ``m`` rows, each the farthest from those before; repeats are left out."""
    chosen = [int(np.argmin(((y - y.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = ((y - y[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(m, len(y)) and distance.max() > 1e-12:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((y - y[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def fit_references(cache: Cache, m: int, k: int = 150, length: float = 4.0) -> Params:
    """Coordinates of the kernel and its reference atoms, ``m`` of each element.

    Coordinates are principal components scaled by eigenvalue^(-1/8), which lifts the small ones a
    little, in units of ``length`` times their root mean square spread.
    """
    components, references = [], []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        s, vt = _principal(rows, k)
        scale = np.where(s > 0, np.where(s > 0, s, 1.0) ** -0.25, 0.0)
        spread = np.sqrt(np.sum((scale * s) ** 2)) * length
        c = np.zeros((rows.shape[1], k))
        c[:, : len(s)] = vt.T * (scale / max(spread, 1e-12))
        y = rows @ c
        chosen = farthest_points(y, m)
        own = np.full((m, k), 1e3)  # absent references are far from everything: their Gaussian is 0
        own[: len(chosen)] = y[chosen]
        components.append(c)
        references.append(own)
    return {"components": np.array(components), "references": np.array(references)}


class _KernelColumns:
    """Columns of the ridge for the kernel part, whitened so that one penalty fits all."""

    def __init__(self, kernel: Params):
        self.kernel = kernel
        self.whiten = []
        for references in kernel["references"]:
            real = references[:, 0] < 1e2
            own = references[real]
            gram = np.exp(-0.5 * ((own[:, None] - own[None]) ** 2).sum(axis=-1))
            values, u = np.linalg.eigh(gram)
            kept = values > 1e-10 * values[-1]
            full = np.zeros((len(references), kept.sum()))
            full[real] = u[:, kept] / np.sqrt(values[kept])
            self.whiten.append(full)

    def energy(self, cache: Cache) -> np.ndarray:
        found = kernel_features(self.kernel, jnp.asarray(cache.x), jnp.asarray(cache.one_hot))
        found = np.asarray(found)
        return np.concatenate([found[:, e] @ w for e, w in enumerate(self.whiten)], axis=1)

    def forces(self, cache: Cache) -> np.ndarray:
        """Minus derivatives: each Gaussian times (y_m - y_i) . dy_i, summed over atoms."""
        n, d = cache.dx.shape[:2]
        columns = []
        for e, w in enumerate(self.whiten):
            c, references = self.kernel["components"][e], self.kernel["references"][e]
            total = np.zeros((n, d, w.shape[1]))
            for i in range(cache.x.shape[1]):
                rows = np.flatnonzero(cache.one_hot[:, i, e] > 0)
                if not len(rows):
                    continue
                y, dy = cache.x[rows, i] @ c, cache.dx[rows, :, i] @ c
                value = np.exp(
                    y @ references.T - 0.5 * ((y**2).sum(-1)[:, None] + (references**2).sum(-1))
                )
                slope = dy @ references.T - np.einsum("ndk,nk->nd", dy, y)[..., None]
                total[rows] -= (slope * value[:, None]) @ w
            columns.append(total)
        return np.concatenate(columns, axis=-1).reshape(n * d, -1)

    def weights(self, solution: np.ndarray) -> np.ndarray:
        """``(n_elements, m)`` from the whitened solution."""
        cuts = np.cumsum([w.shape[1] for w in self.whiten])[:-1]
        parts = np.split(solution, cuts)
        return np.array([w @ part for w, part in zip(self.whiten, parts, strict=True)])


def fit_energy(
    train: Cache,
    validation: Cache,
    labels,
    held_out,
    sigma_energy: float,
    sigma_force: float,
    tolerance: float,
    kernel: Params | None = None,
) -> tuple[Params, Params | None, Ridge]:
    """Offsets by composition, then one ridge on energies and forces together.

    Args:
      train: standardised training cache.
      validation: standardised validation cache; chooses lambda.
      labels: ``energy`` (n,) and, if forces are a target, ``forces`` padded (n, n_atoms, 3).
      held_out: the same for validation.
      sigma_energy: Hartree; energies enter divided by it.
      sigma_force: Hartree/Bohr; forces enter divided by it.
      tolerance: precision of the labels in these units.
      kernel: from :func:`fit_references`; its weights are solved together with the linear ones.

    Returns:
      Linear parameters, those of the kernel (or None), and the ridge.
    """
    n_elements, n_columns = train.one_hot.shape[-1], train.x.shape[-1]
    offsets = composition_offsets(train.one_hot.sum(axis=1), labels["energy"])
    used = np.flatnonzero(
        (np.einsum("nie,nik->ek", train.one_hot, train.x**2, optimize=True) > 0).ravel()
    )
    columns = None if kernel is None else _KernelColumns(kernel)
    # as a prior, the kernel may contribute as much as all linear columns together
    share = np.sqrt(len(used))

    def rows(cache: Cache, own, index):
        part = cache.subset(index)
        baseline = part.one_hot.sum(axis=1) @ offsets
        a = [_energy_rows(part, used) / sigma_energy]
        y = [(own["energy"][index] - baseline) / sigma_energy]
        if columns is not None:
            a = [np.hstack([a[0], columns.energy(part) * (share / sigma_energy)])]
        if "forces" in own:
            force = _force_rows(part, used) / sigma_force
            if columns is not None:
                force = np.hstack([force, columns.forces(part) * (share / sigma_force)])
            a.append(force)
            y.append(own["forces"][index].reshape(-1) / sigma_force)
        return np.concatenate(a), np.concatenate(y)

    # a few times more rows than columns at a time: QR then costs little more than it must
    n_used = len(used) + (0 if columns is None else sum(w.shape[1] for w in columns.whiten))
    rows_each = 1 + (train.dx.shape[1] if "forces" in labels else 0)
    chunk = max(CHUNK, 3 * n_used // rows_each)
    chunks = (
        rows(train, labels, np.arange(i, min(i + chunk, len(train))))
        for i in range(0, len(train), chunk)
    )
    held_out_rows = rows(validation, held_out, np.arange(len(validation)))
    fit = ridge_validated(chunks, held_out_rows, tolerance=tolerance)
    weights = np.zeros(n_elements * n_columns)
    weights[used] = fit.weights[: len(used)]
    linear = {"offsets": offsets, "weights": weights.reshape(n_elements, n_columns)}
    if columns is None:
        return linear, None, fit
    solved = {**kernel, "weights": share * columns.weights(fit.weights[len(used) :])}
    return linear, solved, fit


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


def _principal(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (0 for noise) and directions of the first ``k`` principal components."""
    # from the covariance: its directions are accurate down to 1e-7 of the largest deviation
    values, u = np.linalg.eigh(rows.T @ rows / len(rows))
    values, u = values[::-1][:k], u[:, ::-1][:, :k]
    return np.sqrt(np.where(values > 1e-14 * values[0], values, 0.0)), u.T


def fit_components(cache: Cache, k: int) -> np.ndarray:
    """Half-whitened principal components of each element's invariants, unit mean variance.

    ``(n_elements, n_invariants, k)``; an eigenvalue e is scaled to sqrt(e). Full whitening would
    blow up the noise of the last components.
    """
    out = []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        s, vt = _principal(rows, k)
        keep = s > 0
        scale = np.where(keep, np.where(keep, s, 1.0) ** -0.5, 0.0)
        scale = scale / np.sqrt(np.mean((scale * s)[keep] ** 2)) if keep.any() else scale
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
    m = definition.config.references
    kernel = fit_references(train, m) if m else None
    linear, kernel, energy = fit_energy(
        train,
        validation,
        labels,
        held_out,
        optim.energy_sigma / EV_PER_HARTREE,
        sigma,
        optim.force_precision / optim.force_sigma,
        kernel,
    )
    params: Params = {
        "scaler": scaler,
        "linear": linear,
        "components": fit_components(train, definition.config.components),
    }
    if kernel is not None:
        params["kernel"] = kernel
    dipole = None
    if "dipole" in labels:
        params["dipole"], dipole = fit_dipole(
            train,
            labels["dipole"],
            definition.config.vectors,
            optim.dipole_precision / DEBYE_PER_EBOHR,
        )
    return ClosedForm(params, energy, dipole)
