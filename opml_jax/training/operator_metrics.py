"""Errors of predicted Fock matrices: elements, levels, orbitals, densities, and where they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg

from ..basis import Basis, layout_of
from ..data import Dataset
from ..features.couple import IrrepKey, couple_species, species_irreps_norm
from ..operators.species import gather_species, species_table
from ..structures.elements import symbol

MICRO = 1e6


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
      ``residual_uha`` (largest).
    """
    elements, squares, levels, gaps, cosines, dms, electrons, idempotency = ([] for _ in range(8))
    for i, structure in enumerate(dataset.structures):
        wanted = dataset.labels["fock"][i]
        n, pairs = len(wanted), (sum(structure.numbers) - structure.charge) // 2
        found, s, dm = (predicted[k][i, :n, :n] for k in ("fock", "overlap", "dm"))
        (e, c), (e_wanted, c_wanted) = (scipy.linalg.eigh(f, s) for f in (found, wanted))
        left, occupied = found - wanted, c_wanted[:, :pairs]
        elements.append(np.abs(left).ravel())
        squares.append((left**2).sum() / n)
        levels.append(np.abs(e - e_wanted)[:pairs])
        if 0 < pairs < n:
            gaps.append(abs((e - e_wanted)[pairs] - (e - e_wanted)[pairs - 1]))
        cosines.append(np.abs(np.einsum("ip,ij,jp->p", occupied, s, c[:, :pairs])))
        dms.append(np.abs(dm - 2 * occupied @ occupied.T).ravel())
        electrons.append(abs(np.sum(dm * s) - 2 * pairs))
        idempotency.append(np.abs(0.5 * dm @ s @ dm - dm).max())
    return {
        "fock_mae_uha": MICRO * float(np.concatenate(elements).mean()),
        "fock_rmse_uha": MICRO * float(np.mean(squares)) ** 0.5,
        "eigenvalue_occupied_mae_uha": MICRO * float(np.concatenate(levels).mean()),
        **({"gap_mae_uha": MICRO * float(np.mean(gaps))} if gaps else {}),
        "orbital_similarity": float(np.concatenate(cosines).mean()),
        "dm_mae": float(np.concatenate(dms).mean()),
        "electron_number_error": float(max(electrons)),
        "idempotency_error": float(max(idempotency)),
        "residual_uha": MICRO * float(np.max(predicted["residual"])),
    }


def errors_by_key(
    predicted: Mapping[str, np.ndarray], dataset: Dataset, basis: Basis
) -> dict[IrrepKey, float]:
    """Share of each kind of irrep in the squared error of Fock matrices, largest first.

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
        left = predicted["fock"][None, i, :n, :n] - wanted
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
