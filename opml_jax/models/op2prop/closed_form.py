"""The closed form of Op2Prop: scales, offsets of the composition, ridges of energy and tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from ...conventions import CARTESIAN_TO_E3NN
from ...learn.ridge import Ridge, composition_offsets, ridge_validated
from ..base import Params
from .atomwise import AtomwiseDefinition
from .config import AtomwiseFit
from .descriptors import Cache, Labelled
from .heads import (
    energy_rows,
    fit_irreps,
    fit_mixing,
    fit_scalar,
    head_labels,
    irreps_rows,
    irreps_scale,
    irreps_weights,
    linear_weights,
    used_columns,
)
from .kernel import KernelColumns, fit_references
from .readout import HEADS
from .scaling import fit_components, fit_scaler, scaled

CHUNK = 64

SLOPES = ("forces", "field_dipole")
"""Minus derivatives of the energy that may be learned, in the order of their rows in a cache."""


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Parameters of the closed form, and the ridge fits behind them."""

    params: Params
    energy: Ridge
    heads: dict[str, Ridge]


@dataclasses.dataclass(frozen=True)
class EnergySystem:
    """Rows of the ridge for energies and their derivatives, each divided by its sigma.

    Attributes:
      sigma: By label, and of ``consistency``.
      offsets: Energies of the elements, which are subtracted first.
      used: Linear columns that are not zero.
      kernel: Further columns of a kernel.
      scale: Of the 1o irreps whose weights are solved together with the energy's, or None.
    """

    sigma: Mapping[str, float]
    offsets: np.ndarray
    used: np.ndarray
    kernel: KernelColumns | None
    scale: np.ndarray | None

    @property
    def cuts(self) -> list[int]:
        """Where in a solution the weights of the kernel and those of the irreps begin."""
        return [len(self.used), len(self.used) + (self.kernel.n if self.kernel else 0)]

    @property
    def n_irreps(self) -> int:
        """Columns of the irreps."""
        return 0 if self.scale is None else int(np.count_nonzero(self.scale))

    def rows(self, part: Labelled) -> tuple[np.ndarray, np.ndarray]:
        """``(n_rows, n_columns)`` and ``(n_rows,)``."""
        cache, sigma = part.cache, self.sigma
        baseline = cache.one_hot.sum(axis=1) @ self.offsets
        a = [self._energies(cache) / sigma["energy"]]
        y = [(part.labels["energy"] - baseline) / sigma["energy"]]
        if slopes := [k for k in SLOPES if k in part.labels]:
            flat = {k: part.labels[k].reshape(len(part), -1) / sigma[k] for k in slopes}
            each = np.concatenate([np.full(v.shape, 1 / sigma[k]) for k, v in flat.items()], axis=1)
            slope = self._slopes(cache)
            a.append(slope * each.reshape(-1, 1))
            y.append(np.concatenate([*flat.values()], axis=1).ravel())
            if self.scale is not None:
                in_field = slope.reshape(len(part), -1, slope.shape[1])[:, -3:]
                in_field = in_field[:, CARTESIAN_TO_E3NN].reshape(-1, slope.shape[1])
                a = [np.pad(block, ((0, 0), (0, self.n_irreps))) for block in a]
                both = np.hstack([in_field, -irreps_rows(cache, 1, self.scale)])
                a.append(both / sigma["consistency"])
                y.append(np.zeros(len(both)))
        return np.concatenate(a), np.concatenate(y)

    def _energies(self, cache: Cache) -> np.ndarray:
        linear = energy_rows(cache, self.used)
        return np.hstack([linear, self.kernel.energy(cache)]) if self.kernel else linear

    def _slopes(self, cache: Cache) -> np.ndarray:
        """``(n * n_slopes, n_columns)``: minus the derivatives of the columns of energies."""
        rows = -np.einsum("nie,ndik->ndek", cache.one_hot, np.asarray(cache.dx), optimize=True)
        rows = rows.reshape(rows.shape[0] * rows.shape[1], -1)
        linear = rows[:, self.used].astype(np.float64)
        return np.hstack([linear, self.kernel.slopes(cache)]) if self.kernel else linear

    def chunks(self, train: Labelled) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """:meth:`rows` of a few molecules after the other.

        A few times more rows than columns at a time: QR then costs little more than it must.
        """
        dx, slopes = train.cache.dx, set(SLOPES) & set(train.labels)
        rows_each = 1 + (dx.shape[1] if slopes and dx is not None else 0)
        size = max(CHUNK, 3 * (self.cuts[-1] + self.n_irreps) // rows_each)
        for start in range(0, len(train), size):
            yield self.rows(train.subset(np.arange(start, min(start + size, len(train)))))


def fit_energy(
    train: Labelled,
    validation: Labelled,
    sigma: Mapping[str, float],
    tolerance: float,
    kernel: Params | None = None,
    refit: bool = False,
) -> tuple[Params, Params | None, Params | None, Ridge]:
    """Offsets by composition, then one ridge on energies and their derivatives together.

    Args:
      train: standardised training set: ``energy`` (n,) and what of its derivatives is learned:
        ``forces``, padded (n, n_atoms, 3), and ``field_dipole`` (n, 3), minus the derivative in the
        field.
      validation: likewise; chooses lambda.
      sigma: for each of them the number, in atomic units, by which labels are divided; perhaps
        ``consistency``, by which the difference of two dipoles is: minus the derivative
        of the energy in the field, and that of the 1o irreps, whose weights are solved together.
      tolerance: precision of the labels in these units.
      kernel: from :func:`fit_references`; its weights are solved together with the linear ones.
      refit: whether validation, once it has chosen lambda, joins the training set.

    Returns:
      Linear parameters, those of the kernel (or None), of the dipole (or None), and the ridge.
    """
    cache = train.cache
    system = EnergySystem(
        sigma,
        composition_offsets(cache.one_hot.sum(axis=1), train.labels["energy"]),
        used_columns(cache),
        None if kernel is None else KernelColumns(kernel),
        irreps_scale(cache, 1) if "consistency" in sigma else None,
    )
    held_out = system.rows(validation)
    fit = ridge_validated(system.chunks(train), held_out, tolerance=tolerance, refit=refit)
    linear, of_kernel, of_irreps = np.split(fit.weights, system.cuts)
    weights = {"offsets": system.offsets, "weights": linear_weights(linear, system.used, cache)}
    if kernel is not None and system.kernel is not None:
        kernel = {**kernel, "weights": system.kernel.weights(of_kernel)}
    dipole = None
    if system.scale is not None:
        dipole = {"weights": irreps_weights(of_irreps, system.scale)}
    return weights, kernel, dipole, fit


def fit_heads(
    train: Labelled, fit: AtomwiseFit, solved: Params | None, energy: Ridge
) -> tuple[Params, dict[str, Ridge]]:
    """Parameters of every head, and the ridge behind each.

    Args:
      train: standardised training set.
      fit: settings.
      solved: the dipole, if it was solved together with the energy.
      energy: by this ridge.
    """
    params, ridges = {}, {}
    for name, labels in head_labels(train.labels).items():
        if name == "dipole" and solved is not None:
            params[name], ridges[name] = solved, energy
        else:
            solve = fit_irreps if HEADS[name] else fit_scalar
            params[name], ridges[name] = solve(train.cache, labels, fit.precisions.get(name, 0.0))
    return params, ridges


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
      noise: ``(n_elements, n_invariants)`` from
        :func:`~opml_jax.models.op2prop.descriptors.rounding_noise`.
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
    heads, ridges = fit_heads(train, fit, dipole, energy)
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
