"""The part of a matrix that is the matrix of a local potential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import dft

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.integrals import (
    FINE,
    Shells,
    density_fit,
    local_potentials,
    shells_of,
    unpacked,
)
from opml_jax.observables import orbitals
from opml_jax.operators.local import RIDGE, local_projection
from opml_jax.testing import assert_equivariant, assert_grad_matches_fd

FEW = (Shells(0, (0.3, 1.5)), Shells(1, (0.6,), heavy=True), Shells(2, (0.9,), heavy=True))
ROUNDING = 1e-9  # of normal equations with a condition number up to 1e6
ROUNDING_OF_REST = 1e-3  # of what is left out, 2e-6 Hartree of elements of order 10
SHRUNK = 1e-5  # by the ridge: 1e-10 over the smallest eigenvalue of the metric, matrices of order 1
HARTREE_FOCK_IS_NOT_LOCAL = 3e-3  # Hartree in the mean of an element


@pytest.fixture(scope="module")
def water():
    return opml.Structure([8, 1, 1], [[0, 0.1, 0.2], [0, 1.4, -0.9], [0.1, -1.4, -0.9]])


@pytest.fixture(scope="module")
def few(water):
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    return basis, projection_of(water, basis, FEW)


def projection_of(structure, basis, functions=FINE):
    fit = density_fit(structure, basis, functions)
    return local_projection(fit.integrals, shells=shells_of(structure, basis, functions))


def symmetric(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, n))
    return x + x.T


def test_the_nearest_matrix_by_least_squares(few, water):
    basis, projection = few
    rows, _ = local_potentials(water, basis, FEW)
    matrices = np.asarray(unpacked(rows)).reshape(len(rows), -1)
    m = symmetric(7)
    square, shells = (matrices**2).sum(axis=1), shells_of(water, basis, FEW)
    of_shell = np.array([square[shells == shell].mean() for shell in shells])
    scaled = matrices / of_shell[:, None] ** 0.5
    ridge = RIDGE**0.5 * np.eye(len(scaled))
    right = np.concatenate([m.ravel(), np.zeros(len(scaled))])
    c, *_ = np.linalg.lstsq(np.vstack([scaled.T, ridge]), right, rcond=None)
    assert np.abs(projection(m) - (c @ scaled).reshape(7, 7)).max() < ROUNDING


def test_what_is_local_stays_and_twice_is_once(few, water):
    basis, projection = few
    rows, _ = local_potentials(water, basis, FEW)
    local = unpacked(jnp.sum(rows, axis=0))
    assert np.abs(projection(local) - local).max() < SHRUNK
    once = projection(symmetric(7))
    assert np.abs(projection(once) - once).max() < SHRUNK
    both = projection(2 * symmetric(7) + local)
    assert np.abs(both - 2 * once - projection(local)).max() < ROUNDING


def test_symmetric_in_the_scalar_product_of_matrices(few):
    _, projection = few
    a, b = symmetric(7), symmetric(7, seed=1)
    assert float(jnp.sum(a * projection(b))) == pytest.approx(float(jnp.sum(b * projection(a))))


def test_a_shift_of_the_molecule_and_of_atoms_in_the_file(few, water):
    basis, projection = few
    m = symmetric(7)
    moved = projection_of(water.replace(positions=water.positions + 3.0), basis, FEW)
    assert np.abs(moved(m) - projection(m)).max() < ROUNDING
    order = np.array([1, 0, 2])
    swapped = opml.Structure(np.array(water.numbers)[order], np.asarray(water.positions)[order])
    to = np.array([5, 0, 1, 2, 3, 4, 6])
    found = projection_of(swapped, basis, FEW)(m[np.ix_(to, to)])
    assert np.abs(found - projection(m)[np.ix_(to, to)]).max() < ROUNDING


def test_what_is_left_out_is_the_same_in_any_orientation(water, rng, random_rotation):
    """The ridge too: all that is left out in a minimal basis is what it shrinks.

    With a norm for each function in place of one for each shell it would differ by a quarter.
    """
    basis = opml.load_basis("sto-3g", [1, 8])
    turned = water.replace(positions=water.positions @ random_rotation(rng, improper=True).T)
    norms = []
    for structure in (water, turned):
        m = opml.integrals.external_potential(structure, basis)
        norms.append(float(jnp.linalg.norm(m - projection_of(structure, basis)(m))))
    assert norms[0] < SHRUNK
    assert norms[1] == pytest.approx(norms[0], rel=ROUNDING_OF_REST)


@pytest.mark.slow
def test_it_turns_with_the_molecule(water):
    """Levels of the local part of the kinetic energy, which is not local."""
    basis = opml.load_basis("6-31g*", [1, 8])

    @jax.jit
    def levels(structure):
        local = projection_of(structure, basis, FEW)(opml.integrals.kinetic(structure, basis))
        return orbitals(local, opml.integrals.overlap(structure, basis))[0]

    assert_equivariant(levels, water, n=2)


@pytest.mark.slow
def test_a_batch_is_its_molecules(water):
    methane = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 1.19
    methane = opml.Structure([6, 1, 1, 1, 1], np.vstack([np.zeros((1, 3)), methane]))
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    batch = opml.batch([water, methane], basis)
    m = symmetric(batch.layout.nao)
    found = projection_of(batch, basis, FEW)(jnp.stack([m, m]))
    for matrix, s in zip(found, (water, methane), strict=True):
        projection = projection_of(s, basis, FEW)
        n = opml.integrals.overlap(s, basis).shape[0]
        assert np.abs(matrix[:n, :n] - projection(m[:n, :n])).max() < ROUNDING
        assert not np.any(matrix[n:])


@pytest.mark.slow
def test_gradient_by_finite_differences(water):
    """In the positions and in the matrix, which moves with them."""
    basis = opml.load_basis("sto-3g", [1, 8])
    weights = symmetric(7)

    def total(positions):
        moved = water.replace(positions=positions)
        t = opml.integrals.kinetic(moved, basis)
        return jnp.sum(weights * projection_of(moved, basis, FEW)(t))

    assert_grad_matches_fd(jax.jit(total), water.positions, rtol=1e-6)


@pytest.mark.slow
def test_exchange_and_correlation_of_pbe_is_left_nearly_as_it_is():
    """That of formamide; exact exchange is not local, and is not left."""
    xyz = [[0, 0.42, 0], [1.2, 0.22, 0], [-0.92, -0.57, 0], [-0.41, 1.44, 0]]
    xyz += [[-1.9, -0.34, 0], [-0.62, -1.53, 0]]
    structure = opml.Structure([6, 8, 7, 1, 1, 1], np.array(xyz) / 0.529177)
    basis = opml.load_basis("def2-svp", structure.numbers)
    mf = dft.RKS(molecule(structure, "def2-svp"), xc="pbe")
    mf.grids.level = 3
    mf.kernel()
    dm = mf.make_rdm1()
    xc = np.asarray(mf.get_veff(dm=dm)) - mf.get_j(dm=dm)
    projection = jax.jit(lambda s: projection_of(s, basis))(structure)
    bias = []
    for m in (xc, -0.5 * mf.get_k(dm=dm)):
        m = opml.from_pyscf(m, structure, basis)
        bias.append(float(np.abs(projection(m) - m).mean()))
    assert bias[0] < 5e-6  # Hartree; 3e-6 for hydrocarbons
    assert bias[1] > HARTREE_FOCK_IS_NOT_LOCAL
