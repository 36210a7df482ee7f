"""Minima, harmonic frequencies and infrared intensities by exact derivatives of a model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data.sampling import normal_modes
from ..errors import ConvergenceError, StructureError, refusal
from ..models import Model
from ..numerics import Array, require_x64
from ..structures import Structure
from ..units import WAVENUMBER_PER_HARTREE
from .simulation import Properties, properties_of
from .spectra import INTENSITY


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
      structure: a minimum of the model, see :func:`relax`.
      params: of ``model``. Default: the model's own.

    Returns:
      :class:`Harmonic`. Intensities are pi N_A / (3 c^2) times the squared derivative of the dipole
      in each mass-weighted normal coordinate (Wilson, Decius, Cross, Molecular Vibrations, ch. 7).

    Raises:
      StructureError: forces above 1e-3 Hartree/Bohr: no minimum.
      OpmlError: an element the model has not seen.
      PrecisionError: x64 is off.
    """
    require_x64("a float64 model")
    apply, params = properties_of(model, params, structure)
    gradient, hessian, dipole = _second(apply, params, structure)
    if (largest := np.abs(gradient).max()) > 1e-3:
        raise StructureError(
            refusal(
                "structure",
                got=f"a geometry with a force of {largest:.1e} Hartree/Bohr",
                expected="a minimum",
                hint="Relax it first.",
            )
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


def relax(
    model: Model | Properties, structure: Structure, *, params: Any = None, gtol: float = 1e-7
) -> Structure:
    """The minimum near a geometry (BFGS).

    Args:
      model: as in :func:`opml_jax.dynamics.simulate`.
      structure: where to start.
      params: of ``model``. Default: the model's own.
      gtol: largest component of the gradient left, Hartree/Bohr.

    Raises:
      ConvergenceError: the minimiser stopped above a hundred times ``gtol``.
      OpmlError: an element the model has not seen.
      PrecisionError: x64 is off.
    """
    from scipy.optimize import minimize

    require_x64("a float64 model")
    apply, params = properties_of(model, params, structure)

    def energy_and_gradient(x):
        moved = structure.replace(positions=jnp.asarray(x.reshape(-1, 3)))
        energy, gradient = _first(apply, params, moved)
        return float(energy), np.asarray(gradient, float).ravel()

    start = np.asarray(structure.positions, float).ravel()
    found = minimize(energy_and_gradient, start, jac=True, method="BFGS", options={"gtol": gtol})
    if not (left := np.abs(found.jac).max()) < 100 * gtol:
        raise ConvergenceError(f"the geometry did not relax: gradient {left:.1e} Hartree/Bohr")
    return Structure(structure.numbers, found.x.reshape(-1, 3), structure.charge, structure.spin)


def _energy(apply: Properties, params: Any, structure: Structure, x: Array):
    """Energy and, if there is one, dipole."""
    found = apply(params, structure.replace(positions=x))
    return found["energy"], found.get("dipole")


@functools.partial(jax.jit, static_argnums=0)
def _first(apply: Properties, params: Any, structure: Structure):
    energy = functools.partial(_energy, apply, params, structure)
    (value, _), gradient = jax.value_and_grad(energy, has_aux=True)(structure.positions)
    return value, gradient


@functools.partial(jax.jit, static_argnums=0)
def _second(apply: Properties, params: Any, structure: Structure):
    """Gradient, Hessian and derivatives of the dipole, from one forward mode over one reverse."""
    energy = functools.partial(_energy, apply, params, structure)

    def gradient_and_dipole(x):
        gradient, dipole = jax.grad(energy, has_aux=True)(x)
        return (gradient, dipole), gradient

    (hessian, slope), gradient = jax.jacfwd(gradient_and_dipole, has_aux=True)(structure.positions)
    return gradient, hessian, slope
