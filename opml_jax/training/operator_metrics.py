"""Errors of predicted Fock matrices: elements, levels, orbitals, densities, and where they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg

from ..basis import Basis, layout_of, load_basis
from ..data import Dataset
from ..data.reference import density_of, observables_of
from ..features.couple import IrrepKey, couple_species, species_irreps_norm
from ..operators.species import gather_species, species_table
from ..structures.elements import symbol
from .config import OBSERVABLES

MICRO = 1e6


def is_effective(predicted: Mapping[str, np.ndarray], dataset: Dataset) -> bool:
    """Whether the references are Fock matrices in a larger basis than the predicted ones."""
    return len(dataset.labels["fock"][0]) != predicted["nao"][0]


def operator_errors(predicted: Mapping[str, np.ndarray], dataset: Dataset) -> dict[str, float]:
    r"""Errors of operators, and of what follows from them.

    Args:
      predicted: from :meth:`opml_jax.models.OperatorModel.predict` on ``dataset.structures``.
      dataset: references, with ``fock`` in the library's AO order; closed shells.

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
        n, pairs = len(wanted), (sum(structure.numbers) - structure.charge) // 2
        s, dm = (predicted[k][i, :n, :n] for k in ("overlap", "dm"))
        e_wanted, c_wanted = scipy.linalg.eigh(wanted, s)
        occupied = c_wanted[:, :pairs]
        of["dm"].append(np.abs(dm - 2 * occupied @ occupied.T).ravel())
        of["electrons"].append(abs(np.sum(dm * s) - 2 * pairs))
        of["idempotency"].append(np.abs(0.5 * dm @ s @ dm - dm).max())
        if "fock" not in predicted:
            continue
        left = predicted["fock"][i, :n, :n] - wanted
        e, c = scipy.linalg.eigh(wanted + left, s)
        of["fock"].append(np.abs(left).ravel())
        of["squares"].append((left**2).sum() / n)
        of["levels"].append(np.abs(e - e_wanted)[:pairs])
        if 0 < pairs < n:
            of["gaps"].append(abs((e - e_wanted)[pairs] - (e - e_wanted)[pairs - 1]))
        of["cosines"].append(np.abs(np.einsum("ip,ij,jp->p", occupied, s, c[:, :pairs])))
    out = {}
    if of["fock"]:
        out["fock_mae_uha"] = MICRO * float(np.concatenate(of["fock"]).mean())
        out["fock_rmse_uha"] = MICRO * float(np.mean(of["squares"])) ** 0.5
        out["eigenvalue_occupied_mae_uha"] = MICRO * float(np.concatenate(of["levels"]).mean())
        out["orbital_similarity"] = float(np.concatenate(of["cosines"]).mean())
    if of["gaps"]:
        out["gap_mae_uha"] = MICRO * float(np.mean(of["gaps"]))
    return out | {
        "dm_mae": float(np.concatenate(of["dm"]).mean()),
        "electron_number_error": float(max(of["electrons"])),
        "idempotency_error": float(max(of["idempotency"])),
        "residual_uha": MICRO * float(np.max(predicted["residual"])),
    }


def reference_observables(
    dataset: Dataset, names: Sequence[str] = OBSERVABLES[:3]
) -> dict[str, list[np.ndarray]]:
    """Observables of the Fock matrices of a data set, in the basis they are in.

    Args:
      dataset: closed shells with ``fock``; ``meta`` names the basis.
      names: which of :data:`~opml_jax.training.config.OBSERVABLES`. Polarizabilities are labels
        (``polarizability``): those of independent electrons are no reference.

    Returns:
      ``{name: [array, ...]}``: ``mo_energy`` ``(nao,)`` Hartree, ``dipole`` ``(3,)`` e Bohr about
      the centre of nuclear charge, ``lowdin_charges`` ``(n_atoms,)``, ``polarizability`` ``(3, 3)``
      Bohr^3.

    Raises:
      ConventionError: matrices that are not in this basis.
    """
    basis = load_basis(dataset.meta["basis"], dataset.elements)
    dataset.check_layout(basis)
    rows = [
        observables_of(structure, np.asarray(dataset.labels["fock"][i]), basis)
        for i, structure in enumerate(dataset.structures)
    ]
    out = {name: [row[name] for row in rows] for name in names if name != "polarizability"}
    if "polarizability" in names:
        out["polarizability"] = list(dataset.labels["polarizability"])
    return out


