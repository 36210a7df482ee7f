"""What Op2Density learns from: densities of a data set, and all that losses need of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ... import density
from ...basis import Basis, from_pyscf, layout_of, load_basis
from ...data import Dataset
from ...data.reference import Method, density_of, molecule
from ...errors import Code, DataError, OpmlError, refusal
from ...learn.run import Run
from ...structures import Structure
from ..base import Params
from .environments import Environments, environments
from .functions import Op2Density

_metric = jax.jit(density.metric_matrix, static_argnums=2)


def check_densities(definition: Op2Density, dataset: Dataset) -> Basis:
    """The orbital basis of a data set's matrices; refuses what has no density.

    Raises:
      DataError: neither density nor Fock matrices; ions.
      ConventionError: the basis is not said.
    """
    if "dm" not in dataset and "fock" not in dataset:
        raise DataError(
            refusal(
                "targets",
                got="density, of a data set without density matrices",
                expected="a data set with dm or fock",
                hint="opml generate writes them.",
            ),
            code=Code.LABEL,
        )
    if ions := [s for s in dataset.structures if s.charge or s.spin]:
        raise DataError(
            refusal("structures", got=repr(ions[0]), expected="neutral closed-shell molecules"),
            code=Code.ELECTRONS,
        )
    name = Method.from_meta({"method": "hf", **dataset.meta}).basis
    return load_basis(name, dataset.elements)


def density_matrix(dataset: Dataset, i: int, basis: Basis) -> np.ndarray:
    """``(nao, nao)`` of one structure: the label, or that of its Fock matrix."""
    if "dm" in dataset:
        return dataset.labels["dm"][i]
    s = dataset.structures[i]
    overlap = from_pyscf(molecule(s, basis.name).intor("int1e_ovlp"), s, basis)
    return density_of(dataset.labels["fock"][i], overlap, s)


def labelled_coefficients(
    definition: Op2Density, dataset: Dataset, run: Run | None = None
) -> list[np.ndarray]:
    """Coefficients of the density matrices of a data set, fitted in ``config.fit_metric``.

    Args:
      definition: for its auxiliary basis and metric.
      dataset: with density or Fock matrices.
      run: hears how far it is. Default: nobody does.

    Raises:
      DataError: as :func:`check_densities`.
      OpmlError: as :func:`opml_jax.density.fit`.
    """
    run = run or Run()
    basis = check_densities(definition, dataset)
    aux, out = definition.aux_basis, []
    for i, s in enumerate(dataset.structures):
        dm = density_matrix(dataset, i, basis)
        out.append(np.asarray(density.fit(dm, s, basis, aux, definition.config.fit_metric)))
        run.progress("density fitting", i + 1, len(dataset))
    return out


def free_atoms(definition: Op2Density, dataset: Dataset) -> dict[int, np.ndarray] | None:
    """Coefficients of free atoms for the baseline ``"atoms"``, in a data set's orbital basis."""
    if definition.config.baseline != "atoms":
        return None
    basis, aux = check_densities(definition, dataset), definition.aux_basis
    return {z: density.atomic_coefficients(z, basis, aux) for z in dataset.elements}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Molecules with all that a loss of densities needs of them.

    Attributes:
      metric: ``(n_structures, naux, naux)``, padded by zeros.
      target: ``(n_structures, naux)`` coefficients, padded likewise.
      environments: of their atoms, by element.
      structures: the molecules, for losses of dipoles and on points.
    """

    metric: np.ndarray
    target: np.ndarray
    environments: dict[int, Environments]
    structures: tuple[Structure, ...] = ()


def label(
    definition: Op2Density,
    structures: Sequence[Structure],
    coefficients: Sequence[np.ndarray],
    run: Run,
    known: dict[int, Environments] | None = None,
) -> Labelled:
    """Environments and metrics of molecules.

    Args:
      definition: the model's functions.
      structures: at least one.
      coefficients: ``(naux,)`` for each, in the library's order.
      run: hears how far it is.
      known: environments with other features than the model's own, if any.

    Raises:
      DataError: coefficients that do not fit the molecules.
    """
    check_coefficients(definition, structures, coefficients)
    run.progress("features", 0, 1)
    of_atoms = environments(definition, structures) if known is None else known
    run.progress("features", 1, 1)
    run.progress("metrics", 0, 1)
    metric = metric_matrices(definition, structures)
    run.progress("metrics", 1, 1)
    target = np.zeros(metric.shape[:2])
    for row, c in zip(target, coefficients, strict=True):
        row[: len(c)] = c
    return Labelled(metric, target, of_atoms, tuple(structures))


def label_dataset(definition: Op2Density, dataset: Dataset, run: Run) -> Labelled:
    """:func:`label` with fits to the density matrices of a data set."""
    coefficients = labelled_coefficients(definition, dataset, run)
    return label(definition, dataset.structures, coefficients, run)


def metric_matrices(definition: Op2Density, structures: Sequence[Structure]) -> np.ndarray:
    """Metrics of the loss, ``(n_structures, naux, naux)``, padded by zeros; checked.

    Raises:
      OpmlError: one that is not positive definite.
    """
    kind = definition.config.metric
    metrics = [np.asarray(_metric(s, definition.aux_basis, kind)) for s in structures]
    naux = max(map(len, metrics))
    out = np.zeros((len(metrics), naux, naux))
    for i, (s, m) in enumerate(zip(structures, metrics, strict=True)):
        density.check_positive(m, f"the metric of structure {i}, {s!r},")
        out[i, : len(m), : len(m)] = m
    return out


def check_coefficients(
    definition: Op2Density, structures: Sequence[Structure], coefficients: Sequence[np.ndarray]
) -> None:
    """Refuse a training set that does not fit the model.

    Raises:
      DataError: none, or coefficients of another basis.
    """
    if not structures:
        raise DataError(refusal("structures", got="none", expected="at least one"), code=Code.EMPTY)
    for i, (s, c) in enumerate(zip(structures, coefficients, strict=True)):
        naux = layout_of(s, definition.aux_basis).nao
        if np.shape(c) != (naux,) or not np.isfinite(c).all():
            raise DataError(
                refusal(
                    f"coefficients of structure {i}",
                    got=f"shape {np.shape(c)}" if np.shape(c) != (naux,) else "NaN",
                    expected=f"{naux} numbers, as {definition.aux_basis!r} has for {s!r}",
                )
            )


def residuals(definition: Op2Density, params: Params, labelled: Labelled) -> np.ndarray:
    """``(n_structures, naux)`` coefficients that a model leaves, before electrons are counted.

    Raises:
      OpmlError: a model whose functions have widths: its coefficients are of others.
    """
    if any("widths" in p.get("network", {}) for p in params.values()):
        raise OpmlError(
            refusal(
                "params",
                got="widths of functions",
                expected="a fixed basis, as the coefficients that are learned have",
                hint="opml_jax.density.without_widths gives coefficients of the basis.",
            )
        )
    residual, naux = labelled.target.copy(), labelled.target.shape[1]
    of_element = jax.jit(definition.of_element)
    for z, atoms in labelled.environments.items():
        predicted = of_element(params[str(z)], atoms.features)
        for l, p in atoms.flat(naux).items():
            if l in predicted:
                residual.reshape(-1)[p] -= np.asarray(predicted[l])
    return residual
