"""PySCF calculations that start from a predicted density."""

from __future__ import annotations

import warnings

import numpy as np

from ..basis import from_pyscf, layout_of, to_pyscf
from ..conventions import check_convention
from ..errors import ConventionError, OpmlError, refusal
from ..models import OperatorModel
from ..structures import Structure

ELECTRONS = 1e-6
"""Largest error of the number of electrons of a guess."""


def structure_from_pyscf(mol) -> Structure:
    """The molecule of a ``pyscf.gto.Mole``, positions in Bohr.

    Raises:
      OpmlError: ghost atoms, or effective core potentials.
    """
    if mol.has_ecp():
        raise OpmlError(
            refusal("mol", got="effective core potentials", expected="an all-electron calculation")
        )
    numbers = [int(z) for z in mol.atom_charges()]
    if min(numbers, default=0) < 1:
        raise OpmlError(refusal("mol", got="ghost atoms", expected="nuclei only"))
    return Structure(numbers, mol.atom_coords(), int(mol.charge), int(mol.spin))


def guess(mf, model: OperatorModel, *, fallback: str | None = "minao") -> np.ndarray:
    """Initial density matrix for ``mf.kernel(dm0=...)``, checked.

    Args:
      mf: a restricted closed-shell PySCF mean-field object, in the model's output basis.
      model: predicts operators in that basis.
      fallback: PySCF's guess to take, with a warning, where the model cannot be used or does not
        converge; None: raise instead.

    Returns:
      ``(nao, nao)``, occupation 2, PySCF's AO order.

    Raises:
      OpmlError: without a fallback, whatever kept the model from being used: an element it does
        not know, another basis, an open shell, a density that is not self-consistent.
    """
    try:
        return _predicted(mf, model)
    except OpmlError as err:
        if fallback is None:
            raise
        warnings.warn(f"{err} Starting from {fallback}.", stacklevel=2)
        return np.asarray(mf.get_init_guess(key=fallback))


def _predicted(mf, model: OperatorModel) -> np.ndarray:
    structure = structure_from_pyscf(mf.mol)
    model.check_elements([structure])
    basis, overlap = model.definition.basis, np.asarray(mf.get_ovlp())
    layout = layout_of(structure, basis)
    if overlap.shape != (layout.nao, layout.nao):
        raise ConventionError(
            refusal(
                "mf",
                got=f"{len(overlap)} atomic orbitals",
                expected=f"{layout.nao}, as {basis!r} has for this molecule",
            )
        )
    found = model.predict(structure)
    own = from_pyscf(overlap, structure, basis)
    check_convention(own, found["overlap"], layout.shell_ls, where="mf's overlap matrix")
    dm = np.asarray(to_pyscf(found["dm"], structure, basis))
    electrons = float(np.sum(dm * overlap))
    if abs(electrons - mf.mol.nelectron) > ELECTRONS:
        raise OpmlError(
            refusal("dm", got=f"{electrons:.6f} electrons", expected=f"{mf.mol.nelectron}")
        )
    return dm