def paired_levels(
    predicted: Mapping[str, np.ndarray],
    dataset: Dataset,
    reference: Sequence[np.ndarray] | None = None,
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Orbital energies of the reference and the predicted ones, and how many are occupied.

    Args:
      predicted: from :meth:`opml_jax.models.OperatorModel.predict` on ``dataset.structures``.
      dataset: references with ``fock``, in the basis of the predicted matrices or a larger one.
      reference: all levels of the references. Default: from their Fock matrices.

    Returns:
      For each structure two arrays of the levels the predicted matrix has, Hartree, and a number.
    """
    if reference is None:
        reference = reference_observables(dataset, ("mo_energy",))["mo_energy"]
    out = []
    for i, structure in enumerate(dataset.structures):
        n = int(predicted["nao"][i])
        first = int(predicted["first_level"][i]) if "first_level" in predicted else 0
        pairs = (sum(structure.numbers) - structure.charge) // 2 - first
        out.append((reference[i][first : first + n], predicted["mo_energy"][i, :n], pairs))
    return out


def observable_errors(predicted: Mapping[str, np.ndarray], dataset: Dataset) -> dict[str, float]:
    """Errors of an effective operator's observables, against Fock matrices in a larger basis.

    Args:
      predicted: from :meth:`opml_jax.models.OperatorModel.predict` on ``dataset.structures``.
      dataset: references, see :func:`reference_observables`.

    Returns:
      ``eigenvalue_occupied_mae_uha``, ``eigenvalue_virtual_mae_uha`` (of the levels the small
      matrix has), ``gap_mae_uha``, and ``lowdin_charges_mae_e`` if they are predicted.
    """
    wanted = reference_observables(dataset, ("mo_energy", "lowdin_charges"))
    occupied, virtual, gaps, charges = ([] for _ in range(4))
    levels = paired_levels(predicted, dataset, wanted["mo_energy"])
    for i, (structure, (reference, found, pairs)) in enumerate(
        zip(dataset.structures, levels, strict=True)
    ):
        n_atoms, left = structure.n_atoms, found - reference
        occupied.append(np.abs(left[:pairs]))
        virtual.append(np.abs(left[pairs:]))
        if 0 < pairs < len(left):
            gaps.append(abs(left[pairs] - left[pairs - 1]))
        if "lowdin_charges" in predicted:
            found = predicted["lowdin_charges"][i, :n_atoms]
            charges.append(np.abs(found - wanted["lowdin_charges"][i]))
    out = {"eigenvalue_occupied_mae_uha": MICRO * float(np.concatenate(occupied).mean())}
    if gaps:
        out["eigenvalue_virtual_mae_uha"] = MICRO * float(np.concatenate(virtual).mean())
        out["gap_mae_uha"] = MICRO * float(np.mean(gaps))
    if charges:
        out["lowdin_charges_mae_e"] = float(np.concatenate(charges).mean())
    return out


def errors_by_key(
    predicted: Mapping[str, np.ndarray], dataset: Dataset, basis: Basis
) -> dict[IrrepKey, float]:
    """Share of each kind of irrep in the squared error of the matrices, largest first.

    Args:
      predicted: as for :func:`operator_errors`.
      dataset: references.
      basis: of the matrices.

    Returns:
      ``{key: share}``; shares sum to 1.
    """
    total: dict[IrrepKey, float] = {}
    for i, structure in enumerate(dataset.structures):
        wanted = dataset.labels["fock"][i]
        n = len(wanted)
        if "fock" in predicted:
            left = predicted["fock"][None, i, :n, :n] - wanted
        else:
            dm = density_of(wanted, predicted["overlap"][i, :n, :n], structure)
            left = predicted["dm"][None, i, :n, :n] - dm
        table = species_table([layout_of(structure, basis)])
        for key, x in couple_species(gather_species(left, table), basis.spec).items():
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
