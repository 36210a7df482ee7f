"""Minima and their force constants by PySCF, each step kept: a kill costs the one in progress."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BasisError, Code, ConvergenceError, DataError
from ..structures import Structure
from .files import atomic_path
from .reference import Method, converge, mean_field

SOFTEST = 0.1
"""Hartree/Bohr^2: least force constant that a relaxation begins with. Softer ones of a drawn
geometry would move atoms by more than a bond."""

AT_ONCE = 6
"""Atoms whose response of the orbitals is solved together: alone, each takes twice as long."""

GUESS = Method("hf", "sto-3g", forces=False)
"""Level of the force constants that a relaxation begins with: seconds, and half of its steps."""


class Journal:
    """Arrays that a killed calculation goes on from, in one file that is replaced as a whole.

    Args:
      path: of the file (npz). Default: nothing is kept.
      structure: start of the relaxation.
      method: level of theory.

    Raises:
      DataError: a file of another molecule, geometry or level of theory, or a damaged one.
    """

    def __init__(
        self,
        path: Path | None = None,
        structure: Structure | None = None,
        method: Method | None = None,
    ):
        self.path, self.arrays = path, dict[str, np.ndarray]()
        if path is None or structure is None or method is None:
            return
        key = [structure.numbers, np.asarray(structure.positions, np.float64).tolist()]
        key += [structure.charge, structure.spin]
        level = {**dataclasses.asdict(method), "max_cycle": None, "forces": None}
        self.arrays["of"] = np.array(json.dumps([*key, level]))
        if path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as err:
            expected = "steps of a relaxation"
            hint = "Delete it: the relaxation begins anew."
            raise DataError(
                str(path), got=f"{err}", expected=expected, hint=hint, code=Code.DAMAGED
            ) from err
        if arrays.get("of") != self.arrays["of"]:
            raise DataError(
                str(path),
                got="those of another geometry or level of theory",
                expected="steps of the relaxation that is asked for",
                hint="Choose another output, or delete the file to begin anew.",
                code=Code.OTHER_RUN,
            )
        self.arrays = arrays

    def __getitem__(self, name: str) -> Any:
        """An array, or None."""
        return self.arrays.get(name)

    def keep(self, **arrays: Any) -> None:
        """Add arrays, or replace those of the same names."""
        self.arrays |= {name: np.asarray(value) for name, value in arrays.items()}
        if self.path is not None:
            with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self.arrays)  # pyright: ignore[reportArgumentType]


def relax(
    structure: Structure,
    method: Method,
    *,
    gtol: float = 1e-5,
    journal: Journal | None = None,
    on_step: Callable[[int, float, float], None] = lambda step, energy, force: None,
) -> Structure:
    """Minimum-energy geometry near ``structure`` (BFGS on PySCF gradients).

    Force constants begin as those of Hartree-Fock in a minimal basis, and every SCF with the
    density of the step before.

    Args:
      structure: start.
      method: level of theory.
      gtol: largest gradient component left, Hartree/Bohr.
      journal: keeps each step: with it a killed relaxation goes on, to the same geometry.
      on_step: called after each new step with its number, its energy in Hartree and its largest
        gradient component in Hartree/Bohr.

    Raises:
      ConvergenceError: the minimiser stopped above ``gtol``, or an SCF did not converge.
    """
    from scipy.optimize import minimize

    journal, shape, count = journal or Journal(), structure.positions.shape, 0
    if journal["first_inverse"] is None:
        journal.keep(first_inverse=_inverse_force_constants(structure), x=[], energy=[], slope=[])

    def energy_and_gradient(x: np.ndarray):
        """Of a step that is known, or by PySCF; what is known is taken in the same order."""
        nonlocal count
        step, count = count, count + 1
        if step < len(journal["x"]) and np.array_equal(x, journal["x"][step]):
            return journal["energy"][step], journal["slope"][step]
        moved = structure.replace(positions=x.reshape(shape))
        mf, _ = converge(mean_field(moved, method), journal["dm"])
        gradient = mf.nuc_grad_method()
        gradient.grid_response = not method.is_hf
        slope = gradient.kernel().ravel()
        rows = {"x": x, "energy": mf.e_tot, "slope": slope}
        rows = {name: [*journal[name][:step], value] for name, value in rows.items()}
        journal.keep(**rows, dm=mf.make_rdm1())
        on_step(count, mf.e_tot, np.abs(slope).max())
        return mf.e_tot, slope

    start = np.asarray(structure.positions, np.float64).ravel()
    options = {"gtol": gtol, "hess_inv0": journal["first_inverse"]}
    found = minimize(energy_and_gradient, start, jac=True, method="BFGS", options=options)
    if np.abs(found.jac).max() > 10 * gtol:
        raise ConvergenceError(
            f"the geometry did not relax: gradient {np.abs(found.jac).max():.1e}"
        )
    return structure.replace(positions=found.x.reshape(shape))


def _inverse_force_constants(structure: Structure) -> np.ndarray:
    """Positive definite ``(3 n_atoms, 3 n_atoms)`` Bohr^2/Hartree, of :data:`GUESS` or alike."""
    try:
        values, vectors = np.linalg.eigh(hessian(structure, GUESS))
    except (BasisError, ConvergenceError):
        return np.eye(3 * structure.n_atoms)
    inverse = vectors / np.maximum(np.abs(values), SOFTEST) @ vectors.T
    return (inverse + inverse.T) / 2


def hessian(
    structure: Structure,
    method: Method,
    *,
    journal: Journal | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Analytic second derivatives of the energy, ``(3 n_atoms, 3 n_atoms)`` Hartree/Bohr^2.

    Args:
      structure: closed-shell molecule.
      method: level of theory.
      journal: keeps what is done of it; the density in it is the guess.
      on_progress: called with atoms done, and atoms in all, whose response is solved.

    Raises:
      ConvergenceError: the SCF did not converge.
    """
    journal, n = journal or Journal(), structure.n_atoms
    if journal["hessian"] is not None:
        return journal["hessian"]
    mf = mean_field(structure, method)
    if journal["mo_coeff"] is None:
        mf, _ = converge(mf, journal["dm"])
        journal.keep(mo_coeff=mf.mo_coeff, mo_energy=mf.mo_energy, mo_occ=mf.mo_occ)
    orbitals = [journal[name] for name in ("mo_energy", "mo_coeff", "mo_occ")]
    mf.mo_energy, mf.mo_coeff, mf.mo_occ = orbitals
    if not method.is_hf and mf.grids.coords is None:
        mf.grids.build(with_non0tab=True)
    h = mf.Hessian()
    on_progress(0, n)
    if journal["fixed"] is None:
        journal.keep(fixed=h.partial_hess_elec(*orbitals))
    first = h.make_h1(*orbitals[1:])
    for start in range(0, n, AT_ONCE):
        atoms = range(start, min(start + AT_ONCE, n))
        if journal[f"response_{atoms[-1]}"] is None:
            response, levels = h.solve_mo1(*orbitals, first, None, atoms)
            solved = {f"response_{i}": response[i] for i in atoms}
            journal.keep(**solved, **{f"levels_{i}": levels[i] for i in atoms})
        on_progress(atoms[-1] + 1, n)
    response, levels = ([journal[f"{k}_{i}"] for i in range(n)] for k in ("response", "levels"))
    h.partial_hess_elec = lambda *_: journal["fixed"].copy()
    parts = h.hess_elec(*orbitals, mo1=response, mo_e1=levels, h1ao=first) + h.hess_nuc()
    if mf.do_disp():
        parts += h.get_dispersion()
    matrix = np.asarray(parts).transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    journal.arrays = {k: v for k, v in journal.arrays.items() if not k.startswith(_LARGE)}
    journal.keep(hessian=matrix)
    return matrix


_LARGE = ("response_", "levels_", "fixed", "mo_")
"""Names of what is of no use once the force constants are there."""
