r"""Energies of densities through PySCF: from electrostatics to a self-consistent calculation.

A density :math:`\tilde\rho = \sum_p c_p \phi_p` makes the Kohn-Sham matrix :math:`\tilde F = T + V
+ J[\tilde\rho] + V_{xc}[\tilde\rho]`. One diagonalisation of it gives a density matrix P1, and

- *harris*: :math:`2 \sum \epsilon - \frac12 c^T J c + E_{xc}[\tilde\rho] - \int v_{xc} \tilde\rho
  + E_{nn}` (Harris, Phys. Rev. B 31, 1770 (1985)); it keeps the error of the density fit,
- *one_shot*: the energy functional at P1, the route of Grisafi et al. (arXiv:2206.14087).

Errors of both are of second order in that of the density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from .. import density, integrals
from ..basis import Basis, from_pyscf, layout_of, load_basis, to_pyscf
from ..data import Dataset
from ..data.reference import Method, mean_field, molecule
from ..errors import Code, ConvergenceError, OpmlError
from ..models.base import Model
from ..structures import Structure
from ..units import EV_PER_HARTREE
from .pyscf import pyscf_guesses, scf_ends, structure_from_pyscf

ELECTRONS = 1e-3
"""A density whose electrons are off by more is refused."""


@dataclasses.dataclass(frozen=True)
class DensityEnergies:
    """Energies of a density, Hartree.

    Attributes:
      hartree: repulsion of the density with itself.
      external: its energy in the field of the nuclei.
      exchange_correlation: of the density.
      electrostatic: ``hartree + external`` and the repulsion of the nuclei.
      harris: Harris' functional.
      one_shot: the energy functional after one diagonalisation.
      dm: ``(nao, nao)`` density matrix P1, PySCF's AO order: a start for ``mf.kernel(dm0=...)``.
      negative: electrons in regions of negative density, left out of exchange and correlation.
    """

    hartree: float
    external: float
    exchange_correlation: float
    electrostatic: float
    harris: float
    one_shot: float
    dm: np.ndarray
    negative: float


def energies(
    mf, coefficients: np.ndarray, aux_basis: Basis, widths: np.ndarray | None = None
) -> DensityEnergies:
    """Energies of a density by a PySCF calculation's functional.

    Args:
      mf: a restricted Kohn-Sham object (built, not necessarily converged), without exact exchange.
      coefficients: ``(naux,)`` in the library's order.
      aux_basis: what they are in.
      widths: ``(n_shells,)`` factors of exponents, if a model gives them, or None.

    Raises:
      OpmlError: a functional with exact exchange or one beyond gradients, an open shell,
        coefficients of another shape, or electrons off by more than 1e-3.
    """
    structure = structure_from_pyscf(mf.mol)
    c = np.asarray(coefficients, np.float64)
    _check(mf, c, structure, aux_basis, widths)
    basis = basis_of(mf, structure)
    projections = integrals.three_center(structure, basis, aux_basis, widths=widths)
    coulomb = np.asarray(integrals.coulomb_metric(structure, aux_basis, widths))
    repulsion = to_pyscf(np.einsum("p,pij->ij", c, projections), structure, basis)
    e_xc, of_density, v_xc, negative = _exchange_correlation(mf, c, structure, aux_basis, widths)
    fock = mf.get_hcore() + repulsion + v_xc
    levels, orbitals = scipy.linalg.eigh(fock, mf.get_ovlp())
    occupied = orbitals[:, : structure.n_electrons // 2]
    dm = 2 * occupied @ occupied.T
    hartree = float(density.self_energy(c, coulomb))
    external = float(c @ np.asarray(density.external_energies(structure, aux_basis, widths)))
    nuclei = float(mf.energy_nuc())
    bands = 2 * float(levels[: structure.n_electrons // 2].sum())
    return DensityEnergies(
        hartree=hartree,
        external=external,
        exchange_correlation=e_xc,
        electrostatic=hartree + external + nuclei,
        harris=bands - hartree + e_xc - of_density + nuclei,
        one_shot=float(mf.energy_tot(dm=dm)),
        dm=dm,
        negative=negative,
    )


def compare_energies(
    model: Model,
    dataset: Dataset,
    *,
    guesses: Sequence[str] = ("minao", "atom", "vsap", "hcore"),
    conv_tol: float = 1e-9,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """What predicted densities are worth: energies by every route, and SCF cycles from them.

    Args:
      model: predicts densities.
      dataset: with density or Fock matrices; ``meta`` tells basis and functional (default: PBE,
        grid level 4).
      guesses: of PySCF, to compare with, as for :func:`opml_jax.interfaces.pyscf.pyscf_guesses`.
      conv_tol: energy convergence, Hartree.
      on_progress: called with (done, total).

    Returns:
      ``one_shot_density_mae_mev_per_atom`` and ``harris_...``, errors against the converged energy,
      and the same of the ``fit`` of the reference's density and of superposed free ``atoms``;
      ``..._bias_mev_per_atom``, their means with sign; ``electrostatic_density_from_fit_...``: of
      the electrostatic energy, from that of the fit; ``scf_iterations_density`` and of every guess,
      ``n_scf``.

    Raises:
      ConvergenceError: an SCF from a prediction that does not converge.
      OpmlError: a model that predicts no densities in an auxiliary basis.
    """
    model.require("coefficients")
    densities: Any = model  # whose class has more than those of other models
    method = Method.from_meta({"method": "pbe", **dataset.meta}, conv_tol=conv_tol)
    basis = load_basis(method.basis, dataset.elements)
    aux = densities.definition.aux_basis
    references = densities.reference_coefficients(dataset)
    errors: dict[str, list[float]] = {}
    cycles: dict[str, list[int]] = {}
    for i, s in enumerate(dataset.structures):
        mf = mean_field(s, method)
        predicted = model.predict(s)
        starts = {
            "density": energies(mf, predicted["coefficients"], aux, predicted.get("widths")),
            "fit": energies(mf, references[i], aux),
            "atoms": energies(mf, density.superposed_atoms(s, basis, aux), aux),
        }
        ends = scf_ends(mf, {"density": starts["density"].dm, **pyscf_guesses(mf, guesses)})
        if not np.isfinite(energy := ends["density"][1]):
            raise ConvergenceError(f"the SCF of {s!r} from the predicted density did not converge")
        unit = 1e3 * EV_PER_HARTREE / s.n_atoms
        for name, start in starts.items():
            for kind in ("one_shot", "harris"):
                error = unit * (getattr(start, kind) - energy)
                errors.setdefault(f"{kind}_{name}", []).append(error)
        electrostatic = starts["density"].electrostatic - starts["fit"].electrostatic
        errors.setdefault("electrostatic_density_from_fit", []).append(unit * electrostatic)
        for name, (count, _) in ends.items():
            cycles.setdefault(name, []).append(count)
        on_progress(i + 1, len(dataset))
    return {
        **{f"{k}_mae_mev_per_atom": float(np.mean(np.abs(v))) for k, v in errors.items()},
        **{f"{k}_bias_mev_per_atom": float(np.mean(v)) for k, v in errors.items()},
        **{f"scf_iterations_{k}": float(np.mean(v)) for k, v in cycles.items()},
        "n_scf": len(dataset),
    }


def energy_table(results: Mapping[str, float]) -> str:
    """What :func:`compare_energies` says of energies, a line for each route."""
    rows = [f"{'meV an atom':<24}{'predicted':>12}{'fit':>12}{'free atoms':>12}"]
    for kind in ("one_shot", "harris"):
        values = (results[f"{kind}_{n}_mae_mev_per_atom"] for n in ("density", "fit", "atoms"))
        name = kind.replace("_", " ")
        rows.append(f"{name:<24}" + "".join(f"{v:>12.3g}" for v in values))
    electrostatic = results["electrostatic_density_from_fit_mae_mev_per_atom"]
    rows.append(f"{'electrostatic, from fit':<24}{electrostatic:>12.3g}")
    return "\n".join(rows)


def basis_of(mf, structure: Structure) -> Basis:
    """The orbital basis of a calculation, checked by its overlap matrix.

    Raises:
      OpmlError: a basis that is given by something else than one name.
    """
    if not isinstance(mf.mol.basis, str):
        raise OpmlError("mf.mol.basis", got=type(mf.mol.basis).__name__, expected="one name")
    basis = load_basis(mf.mol.basis, structure.numbers)
    theirs = np.asarray(mf.get_ovlp())
    n = layout_of(structure, basis).nao
    ours = np.asarray(integrals.overlap(structure, basis)) if theirs.shape == (n, n) else None
    if ours is None or np.abs(from_pyscf(theirs, structure, basis) - ours).max() > 1e-8:
        raise OpmlError(
            "mf", got="another overlap matrix", expected=f"that of {basis!r}, spherical"
        )
    return basis


def _check(mf, c: np.ndarray, structure: Structure, aux_basis: Basis, widths) -> None:
    if structure.spin or not hasattr(mf, "xc"):
        raise OpmlError("mf", got=type(mf).__name__, expected="closed-shell Kohn-Sham (dft.RKS)")
    exact = any(mf._numint.rsh_and_hybrid_coeff(mf.xc, mf.mol.spin))
    if exact or mf._numint._xc_type(mf.xc) not in ("LDA", "GGA"):
        raise OpmlError(
            "mf.xc",
            got=repr(mf.xc),
            expected="a functional of the density and its gradient",
            hint="Exact exchange and kinetic energy densities need a density matrix.",
        )
    naux = layout_of(structure, aux_basis).nao
    if c.shape != (naux,):
        raise OpmlError("coefficients", got=f"shape {c.shape}", expected=f"({naux},)")
    electrons = float(density.electron_number(c, structure, aux_basis, widths))
    if not abs(electrons - structure.n_electrons) < ELECTRONS:
        raise OpmlError(
            "coefficients",
            got=f"{electrons:.4f} electrons",
            expected=f"a density of {structure.n_electrons}",
            hint="Are they in another basis or order, or of other widths?",
            code=Code.ELECTRON_NUMBER,
        )


def _exchange_correlation(mf, c: np.ndarray, structure: Structure, aux_basis: Basis, widths=None):
    """Energy, integral of potential times density, matrix, and electrons of negative density."""
    ni, mol = mf._numint, mf.mol
    built = mf.grids.coords is not None
    if not built:
        mf.grids.build(with_non0tab=True)
    gradient = ni._xc_type(mf.xc) == "GGA"
    aux = molecule(structure, aux_basis, widths)
    theirs = np.asarray(density.to_pyscf(c, structure, aux_basis))
    energy = of_density = negative = 0.0
    matrix = np.zeros((mol.nao, mol.nao))
    for start in range(0, len(mf.grids.coords), density.CHUNK):
        part = slice(start, start + density.CHUNK)
        points, weights = mf.grids.coords[part], mf.grids.weights[part]
        suffix = "_deriv1" if gradient else ""
        of_aux = aux.eval_gto(f"GTOval_sph{suffix}", points)
        orbitals = mol.eval_gto(f"GTOval_sph{suffix}", points)
        if not gradient:
            of_aux, orbitals = of_aux[None], orbitals[None]
        rho = of_aux @ theirs  # (1 or 4, n_points)
        negative -= float(weights @ np.minimum(rho[0], 0.0))
        rho = np.where(rho[0] > 0, rho, 0.0)
        per_electron, potential = ni.eval_xc_eff(
            mf.xc, rho if gradient else rho[0], deriv=1, xctype="GGA" if gradient else "LDA"
        )[:2]
        potential = potential.reshape(len(rho), -1)
        energy += float(weights @ (per_electron * rho[0]))
        of_density += float(np.einsum("g,xg,xg->", weights, potential, rho))
        weighted = weights * potential
        weighted[0] *= 0.5  # the transpose adds the other half
        half = orbitals[0].T @ np.einsum("xg,xgi->gi", weighted, orbitals)
        matrix += half + half.T
    return energy, of_density, matrix, negative
