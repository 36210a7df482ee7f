"""The closed form of Op2Prop: scales, offsets of the composition, ridges of energy and tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from ...conventions import CARTESIAN_TO_E3NN, cartesian_to_e3nn, matrix_to_e3nn
from ...learn.ridge import (
    CHANGES,
    LAMBDAS,
    Ridge,
    composition_offsets,
    ridge_leave_one_out,
    ridge_validated,
)
from ..base import Params
from .atomwise import AtomwiseDefinition
from .config import PROPERTIES, AtomwiseFit
from .descriptors import Cache, Labelled
from .kernel import KernelColumns, fit_references
from .readout import HEADS, head_of
from .scaling import fit_components, fit_scaler, scaled

CHUNK = 64

FREE = 1e4
"""Scale of the columns of numbers of atoms where weights are differences from earlier ones: so
large that the energies of atoms of another level of theory cost nothing."""

SLOPES = ("forces", "field_dipole")
"""Minus derivatives of the energy that may be learned, in the order of their rows in a cache."""


TENSORS = {name: max(ls) for name, ls in PROPERTIES.items() if max(ls)}
"""Targets that read irreps, and the L of these."""


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Parameters of the closed form, and the ridge fits behind them."""

    params: Params
    energy: Ridge
    heads: dict[str, Ridge]


