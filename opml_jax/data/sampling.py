"""Geometries to label: thermal displacements along harmonic normal modes."""

from __future__ import annotations

import numpy as np

from ..errors import OpmlError
from ..structures import Structure
from ..units import HARTREE_PER_KELVIN, WAVENUMBER_PER_HARTREE

LINEAR = 0.01
"""Bohr: a molecule whose atoms are all so close to one line is linear.

Minima of linear molecules are bent a little: a gradient of 1e-5 Hartree/Bohr, at which relaxing
stops, leaves 1e-4 to 1e-3 Bohr of a bend, whose force constants are 0.01 to 0.1 Hartree/Bohr^2. A
bond of 2 Bohr that is bent by one degree is beyond it, and minima that are bent are so by more."""


def normal_modes(structure: Structure, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Harmonic frequencies and Cartesian displacements of unit mass-weighted amplitude.

    Translations and rotations are projected out (Wilson, Decius, Cross, Molecular
    Vibrations, ch. 2), so 3 n - 6 modes come back (3 n - 5 for a linear molecule).

    Args:
      structure: a stationary point.
      hessian: ``(3 n_atoms, 3 n_atoms)`` Hartree/Bohr^2.

    Returns:
      ``(frequencies, modes)``: ``(n_modes,)`` in Hartree (hbar = 1; negative if imaginary) and
      ``(n_modes, n_atoms, 3)`` in Bohr per unit of mass-weighted coordinate (sqrt(m_e) Bohr).
    """
    mass = structure.atomic_masses
    root = np.repeat(mass**0.5, 3)
    vibrations = internal_motion(structure, mass)
    weighted = vibrations.T @ (hessian / root[:, None] / root[None]) @ vibrations
    w2, c = np.linalg.eigh(weighted)
    modes = (vibrations @ c / root[:, None]).T.reshape(-1, structure.n_atoms, 3)
    return np.sign(w2) * np.abs(w2) ** 0.5, modes


def internal_motion(structure: Structure, mass: np.ndarray) -> np.ndarray:
    """Directions of mass-weighted coordinates orthogonal to translations and rotations.

    Args:
      structure: a molecule.
      mass: ``(n_atoms,)`` of its atoms.

    Returns:
      ``(3 n_atoms, n_modes)``, orthonormal; 3 n - 6 of them, 3 n - 5 of a linear molecule (see
      :data:`LINEAR`).
    """
    x = np.asarray(structure.positions) - mass @ structure.positions / mass.sum()
    rigid = [np.repeat(mass**0.5, 3) * np.tile(e, len(mass)) for e in np.eye(3)]
    rigid += [(mass[:, None] ** 0.5 * np.cross(e, x)).ravel() for e in np.eye(3)]
    u = np.linalg.svd(np.array(rigid).T, full_matrices=True)[0]
    # singular values fall: what there is least of, if anything, is turning about the axis
    rotations = 0 if len(mass) == 1 else 2 if is_linear(structure) else 3
    return u[:, 3 + rotations :]


def is_linear(structure: Structure) -> bool:
    """Whether all atoms are within :data:`LINEAR` of one line, whatever their masses."""
    x = np.asarray(structure.positions, np.float64)
    x = x - x.mean(axis=0)
    axis = np.linalg.svd(x)[2][0]
    return bool(np.linalg.norm(x - np.outer(x @ axis, axis), axis=1).max() < LINEAR)


def check_temperature(temperature: float) -> None:
    """Raise :class:`OpmlError` unless the temperature is positive."""
    if not temperature > 0:
        raise OpmlError("temperature", got=temperature, expected="positive, in Kelvin")


def sample_thermal(
    structure: Structure, hessian: np.ndarray, *, temperature: float, n: int, seed: int
) -> list[Structure]:
    """Independent geometries from the classical Boltzmann distribution of the harmonic modes.

    Each mass-weighted normal coordinate is Gaussian with variance kT/omega^2; every geometry
    is then turned by a uniform random rotation about the origin.

    Args:
      structure: a minimum.
      hessian: ``(3 n_atoms, 3 n_atoms)`` Hartree/Bohr^2 at it.
      temperature: Kelvin.
      n: number of geometries.
      seed: of NumPy's generator; geometry i depends on seed and i only, so ``n`` may grow.

    Raises:
      OpmlError: an imaginary or nearly free mode (below 50 cm^-1), where harmonic sampling fails.
    """
    from scipy.spatial.transform import Rotation

    check_temperature(temperature)
    frequencies, modes = normal_modes(structure, hessian)
    softest = frequencies.min(initial=np.inf) * WAVENUMBER_PER_HARTREE
    if softest < 50:
        raise OpmlError(
            "structure",
            got=f"a mode at {softest:.0f} cm^-1 (negative: imaginary)",
            expected="a minimum without soft modes",
            hint="Relax it, or supply geometries.",
        )
    width = (HARTREE_PER_KELVIN * temperature) ** 0.5 / frequencies
    out = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        moved = structure.positions + np.einsum(
            "k,kax->ax", rng.normal(size=len(width)) * width, modes
        )
        turned = moved @ Rotation.random(rng=rng).as_matrix().T
        s = structure
        out.append(Structure(s.numbers, turned, s.charge, s.spin, s.masses))
    return out
