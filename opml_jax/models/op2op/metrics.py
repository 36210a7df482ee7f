"""Errors of predicted Fock matrices: elements, levels, orbitals, densities, and where they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg

from ...basis import Basis, layout_of
from ...data import Dataset
from ...data.reference import density_of, reference_observables
from ...features.couple import IrrepKey, couple_species, species_irreps_norm
from ...operators.species import gather_species, species_table
from ...quantities import QUANTITIES, metric
from ...structures.elements import symbol
from ..base.metrics import quantity_errors

MICRO = QUANTITIES["fock"].factor
"""Microhartree in a Hartree."""

Predicted = Mapping[str, np.ndarray]
"""What :meth:`opml_jax.models.Op2OpModel.predict` returns of the structures of a data set."""


def is_effective(predicted: Predicted, dataset: Dataset) -> bool:
    """Whether the references are Fock matrices in a larger basis than the predicted ones."""
    return len(dataset.labels["fock"][0]) != predicted["nao"][0]


def all_errors(predicted: Predicted, dataset: Dataset) -> dict[str, float]:
    """Errors of quantities that both sides have, and of matrices or their observables."""
    out = quantity_errors(predicted, dataset)
    if "fock" not in dataset or "dm" not in predicted:
        return out
    if is_effective(predicted, dataset):
        return out | observable_errors(predicted, dataset)
    return out | operator_errors(predicted, dataset)


def operator_errors(predicted: Predicted, dataset: Dataset) -> dict[str, float]:
    r"""Errors of operators, and of what follows from them, of closed shells with ``fock``.

    Returns:
      ``fock_mae_uha`` (mean over all elements of all matrices, the convention of SchNOrb, PhiSNet
      and QHNet), ``fock_rmse_uha`` (:math:`\sqrt{\langle |\Delta F|^2 / n_{AO} \rangle}`),
      ``eigenvalue_occupied_mae_uha``, ``gap_mae_uha``, ``orbital_similarity`` (mean
      :math:`|c^T S c'|` of occupied orbitals; arbitrary where they are degenerate),
      ``dm_mae``, ``electron_number_error`` and ``idempotency_error`` (largest), and
      ``residual_uha`` (largest). Of a model of density matrices only the last four.
    """
    of: dict[str, list] = defaultdict(list)
    for i, structure in enumerate(dataset.structures):
        wanted = dataset.labels["fock"][i]
        n, pairs = len(wanted), structure.n_electrons // 2
        s, dm = (predicted[k][i, :n, :n] for k in ("overlap", "dm"))
        energy, orbitals = scipy.linalg.eigh(wanted, s)
        occupied = orbitals[:, :pairs]
        of["dm"].append(np.abs(dm - 2 * occupied @ occupied.T).ravel())
        of["electrons"].append(abs(np.sum(dm * s) - 2 * pairs))
        of["idempotency"].append(np.abs(0.5 * dm @ s @ dm - dm).max())
        if "fock" not in predicted:
            continue
        error = predicted["fock"][i, :n, :n] - wanted
        e, c = scipy.linalg.eigh(wanted + error, s)
        of["fock"].append(np.abs(error).ravel())
        of["squares"].append((error**2).sum() / n)
        of["levels"].append(np.abs(e - energy)[:pairs])
        if 0 < pairs < n:
            of["gaps"].append(abs((e - energy)[pairs] - (e - energy)[pairs - 1]))
        of["cosines"].append(np.abs(np.einsum("ip,ij,jp->p", occupied, s, c[:, :pairs])))
    out = {}
    if of["fock"]:
        out[metric("fock")] = MICRO * _mean(of["fock"])
        out[metric("fock", "rmse")] = MICRO * float(np.mean(of["squares"])) ** 0.5
        out[metric("eigenvalue_occupied")] = MICRO * _mean(of["levels"])
        out["orbital_similarity"] = _mean(of["cosines"])
    if of["gaps"]:
        out[metric("gap")] = MICRO * float(np.mean(of["gaps"]))
    return out | {
        metric("dm"): _mean(of["dm"]),
        "electron_number_error": float(max(of["electrons"])),
        "idempotency_error": float(max(of["idempotency"])),
        "residual_uha": MICRO * float(np.max(predicted["residual"])),
    }


def _mean(rows: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(rows).mean())


Levels = tuple[np.ndarray, np.ndarray, int]
"""Orbital energies of the reference, the predicted ones, Hartree, and how many are occupied."""


def paired_levels(
    predicted: Predicted, dataset: Dataset, reference: Sequence[np.ndarray] | None = None
) -> list[Levels]:
    """Levels that the predicted matrices have, of each structure; ``reference`` may be at hand."""
    if reference is None and is_effective(predicted, dataset):
        reference = reference_observables(dataset, ("mo_energy",))["mo_energy"]
    elif reference is None:
        reference = [
            scipy.linalg.eigvalsh(fock, predicted["overlap"][i, : len(fock), : len(fock)])
            for i, fock in enumerate(dataset.labels["fock"])
        ]
    out = []
    for i, structure in enumerate(dataset.structures):
        n = int(predicted["nao"][i])
        first = int(predicted["first_level"][i]) if "first_level" in predicted else 0
        levels = reference[i][first : first + n], predicted["mo_energy"][i, :n]
        out.append((*levels, structure.n_electrons // 2 - first))
    return out


def observable_errors(predicted: Predicted, dataset: Dataset) -> dict[str, float]:
    """Errors of the observables of matrices, against Fock matrices in a larger basis.

    Returns:
      ``eigenvalue_occupied_mae_uha``, ``eigenvalue_virtual_mae_uha`` (of the levels the small
      matrix has), ``gap_mae_uha``, and ``lowdin_charges_mae_e`` if they are predicted.
    """
    wanted = reference_observables(dataset, ("mo_energy", "lowdin_charges"))
    occupied, virtual, gaps = [], [], []
    for reference, levels, pairs in paired_levels(predicted, dataset, wanted["mo_energy"]):
        error = levels - reference
        occupied.append(np.abs(error[:pairs]))
        virtual.append(np.abs(error[pairs:]))
        if 0 < pairs < len(error):
            gaps.append(abs(error[pairs] - error[pairs - 1]))
    out = {metric("eigenvalue_occupied"): MICRO * _mean(occupied)}
    if gaps:
        out[metric("eigenvalue_virtual")] = MICRO * _mean(virtual)
        out[metric("gap")] = MICRO * float(np.mean(gaps))
    if "lowdin_charges" in predicted:
        charges = zip(predicted["lowdin_charges"], wanted["lowdin_charges"], strict=True)
        errors = [np.abs(padded[: len(reference)] - reference) for padded, reference in charges]
        out[metric("lowdin_charges")] = _mean(errors)
    return out


def paired_matrices(predicted: Predicted, dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and reference matrix of each structure: of F, or of P where no F is predicted."""
    name = "fock" if "fock" in predicted else "dm"
    out = []
    for i, structure in enumerate(dataset.structures):
        n = len(wanted := dataset.labels["fock"][i])
        if name == "dm":
            wanted = density_of(wanted, predicted["overlap"][i, :n, :n], structure)
        out.append((predicted[name][i, :n, :n], wanted))
    return out