def head_labels(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Irreps of the labels, by head (:data:`~opml_jax.models.op2prop.readout.HEADS`)."""
    return {
        head_of(name, l): _irreps(labels[name], l, ls)
        for name, ls in PROPERTIES.items()
        for l in ls
        if name in labels
    }


def _irreps(values: np.ndarray, l: int, ls: tuple[int, ...]) -> np.ndarray:
    """The irreps L of numbers, vectors or matrices that are made of those of ``ls``."""
    if l:
        return cartesian_to_e3nn(values) if l == 1 else matrix_to_e3nn(values)
    return values if ls == (0,) else np.trace(values, axis1=-2, axis2=-1) / 3


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a ridge: of each element its atoms' features, summed and times their scale.

    ``scale`` is ``(n_elements, n_features)``; where it is 0 there is no column.
    """

    scale: np.ndarray

    @classmethod
    def of_invariants(cls, cache: Cache) -> Columns:
        """Those of invariants that are not zero in a set."""
        squares = np.einsum("nie,nik->ek", cache.one_hot, cache.x**2, optimize=True)
        return cls((squares > 0).astype(np.float64))

    @classmethod
    def of_counts(cls, cache: Cache) -> Columns:
        """Those of one number that is 1 for every atom."""
        return cls(FREE * (cache.one_hot.sum(axis=(0, 1)) > 0)[:, None])

    @classmethod
    def of_irreps(cls, cache: Cache, l: int) -> Columns:
        """Those of irreps of L, scaled to a root mean square of one."""
        square = np.einsum("nie,nicm->ec", cache.one_hot, cache.v[l] ** 2, optimize=True)
        counts = np.maximum(cache.one_hot.sum(axis=(0, 1)), 1.0)
        rms = np.sqrt(square / ((2 * l + 1) * counts)[:, None])
        used = rms > 1e-9 * rms.max(axis=1, keepdims=True)
        return cls(np.where(used, 1.0 / np.where(used, rms, 1.0), 0.0))

    @property
    def n(self) -> int:
        """Number of columns."""
        return int(np.count_nonzero(self.scale))

    def rows(self, cache: Cache, features: np.ndarray) -> np.ndarray:
        """``(n * m, n_columns)`` from features ``(n, m, n_atoms, n_features)`` of a set."""
        sums = np.einsum("nie,nmic->nmec", cache.one_hot, features, optimize=True)
        sums = sums.reshape(sums.shape[0] * sums.shape[1], -1)
        return sums[:, self.scale.ravel() > 0] * self.scale[self.scale > 0]

    def weights(self, solution: np.ndarray) -> np.ndarray:
        """``(n_elements, n_features)`` weights of features as they are, from those of columns."""
        weights = np.zeros(self.scale.shape)
        weights[self.scale > 0] = solution
        return weights * self.scale


def fit_scalar(
    cache: Cache, labels: np.ndarray, tolerance: float = 0.0, *, changes: bool = False
) -> tuple[Params, Ridge]:
    """Offsets and weights of scalars ``(n,)``: a ridge on invariants, lambda by leave-one-out.

    With ``changes`` labels are what earlier parameters leave, and parameters differences from them.
    """
    counts, columns = cache.one_hot.sum(axis=1), Columns.of_invariants(cache)
    rows = columns.rows(cache, cache.x[:, None])
    if changes:
        of_counts = Columns.of_counts(cache)
        rows = np.hstack([rows, of_counts.rows(cache, ones(cache))])
        fit = ridge_leave_one_out(rows, labels, CHANGES, tolerance=tolerance)
        weights, offsets = np.split(fit.weights, [columns.n])
        offsets = of_counts.weights(offsets)[:, 0]
        return {"offsets": offsets, "weights": columns.weights(weights)}, fit
    offsets = composition_offsets(counts, labels)
    fit = ridge_leave_one_out(rows, labels - counts @ offsets, tolerance=tolerance)
    return {"offsets": offsets, "weights": columns.weights(fit.weights)}, fit


def fit_irreps(
    cache: Cache, labels: np.ndarray, tolerance: float = 0.0, *, changes: bool = False
) -> tuple[Params, Ridge]:
    """Weights of irreps for labels ``(n, 2 L + 1)``: a ridge, lambda by leave-one-out."""
    l = labels.shape[-1] // 2
    columns, lambdas = Columns.of_irreps(cache, l), CHANGES if changes else LAMBDAS
    rows = columns.rows(cache, np.moveaxis(cache.v[l], -1, 1))
    fit = ridge_leave_one_out(rows, labels.reshape(-1), lambdas, tolerance=tolerance)
    return {"weights": columns.weights(fit.weights)}, fit


def ones(cache: Cache) -> np.ndarray:
    """``(n, 1, n_atoms, 1)``: the feature of :meth:`Columns.of_counts`."""
    return np.ones((*cache.x.shape[:1], 1, cache.x.shape[1], 1))


def fit_mixing(cache: Cache, n_mixed: int) -> np.ndarray:
    """``(n_elements, n_irreps, n_mixed)``: principal 1o irreps of each element, for the gates."""
    mixing, scale = [], Columns.of_irreps(cache, 1).scale
    for e, inverse in enumerate(scale):
        v = cache.v[1][cache.one_hot[..., e] > 0] * inverse[:, None]
        values, u = np.linalg.eigh(np.einsum("acm,adm->cd", v, v) / (3 * len(v)))
        top = u[:, ::-1][:, :n_mixed] / np.sqrt(np.maximum(values[::-1][:n_mixed], 1e-12))
        top = np.where(values[::-1][:n_mixed] > 1e-10 * values[-1], top, 0.0)
        padded = np.zeros((len(inverse), n_mixed))
        padded[:, : top.shape[1]] = top * inverse[:, None]
        mixing.append(padded)
    return np.array(mixing)


@dataclasses.dataclass(frozen=True)
class EnergySystem:
    """Rows of the ridge for energies and their derivatives, each divided by its ``sigma``.

    Columns are linear ones, those of a kernel, and those of 1o irreps, if their weights are solved
    together with the energy's. ``offsets`` of elements are subtracted first, or have columns of
    their own, ``counts``, where weights are differences from earlier ones.
    """

    sigma: Mapping[str, float]
    offsets: np.ndarray
    linear: Columns
    kernel: KernelColumns | None
    irreps: Columns | None
    counts: Columns | None = None

    @property
    def cuts(self) -> list[int]:
        """Where in a solution weights of kernel, irreps and counts begin, and where all end."""
        parts = (self.linear, self.kernel, self.irreps, self.counts)
        return list(np.cumsum([part.n if part else 0 for part in parts]))

    def rows(self, part: Labelled) -> tuple[np.ndarray, np.ndarray]:
        """``(n_rows, n_columns)`` and ``(n_rows,)``."""
        cache, sigma = part.cache, self.sigma
        energies = self.linear.rows(cache, cache.x[:, None])
        if self.kernel:
            energies = np.hstack([energies, self.kernel.energy(cache)])
        baseline = cache.one_hot.sum(axis=1) @ self.offsets
        a = [energies / sigma["energy"]]
        y = [(part.labels["energy"] - baseline) / sigma["energy"]]
        if slopes := [k for k in SLOPES if k in part.labels]:
            flat = {k: part.labels[k].reshape(len(part), -1) / sigma[k] for k in slopes}
            each = np.concatenate([np.full(v.shape, 1 / sigma[k]) for k, v in flat.items()], axis=1)
            slope = -self.linear.rows(cache, np.asarray(cache.dx))
            if self.kernel:
                slope = np.hstack([slope, self.kernel.slopes(cache)])
            a.append(slope * each.reshape(-1, 1))
            y.append(np.concatenate([*flat.values()], axis=1).ravel())
            if self.irreps:
                in_field = slope.reshape(len(part), -1, slope.shape[1])[:, -3:]
                in_field = in_field[:, CARTESIAN_TO_E3NN].reshape(-1, slope.shape[1])
                a = [np.pad(block, ((0, 0), (0, self.irreps.n))) for block in a]
                dipoles = self.irreps.rows(cache, np.moveaxis(cache.v[1], -1, 1))
                a.append(np.hstack([in_field, -dipoles]) / sigma["consistency"])
                apart = part.labels["field_dipole"] - part.labels["dipole"]  # 0 but for an origin
                y.append(cartesian_to_e3nn(apart).ravel() / sigma["consistency"])
        rows = np.concatenate(a)
        if self.counts:
            offsets = np.zeros((len(rows), self.counts.n))
            offsets[: len(part)] = self.counts.rows(cache, ones(cache)) / sigma["energy"]
            rows = np.hstack([rows, offsets])
        return rows, np.concatenate(y)

    def chunks(self, train: Labelled) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """:meth:`rows` of a few molecules after the other."""
        # a few times more rows than columns at a time: QR then costs little more than it must
        dx, slopes = train.cache.dx, set(SLOPES) & set(train.labels)
        rows_each = 1 + (dx.shape[1] if slopes and dx is not None else 0)
        size = max(CHUNK, 3 * self.cuts[-1] // rows_each)
        for start in range(0, len(train), size):
            yield self.rows(train.subset(np.arange(start, min(start + size, len(train)))))


def fit_energy(
    train: Labelled,
    validation: Labelled,
    sigma: Mapping[str, float],
    tolerance: float,
    kernel: Params | None = None,
    refit: bool = False,
    changes: bool = False,
) -> tuple[Params, Params | None, Params | None, Ridge]:
    """Offsets by composition, then one ridge on energies and their derivatives together.

    ``train`` and ``validation``, which chooses lambda, are standardised; learned are ``energy``
    (n,), ``forces``, padded (n, n_atoms, 3), and ``field_dipole`` (n, 3), minus the derivative in
    the field, each divided by its ``sigma`` in atomic units. With a ``sigma`` of ``consistency``
    the weights of the 1o irreps are solved together, and it divides the difference of the dipoles.
    With ``refit`` validation, once it has chosen lambda, joins the training set. With ``changes``
    labels are what earlier parameters leave, and parameters are differences from these.

    Returns:
      Linear parameters, those of the kernel (or None), of the dipole (or None), and the ridge.
    """
    cache, columns = train.cache, None if kernel is None else KernelColumns(kernel)
    irreps = Columns.of_irreps(cache, 1) if "consistency" in sigma else None
    counts = Columns.of_counts(cache) if changes else None
    offsets = np.zeros(cache.one_hot.shape[-1])
    if counts is None:
        offsets = composition_offsets(cache.one_hot.sum(axis=1), train.labels["energy"])
    system = EnergySystem(sigma, offsets, Columns.of_invariants(cache), columns, irreps, counts)
    held_out, options = system.rows(validation), {"tolerance": tolerance, "refit": refit}
    lambdas = CHANGES if changes else LAMBDAS
    fit = ridge_validated(system.chunks(train), held_out, lambdas, **options)
    linear, of_kernel, of_irreps, of_counts = np.split(fit.weights, system.cuts[:3])
    if counts is not None:
        offsets = counts.weights(of_counts)[:, 0]
    weights = {"offsets": offsets, "weights": system.linear.weights(linear)}
    if kernel is not None and columns is not None:
        kernel = {**kernel, "weights": columns.weights(of_kernel)}
    dipole = None if irreps is None else {"weights": irreps.weights(of_irreps)}
    return weights, kernel, dipole, fit


def fit_closed_form(
    definition: AtomwiseDefinition,
    fit: AtomwiseFit,
    sets: Mapping[str, Labelled],
    noise: np.ndarray,
    drawn: Params | None = None,
) -> ClosedForm:
    """All closed-form parameters of the model (see :class:`~opml_jax.models.Op2Prop`).

    Args:
      definition: the model's functions.
      fit: settings.
      sets: ``train``, and ``validation``, which chooses lambda.
      noise: from :func:`~opml_jax.models.op2prop.descriptors.rounding_noise`.
      drawn: parameters that descriptors were made with, which are handed on.
    """
    config = definition.config
    scaler = fit_scaler(sets["train"].cache, noise)
    scaler["inverse_std"] = scaler["inverse_std"] * definition.prior
    train, validation = (
        Labelled(scaled(sets[k].cache, scaler), sets[k].labels) for k in ("train", "validation")
    )
    linear, kernel, dipole, energy = fit_energy(
        train,
        validation,
        fit.sigmas,
        fit.force_precision / fit.force_sigma,
        fit_references(train.cache, config.references) if config.references else None,
        # networks and standard deviations need molecules that the closed form has not seen
        refit=not (fit.epochs or config.last_layer),
    )
    heads, ridges = {}, {}
    for name, labels in head_labels(train.labels).items():
        if name == "dipole" and dipole is not None:
            heads[name], ridges[name] = dipole, energy
            continue
        solve = fit_irreps if HEADS[name] else fit_scalar
        heads[name], ridges[name] = solve(train.cache, labels, fit.precisions.get(name, 0.0))
    if "dipole" in heads:
        heads["dipole"] = {**heads["dipole"], "mixing": fit_mixing(train.cache, config.vectors)}
    params: Params = {
        **(drawn or {}),
        "scaler": scaler,
        "linear": linear,
        "components": fit_components(train.cache, config.components),
        **({} if kernel is None else {"kernel": kernel}),
        **heads,
    }
    return ClosedForm(params, energy, ridges)
