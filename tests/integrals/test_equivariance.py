"""V(R x) = D(R) V(x) D(R)^T, proper and improper, for every molecule and basis."""

import itertools

import jax
import numpy as np
import pytest

from opml_jax import integrals
from opml_jax.basis import layout_of, load_basis
from opml_jax.conventions import rotation_to_e3nn

# Last bits of double precision, relative to the largest element of V (hundreds of Hartree)
ROUND_OFF = 1e-12
N_ROTATIONS = 20  # half of them improper
FEW_ROTATIONS = 4

NAMES = [
    "water",
    "methane",
    "carbon_dioxide",
    "hydrogen_cyanide",
    "fluoromethane",
    "hydrogen_sulfide",
    "formamide",
]
BASES = ["sto-3g", "def2-svp", "def2-tzvp", "cc-pvtz"]


def _wigner(layout, rotation):
    """Block-diagonal matrix that turns the AOs of a molecule."""
    out = np.zeros((layout.nao, layout.nao))
    r = rotation_to_e3nn(rotation)
    for a in range(len(layout.numbers)):
        rows = slice(layout.offsets[a], layout.offsets[a + 1])
        out[rows, rows] = layout.irreps(a).D_from_matrix(r)
    return out


def _check(structure, basis_name, rng, random_rotation, n, driver="native"):
    basis = load_basis(basis_name, structure.numbers)
    layout = layout_of(structure, basis)
    potential = jax.jit(lambda s: integrals.external_potential(s, basis, driver=driver))
    v = np.asarray(potential(structure))
    tolerance = ROUND_OFF * max(1.0, np.abs(v).max())
    for k in range(n):
        r = random_rotation(rng, improper=bool(k % 2))
        turned = potential(structure.replace(positions=structure.positions @ r.T))
        d = _wigner(layout, r)
        np.testing.assert_allclose(turned, d @ v @ d.T, rtol=0, atol=tolerance)


PAIRS = list(itertools.product(NAMES, BASES))


@pytest.mark.parametrize(
    ("name", "basis_name"),
    [p if p == ("methane", "sto-3g") else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS],
)
def test_potential_turns_with_the_molecule(molecules, rng, random_rotation, name, basis_name):
    _check(molecules[name], basis_name, rng, random_rotation, N_ROTATIONS)


@pytest.mark.parametrize(
    ("name", "basis_name"), [("water", "def2-svp"), ("hydrogen_sulfide", "sto-3g")]
)
def test_that_of_libcint_does_too(molecules, rng, random_rotation, name, basis_name):
    _check(molecules[name], basis_name, rng, random_rotation, FEW_ROTATIONS, driver="libcint")


def test_vectors_turn_too(water, rng, random_rotation):
    """Position matrices are a vector of operators, overlap and kinetic energy scalars."""
    basis = load_basis("def2-svp", water.numbers)
    layout = layout_of(water, basis)
    r = random_rotation(rng, improper=True)
    turned = water.replace(positions=water.positions @ r.T)
    d = _wigner(layout, r)
    for operator in (integrals.overlap, integrals.kinetic):
        expected = d @ operator(water, basis) @ d.T
        np.testing.assert_allclose(operator(turned, basis), expected, atol=10 * ROUND_OFF)
    expected = np.einsum("xy,ia,yab,jb->xij", r, d, integrals.position(water, basis), d)
    np.testing.assert_allclose(integrals.position(turned, basis), expected, atol=10 * ROUND_OFF)
