"""What a molecule must satisfy, checked on the host with NumPy before anything is compiled."""

from __future__ import annotations

import warnings

import numpy as np

from ..errors import Code, StructureError, UnitWarning
from ..units import ANGSTROM_PER_BOHR
from .elements import SYMBOLS, WEIGHTS

MIN_DISTANCE = 0.3 / ANGSTROM_PER_BOHR
"""Closest two nuclei may come, Bohr. No bond is shorter than 0.74 Angstrom (H2)."""


STANDARD = 1e-8
"""Masses are standard weights if they are so close, relatively: units were changed back and forth.
No isotope is."""


def check_numbers(numbers: tuple[int, ...]) -> None:
    """Atomic numbers 1..118, at least one."""
    if not numbers:
        raise StructureError(
            "numbers", got="no atoms", expected="at least one atom", code=Code.EMPTY
        )
    for i, z in enumerate(numbers):
        if not 1 <= z < len(SYMBOLS):
            raise StructureError(
                f"numbers[{i}]", got=z, expected="an atomic number from 1 to 118", code=Code.ELEMENT
            )


def check_positions(numbers: tuple[int, ...], positions: np.ndarray) -> None:
    """Shape ``(n_atoms, 3)``, finite, no two nuclei closer than :data:`MIN_DISTANCE`."""
    n = len(numbers)
    if positions.shape != (n, 3):
        transposed = positions.shape == (3, n)
        raise StructureError(
            "positions",
            got=f"shape {positions.shape}",
            expected=f"an array of shape (n_atoms, 3) = ({n}, 3)",
            hint="Did you pass the transpose?" if transposed else "",
            code=Code.SHAPE,
        )
    if not np.isfinite(positions).all():
        i = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(
            "positions",
            got=f"{positions[i]} for atom {i}",
            expected="finite numbers",
            code=Code.COORDINATE,
        )
    if n < 2:
        return
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    distances[np.diag_indices(n)] = np.inf
    i, j = np.unravel_index(np.argmin(distances), distances.shape)
    if distances[i, j] < MIN_DISTANCE:
        raise StructureError(
            "positions",
            got=f"atoms {i} and {j} at {distances[i, j] * ANGSTROM_PER_BOHR:.3f} Angstrom",
            expected=f"nuclei at least {MIN_DISTANCE * ANGSTROM_PER_BOHR:.1f} Angstrom apart",
            hint="Positions are in Bohr inside the library.",
            code=Code.CONTACT,
        )


def check_electrons(numbers: tuple[int, ...], charge: int, spin: int) -> None:
    """The electron count must have the parity of ``spin`` (= 2S)."""
    n = sum(numbers) - charge
    if spin < 0 or n < spin or (n - spin) % 2:
        raise StructureError(
            "spin",
            got=f"spin={spin} (= 2S) for {n} electrons (charge {charge})",
            expected="a number of unpaired electrons of the same parity as the electrons",
            hint="Set charge or spin.",
            code=Code.ELECTRONS,
        )


def check_masses(numbers: tuple[int, ...], masses: object) -> tuple[float, ...] | None:
    """Masses in Dalton as a tuple, positive and one an atom; None if they are standard weights."""
    try:
        array = np.array(masses, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape != (len(numbers),) or not (np.isfinite(array) & (array > 0)).all():
        raise StructureError(
            "masses", got=masses, expected=f"{len(numbers)} positive numbers, in Dalton"
        )
    standard = np.allclose(array, WEIGHTS[list(numbers)], rtol=STANDARD, atol=0)
    return None if standard else tuple(array.tolist())


def check_length_unit(numbers, positions, *, where: str = "positions") -> float | None:
    """Warn when the shortest distances fit another unit of length.

    Compares every atom's nearest-neighbour distance with the sum of covalent radii. The
    median ratio is 0.77 (triple bonds) to 1.2 for a molecule in the right unit, 1.89 times that
    for Bohr read as Angstrom and 0.53 times that for Angstrom read as Bohr.

    Args:
      numbers: ``(n_atoms,)`` atomic numbers.
      positions: ``(n_atoms, 3)`` in Bohr (as the library believes).
      where: name used in the warning.

    Returns:
      The median ratio, or ``None`` for a single atom.
    """
    from ase.data import covalent_radii

    numbers, positions = np.asarray(numbers), np.asarray(positions)
    if len(numbers) < 2:
        return None
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    distances[np.diag_indices(len(numbers))] = np.inf
    radii = covalent_radii[numbers] / ANGSTROM_PER_BOHR
    ratio = float(np.median((distances / (radii[:, None] + radii[None])).min(axis=1)))
    if 1.4 < ratio < 2.3:
        warnings.warn(
            f"{where}: bonds are {ratio:.2f} times their usual length; these look like Bohr "
            "given as Angstrom. Pass the unit explicitly (length_unit='bohr', --length-unit bohr).",
            UnitWarning,
            stacklevel=3,
        )
    elif 0.38 < ratio < 0.62:
        warnings.warn(
            f"{where}: bonds are {ratio:.2f} times their usual length; these look like "
            "Angstrom given as Bohr. Pass the unit explicitly (length_unit='angstrom', "
            "--length-unit angstrom).",
            UnitWarning,
            stacklevel=3,
        )
    return ratio