def errors_by_structure(predicted: Predicted, dataset: Dataset) -> np.ndarray:
    """Mean absolute error of a matrix element (effective: occupied level) of each structure."""
    if is_effective(predicted, dataset):
        levels = paired_levels(predicted, dataset)
        return np.array([np.abs(level - wanted)[:k].mean() for wanted, level, k in levels])
    pairs = paired_matrices(predicted, dataset)
    return np.array([np.abs(matrix - wanted).mean() for matrix, wanted in pairs])


def errors_by_key(predicted: Predicted, dataset: Dataset, basis: Basis) -> dict[IrrepKey, float]:
    """``{key: share}`` of each kind of irrep in the squared error of matrices, largest first."""
    total: dict[IrrepKey, float] = {}
    pairs = paired_matrices(predicted, dataset)
    for structure, (matrix, wanted) in zip(dataset.structures, pairs, strict=True):
        table = species_table([layout_of(structure, basis)])
        blocks = gather_species((matrix - wanted)[None], table)
        for key, x in couple_species(blocks, basis.spec).items():
            square = float(species_irreps_norm({key: x}, basis.spec)) ** 2
            total[key] = total.get(key, 0.0) + square
    whole = sum(total.values()) or 1.0
    return dict(sorted(((k, v / whole) for k, v in total.items()), key=lambda kv: -kv[1]))


def describe(key: IrrepKey) -> str:
    """A key for people: ``"C-H, L = 2"``, ``"O, L = 1"``."""
    kind, first, second, l, sigma = key
    atoms = symbol(first) if kind == 0 else f"{symbol(first)}-{symbol(second)}"
    parity = "" if sigma == 1 else ", pseudotensor"
    return f"{atoms}, L = {l}{parity}"
