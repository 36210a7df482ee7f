"""Exchange and correlation on moving grids, against PySCF and finite differences."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import dft
from pyscf.dft import gen_grid
from pyscf.grad import rks as rks_grad

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.density import atomic_grids, exchange_correlation
from opml_jax.density.functionals import FUNCTIONALS
from opml_jax.errors import OpmlError
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.testing import assert_grad_matches_fd

PYSCF = {"lda": "lda,pw_mod", "pbe": "pbe"}

ENERGY = 3e-7
"""Hartree. PySCF leaves out values of orbitals below 1e-13 and points without weight: 1.6e-7."""

GRADIENT = 1e-6
"""Hartree/Bohr, 0.05 meV/A: PySCF screens, as above."""


@pytest.fixture(scope="module")
def basis():
    return opml.load_basis("def2-svp", [1, 6, 8])


def _displaced(name, seed=0, by=0.1):
    structure = structure_from_ase(ase.build.molecule(name))
    change = by * np.random.default_rng(seed).normal(size=(len(structure.numbers), 3))
    return structure.replace(positions=np.asarray(structure.positions) + change)


def _calculation(structure, basis, functional, level=1):
    """A mean field of the level, and its density matrix: not of this functional, as any will do."""
    mf = dft.RKS(molecule(structure, basis), xc=PYSCF[functional])
    mf.grids.level = level
    dm = mf.get_init_guess(key="minao")
    mf.grids.build(with_non0tab=True)
    return mf, dm


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_functionals_are_libxcs(functional, rng):
    """And their derivatives, from the tails of atoms to the neighbourhood of nuclei."""
    rho = np.logspace(-8, 2, 200)
    slope = rho ** (4 / 3) * rng.uniform(0, 20, 200)
    slope[:10] = 0.0
    own = FUNCTIONALS[functional](rho, slope**2)
    by_rho, by_sigma = jax.grad(lambda r, s: jnp.sum(FUNCTIONALS[functional](r, s)), (0, 1))(
        rho, slope**2
    )
    zero = np.zeros(200)
    read = (rho, slope, zero, zero) if functional == "pbe" else rho
    energy, (wanted, *further), *_ = dft.libxc.eval_xc(PYSCF[functional], np.array(read))
    np.testing.assert_allclose(own, rho * energy, rtol=1e-10)
    np.testing.assert_allclose(by_rho, wanted, rtol=1e-9)
    if functional == "pbe":
        # exchange and correlation cancel where the gradient is small or the density is
        exchange = dft.libxc.eval_xc("pbe,", np.array(read))[1][1]
        np.testing.assert_array_less(np.abs(by_sigma - further[0]), 1e-10 * np.abs(exchange))


@pytest.mark.parametrize("level", [0, 3])
def test_grids_are_pyscfs(basis, level):
    structure = _displaced("CH3OH")
    mol = molecule(structure, basis)
    grids = gen_grid.Grids(mol)
    points, weights = gen_grid.get_partition(
        mol,
        grids.gen_atomic_grids(mol, level=level),
        grids.radii_adjust,
        grids.atomic_radii,
        grids.becke_scheme,
    )
    own, own_weights = atomic_grids(structure, level).at(structure.positions)
    np.testing.assert_allclose(own[: len(points)], points, atol=1e-12)
    np.testing.assert_allclose(own_weights[: len(points)], weights, atol=1e-11, rtol=1e-9)
    assert not np.any(own_weights[len(points) :])


@pytest.mark.parametrize("alone", [True, False])
def test_room_for_more_points_has_no_weight(basis, alone):
    """Grids of several molecules share a shape, and with it a program."""
    structure = _displaced("H2O")
    structure = structure if alone else opml.batch([structure, structure], basis)
    own = atomic_grids(structure, 0)
    more = atomic_grids(structure, 0, n_points=own.volumes.shape[-1] + 1)
    n = own.volumes.shape[-1]
    assert more.volumes.shape[-1] == n + 1024
    points, weights = more.at(structure.positions)
    np.testing.assert_array_equal(weights[..., :n], own.at(structure.positions)[1])
    assert not np.any(weights[..., n:])
    assert np.all(np.isfinite(points))


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_energy_and_matrix_are_pyscfs(basis, functional):
    structure = _displaced("CH3CHO")
    mf, dm = _calculation(structure, basis, functional)
    _, energy, matrix = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, dm)
    own = exchange_correlation(structure, basis, atomic_grids(structure, 1), functional)
    found, potential = own(opml.from_pyscf(dm, structure, basis))
    assert float(found) == pytest.approx(energy, abs=ENERGY)
    np.testing.assert_allclose(opml.to_pyscf(potential, structure, basis), matrix, atol=ENERGY)


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_gradients_are_pyscfs_with_the_response_of_the_grid(basis, functional):
    """Of the energy of one density matrix, points and weights moving with the atoms."""
    structure = _displaced("H2O")
    mf, dm = _calculation(structure, basis, functional)
    own, pulay = rks_grad.get_vxc_full_response(mf._numint, mf.mol, mf.grids, mf.xc, dm)
    of_atoms = mf.mol.aoslice_by_atom()[:, 2:]
    wanted = [
        g + 2 * np.einsum("xij,ij->x", pulay[:, a:b], dm[a:b])
        for g, (a, b) in zip(own, of_atoms, strict=True)
    ]
    grids, dm = atomic_grids(structure, 1), opml.from_pyscf(dm, structure, basis)

    def energy(positions):
        moved = structure.replace(positions=positions)
        return exchange_correlation(moved, basis, grids, functional)(dm)[0]

    found = jax.jit(jax.grad(energy))(structure.positions)
    np.testing.assert_allclose(found, wanted, atol=GRADIENT)


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_the_matrix_is_the_derivative_of_the_energy(basis, functional, rng):
    structure = structure_from_ase(ase.build.molecule("CH4"))  # symmetric
    _, dm = _calculation(structure, basis, functional)
    own = exchange_correlation(structure, basis, atomic_grids(structure, 0), functional)
    dm = opml.from_pyscf(dm, structure, basis)
    direction = rng.normal(size=dm.shape)
    direction = 1e-5 * (direction + direction.T)
    _, matrix = own(dm)
    change = (own(dm + direction)[0] - own(dm - direction)[0]) / 2
    assert float(np.sum(matrix * direction)) == pytest.approx(float(change), rel=1e-5)
    # and the energy's own derivative, by JAX, is that matrix
    np.testing.assert_allclose(jax.grad(lambda p: own(p)[0])(dm), matrix, atol=1e-12)


def test_gradients_of_a_symmetric_molecule(basis):
    structure = structure_from_ase(ase.build.molecule("CH4"))
    grids = atomic_grids(structure, 0)
    _, dm = _calculation(structure, basis, "pbe")
    dm = opml.from_pyscf(dm, structure, basis)

    def energy(positions):
        moved = structure.replace(positions=positions)
        return exchange_correlation(moved, basis, grids, "pbe")(dm)[0]

    assert_grad_matches_fd(jax.jit(energy), structure.positions)


def test_a_batch_is_its_molecules(basis):
    """Padded to one shape; and values that are not kept are the same."""
    structures = [_displaced(name) for name in ("H2O", "CH3OH", "H2")]
    together = opml.batch(structures, basis)
    dms = np.zeros((3, together.layout.nao, together.layout.nao))
    wanted = []
    for structure, room in zip(structures, dms, strict=True):
        dm = opml.from_pyscf(_calculation(structure, basis, "pbe")[1], structure, basis)
        room[: len(dm), : len(dm)] = dm
        own = exchange_correlation(structure, basis, atomic_grids(structure, 0), "pbe")
        wanted.append(own(dm))
    grids = atomic_grids(together, 0)
    for largest in (2**31, 0):
        own = exchange_correlation(together, basis, grids, "pbe", largest_bytes=largest)
        assert (own.values is None) == (largest == 0)
        energies, matrices = own(dms)
        for i, (energy, matrix) in enumerate(wanted):
            n = len(matrix)
            assert float(energies[i]) == pytest.approx(float(energy), abs=1e-11)
            np.testing.assert_allclose(matrices[i, :n, :n], matrix, atol=1e-11)
            assert not np.any(matrices[i, n:])


def test_what_is_not_there_is_refused(basis):
    structure = _displaced("H2O")
    with pytest.raises(OpmlError, match="level must be from 0 to 9"):
        atomic_grids(structure, 10)
    with pytest.raises(OpmlError, match="functional must be"):
        exchange_correlation(structure, basis, atomic_grids(structure, 0), "b3lyp")
    together = opml.batch([structure], basis)
    with pytest.raises(OpmlError, match="made outside jit"):
        jax.jit(lambda batch: atomic_grids(batch).volumes)(together)
