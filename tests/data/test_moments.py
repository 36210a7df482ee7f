"""Moments about another origin, against the charges themselves."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.data.moments import centred_quadrupoles, shifted_quadrupole
from opml_jax.structures import centre_of_nuclear_charge

ROUND_OFF = 1e-12


def _moments(charges, positions):
    """Dipole and traceless quadrupole of point charges about the coordinate origin."""
    square = np.einsum("i,ix,iy->xy", charges, positions, positions)
    return charges @ positions, 1.5 * square - 0.5 * np.trace(square) * np.eye(3)


def test_shifted_quadrupole_is_that_of_shifted_charges(rng):
    charges, positions, origin = rng.normal(size=5), rng.normal(size=(5, 3)), rng.normal(size=3)
    charges -= charges.mean()
    dipole, quadrupole = _moments(charges, positions)
    _, expected = _moments(charges, positions - origin)
    np.testing.assert_allclose(
        shifted_quadrupole(quadrupole, dipole, origin), expected, atol=ROUND_OFF
    )


def test_quadrupoles_move_to_the_centre_of_nuclear_charge(water, rng):
    charges = np.array([-0.8, 0.4, 0.4])
    structures, labels = [], {"dipole": [], "quadrupole": []}
    for _ in range(3):
        moved = water.replace(positions=water.positions + rng.normal(size=3))
        structures.append(moved)
        dipole, quadrupole = _moments(charges, moved.positions)
        labels["dipole"].append(dipole)
        labels["quadrupole"].append(quadrupole)
    centred = centred_quadrupoles(Dataset(structures, labels))
    np.testing.assert_allclose(centred, np.broadcast_to(centred[0], (3, 3, 3)), atol=ROUND_OFF)
    del labels["dipole"]
    with pytest.raises(ValueError, match="dipoles beside them") as info:
        centred_quadrupoles(Dataset(structures, labels))
    assert "\n" not in str(info.value)


def test_centre_of_nuclear_charge(water, molecules):
    centre = centre_of_nuclear_charge(water)
    x = np.asarray(water.positions)
    np.testing.assert_allclose(centre, (8 * x[0] + x[1] + x[2]) / 10, atol=ROUND_OFF)
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    batch = opml.batch([water, molecules["methane"]], basis)
    np.testing.assert_allclose(centre_of_nuclear_charge(batch)[0], centre, atol=ROUND_OFF)
