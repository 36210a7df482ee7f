"""Potentials one can do by hand, as pure functions of parameters and a molecule."""

import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.structures import Structure
from opml_jax.structures.elements import masses

FORCE_CONSTANT, LENGTH, CHARGE = 0.6, 1.7, 0.4  # Hartree/Bohr^2, Bohr, e: hydrogen fluoride, nearly


class Spring:
    """A diatomic molecule: harmonic bond, dipole proportional to its length."""

    start = Structure([9, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, LENGTH]])
    mass = masses([9, 1])
    reduced = mass.prod() / mass.sum()
    omega = (FORCE_CONSTANT / reduced) ** 0.5

    @staticmethod
    def properties(params, structure):
        x = structure.positions
        bond = x[1] - x[0]
        stretch = jnp.linalg.norm(bond) - LENGTH
        return {"energy": FORCE_CONSTANT * stretch**2 / 2, "dipole": CHARGE * bond}


class Trap:
    """Atoms each in a harmonic trap of its own: every mode is known, none is rigid."""

    start = Structure([8, 1, 1], [[0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
    frequencies = np.linspace(0.01, 0.02, 9).reshape(3, 3)
    stiffness = masses(start.numbers)[:, None] * frequencies**2

    @classmethod
    def properties(cls, params, structure):
        shift = structure.positions - cls.start.positions
        return {"energy": jnp.sum(cls.stiffness * shift**2) / 2}


@pytest.fixture(scope="session")
def spring():
    return Spring


@pytest.fixture
def trap():
    return Trap


class Trimer:
    """Three atoms, a spring between each two: vibrates, turns and moves."""

    start = Structure([8, 1, 1], [[0.0, 0.0, 0.0], [0.0, 1.8, 0.3], [0.0, 0.0, 1.8]])

    @classmethod
    def properties(cls, params, structure):
        def lengths(x):
            return jnp.linalg.norm(x[jnp.array([1, 2, 2])] - x[jnp.array([0, 0, 1])], axis=-1)

        stretch = lengths(structure.positions) - lengths(jnp.asarray(cls.start.positions))
        return {"energy": FORCE_CONSTANT * jnp.sum(stretch**2) / 2}


@pytest.fixture
def trimer():
    return Trimer
