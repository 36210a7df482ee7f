"""The closed-form part of Op2Prop: scaling, composition offsets, ridge for energy and tensors."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..conventions import CARTESIAN_TO_E3NN, cartesian_to_e3nn, matrix_to_e3nn
from ..errors import OpmlError, refusal
from ..models import Op2Prop
from ..models.linear import Ridge, composition_offsets, ridge_leave_one_out, ridge_validated
from ..models.op2prop import HEADS, Params
from ..units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .cache import Cache
from .config import OptimConfig
from .rows import Selected

CONSTANT = 1e-9
"""Invariants whose standard deviation is below this fraction of their mean are constant."""

MAX_NOISE = 1e-8
"""Invariants whose rounding exceeds this fraction of their standard deviation are dropped."""

FLOOR = 0.1
"""Least standard deviation of an element's invariant, in units of the largest of any element.

What hardly varies in the training set for one element (neighbours of a kind it never had there)
may vary a lot elsewhere, and would then be magnified millions of times.
"""

LENGTH, KERNEL_COMPONENTS = 1.5, 200
"""Of the kernel: its length in units of the spread of an element's atoms, and how many of their
principal components it compares."""

CHUNK = 64

SLOPES = ("forces", "field_dipole")
"""Minus derivatives of the energy that may be learned, in the order of their rows in a cache."""

TENSORS = {"dipole": 1, "quadrupole": 2, "polarizability": 2}
"""Targets that read irreps, and the L of these."""


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Parameters of the closed form, and the ridge fits behind them."""

    params: Params
    energy: Ridge
    heads: dict[str, Ridge]


def fit_scaler(cache: Cache, noise: np.ndarray) -> Params:
    """Mean and inverse standard deviation of the invariants over all atoms of each element.

    Constant and noisy columns get an inverse of zero and vanish from everything that follows.

    Args:
      cache: training cache.
      noise: ``(n_elements, n_invariants)`` from :func:`~opml_jax.training.cache.rounding_noise`.

    Raises:
      OpmlError: an element of the basis without atoms.
    """
    means, spreads, kept = [], [], []
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
        means.append(mean)
        spreads.append(std)
        kept.append(
            (std > CONSTANT * np.maximum(np.abs(mean), 1e-12)) & (std * MAX_NOISE > noise[e])
        )
    std = np.maximum(spreads, FLOOR * np.max(spreads, axis=0))
    inverses = np.where(kept, 1.0 / np.where(kept, std, 1.0), 0.0)
    return {"mean": np.array(means), "inverse_std": inverses}


def scaled(cache: Cache, scaler: Params) -> Cache:
    """The cache with standardised invariants, zero for padding."""
    mean, inverse = cache.one_hot @ scaler["mean"], cache.one_hot @ scaler["inverse_std"]
    dx = None if cache.dx is None else Selected(cache.dx, factor=inverse[:, None])
    return dataclasses.replace(cache, x=(cache.x - mean) * inverse, dx=dx)


def _energy_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n, n_used)``: for each element the sum of its atoms' standardised invariants."""
    rows = np.einsum("nie,nik->nek", cache.one_hot, cache.x, optimize=True)
    return rows.reshape(len(rows), -1)[:, used]


def _slope_rows(cache: Cache, used: np.ndarray) -> np.ndarray:
    """``(n * n_slopes, n_used)``: minus the derivatives of :func:`_energy_rows`."""
    rows = -np.einsum("nie,ndik->ndek", cache.one_hot, np.asarray(cache.dx), optimize=True)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:, used].astype(np.float64)


