"""Kohn-Sham calculations against PySCF's, finite differences, and themselves."""

import ase.build
import jax
import numpy as np
import pytest
from pyscf import dft

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.density import atomic_grids
from opml_jax.errors import OpmlError
from opml_jax.integrals import FINE
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.mean_field import kohn_sham
from opml_jax.observables import dipole
from opml_jax.structures.elements import symbol

PYSCF = {"lda": "lda,pw_mod", "pbe": "pbe"}
TOLERANCE = 1e-9
"""Hartree, of the commutator: derivatives of energies are then right to rounding."""


def _displaced(name, by=0.05):
    structure = structure_from_ase(ase.build.molecule(name))
    change = by * np.random.default_rng(0).normal(size=(len(structure.numbers), 3))
    return structure.replace(positions=np.asarray(structure.positions) + change)


def _of(structure, basis, functional="lda", **settings):
    """Energy of positions, compiled, with all that comes with it."""
    grids = atomic_grids(structure, 0)

    def calculated(positions, field=None):
        moved = structure.replace(positions=positions)
        more = {"tolerance": TOLERANCE, **settings}
        found = kohn_sham(moved, basis, grids, functional, field=field, **more)
        return found["energy"], found

    return calculated


def _pyscf(structure, basis, functional):
    """The same calculation: the same functions fit the density, the same grid moves."""
    functions = {
        symbol(z): [[f.l, [a, 1.0]] for f in FINE if not (f.heavy and z <= 2) for a in f.exponents]
        for z in set(structure.numbers)
    }
    mf = dft.RKS(molecule(structure, basis), xc=PYSCF[functional]).density_fit(auxbasis=functions)
    mf.grids.level, mf.conv_tol = 0, 1e-12
    mf.kernel()
    gradient = mf.nuc_grad_method()
    gradient.grid_response = gradient.auxbasis_response = True
    return mf, gradient.kernel()


def _is_pyscfs(structure, basis, functional):
    calculated = jax.jit(jax.value_and_grad(_of(structure, basis, functional), has_aux=True))
    (energy, found), gradient = calculated(structure.positions)
    mf, wanted = _pyscf(structure, basis, functional)
    assert found["residual"] <= TOLERANCE
    assert float(energy) == pytest.approx(mf.e_tot, abs=1e-8)
    # Hartree/Bohr, 0.005 meV/A: PySCF's SCF ends by its energy
    np.testing.assert_allclose(gradient, wanted, atol=1e-7)
    fock = opml.to_pyscf(found["fock"], structure, basis)
    np.testing.assert_allclose(fock, mf.get_fock(), atol=1e-6)


@pytest.mark.parametrize("functional", ["lda", pytest.param("pbe", marks=pytest.mark.slow)])
def test_energy_and_gradient_are_pyscfs(functional):
    _is_pyscfs(_displaced("H2O"), opml.load_basis("sto-3g", [1, 8]), functional)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CH3OH", "CH4"])
def test_energy_and_gradient_are_pyscfs_in_a_larger_basis(name):
    _is_pyscfs(_displaced(name), opml.load_basis("def2-svp", [1, 6, 8]), "pbe")


@pytest.mark.slow
def test_second_derivatives_have_the_response_of_the_density():
    """Of hydrogen: the Hessian, dipole derivatives and polarizability."""
    structure, basis = _displaced("H2"), opml.load_basis("def2-svp", [1])
    calculated = _of(structure, basis)

    def energy(positions, field):
        return calculated(positions, field)[0]

    x, zero = np.asarray(structure.positions), np.zeros(3)
    gradient = jax.grad(energy, (0, 1))
    gradients = jax.jit(gradient)
    second = jax.jit(jax.jacfwd(gradient, (0, 1)))(x, zero)
    of_field = gradients(x, zero)[1]
    found = calculated(x, zero)[1]
    np.testing.assert_allclose(-of_field, dipole(found["dm"], structure, basis), atol=1e-9)
    step = 1e-3
    for i in range(3):
        along = step * np.eye(3)[i]
        moved = np.zeros_like(x)
        moved[1] = along
        up, down = gradients(x + moved, zero), gradients(x - moved, zero)
        for k in (0, 1):
            change = (up[k] - down[k]) / (2 * step)
            np.testing.assert_allclose(second[k][0][..., 1, i], change, atol=2e-6)
        up, down = gradients(x, along), gradients(x, -along)
        change = (up[1] - down[1]) / (2 * step)
        # differences over 1e-3 have a second hyperpolarizability of 100 in them
        np.testing.assert_allclose(second[1][1][..., i], change, atol=3e-5)


def test_a_batch_is_its_molecules():
    basis = opml.load_basis("sto-3g", [1, 8])
    structures = [_displaced(name) for name in ("H2O", "H2")]
    together = opml.batch(structures, basis)
    found = jax.jit(_of(together, basis))(together.positions)[1]
    for i, structure in enumerate(structures):
        alone = jax.jit(_of(structure, basis))(structure.positions)[1]
        n = len(alone["dm"])
        assert float(found["energy"][i]) == pytest.approx(float(alone["energy"]), abs=1e-9)
        np.testing.assert_allclose(found["dm"][i, :n, :n], alone["dm"], atol=1e-7)
        assert found["residual"][i] <= TOLERANCE


@pytest.mark.parametrize("alone", [True, False])
def test_open_shells_are_refused(alone):
    structure = structure_from_ase(ase.build.molecule("CH3"))
    basis = opml.load_basis("sto-3g", [1, 6])
    some = structure if alone else opml.batch([structure], basis)
    with pytest.raises(OpmlError, match="must be closed shells"):
        kohn_sham(some, basis, atomic_grids(some, 0))


@pytest.mark.slow
def test_molecules_far_apart_are_additive():
    """Water and methane, 15 Angstrom apart: what is left is their electrostatics, 1e-6 Hartree."""
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    water, methane = (structure_from_ase(ase.build.molecule(name)) for name in ("H2O", "CH4"))
    far = np.asarray(methane.positions) + np.array([15 / 0.529177, 0.0, 0.0])
    both = opml.Structure(water.numbers + methane.numbers, np.concatenate([water.positions, far]))
    energies = [float(jax.jit(_of(s, basis))(s.positions)[0]) for s in (water, methane, both)]
    assert energies[2] == pytest.approx(energies[0] + energies[1], abs=1e-6)
