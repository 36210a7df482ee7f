"""What Op2Density learns from: environments of atoms, densities of a data set, their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ... import density
from ...basis import Basis, batch, from_pyscf, layout_of, load_basis
from ...data import Dataset
from ...data.reference import Method, density_of, molecule
from ...errors import Code, DataError, OpmlError
from ...learn.padding import padded
from ...learn.run import COMPILING, Run
from ...structures import Structure
from ..base import Params
from .functions import Op2Density, atoms_of, channels

CHUNK = 16
"""Molecules at a time."""

_features = jax.jit(Op2Density.features, static_argnums=0)
_metric = jax.jit(density.metric_matrix, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Environments:
    """Atoms of one element in many molecules.

    Attributes:
      structure: ``(n,)`` molecule of each.
      places: ``{l: (n, n_radial, 2 l + 1)}`` functions of degree l among all of its molecule.
      features: ``{l: (n, n_channels, 2 l + 1)}``.
    """

    structure: np.ndarray
    places: dict[int, np.ndarray]
    features: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def flat(self, naux: int) -> dict[int, np.ndarray]:
        """Places among the coefficients of all molecules, ``naux`` each, one after the other."""
        return {l: self.structure[:, None, None] * naux + p for l, p in self.places.items()}

    def on_atom(self, metric: np.ndarray, l: int) -> np.ndarray:
        """``(n_radial, n_radial)`` between functions of degree l and one m of any of these atoms.

        Of metrics ``(n_structures, naux, naux)``, the same for every m, and zero between them.
        """
        at = self.places[l][0, :, 0]
        return metric[self.structure[0]][at[:, None], at]


def places(definition: Op2Density, structures: Sequence[Structure]) -> dict[int, Environments]:
    """Environments without features: atoms of each element, and where their functions are."""
    spec, rows = definition.aux_basis.spec, {}
    for i, s in enumerate(structures):
        layout = layout_of(s, definition.aux_basis)
        for z, atoms in atoms_of(s.numbers).items():
            at = {l: channels(layout, atoms, l) for l in set(spec.ls[spec.element_index(z)])}
            rows.setdefault(z, []).append((np.full(len(atoms), i), at))
    return {z: Environments(*_joined(rows[z])) for z in sorted(rows)}


def environments(
    definition: Op2Density, structures: Sequence[Structure]
) -> dict[int, Environments]:
    """Features of all atoms, by element."""
    rows: dict[int, list[dict[int, np.ndarray]]] = {}
    for start in range(0, len(structures), CHUNK):
        part = list(structures[start : start + CHUNK])
        filled = part + [part[-1]] * (min(CHUNK, len(structures)) - len(part))
        computed = _features(definition, batch(filled, definition.basis))
        features = {l: np.asarray(x) for l, x in computed.items()}
        for i, s in enumerate(part):
            for z, atoms in atoms_of(s.numbers).items():
                rows.setdefault(z, []).append({l: x[i, atoms] for l, x in features.items()})
    return {
        z: dataclasses.replace(placed, features=_joined(rows[z]))
        for z, placed in places(definition, structures).items()
    }


def _joined(trees: Sequence) -> Any:
    """One tree, whose arrays are those of all, one below the other."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *trees)


def check_densities(definition: Op2Density, dataset: Dataset) -> Basis:
    """The orbital basis of a data set's matrices; refuses what has no density.

    Raises:
      DataError: neither density nor Fock matrices; ions.
      ConventionError: the basis is not said.
    """
    if "dm" not in dataset and "fock" not in dataset:
        got = "density, of a data set without density matrices"
        expected, hint = "a data set with dm or fock", "opml generate writes them."
        raise DataError("targets", got=got, expected=expected, hint=hint, code=Code.LABEL)
    if ions := [s for s in dataset.structures if s.charge or s.spin]:
        expected = "neutral closed-shell molecules"
        raise DataError("structures", got=ions[0], expected=expected, code=Code.ELECTRONS)
    return load_basis(Method.from_meta({"method": "hf", **dataset.meta}).basis, dataset.elements)


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
    run.progress("density fitting", 0, len(dataset))
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
) -> Labelled:
    """Environments and metrics of molecules, whose coefficients are ``(naux,)`` for each.

    Raises:
      DataError: no structures, or coefficients of another basis.
      OpmlError: a metric that is not positive definite.
    """
    _check_coefficients(definition, structures, coefficients)
    run.progress("features", 0, 1, COMPILING)
    of_atoms = environments(definition, structures)
    run.progress("features", 1, 1)
    run.progress("metrics", 0, 1, COMPILING)
    metric = metric_matrices(definition, structures)
    run.progress("metrics", 1, 1)
    return Labelled(metric, padded(coefficients), of_atoms, tuple(structures))


def label_dataset(definition: Op2Density, dataset: Dataset, run: Run) -> Labelled:
    """:func:`label` with fits to the density matrices of a data set."""
    coefficients = labelled_coefficients(definition, dataset, run)
    return label(definition, dataset.structures, coefficients, run)


def metric_matrices(definition: Op2Density, structures: Sequence[Structure]) -> np.ndarray:
    """Metrics of the loss, ``(n_structures, naux, naux)``, padded by zeros; checked.

    Raises:
      OpmlError: one that is not positive definite.
    """
    aux, kind = definition.aux_basis, definition.config.metric
    metrics = [np.asarray(_metric(s, aux, kind)) for s in structures]
    for i, (s, m) in enumerate(zip(structures, metrics, strict=True)):
        density.check_positive(m, f"the metric of structure {i}, {s!r},")
    return padded(metrics)


def _check_coefficients(
    definition: Op2Density, structures: Sequence[Structure], coefficients: Sequence[np.ndarray]
) -> None:
    """Refuse no structures at all, and coefficients of another basis."""
    if not structures:
        raise DataError("structures", got="none", expected="at least one", code=Code.EMPTY)
    for i, (s, c) in enumerate(zip(structures, coefficients, strict=True)):
        shape = (layout_of(s, definition.aux_basis).nao,)
        if np.shape(c) != shape or not np.isfinite(c).all():
            got = f"shape {np.shape(c)}" if np.shape(c) != shape else "NaN"
            expected = f"{shape[0]} numbers, as {definition.aux_basis!r} has for {s!r}"
            raise DataError(f"coefficients of structure {i}", got=got, expected=expected)


def residuals(definition: Op2Density, params: Params, labelled: Labelled) -> np.ndarray:
    """``(n_structures, naux)`` coefficients that a model leaves, before electrons are counted.

    Raises:
      OpmlError: a model whose functions have widths: its coefficients are of others.
    """
    if any("widths" in p.get("network", {}) for p in params.values()):
        expected = "a fixed basis, as the coefficients that are learned have"
        hint = "opml_jax.density.without_widths gives coefficients of the basis."
        raise OpmlError("params", got="widths of functions", expected=expected, hint=hint)
    residual, naux = labelled.target.copy(), labelled.target.shape[1]
    of_element = jax.jit(definition.of_element)
    for z, atoms in labelled.environments.items():
        predicted, _ = of_element(params[str(z)], atoms.features)
        for l, p in atoms.flat(naux).items():
            if l in predicted:
                residual.reshape(-1)[p] -= np.asarray(predicted[l])
    return residual