def farthest_points(y: np.ndarray, m: int) -> np.ndarray:
    """Indices of up to ``m`` rows, each the farthest from those before; repeats are left out."""
    square = (y**2).sum(axis=1)

    def distance_to(i):
        return square + square[i] - 2 * (y @ y[i])

    chosen = [int(np.argmin(((y - y.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = distance_to(chosen[0])
    while len(chosen) < min(m, len(y)) and distance.max() > 1e-12:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, distance_to(chosen[-1]))
    return np.array(chosen)


def fit_references(cache: Cache, m: int) -> Params:
    """Coordinates of the kernel and its reference atoms, ``m`` of each element.

    Coordinates are principal components of the standardised (and by the prior weighted)
    invariants, in units of :data:`LENGTH` times their root mean square distance from the mean.
    """
    components, references = [], []
    for e in range(cache.one_hot.shape[-1]):
        rows = cache.x[cache.one_hot[..., e] > 0]
        s, vt = _principal(rows, KERNEL_COMPONENTS)
        spread = np.sqrt(np.sum(s**2)) * LENGTH
        c = np.zeros((rows.shape[1], KERNEL_COMPONENTS))
        c[:, : len(s)] = vt.T * (s > 0) / max(spread, 1e-12)
        y = rows @ c
        chosen = farthest_points(y, m)
        own = np.full((m, KERNEL_COMPONENTS), 1e3)  # absent ones are far: their Gaussian is 0
        own[: len(chosen)] = y[chosen]
        components.append(c)
        references.append(own)
    return {"components": np.array(components), "references": np.array(references)}


class _KernelColumns:
    """Columns of the ridge for the kernel part, whitened so that one penalty fits all.

    A Gaussian of amplitude t^2 in coordinates x / t is x . x' to first order, the kernel of the
    linear columns, whose penalty is then the right one for both.
    """

    def __init__(self, kernel: Params):
        self.kernel = kernel
        self.whiten = []
        for c, references in zip(kernel["components"], kernel["references"], strict=True):
            amplitude = 1.0 / max(np.linalg.norm(c, axis=0).max(), 1e-12)
            real = references[:, 0] < 1e2
            values, u = np.linalg.eigh(_gaussians(references[real], references[real]))
            kept = values > 1e-10 * values[-1]
            full = np.zeros((len(references), kept.sum()))
            full[real] = amplitude * u[:, kept] / np.sqrt(values[kept])
            self.whiten.append(full)

    def _sums(self, cache: Cache, shape: tuple[int, ...], of_atoms) -> np.ndarray:
        """Sums over atoms of each element of columns ``of_atoms(e, rows, i)`` for atoms i."""
        columns = []
        for e, w in enumerate(self.whiten):
            total = np.zeros((len(cache), *shape, len(w)))
            for i in range(cache.x.shape[1]):
                rows = np.flatnonzero(cache.one_hot[:, i, e] > 0)
                if len(rows):
                    total[rows] += of_atoms(e, rows, i)
            columns.append(total @ w)
        return np.concatenate(columns, axis=-1)

    def energy(self, cache: Cache) -> np.ndarray:
        """``(n, n_columns)``."""

        def of_atoms(e, rows, i):
            y = cache.x[rows, i] @ self.kernel["components"][e]
            return _gaussians(y, self.kernel["references"][e])

        return self._sums(cache, (), of_atoms)

    def slopes(self, cache: Cache) -> np.ndarray:
        """Minus derivatives: each Gaussian times (y_i - y_m) . dy_i, summed over atoms."""
        dx = np.asarray(cache.dx)

        def of_atoms(e, rows, i):
            c, references = self.kernel["components"][e], self.kernel["references"][e]
            y, dy = cache.x[rows, i] @ c, dx[rows, :, i] @ c
            slope = np.einsum("ndk,nk->nd", dy, y)[..., None] - dy @ references.T
            return slope * _gaussians(y, references)[:, None]

        found = self._sums(cache, dx.shape[1:2], of_atoms)
        return found.reshape(-1, found.shape[-1])

    def weights(self, solution: np.ndarray) -> np.ndarray:
        """``(n_elements, m)`` from the whitened solution."""
        cuts = np.cumsum([w.shape[1] for w in self.whiten])[:-1]
        parts = np.split(solution, cuts)
        return np.array([w @ part for w, part in zip(self.whiten, parts, strict=True)])


def _gaussians(y: np.ndarray, references: np.ndarray) -> np.ndarray:
    """``(n, m)`` Gaussians of the distances between rows."""
    y2, m2 = (y**2).sum(axis=-1), (references**2).sum(axis=-1)
    return np.exp(np.minimum(y @ references.T - 0.5 * (y2[:, None] + m2), 0.0))


def fit_energy(
    train: Cache,
    validation: Cache,
    labels,
    held_out,
    sigma: dict[str, float],
    tolerance: float,
    kernel: Params | None = None,
    refit: bool = False,
) -> tuple[Params, Params | None, Params | None, Ridge]:
    """Offsets by composition, then one ridge on energies and their derivatives together.

    Args:
      train: standardised training cache.
      validation: standardised validation cache; chooses lambda.
      labels: ``energy`` (n,) and what of its derivatives is learned: ``forces``, padded
        (n, n_atoms, 3), and ``field_dipole`` (n, 3), minus the derivative in the field.
      held_out: the same for validation.
      sigma: for each of them the number, in atomic units, by which labels are divided; and
        ``consistency``, if not 0, by which the difference of two dipoles is: minus the derivative
        of the energy in the field, and that of the 1o irreps, whose weights are solved together.
      tolerance: precision of the labels in these units.
      kernel: from :func:`fit_references`; its weights are solved together with the linear ones.
      refit: whether validation, once it has chosen lambda, joins the training set.

    Returns:
      Linear parameters, those of the kernel (or None), of the dipole (or None), and the ridge.
    """
    n_elements, n_columns = train.one_hot.shape[-1], train.x.shape[-1]
    offsets = composition_offsets(train.one_hot.sum(axis=1), labels["energy"])
    used = np.flatnonzero(
        (np.einsum("nie,nik->ek", train.one_hot, train.x**2, optimize=True) > 0).ravel()
    )
    columns = None if kernel is None else _KernelColumns(kernel)
    slopes = [k for k in SLOPES if k in labels]
    scale = irreps_scale(train, 1) if sigma.get("consistency") else None
    n_head = 0 if scale is None else int(np.count_nonzero(scale))

    def rows(cache: Cache, own, index):
        part = cache.subset(index)
        baseline = part.one_hot.sum(axis=1) @ offsets
        a = [_energy_rows(part, used) / sigma["energy"]]
        y = [(own["energy"][index] - baseline) / sigma["energy"]]
        if columns is not None:
            a = [np.hstack([a[0], columns.energy(part) / sigma["energy"]])]
        if slopes:
            flat = {k: own[k][index].reshape(len(index), -1) / sigma[k] for k in slopes}
            each = np.concatenate([np.full(v.shape, 1 / sigma[k]) for k, v in flat.items()], axis=1)
            slope = _slope_rows(part, used)
            if columns is not None:
                slope = np.hstack([slope, columns.slopes(part)])
            a.append(slope * each.reshape(-1, 1))
            y.append(np.concatenate([*flat.values()], axis=1).ravel())
        if scale is not None:
            in_field = slope.reshape(len(index), -1, slope.shape[1])[:, -3:][:, CARTESIAN_TO_E3NN]
            in_field = in_field.reshape(-1, slope.shape[1])
            a = [np.pad(block, ((0, 0), (0, n_head))) for block in a]
            both = np.hstack([in_field, -_irreps_rows(part, 1, scale)])
            a.append(both / sigma["consistency"])
            y.append(np.zeros(len(both)))
        return np.concatenate(a), np.concatenate(y)

    # a few times more rows than columns at a time: QR then costs little more than it must
    n_kernel = 0 if columns is None else sum(w.shape[1] for w in columns.whiten)
    n_used = len(used) + n_kernel + n_head
    rows_each = 1 + (train.dx.shape[1] if slopes and train.dx is not None else 0)
    chunk = max(CHUNK, 3 * n_used // rows_each)
    chunks = (
        rows(train, labels, np.arange(i, min(i + chunk, len(train))))
        for i in range(0, len(train), chunk)
    )
    held_out_rows = rows(validation, held_out, np.arange(len(validation)))
    fit = ridge_validated(chunks, held_out_rows, tolerance=tolerance, refit=refit)
    weights = np.zeros(n_elements * n_columns)
    weights[used] = fit.weights[: len(used)]
    linear = {"offsets": offsets, "weights": weights.reshape(n_elements, n_columns)}
    _, of_kernel, of_head = np.split(fit.weights, [len(used), len(used) + n_kernel])
    solved = None
    if kernel is not None and columns is not None:
        solved = {**kernel, "weights": columns.weights(of_kernel)}
    dipole = None if scale is None else {"weights": _irreps_weights(of_head, scale)}
    return linear, solved, dipole, fit


def head_labels(labels) -> dict[str, np.ndarray]:
    """Irreps of the labels, by head (:data:`~opml_jax.models.op2prop.HEADS`)."""
    out = {}
    if "dipole" in labels:
        out["dipole"] = cartesian_to_e3nn(labels["dipole"])
    if "quadrupole" in labels:
        out["quadrupole"] = matrix_to_e3nn(labels["quadrupole"])
    if "isotropic_polarizability" in labels:
        out["isotropic_polarizability"] = labels["isotropic_polarizability"]
    if "polarizability" in labels:
        tensor = labels["polarizability"]
        out["isotropic_polarizability"] = np.trace(tensor, axis1=-2, axis2=-1) / 3
        out["anisotropic_polarizability"] = matrix_to_e3nn(tensor)
    return out


def fit_scalar(cache: Cache, labels: np.ndarray, tolerance: float = 0.0) -> tuple[Params, Ridge]:
    """Offsets by composition, then ridge on the invariants, lambda by leave-one-out.

    Args:
      cache: standardised training cache.
      labels: ``(n,)``.
      tolerance: precision of the labels.

    Returns:
      ``offsets`` ``(n_elements,)`` and ``weights`` ``(n_elements, n_invariants)``, and the ridge.
    """
    counts, shape = cache.one_hot.sum(axis=1), (cache.one_hot.shape[-1], cache.x.shape[-1])
    offsets, weights = composition_offsets(counts, labels), np.zeros(shape)
    used = np.einsum("nie,nik->ek", cache.one_hot, cache.x**2, optimize=True) > 0
    rows = _energy_rows(cache, np.flatnonzero(used))
    fit = ridge_leave_one_out(rows, labels - counts @ offsets, tolerance=tolerance)
    weights[used] = fit.weights
    return {"offsets": offsets, "weights": weights}, fit


def irreps_scale(cache: Cache, l: int) -> np.ndarray:
    """``(n_elements, n_irreps)`` inverse root mean squares of irreps of L, 0 for absent ones."""
    square = np.einsum("nie,nicm->ec", cache.one_hot, cache.v[l] ** 2, optimize=True)
    rms = np.sqrt(square / ((2 * l + 1) * cache.one_hot.sum(axis=(0, 1)))[:, None])
    used = rms > 1e-9 * rms.max(axis=1, keepdims=True)
    return np.where(used, 1.0 / np.where(used, rms, 1.0), 0.0)


def _irreps_rows(cache: Cache, l: int, scale: np.ndarray) -> np.ndarray:
    """``(n * (2 L + 1), n_used)``: for each element the sum of its atoms' scaled irreps."""
    rows = np.einsum("nie,nicm->nmec", cache.one_hot, cache.v[l], optimize=True) * scale
    return rows.reshape(len(cache) * (2 * l + 1), -1)[:, scale.ravel() > 0]


def _irreps_weights(solution: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights ``(n_elements, n_irreps)`` of irreps as they are, from those of scaled ones."""
    weights = np.zeros(scale.shape)
    weights[scale > 0] = solution
    return weights * scale


def fit_irreps(cache: Cache, labels: np.ndarray, tolerance: float = 0.0) -> tuple[Params, Ridge]:
    """Ridge on the irreps of one L, lambda by leave-one-out.

    Args:
      cache: training cache with these irreps.
      labels: ``(n, 2 L + 1)``.
      tolerance: precision of the labels.

    Returns:
      ``weights`` ``(n_elements, n_irreps)``, and the ridge.
    """
    l = labels.shape[-1] // 2
    scale = irreps_scale(cache, l)
    rows = _irreps_rows(cache, l, scale)
    fit = ridge_leave_one_out(rows, labels.reshape(-1), tolerance=tolerance)
    return {"weights": _irreps_weights(fit.weights, scale)}, fit


def fit_mixing(cache: Cache, n_mixed: int) -> np.ndarray:
    """``(n_elements, n_irreps, n_mixed)``: principal 1o irreps of each element, for the gates."""
    mixing, scale = [], irreps_scale(cache, 1)
    for e, inverse in enumerate(scale):
        own = cache.v[1][cache.one_hot[..., e] > 0] * inverse[:, None]
        values, u = np.linalg.eigh(np.einsum("acm,adm->cd", own, own) / (3 * len(own)))
        top = u[:, ::-1][:, :n_mixed] / np.sqrt(np.maximum(values[::-1][:n_mixed], 1e-12))
        top = np.where(values[::-1][:n_mixed] > 1e-10 * values[-1], top, 0.0)
        padded = np.zeros((len(inverse), n_mixed))
        padded[:, : top.shape[1]] = top * inverse[:, None]
        mixing.append(padded)
    return np.array(mixing)


def _principal(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (0 for noise) and directions of the first ``k`` principal components."""
    # from the covariance: its directions are accurate down to 1e-7 of the largest deviation
    values, u = np.linalg.eigh(rows.T @ rows / len(rows))
    values, u = values[::-1][:k], u[:, ::-1][:, :k]
    # signs are LAPACK's choice, and would give networks other inputs on another machine
    size = np.abs(u)
    first = np.argmax(size > (1 - 1e-6) * size.max(axis=0), axis=0)
    u = u * np.sign(np.take_along_axis(u, first[None], axis=0))
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
    drawn: Params | None = None,
) -> ClosedForm:
    """All closed-form parameters of the model (see :class:`~opml_jax.models.Op2Prop`).

    Those that the caches were made with (``drawn``, from :meth:`Op2Prop.draw`) are handed on.
    """
    scaler = fit_scaler(train, noise)
    scaler["inverse_std"] = scaler["inverse_std"] * definition.prior
    train, validation = scaled(train, scaler), scaled(validation, scaler)
    sigma = {
        "energy": optim.energy_sigma / EV_PER_HARTREE,
        "forces": optim.force_sigma / EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
        "field_dipole": optim.field_dipole_sigma / DEBYE_PER_EBOHR,
        "consistency": optim.consistency_sigma / DEBYE_PER_EBOHR,
    }
    m = definition.config.references
    kernel = fit_references(train, m) if m else None
    linear, kernel, dipole, energy = fit_energy(
        train,
        validation,
        labels,
        held_out,
        sigma,
        optim.force_precision / optim.force_sigma,
        kernel,
        # networks and standard deviations need molecules that the closed form has not seen
        refit=not (optim.epochs or definition.config.last_layer),
    )
    params: Params = {
        **(drawn or {}),
        "scaler": scaler,
        "linear": linear,
        "components": fit_components(train, definition.config.components),
    }
    if kernel is not None:
        params["kernel"] = kernel
    ridges = {}
    for name, own in head_labels(labels).items():
        tolerance = optim.dipole_precision / DEBYE_PER_EBOHR if name == "dipole" else 0.0
        if name == "dipole" and dipole is not None:
            params[name], ridges[name] = dipole, energy
        elif HEADS[name]:
            params[name], ridges[name] = fit_irreps(train, own, tolerance)
        else:
            params[name], ridges[name] = fit_scalar(train, own, tolerance)
    if "dipole" in params:
        mixing = fit_mixing(train, definition.config.vectors)
        params["dipole"] = {**params["dipole"], "mixing": mixing}
    return ClosedForm(params, energy, ridges)
