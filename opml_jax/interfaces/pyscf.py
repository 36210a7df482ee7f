"""PySCF calculations that start from a predicted density."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ..basis import from_pyscf, layout_of, to_pyscf
from ..conventions import check_convention
from ..data import Dataset
from ..data.reference import Method, mean_field
from ..errors import ConventionError, ConvergenceError, OpmlError, refusal
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


def compare_guesses(
    model: OperatorModel,
    dataset: Dataset,
    *,
    guesses: Sequence[str] = ("minao", "atom", "vsap"),
    conv_tol: float = 1e-9,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """What predictions are worth as starts of PySCF's SCF (restricted, DIIS as it comes).

    Args:
      model: predicts operators in the basis of the calculations.
      dataset: structures; ``meta`` tells functional, basis and grid (default: PBE in the model's
        basis, level 4).
      guesses: of PySCF, to compare with; what a mean field does not offer is left out.
      conv_tol: energy convergence, Hartree.
      on_progress: called with (done, total).

    Returns:
      ``scf_iterations_model`` and ``scf_iterations_<guess>``, means; ``scf_iterations_ratio_minao``
      if minao is among them; ``energy_of_density_mae_uha``: the energy of one evaluation at the
      predicted density, above the converged one (PySCF, same functional); ``n_scf``.

    Raises:
      ConvergenceError: an SCF that does not converge, or converges to another solution.
    """
    meta = dataset.meta
    method = Method(
        meta.get("method", "pbe"),
        model.definition.config.basis,
        int(meta.get("grid_level", 4)),
        conv_tol,
    )
    cycles: dict[str, list[int]] = {}
    excess = []
    for i, structure in enumerate(dataset.structures):
        mf = mean_field(structure, method)
        start = guess(mf, model, fallback=None)
        starts = {"model": start}
        for name in guesses:
            with contextlib.suppress(AttributeError):  # Hartree-Fock has no vsap
                starts[name] = mf.get_init_guess(key=name)
        energies = {}
        for name, dm in starts.items():
            mf.kernel(dm0=dm)
            if not mf.converged:
                raise ConvergenceError(f"the SCF of {structure!r} from {name} did not converge")
            energies[name] = mf.e_tot
            cycles.setdefault(name, []).append(mf.cycles)
        lowest = min(energies.values())
        if (worst := max(energies, key=energies.__getitem__)) and energies[worst] > lowest + 1e-6:
            raise ConvergenceError(
                f"the SCF of {structure!r} from {worst} ended {energies[worst] - lowest:.1e} "
                "Hartree above another: more than one solution"
            )
        excess.append(abs(mf.energy_tot(dm=start) - lowest))
        on_progress(i + 1, len(dataset))
    found = {f"scf_iterations_{k}": float(np.mean(v)) for k, v in cycles.items()}
    if "minao" in cycles:
        ratio = found["scf_iterations_model"] / found["scf_iterations_minao"]
        found["scf_iterations_ratio_minao"] = ratio
    return {
        **found,
        "energy_of_density_mae_uha": 1e6 * float(np.mean(excess)),
        "n_scf": len(dataset),
    }


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
