"""Whether numbers can be meant: a wrong unit is a factor, and the factor shows.

Checks compare labels with crude estimates that need no calculation. What no molecule can have is
an error, what merely fits another unit better is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import Code, DataError, UnitWarning
from ..structures import Structure, check_length_unit
from ..units import ENERGY, EV_PER_ANGSTROM_PER_ATOMIC_FORCE

MAX_FORCE = 50.0  # eV/Angstrom; larger forces on average are a wrong unit


def check_finite(where: str, labels: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Raise :class:`DataError` for a label that is NaN or infinite."""
    for name, values in labels.items():
        bad = [i for i, v in enumerate(values) if not np.isfinite(v).all()]
        if bad:
            got = f"NaN in structure {bad[0]}"
            if len(bad) > 1:
                got += f" and {len(bad) - 1} more"
            hint = "Leave these structures out, or this label."
            expected = "finite labels"
            raise DataError(
                f"{name} of {where}", got=got, expected=expected, hint=hint, code=Code.NOT_FINITE
            )


def check_lengths(where: str, structures: Sequence[Structure]) -> None:
    """Warn once when most of ten structures spread over the set have bonds in another unit."""
    sample = structures[:: max(1, len(structures) // 10)][:10]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnitWarning)
        for s in sample:
            check_length_unit(s.numbers, s.positions, where=where)
    if 2 * len(caught) > len(sample):
        warnings.warn(str(caught[0].message), UnitWarning, stacklevel=5)


def energy_of_atoms(numbers: Sequence[int]) -> float:
    """Semiclassical total energy of free neutral atoms, Hartree.

    Thomas-Fermi with the corrections of Scott and Schwinger (Englert, Semiclassical Theory of
    Atoms, 1988), within 1 % beyond helium; hydrogen exactly. Molecules are 0 to 5 % below.
    """
    z = np.asarray(numbers, np.float64)
    heavy = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3)
    return float(np.where(z == 1, -0.5, heavy).sum())


def check_energies(
    where: str, structures: Sequence[Structure], energies: ArrayLike, factor: float
) -> None:
    """Energies against composition.

    Total energies lie near those of the free atoms. Valence-only, atomisation and relative
    energies are smaller and pass, unless they are total energies in another unit.

    Args:
      where: file, for the message.
      structures: molecules.
      energies: Hartree, as the file's unit is believed to be.
      factor: from the believed unit to Hartree, one of :data:`opml_jax.units.ENERGY`.

    Raises:
      DataError: twice below the free atoms, or above them by more than 1 Hartree an atom.

    Warns:
      UnitWarning: energies that are total energies in another unit.
    """
    energies = np.asarray(energies, np.float64)
    ratios = energies / [energy_of_atoms(s.numbers) for s in structures]
    ratio = float(np.median(ratios))
    per_atom = float(np.median(energies / [s.n_atoms for s in structures]))
    meant = [u for u, f in ENERGY.items() if f != factor and 0.96 < ratio * f / factor < 1.05]
    hint = f"They fit {meant[0]}: name that unit" if meant else "Name their unit"
    hint += " (energy_unit, or labels)."
    believed = next(u for u, f in ENERGY.items() if f == factor)
    if ratio > 2 or per_atom > 1:
        raise DataError(
            f"energies of {where}",
            got=f"{ratio:.3g} times that, reading them as {believed}",
            expected="at most about the energy of the free atoms",
            hint=hint,
            code=Code.UNIT,
        )
    # Relative energies may happen to lie there, but not all of them at one ratio
    if meant and np.ptp(ratios) < 0.1 * abs(ratio):
        text = f"energies of {where} are {ratio:.3g} times those of the free atoms"
        warnings.warn(f"{text}, reading them as {believed}. {hint}", UnitWarning, stacklevel=5)


def check_core_levels(where: str, structures: Sequence[Structure], levels: Sequence[float]) -> None:
    """Raise :class:`DataError` when the lowest levels of Fock matrices are not in Hartree.

    The 1s level of the heaviest atom lies between -0.2 and -0.6 Z^2 Hartree: that of a bare nucleus
    is -Z^2/2, electrons screen it, and charges of molecules shift it by little but for hydrogen.

    Args:
      where: file, for the message.
      structures: molecules.
      levels: the lowest level of each, believed to be in Hartree.
    """
    charges = np.array([max(s.numbers) for s in structures])
    ratio = float(np.median(np.asarray(levels) / charges**2))
    if -1.0 < ratio < 0.0:
        return
    meant = [u for u, factor in ENERGY.items() if -1.0 < ratio * factor < -0.1]
    hint = f"They fit {meant[0]}: convert them." if meant else ""
    raise DataError(
        f"Fock matrices of {where}",
        got=f"a lowest level of {ratio:.3g} Z^2",
        expected="in Hartree, with a lowest level between 0 and -Z^2",
        hint=hint,
        code=Code.UNIT,
    )


def check_forces(where: str, forces: Sequence[np.ndarray]) -> None:
    """Raise :class:`DataError` when typical forces (Hartree/Bohr) exceed any molecule's."""
    typical = np.median([np.abs(f).max() for f in forces]) * EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    if typical > MAX_FORCE:
        raise DataError(
            f"forces of {where}",
            got=f"{typical:.0f} eV/Angstrom at the median maximum",
            expected=f"below {MAX_FORCE:.0f}",
            hint="Name their unit (energy_unit and length_unit, or labels).",
            code=Code.UNIT,
        )


def check_polarizabilities(
    where: str, structures: Sequence[Structure], isotropic: ArrayLike
) -> None:
    """Warn when isotropic polarizabilities (Bohr^3) fit another unit.

    Molecules have 0.5 to 1.2 times the polarizability of their free atoms, and
    1 Angstrom^3 is 6.75 Bohr^3.
    """
    from ase.calculators.vdwcorrection import vdWDB_alphaC6 as free

    pairs = [
        (alpha, sum(free[x][0] for x in s.symbols))
        for alpha, s in zip(np.asarray(isotropic), structures, strict=True)
        if free.keys() >= {*s.symbols}
    ]
    ratio = float(np.median([alpha / atoms for alpha, atoms in pairs])) if pairs else 1.0
    if not 0.3 < ratio < 2.5:
        warnings.warn(
            f"polarizabilities of {where} are {ratio:.2g} times those of the free atoms; these "
            f"look like {'Angstrom^3' if ratio < 1 else 'Bohr^3'}. Name that unit.",
            UnitWarning,
            stacklevel=5,
        )


def check_tensor(where: str, name: str, tensors: Sequence[np.ndarray], *, traceless: bool) -> None:
    """Raise :class:`DataError` for ``(3, 3)`` tensors that are not symmetric (or traceless)."""
    for i, t in enumerate(tensors):
        scale = 1e-3 * np.abs(t).max()
        odd = "asymmetric" if np.abs(t - t.T).max() > scale else ""
        if traceless and abs(np.trace(t)) > 3 * scale:
            odd = f"of trace {np.trace(t):.3g}"
        if odd:
            raise DataError(
                f"{name}[{i}] of {where}",
                got=f"one {odd}",
                expected=f"a symmetric{' traceless' * traceless} tensor",
                code=Code.MATRIX,
            )


def check_labels(
    where: str,
    structures: Sequence[Structure],
    labels: Mapping[str, Sequence[np.ndarray]],
    factors: dict[str, float],
) -> None:
    """Every check above that applies.

    Args:
      where: file, for messages.
      structures: molecules.
      labels: by field, atomic units, of the shapes of :data:`opml_jax.quantities.LABELS`.
      factors: by field, from the file's unit to atomic units.

    Raises:
      DataError: labels no molecule can have.

    Warns:
      UnitWarning: labels that fit another unit better.
    """
    check_finite(where, labels)
    if "energy" in labels:
        check_energies(where, structures, labels["energy"], factors["energy"])
    if "forces" in labels:
        check_forces(where, labels["forces"])
    if "polarizability" in labels:
        tensors = labels["polarizability"]
        check_tensor(where, "polarizability", tensors, traceless=False)
        check_polarizabilities(where, structures, [np.trace(t) / 3 for t in tensors])
    if "isotropic_polarizability" in labels:
        check_polarizabilities(where, structures, labels["isotropic_polarizability"])
    if "quadrupole" in labels:
        check_tensor(where, "quadrupole", labels["quadrupole"], traceless=True)
