"""PySCF calculations that start from a predicted density, or judge it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from ..basis import from_pyscf, layout_of, to_pyscf
from ..conventions import check_convention
from ..data import Dataset
from ..data.reference import Method, mean_field, molecule
from ..errors import Code, ConventionError, ConvergenceError, OpmlError, one_of
from ..models.base import Model
from ..models.files import load_model
from ..observables.aufbau import intruder, occupied_orbitals
from ..quantities import cut_rows
from ..structures import Structure

SHIPPED = "pretrained:chno-fock"
"""The model that :func:`guess` takes unless it is told another."""

LOOSE = 1e-4
"""Hartree: self-consistency of a predicted density that a calculation will improve on."""

ELECTRONS = 1e-6
"""Largest error of the number of electrons of a guess."""

SAME_BASIS = 1e-6
"""Elements of overlaps in one basis of two libraries agree to this."""

HIGHER = 1e-6
"""Hartree: an SCF that ends so much above another found another solution."""

SHARED = 0.5
"""Smallest singular value of the overlap of two sets of occupied orbitals that are one set, changed
a little: below it an orbital of the one has most of its norm outside of the other."""

GUESSES = {
    "minao": "init_guess_by_minao",
    "atom": "init_guess_by_atom",
    "huckel": "init_guess_by_huckel",
    "vsap": "init_guess_by_vsap",
    "sap": "init_guess_by_sap",
    "hcore": "init_guess_by_1e",
}
"""PySCF's initial guesses and the methods that make them; ``vsap`` and ``sap`` are superpositions
of atomic potentials, on the grid of a Kohn-Sham calculation and fitted by Gaussians."""

CERTIFIED = ("certified_residual", "fock_deviation", "energy_of_density", "intruder")
"""What :func:`certify` finds."""

_CYCLES, _FAILED = "scf_iterations_", "scf_failures_"


def structure_from_pyscf(mol) -> Structure:
    """The molecule of a ``pyscf.gto.Mole``, positions in Bohr.

    Raises:
      OpmlError: ghost atoms, or effective core potentials.
    """
    if mol.has_ecp():
        raise OpmlError(
            "mol",
            got="effective core potentials",
            expected="an all-electron calculation",
            code=Code.CORE_POTENTIAL,
        )
    numbers = [int(z) for z in mol.atom_charges()]
    if min(numbers, default=0) < 1:
        raise OpmlError("mol", got="ghost atoms", expected="nuclei only", code=Code.ELEMENT)
    return Structure(numbers, mol.atom_coords(), int(mol.charge), int(mol.spin))


def guess(mf, model: Model | str = SHIPPED, *, fallback: str | None = "minao") -> np.ndarray:
    """Initial density matrix for ``mf.kernel(dm0=...)``, checked.

    In another basis than the model's the predicted occupied orbitals are projected on it and made
    orthonormal again (as PySCF's ``project_mo_nr2nr``).

    Args:
      mf: a restricted closed-shell PySCF mean-field object, in any basis and functional.
      model: predicts density matrices; a model, or its run or file. Default: the one of organic
        molecules that comes with the package.
      fallback: PySCF's guess to take, with a warning, where the model cannot be used or does not
        converge; None: raise instead.

    Returns:
      ``(nao, nao)``, occupation 2, PySCF's AO order.

    Raises:
      OpmlError: a model that predicts no density matrices; without a fallback, whatever kept the
        model from being used: an element it does not know, an open shell, Cartesian functions, a
        density that is not self-consistent.
    """
    model = load_model(model) if isinstance(model, str) else model
    model.require("dm")
    try:
        return _predicted(mf, model)
    except OpmlError as err:
        if fallback is None:
            raise
        warnings.warn(f"{err.message} Starting from {fallback}.", stacklevel=2)
        return np.asarray(mf.get_init_guess(key=fallback))


def pyscf_guesses(mf, names: Sequence[str] = ("minao", "atom", "vsap", "hcore")) -> dict:
    """Initial density matrices that PySCF offers for a mean field, by name.

    Args:
      mf: a PySCF mean-field object.
      names: of :data:`GUESSES`. What this mean field does not have is left out: ``get_init_guess``
        would give minao in its place, as it does for ``vsap`` of Hartree-Fock.

    Raises:
      OpmlError: a name that is not known.
    """
    for name in names:
        one_of("guess", name, GUESSES, OpmlError)
    return {n: getattr(mf, GUESSES[n])() for n in names if hasattr(mf, GUESSES[n])}


def scf_ends(mf, starts: Mapping[str, np.ndarray]) -> dict[str, tuple[int, float]]:
    """Cycles and energy (Hartree; NaN if it did not converge) of the SCF from each density."""
    ends = {}
    for name, dm in starts.items():
        mf.kernel(dm0=dm)
        ends[name] = (mf.cycles, float(mf.e_tot) if mf.converged else float("nan"))
    return ends


def compare_guesses(
    model: Model,
    dataset: Dataset,
    *,
    guesses: Sequence[str] = ("minao", "atom", "vsap", "hcore"),
    conv_tol: float = 1e-9,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """What predictions are worth as starts of PySCF's SCF (restricted, DIIS as it comes).

    Args:
      model: predicts density matrices in the basis of the calculations.
      dataset: structures; ``meta`` tells functional, basis and grid (default: PBE in the model's
        basis, level 4).
      guesses: of PySCF, to compare with, as for :func:`pyscf_guesses`.
      conv_tol: energy convergence, Hartree.
      on_progress: called with (done, total).

    Returns:
      ``scf_iterations_model`` and ``scf_iterations_<guess>``, means; ``scf_iterations_ratio_minao``
      if minao is among them; ``scf_failures_<guess>``, how many did not converge or ended above
      another, if any did (they are not in the means); ``energy_of_density_mae_uha``: the energy of
      one evaluation at the predicted density, above the converged one (PySCF, same functional);
      ``n_scf``. :func:`guess_table` prints it.

    Raises:
      ConvergenceError: an SCF from the prediction that does not converge, or not to the lowest
        solution found.
      OpmlError: a model that predicts no density matrices.
    """
    model.require("dm")
    method = Method.from_meta(
        {"method": "pbe", **dataset.meta},
        basis=model.definition.config.basis,
        conv_tol=conv_tol,
    )
    cycles: dict[str, list[int]] = {}
    failures: dict[str, int] = {}
    excess = []
    for i, structure in enumerate(dataset.structures):
        mf = mean_field(structure, method)
        start = guess(mf, model, fallback=None)
        ends = scf_ends(mf, {"model": start, **pyscf_guesses(mf, guesses)})
        lowest = min((e for _, e in ends.values() if not np.isnan(e)), default=float("nan"))
        for name, (count, energy) in ends.items():
            if energy <= lowest + HIGHER:
                cycles.setdefault(name, []).append(count)
                continue
            if name == "model":
                above = f"ended {energy - lowest:.1e} Hartree above another solution"
                end = "did not converge" if np.isnan(energy) else above
                raise ConvergenceError(f"the SCF of {structure!r} from the model {end}")
            failures[name] = failures.get(name, 0) + 1
        excess.append(abs(mf.energy_tot(dm=start) - lowest))
        on_progress(i + 1, len(dataset))
    means = {f"scf_iterations_{k}": float(np.mean(v)) for k, v in cycles.items()}
    if "minao" in cycles:
        ratio = means["scf_iterations_model"] / means["scf_iterations_minao"]
        means["scf_iterations_ratio_minao"] = ratio
    return {
        **means,
        **{f"scf_failures_{k}": n for k, n in failures.items()},
        "energy_of_density_mae_uha": 1e6 * float(np.mean(excess)),
        "n_scf": len(dataset),
    }


def level_of(model: Model) -> Method:
    """The level of theory of the Fock matrices that a model has learned, from its card.

    Settings that the card does not state have the defaults of :class:`Method`; method and basis
    must be there.

    Raises:
      OpmlError: a model that predicts no Fock and density matrix in the basis of the calculation.
      ConventionError: a card that does not state method or basis.
    """
    model.require("dm")
    model.require("fock")
    if "fock" not in (targets := model.card.get("targets", ())):
        raise OpmlError(
            "model",
            got=f"{model!r}, which learned {', '.join(targets) or 'what its card does not state'}",
            expected="one that learned Fock matrices in the basis of the calculation",
            code=Code.CAPABILITY,
        )
    reference = model.card.get("reference", {})
    if lacking := [k for k in ("method", "basis") if k not in reference]:
        raise ConventionError(
            "model",
            got=f"{model!r}, whose card states no {' and no '.join(lacking)}",
            expected="one whose labels state their level of theory",
            code=Code.LEVEL_OF_THEORY,
        )
    return Method.from_meta(reference)


def certify(
    model: Model, structure: Structure, predicted: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """How far a predicted density is from self-consistency at the level of theory of the labels.

    PySCF makes one Fock matrix, F[P] of the predicted density matrix P, and no SCF: this is what a
    calculation itself says of a prediction, without its own result.

    Args:
      model: has learned Fock matrices (:func:`level_of`).
      structure: molecule.
      predicted: ``fock``, ``dm`` and ``overlap`` of this molecule, from ``model.predict``. Default:
        it is predicted.

    Returns:
      ``certified_residual``: largest element of S^-1/2 (F[P] P S - S P F[P]) S^-1/2, Hartree;
      ``fock_deviation``: mean of |F - F[P]| over all elements, F the predicted matrix, Hartree;
      ``energy_of_density``: total energy of P, Hartree, above that of the converged density by the
      square of the error of P; ``intruder``: whether an occupied orbital of F is none of F[P]
      (:data:`SHARED`), or none that a molecule can have
      (:func:`opml_jax.observables.aufbau.intruder`).

    Raises:
      OpmlError: as of :func:`level_of`; another basis, another number of electrons, or NaN.
      ConvergenceError: a density that did not become self-consistent.
    """
    method = level_of(model)
    predicted = model.predict(structure) if predicted is None else predicted
    if not all(np.isfinite(predicted[k]).all() for k in ("fock", "dm")):
        raise OpmlError(
            "predicted", got="NaN", expected="a density that converged", code=Code.NOT_FINITE
        )
    mf = mean_field(structure, method)
    dm, overlap = _checked(mf, structure, predicted, model), np.asarray(mf.get_ovlp())
    fock = np.asarray(to_pyscf(predicted["fock"], structure, model.definition.basis))
    bare, potential = mf.get_hcore(), mf.get_veff(dm=dm)
    of_density = np.asarray(mf.get_fock(bare, overlap, potential, dm))
    values, vectors = np.linalg.eigh(overlap)
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    half = inverse_root @ of_density @ dm @ overlap @ inverse_root
    orbitals, others = (occupied_orbitals(structure, f, overlap)[1] for f in (fock, of_density))
    shared = np.linalg.svd(orbitals.T @ overlap @ others, compute_uv=False)
    return {
        "certified_residual": float(np.abs(half - half.T).max()),
        "fock_deviation": float(np.abs(fock - of_density).mean()),
        "energy_of_density": float(mf.energy_tot(dm, bare, potential)),
        "intruder": bool(
            shared.min(initial=1.0) < SHARED or intruder(structure, fock, overlap) != ""
        ),
    }


def certified(
    model: Model,
    structures: Sequence[Structure],
    predicted: Mapping[str, np.ndarray],
    *,
    on_result: Callable[[int, dict[str, Any] | None], None] = lambda i, result: None,
) -> dict[str, np.ndarray]:
    """:func:`certify` of several molecules.

    Args:
      model: has learned Fock matrices.
      structures: molecules.
      predicted: of these, a list, from ``model.predict``.
      on_result: called with the index of a molecule and what was found; None: its density is not
        self-consistent.

    Returns:
      What :func:`certify` gives, ``(n_structures,)`` each, ``intruder`` 1 or 0; NaN where a density
      did not become self-consistent.
    """
    out = {name: np.full(len(structures), np.nan) for name in CERTIFIED}
    matrices = {k: cut_rows(k, predicted[k], predicted) for k in ("fock", "dm", "overlap")}
    failed = set(model.failed(predicted).tolist())
    for i, structure in enumerate(structures):
        found = None
        if i not in failed:
            found = certify(model, structure, {k: rows[i] for k, rows in matrices.items()})
            for name in CERTIFIED:
                out[name][i] = found[name]
        on_result(i, found)
    return out


def guess_table(results: Mapping[str, float]) -> str:
    """What :func:`compare_guesses` says, a line for each start, fewest cycles first."""
    prefixes = (_CYCLES, _FAILED)
    names = [k.removeprefix(p) for p in prefixes for k in results if k.startswith(p)]
    cycles = {n: results.get(_CYCLES + n, float("inf")) for n in names if n != "ratio_minao"}
    best = cycles.get("minao", float("nan"))
    rows = [f"{'SCF from':<12}{'cycles':>8}{'of minao':>10}{'failed':>8}"]
    rows += [
        f"{n:<12}{cycles[n]:>8.1f}{cycles[n] / best:>10.2f}{results.get(_FAILED + n, 0):>8}"
        for n in sorted(cycles, key=cycles.__getitem__)
    ]
    return "\n".join(rows)


def _predicted(mf, model: Model) -> np.ndarray:
    structure = structure_from_pyscf(mf.mol)
    model.check_species([structure])
    basis = model.definition.basis
    theirs = molecule(structure, basis)
    overlap, own = np.asarray(mf.get_ovlp()), theirs.intor("int1e_ovlp")
    predicted = model.converged_to(LOOSE).predict(structure)
    # two ways to normalise a function differ by rounding
    if overlap.shape == own.shape and np.abs(overlap - own).max() < SAME_BASIS:
        return _checked(mf, structure, predicted, model)
    return _projected(mf, to_pyscf(predicted["dm"], structure, basis), theirs, own)


def _projected(mf, dm: np.ndarray, mol, overlap: np.ndarray) -> np.ndarray:
    """A density matrix in the basis of ``mol`` as one in that of ``mf``, of as many electrons."""
    from pyscf import gto

    if mf.mol.cart:
        raise ConventionError(
            "mf", got="Cartesian functions", expected="spherical ones", code=Code.LAYOUT
        )
    _, natural = scipy.linalg.eigh(overlap @ dm @ overlap, overlap)  # by occupation
    target = np.asarray(mf.get_ovlp())
    cross = gto.intor_cross("int1e_ovlp", mf.mol, mol)
    occupied = natural[:, len(overlap) - mf.mol.nelectron // 2 :]
    c = np.linalg.lstsq(target, cross @ occupied, rcond=1e-9)[0]
    values, vectors = np.linalg.eigh(c.T @ target @ c)
    c = (c @ vectors) / np.sqrt(values)
    return 2 * c @ c.T


def _checked(mf, structure: Structure, predicted: Mapping[str, Any], model: Model) -> np.ndarray:
    """The predicted density matrix in PySCF's AO order, held against the basis and the electrons.

    Raises:
      OpmlError: another basis, or another number of electrons.
    """
    basis, overlap = model.definition.basis, np.asarray(mf.get_ovlp())
    layout = layout_of(structure, basis)
    if overlap.shape != (layout.nao, layout.nao):
        raise ConventionError(
            "mf",
            got=f"{len(overlap)} atomic orbitals",
            expected=f"{layout.nao}, as {basis!r} has for this molecule",
            code=Code.LAYOUT,
        )
    theirs = from_pyscf(overlap, structure, basis)
    check_convention(theirs, predicted["overlap"], layout.shell_ls, where="mf's overlap matrix")
    dm = np.asarray(to_pyscf(predicted["dm"], structure, basis))
    electrons = float(np.sum(dm * overlap))
    if abs(electrons - mf.mol.nelectron) > ELECTRONS:
        raise OpmlError(
            "dm",
            got=f"{electrons:.6f} electrons",
            expected=f"{mf.mol.nelectron}",
            code=Code.ELECTRON_NUMBER,
        )
    return dm
