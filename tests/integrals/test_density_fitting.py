"""Coulomb and exchange matrices by density fitting, against libcint's integrals and PySCF's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import scf

import opml_jax as opml
from opml_jax.basis import Basis, Shell, from_pyscf, to_pyscf
from opml_jax.data.reference import molecule
from opml_jax.errors import OpmlError
from opml_jax.integrals import (
    COARSE,
    Shells,
    coulomb_metric,
    density_fit,
    fitted_coulomb,
    three_center,
)
from opml_jax.testing import assert_grad_matches_fd

ROUNDING = 1e-9  # relative: the metric has a condition of 1e7
FITTED = 1e-5  # Hartree: mean element of what FINE functions leave, ten times what was seen
FEW = (Shells(0, (0.4, 1.5)), Shells(1, (0.8,)), Shells(2, (1.2, 3.0), heavy=True))
FEW = (*FEW, Shells(3, (0.9,), heavy=True), Shells(4, (0.8,), heavy=True))


@pytest.fixture(scope="module")
def methanol():
    positions = [[0, 0, 0], [2.6, 0.2, 0.1], [-0.8, 1.9, 0.3], [-0.7, -1.1, 1.5]]
    positions += [[-0.6, -0.8, -1.8], [3.2, -1.4, 0.6]]
    return opml.Structure([6, 8, 1, 1, 1, 1], positions)


@pytest.fixture(scope="module")
def water():
    return opml.Structure([8, 1, 1], [[0, 0, 0.2], [0, 1.4, -0.9], [0, -1.4, -0.9]])


def dm_of(nao, n=None, seed=0):
    """A symmetric matrix, zero beyond ``n``."""
    x = np.random.default_rng(seed).normal(size=(nao, nao))
    inside = np.arange(nao) < (n or nao)
    return (x + x.T) * np.outer(inside, inside)


def test_matrices_are_those_of_libcints_integrals(methanol):
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    shells = {
        z: [
            Shell(f.l, np.array([a]), np.array([1.0]))
            for f in FEW
            if z > 2 or not f.heavy
            for a in f.exponents
        ]
        for z in (1, 6, 8)
    }
    aux = Basis.from_shells("functions", shells)
    q = three_center(methanol, basis, aux)
    fitted = np.linalg.solve(coulomb_metric(methanol, aux), q.reshape(len(q), -1)).reshape(q.shape)
    dm = dm_of(q.shape[-1])
    own = density_fit(methanol, basis, FEW, exchange=True)
    j = np.einsum("qij,qkl,kl->ij", q, fitted, dm)
    k = np.einsum("qik,qjl,kl->ij", q, fitted, dm)
    for found, wanted in ((own.coulomb(dm), j), (own.exchange(dm), k)):
        assert np.abs(found - wanted).max() < ROUNDING * np.abs(wanted).max()


@pytest.mark.slow
def test_fine_functions_fit_what_pyscf_computes_exactly(methanol):
    """Of the density of Hartree and Fock, in def2-SVP."""
    basis, mol = opml.load_basis("def2-svp", [1, 6, 8]), molecule(methanol, "def2-svp")
    mf = scf.RHF(mol).run()
    exact = mf.get_jk(mol, np.asarray(mf.make_rdm1()))
    dm = from_pyscf(np.asarray(mf.make_rdm1()), methanol, basis)
    own = density_fit(methanol, basis, exchange=True)
    for found, wanted in zip((own.coulomb(dm), own.exchange(dm)), exact, strict=True):
        assert np.abs(to_pyscf(found, methanol, basis) - wanted).mean() < FITTED


@pytest.mark.slow
@pytest.mark.parametrize("functions", [COARSE, FEW])
def test_a_batch_is_its_molecules(methanol, water, functions):
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    batch = opml.batch([water, methanol], basis)
    n = 7, 14
    dm = np.stack([dm_of(batch.layout.nao, m, seed) for seed, m in enumerate(n)])
    own = density_fit(batch, basis, functions, exchange=True)
    for i, structure in enumerate((water, methanol)):
        alone, part = density_fit(structure, basis, functions, exchange=True), slice(n[i])
        for name in ("coulomb", "exchange"):
            wanted = getattr(alone, name)(dm[i, part, part])
            found = getattr(own, name)(dm)[i]
            assert np.abs(found[part, part] - wanted).max() < ROUNDING * np.abs(wanted).max()
            assert not np.any(found[n[i] :])
    if functions is COARSE:
        wanted = fitted_coulomb(batch, basis, dm)
        assert np.abs(own.coulomb(dm) - wanted).max() < ROUNDING * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coulomb", "exchange"])
def test_gradient_by_finite_differences(water, name):
    basis = opml.load_basis("sto-3g", [1, 8])
    dm, weights = dm_of(7), dm_of(7, seed=1)

    def total(positions):
        moved = water.replace(positions=positions)
        fit = density_fit(moved, basis, FEW, exchange=name == "exchange")
        return jnp.sum(weights * getattr(fit, name)(dm))

    assert_grad_matches_fd(jax.jit(total), water.positions, rtol=1e-7)


def test_few_orbitals_have_the_exchange_of_their_density(water):
    """In derivatives too, whose changes of the density have any rank; so do too many."""
    basis = opml.load_basis("sto-3g", [1, 8])
    orbitals = np.random.default_rng(3).normal(size=(7, 3))
    dm, change = 2 * orbitals @ orbitals.T, dm_of(7)

    def exchange(positions, dm, rank):
        fit = density_fit(water.replace(positions=positions), basis, FEW[:3], exchange=True)
        return fit.exchange(dm, rank)

    at = jnp.asarray(water.positions)
    along = jnp.ones_like(at).at[1, 2].set(-2.0), change
    for rank in (2, 3, 5):  # 2 are too few: then it is made of the whole matrix
        found = jax.jvp(lambda r, p, n=rank: exchange(r, p, n), (at, dm), along)
        wanted = jax.jvp(lambda r, p: exchange(r, p, None), (at, dm), along)
        for own, other in zip(found, wanted, strict=True):
            assert np.abs(own - other).max() < ROUNDING * np.abs(other).max()


def test_what_does_not_fit_into_memory_is_refused():
    """A chain of 60 carbons."""
    z = 1.5 * np.arange(60)
    carbons = np.stack([0 * z, (np.arange(60) % 2) * 1.2, z], axis=1)
    side = np.array([1.8, 0.6, 0.0])
    hydrogens = np.concatenate([carbons + side, carbons - side])
    structure = opml.Structure([6] * 60 + [1] * 120, np.concatenate([carbons, hydrogens]))
    with pytest.raises(OpmlError, match=r"density fitting of \d+ GiB"):
        density_fit(structure, opml.load_basis("def2-svp", [1, 6]))


def test_what_is_missing_is_refused(water):
    basis = opml.load_basis("sto-3g", [1, 8])
    with pytest.raises(OpmlError, match="exchange=True"):
        density_fit(water, basis, FEW[:1]).exchange(dm_of(7))
