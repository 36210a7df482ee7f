"""The fitted Coulomb matrix against libcint's three-centre integrals in the same fitting basis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule as ase_molecule
from pyscf import df, gto

import opml_jax as opml
from opml_jax.errors import OpmlError
from opml_jax.integrals import coulomb, fitted_coulomb
from opml_jax.testing import assert_grad_matches_fd
from opml_jax.units import ANGSTROM_PER_BOHR

LINEAR = 1e-10  # Hartree; two solvers of a system with a condition number of 1e7, J up to 10
DIFFERENCES = 1e-7  # relative, of central differences


def _structure(name):
    atoms = ase_molecule(name)
    return opml.Structure(atoms.numbers.tolist(), atoms.positions / ANGSTROM_PER_BOHR)


def _dm(structure, basis, seed=0):
    """Any symmetric matrix is a density matrix to a linear map."""
    n = opml.integrals.overlap(structure, basis).shape[0]
    x = np.random.default_rng(seed).normal(size=(n, n))
    return jnp.asarray(x + x.T)


def _reference(structure, basis_name, dm):
    """The same fit by libcint, with normalised functions."""
    basis = opml.load_basis(basis_name, structure.numbers)
    positions = np.asarray(structure.positions).tolist()
    atom = list(zip(structure.symbols, positions, strict=True))
    mol = gto.M(atom=atom, unit="Bohr", basis=basis_name, spin=None, verbose=0)
    functions = [[0, [a, 1.0]] for a in coulomb.S_EXPONENTS]
    functions += [[1, [a, 1.0]] for a in coulomb.P_EXPONENTS]
    fit = df.make_auxmol(mol, dict.fromkeys(set(structure.symbols), functions))
    three, two = df.incore.aux_e2(mol, fit), fit.intor("int2c2e")
    dm = opml.to_pyscf(np.asarray(dm), structure, basis)
    c = np.linalg.solve(two, np.einsum("ijQ,ij->Q", three, dm))
    return opml.from_pyscf(np.einsum("ijQ,Q->ij", three, c), structure, basis)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "basis_name"), [("H2O", "def2-svp"), ("CH3OH", "sto-3g"), ("N2", "sto-3g")]
)
def test_coulomb_is_libcints(name, basis_name):
    structure = _structure(name)
    basis = opml.load_basis(basis_name, structure.numbers)
    dm = _dm(structure, basis)
    found = fitted_coulomb(structure, basis, dm)
    wanted = _reference(structure, basis_name, dm)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < LINEAR * scale
    assert np.abs(found - found.T).max() < 1e-13 * scale


@pytest.mark.slow
def test_a_batch_is_its_molecules():
    structures = [_structure("H2O"), _structure("CH3OH")]
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    batch = opml.batch(structures, basis)
    dms = [_dm(s, basis) for s in structures]
    padded = np.zeros((2, batch.layout.nao, batch.layout.nao))
    for own, dm in zip(padded, dms, strict=True):
        own[: len(dm), : len(dm)] = dm
    found = fitted_coulomb(batch, basis, jnp.asarray(padded))
    for j, s, dm in zip(found, structures, dms, strict=True):
        alone = fitted_coulomb(s, basis, dm)
        n = len(dm)
        assert np.abs(j[:n, :n] - alone).max() < LINEAR * np.abs(alone).max()
        assert not np.abs(j[n:]).any()


@pytest.mark.slow
def test_far_away_only_the_charge_is_seen():
    """An electron 1000 Bohr away sees N / R, and a little of the dipole."""
    water, far = _structure("H2O"), 1000.0
    numbers = (*water.numbers, 2)
    basis = opml.load_basis("sto-3g", numbers)
    positions = np.vstack([np.asarray(water.positions), [[0.0, far, 0.0]]])
    structure = opml.Structure(numbers, positions)
    overlap = opml.integrals.overlap(structure, basis)
    fock = opml.integrals.kinetic(structure, basis)
    fock = np.array(fock + opml.integrals.neutral_atom_potential(structure, basis))
    fock[-1, -1] = 10.0  # so that helium stays empty
    dm = opml.observables.density_matrix(fock, overlap, 10)
    j = fitted_coulomb(structure, basis, dm)
    assert float(j[-1, -1]) == pytest.approx(10 / far, rel=1e-3)


@pytest.mark.slow
def test_gradient_by_finite_differences():
    structure = _structure("H2O")
    basis = opml.load_basis("sto-3g", structure.numbers)
    dm, weights = _dm(structure, basis), _dm(structure, basis, seed=1)

    def energy(positions):
        return jnp.sum(weights * fitted_coulomb(structure.replace(positions=positions), basis, dm))

    assert_grad_matches_fd(jax.jit(energy), structure.positions, rtol=DIFFERENCES)


def test_a_matrix_of_another_shape_is_refused():
    structure = _structure("H2O")
    basis = opml.load_basis("sto-3g", structure.numbers)
    with pytest.raises(OpmlError, match=r"dm must be \(7, 7\); got shape \(3, 3\)"):
        fitted_coulomb(structure, basis, jnp.zeros((3, 3)))
