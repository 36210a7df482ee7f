"""Minima, harmonic lines and intensities by exact derivatives of a model, and Raman activities."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data.sampling import normal_modes
from ..errors import ConvergenceError, StructureError
from ..models import Model
from ..numerics import Array, require_x64
from ..structures import Structure, in_float64
from ..units import ANGSTROM_PER_BOHR, ELECTRON_MASS_PER_DALTON, WAVENUMBER_PER_HARTREE
from .simulation import Properties, properties_of
from .spectra import INTENSITY

STEP = 0.01
"""Bohr, of the atom that moves most, for derivatives of polarizabilities."""

SILENT = 1e-8
"""A mode with less of the strongest activity scatters nothing: rounding and steps."""


@dataclasses.dataclass(frozen=True)
class Harmonic:
    """Vibrations of a molecule.

    Attributes:
      wavenumbers: ``(n_modes,)`` cm^-1, ascending; negative if imaginary. Translations and
        rotations are projected out.
      modes: ``(n_modes, n_atoms, 3)`` Bohr per unit of mass-weighted coordinate.
      intensities: ``(n_modes,)`` km/mol, or None for models without dipoles.
      hessian: ``(3 n_atoms, 3 n_atoms)`` Hartree/Bohr^2.
      dipole_derivatives: ``(3, n_atoms, 3)`` e, or None.
    """

    wavenumbers: np.ndarray
    modes: np.ndarray
    intensities: np.ndarray | None
    hessian: np.ndarray
    dipole_derivatives: np.ndarray | None


def harmonic(model: Model | Properties, structure: Structure, *, params: Any = None) -> Harmonic:
    """Harmonic frequencies and infrared intensities.

    Args:
      model: as in :func:`opml_jax.dynamics.simulate`.
      structure: a minimum of the model, see :func:`relax`; its masses are those that vibrate.
      params: of ``model``. Default: the model's own.

    Returns:
      :class:`Harmonic`. Intensities are pi N_A / (3 c^2) times the squared derivative of the dipole
      in each mass-weighted normal coordinate (Wilson, Decius, Cross, Molecular Vibrations, ch. 7).

    Raises:
      StructureError: forces above 1e-3 Hartree/Bohr: no minimum.
      OpmlError: a model without energies, or an element, charge or spin the model has not seen.
      PrecisionError: x64 is off.
    """
    require_x64("a float64 model")
    apply, params = properties_of(model, params, [structure])
    # no derivative depends on masses: isotopologues share the program
    structure = in_float64(structure)
    _, gradient, hessian, dipole = _second(apply, params, structure.replace(masses=None))
    if (largest := np.abs(gradient).max()) > 1e-3:
        raise StructureError(
            "structure",
            got=f"a geometry with a force of {largest:.1e} Hartree/Bohr",
            expected="a minimum",
            hint="Relax it first.",
        )
    n = 3 * structure.n_atoms
    hessian = np.asarray(hessian).reshape(n, n)
    frequencies, modes = normal_modes(structure, hessian)
    intensities = None
    if dipole is not None:
        dipole = np.asarray(dipole)
        change = np.einsum("xai,kai->kx", dipole, modes)
        intensities = INTENSITY * (change**2).sum(axis=1)
    return Harmonic(WAVENUMBER_PER_HARTREE * frequencies, modes, intensities, hessian, dipole)


@dataclasses.dataclass(frozen=True)
class Raman:
    """Raman scattering by the vibrations of a molecule.

    Attributes:
      activities: ``(n_modes,)`` Angstrom^4 per atomic mass unit.
      depolarization: ``(n_modes,)`` ratio of perpendicular to parallel intensity for polarised
        light at a right angle: 3/4 where the mean polarizability does not change; NaN for modes
        that do not scatter.
      polarizability_derivatives: ``(n_modes, 3, 3)`` Bohr^2 per root of the electron's mass.
    """

    activities: np.ndarray
    depolarization: np.ndarray
    polarizability_derivatives: np.ndarray


def raman(
    vibrations: Harmonic, polarizability: Callable[[Structure], Array], structure: Structure
) -> Raman:
    r"""Raman activities :math:`45 a'^2 + 7 \gamma'^2` of harmonic vibrations.

    a is the mean of the polarizability and gamma its anisotropy, differentiated in each
    mass-weighted normal coordinate (Wilson, Decius, Cross, Molecular Vibrations, ch. 3): by
    differences of fourth order, because the third derivatives of a self-consistent energy take
    minutes to compile.

    Args:
      vibrations: of :func:`harmonic`, perhaps of another model.
      polarizability: pure function of the molecule, ``(3, 3)`` Bohr^3, such as
        ``model.property_fn("polarizability")`` or ``model.field_polarizability_fn()``.
      structure: the minimum.
    """
    compiled = jax.jit(lambda x: polarizability(structure.replace(positions=x)))
    start = jnp.asarray(structure.positions)
    change = []
    for mode in vibrations.modes:
        step = STEP / np.abs(mode).max()
        near, far = (
            np.asarray(compiled(start + h * mode)) - np.asarray(compiled(start - h * mode))
            for h in (step, 2 * step)
        )
        change.append((8 * near - far) / (12 * step))
    change = np.array(change)
    mean = np.trace(change, axis1=1, axis2=2) / 3
    deviation = change - mean[:, None, None] * np.eye(3)
    anisotropy = 1.5 * (deviation**2).sum(axis=(1, 2))
    scattered = 45 * mean**2 + 7 * anisotropy
    silent = scattered <= SILENT * scattered.max()
    ratio = 3 * anisotropy / np.where(silent, np.nan, 45 * mean**2 + 4 * anisotropy)
    unit = ANGSTROM_PER_BOHR**4 * ELECTRON_MASS_PER_DALTON
    return Raman(unit * scattered, ratio, change)


def relax(
    model: Model | Properties, structure: Structure, *, params: Any = None, gtol: float = 1e-6
) -> Structure:
    """The minimum near a geometry, by Newton's method in a trust region.

    It needs the program of :func:`harmonic` and no other.

    Args:
      model: as in :func:`opml_jax.dynamics.simulate`.
      structure: where to start.
      params: of ``model``. Default: the model's own.
      gtol: norm of the gradient at which to stop, Hartree/Bohr. The last step is a Newton step, so
        that much less is left.

    Raises:
      ConvergenceError: the minimiser stopped above ten times ``gtol``.
      OpmlError: a model without energies, or an element, charge or spin the model has not seen.
      PrecisionError: x64 is off.
    """
    from scipy.optimize import minimize

    require_x64("a float64 model")
    apply, params = properties_of(model, params, [structure])
    molecule = structure.replace(masses=None)  # as in harmonic, whose program this is

    @functools.lru_cache(maxsize=2)  # scipy asks for energy, gradient and Hessian in three calls
    def derivatives(x: bytes):
        moved = molecule.replace(positions=jnp.asarray(np.frombuffer(x).reshape(-1, 3)))
        energy, gradient, hessian, _ = _second(apply, params, moved)
        size = gradient.size
        return float(energy), np.ravel(gradient), np.reshape(hessian, (size, size))

    minimum = minimize(
        lambda x: derivatives(x.tobytes())[0],
        np.asarray(structure.positions, float).ravel(),
        jac=lambda x: derivatives(x.tobytes())[1],
        hess=lambda x: derivatives(x.tobytes())[2],
        method="trust-exact",
        options={"gtol": gtol, "maxiter": 200, "initial_trust_radius": 0.2},
    )
    if not (slope := np.linalg.norm(minimum.jac)) < 10 * gtol:
        raise ConvergenceError(f"the geometry did not relax: gradient {slope:.1e} Hartree/Bohr")
    s = structure
    return Structure(s.numbers, minimum.x.reshape(-1, 3), s.charge, s.spin, s.masses)


@functools.partial(jax.jit, static_argnums=0)
def _second(apply: Properties, params: Any, structure: Structure):
    """Energy, gradient, Hessian and derivatives of the dipole: forward over one reverse mode."""

    def energy(x):
        out = apply(params, structure.replace(positions=x))
        return out["energy"], out.get("dipole")

    def first(x):
        (value, dipole), gradient = jax.value_and_grad(energy, has_aux=True)(x)
        return (gradient, dipole), (value, gradient)

    (hessian, slope), (value, gradient) = jax.jacfwd(first, has_aux=True)(structure.positions)
    return value, gradient, hessian, slope
