"""Observables against PySCF, plain linear algebra and finite differences, at exact symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from ase.build import molecule as ase_molecule
from pyscf import gto, scf
from pyscf.grad.rhf import Gradients

import opml_jax as opml
from opml_jax import integrals, observables
from opml_jax.errors import OpmlError
from opml_jax.operators import build
from opml_jax.units import ANGSTROM_PER_BOHR, DEBYE_PER_EBOHR

EXACT = 1e-10  # two eigensolvers on matrices with a condition number below 100
DIFFERENCES = 1e-7  # relative to the largest derivative; step error of fourth-order differences
SINGLE = 1e-3  # relative; derivatives of a projector in float32
CONVERGED = 1e-6  # gradient of the orbitals at which PySCF stopped enters populations and moments

SYMMETRIC = {  # degenerate orbitals, on axes that no rounding breaks
    "methane": "CH4",
    "benzene": "C6H6",
    "ammonia": "NH3",
    "acetylene": "C2H2",
    "nitrogen": "N2",
}


class Solved:
    """A converged RHF/STO-3G calculation, its matrices in the library's order."""

    def __init__(self, atoms):
        positions = atoms.positions / ANGSTROM_PER_BOHR
        self.structure = opml.Structure(atoms.numbers.tolist(), positions)
        self.basis = opml.load_basis("sto-3g", atoms.numbers)
        atom = list(zip(atoms.numbers.tolist(), positions.tolist(), strict=True))
        self.mol = gto.M(atom=atom, basis="sto-3g", unit="Bohr", verbose=0)
        # 1e-13 would be below the rounding of benzene's 228 Hartree; the gradient decides
        self.mf = scf.RHF(self.mol).set(conv_tol=1e-12, conv_tol_grad=1e-8).run()
        assert self.mf.converged
        self.n = self.mol.nelectron
        self.fock = self._own(self.mf.get_fock())
        self.overlap = self._own(self.mf.get_ovlp())
        self.dm = self._own(self.mf.make_rdm1())

    def _own(self, matrix):
        return np.asarray(opml.from_pyscf(matrix, self.structure, self.basis))


@pytest.fixture(scope="module", params=SYMMETRIC)
def symmetric(request):
    return Solved(ase_molecule(SYMMETRIC[request.param]))


@pytest.fixture(scope="module")
def water():
    return Solved(ase_molecule("H2O"))


def _symmetric_noise(rng, n, scale=1.0):
    x = rng.normal(size=(n, n))
    return scale * 0.5 * (x + x.T)


def _differences(f, h):
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@pytest.mark.parametrize(
    "symmetric",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "methane")) for name in SYMMETRIC],
    indirect=True,
)
def test_energy_is_that_of_pyscf(symmetric):
    s = symmetric
    found = observables.hartree_fock_energy(s.fock, s.dm, s.structure, s.basis)
    assert found == pytest.approx(s.mf.e_tot, abs=EXACT)
    repulsion = observables.nuclear_repulsion(s.structure)
    assert repulsion == pytest.approx(s.mol.energy_nuc(), abs=EXACT)


def test_repulsion_of_padded_batches(water):
    other = opml.Structure([1, 1], [[0.0, 0, 0], [0, 0, 1.4]])
    both = opml.batch([water.structure, other], water.basis)
    found = observables.nuclear_repulsion(both)
    expected = [water.mol.energy_nuc(), 1 / 1.4]
    np.testing.assert_allclose(found, expected, atol=EXACT)

    def total(positions):
        return jnp.sum(observables.nuclear_repulsion(both.replace(positions=positions)))

    gradient = jax.grad(total)(jnp.asarray(both.positions))
    pyscf = gto.M(atom="H 0 0 0; H 0 0 1.4", unit="Bohr")
    np.testing.assert_allclose(gradient[1, :2], Gradients(scf.RHF(pyscf)).grad_nuc(), atol=EXACT)
    np.testing.assert_allclose(
        gradient[0, :3], Gradients(scf.RHF(water.mol)).grad_nuc(), atol=EXACT
    )


def test_density_matrix_and_levels(symmetric):
    s = symmetric
    energy, coefficients = scipy.linalg.eigh(s.fock, s.overlap)
    occupied = coefficients[:, : s.n // 2]
    found = observables.density_matrix(s.fock, s.overlap, s.n)
    np.testing.assert_allclose(found, 2 * occupied @ occupied.T, atol=EXACT)
    np.testing.assert_allclose(found, s.dm, atol=CONVERGED)
    levels, own = observables.orbitals(s.fock, s.overlap)
    np.testing.assert_allclose(levels, energy, atol=EXACT)
    np.testing.assert_allclose(s.fock @ own, s.overlap @ own * levels, atol=EXACT)
    width = observables.gap(s.fock, s.overlap, s.n)
    assert float(width) == pytest.approx(energy[s.n // 2] - energy[s.n // 2 - 1], abs=EXACT)
    assert float(observables.electron_number(found, s.overlap)) == pytest.approx(s.n, abs=EXACT)
    assert float(observables.idempotency_error(found, s.overlap)) < EXACT


def test_derivatives_at_degeneracies(symmetric, rng):
    """Of P in F and S along directions that split the levels: first and second order."""
    s, n = symmetric, len(symmetric.fock)
    df, ds = _symmetric_noise(rng, n), _symmetric_noise(rng, n, 0.05)
    w = _symmetric_noise(rng, n)

    @jax.jit
    def trace(f, o):
        return jnp.sum(w * observables.density_matrix(f, o, s.n))

    gradient = jax.jit(jax.grad(trace, argnums=(0, 1)))
    g = gradient(s.fock, s.overlap)
    reverse = np.sum(g[0] * df) + np.sum(g[1] * ds)
    forward = jax.jit(lambda f, o: jax.jvp(trace, (f, o), (df, ds))[1])(s.fock, s.overlap)
    expected = _differences(lambda h: float(trace(s.fock + h * df, s.overlap + h * ds)), 1e-4)
    assert float(forward) == pytest.approx(expected, rel=DIFFERENCES, abs=DIFFERENCES)
    assert float(reverse) == pytest.approx(float(forward), rel=1e-9)
    twice = jax.jit(lambda f, o: jax.jvp(gradient, (f, o), (df, ds))[1])(s.fock, s.overlap)

    def moved(h):
        return np.asarray(gradient(s.fock + h * df, s.overlap + h * ds))

    for found, wanted in zip(twice, _differences(moved, 1e-4), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=10 * DIFFERENCES * scale)
    single = jax.jit(jax.grad(trace))(*(jnp.asarray(x, jnp.float32) for x in (s.fock, s.overlap)))
    np.testing.assert_allclose(single, g[0], atol=SINGLE * np.abs(g[0]).max())


def test_levels_have_the_derivatives_of_perturbation_theory(water, rng):
    s, n = water, len(water.fock)
    df, ds = _symmetric_noise(rng, n), _symmetric_noise(rng, n, 0.05)
    f = lambda h: scipy.linalg.eigh(s.fock + h * df, s.overlap + h * ds)[0]  # noqa: E731
    found = jax.jvp(lambda f, o: observables.orbitals(f, o)[0], (s.fock, s.overlap), (df, ds))[1]
    np.testing.assert_allclose(found, _differences(f, 1e-4), atol=1e-6)


def test_padded_batch_equals_single(water, symmetric):
    both, n = (water, symmetric), max(len(water.fock), len(symmetric.fock)) + 2
    fock, overlap, mask = np.zeros((2, n, n)), np.zeros((2, n, n)), np.zeros((2, n), bool)
    for i, s in enumerate(both):
        m = len(s.fock)
        fock[i, :m, :m], overlap[i, :m, :m], mask[i, :m] = s.fock, s.overlap, True
    electrons = np.array([s.n for s in both])
    found = jax.jit(lambda *x: observables.density_matrix(*x[:3], mask=x[3]))(
        fock, overlap, electrons, mask
    )
    for i, s in enumerate(both):
        m = len(s.fock)
        np.testing.assert_allclose(found[i, :m, :m], s.dm, atol=CONVERGED)
        assert not np.any(found[i, m:]) and not np.any(found[i, :, m:])  # noqa: PT018


def test_projection_and_purification(water, rng):
    s = water
    spoiled = s.dm + _symmetric_noise(rng, len(s.dm), 1e-2)
    found = observables.project(spoiled, s.overlap, s.n)
    root = scipy.linalg.sqrtm(s.overlap).real
    occupations, u = np.linalg.eigh(root @ spoiled @ root)
    inverse = np.linalg.inv(root)
    kept = inverse @ u[:, -s.n // 2 :]
    np.testing.assert_allclose(found, 2 * kept @ kept.T, atol=1e-9)
    assert occupations[-s.n // 2] > 1.5
    errors = [float(observables.idempotency_error(spoiled, s.overlap))]
    for _ in range(3):
        spoiled = observables.purify(spoiled, s.overlap)
        errors.append(float(observables.idempotency_error(spoiled, s.overlap)))
    assert errors[2] < 10 * errors[1] ** 2
    assert errors[3] < 1e-10


def test_populations_and_moments_against_pyscf(water):
    for s in (water, Solved(ase_molecule("NH3"))):
        arguments = (s.dm, s.overlap, s.structure, s.basis)
        _, expected = s.mf.mulliken_pop(verbose=0)
        np.testing.assert_allclose(observables.mulliken_charges(*arguments), expected, atol=EXACT)
        root = scipy.linalg.sqrtm(s.overlap).real
        layout = opml.basis.layout_of(s.structure, s.basis)
        population = np.diag(root @ s.dm @ root)
        own = [population[layout.atom == a].sum() for a in range(s.structure.n_atoms)]
        lowdin = observables.lowdin_charges(*arguments)
        np.testing.assert_allclose(lowdin, np.array(s.structure.numbers) - own, atol=EXACT)
        ps = s.dm @ s.overlap
        orders = observables.mayer_bond_orders(*arguments)
        for a in range(s.structure.n_atoms):
            for b in range(a):
                block = ps[np.ix_(layout.atom == a, layout.atom == b)]
                back = ps[np.ix_(layout.atom == b, layout.atom == a)]
                assert float(orders[a, b]) == pytest.approx(np.sum(block * back.T), abs=EXACT)
        dipole = observables.dipole(s.dm, s.structure, s.basis)
        expected = s.mf.dip_moment(unit="au", verbose=0)
        np.testing.assert_allclose(dipole, expected, atol=EXACT)
        centre = s.mol.atom_charges() @ s.mol.atom_coords() / s.mol.atom_charges().sum()
        with s.mol.with_common_origin(centre):
            rr = s.mol.intor("int1e_rr").reshape(3, 3, s.mol.nao, s.mol.nao)
        x = s.mol.atom_coords() - centre
        second = np.einsum("a,ax,ay->xy", s.mol.atom_charges(), x, x)
        second = second - np.einsum("xyij,ji->xy", rr, s.mf.make_rdm1())
        expected = 1.5 * second - 0.5 * np.trace(second) * np.eye(3)
        found = observables.quadrupole(s.dm, s.structure, s.basis)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_known_numbers():
    """N2 has a triple bond; water's RHF/STO-3G dipole is 1.71 Debye at its experimental shape."""
    nitrogen = Solved(ase_molecule("N2"))
    orders = observables.mayer_bond_orders(
        nitrogen.dm, nitrogen.overlap, nitrogen.structure, nitrogen.basis
    )
    assert float(orders[0, 1]) == pytest.approx(3.0, abs=0.01)
    water = Solved(ase_molecule("H2O"))
    dipole = observables.dipole(water.dm, water.structure, water.basis)
    assert np.linalg.norm(dipole) * DEBYE_PER_EBOHR == pytest.approx(1.71, abs=0.03)


def test_polarizability_is_the_sum_over_states(water):
    s = water
    energy, c = scipy.linalg.eigh(s.fock, s.overlap)
    k = s.n // 2
    r = np.einsum("pi,xpq,qa->xia", c[:, :k], integrals.position(s.structure, s.basis), c[:, k:])
    expected = 4 * np.einsum("xia,yia,ia->xy", r, r, 1 / (energy[k:] - energy[:k, None]))
    found = observables.polarizability(s.fock, s.overlap, s.n, s.structure, s.basis)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_gradients_through_the_integrals():
    """Positions to operators to density matrix to charges and dipole, at exact symmetry."""
    s = Solved(ase_molecule("NH3"))

    @jax.jit
    def observed(x):
        molecule = s.structure.replace(positions=x)
        overlap = integrals.overlap(molecule, s.basis)
        fock = integrals.kinetic(molecule, s.basis)
        fock += build.neutral_atom_potential(molecule, s.basis).values
        dm = observables.density_matrix(fock, overlap, s.n)
        charges = observables.lowdin_charges(dm, overlap, molecule, s.basis)
        return charges[0] + observables.dipole(dm, molecule, s.basis)[2] + jnp.sum(dm * fock)

    opml.testing.assert_grad_matches_fd(observed, s.structure.positions, atol=1e-6)


def test_refusals(water):
    s, eye = water, np.eye(4)
    with pytest.raises(OpmlError, match="even numbers from 0 to"):
        observables.density_matrix(s.fock, s.overlap, 9)
    with pytest.raises(OpmlError, match="even numbers"):
        observables.density_matrix(s.fock, s.overlap, 16)
    with pytest.raises(OpmlError, match="gap"):
        observables.density_matrix(np.diag([0.0, 1.0, 1.0, 2.0]), eye, 4)
    with pytest.raises(OpmlError, match="both alike"):
        observables.density_matrix(s.fock, eye, 2)
    found = jax.jit(lambda f: observables.density_matrix(f, eye, 4))(np.diag([0.0, 1.0, 1.0, 2.0]))
    assert np.isnan(found).all()
    for n, total in ((0, 0.0), (8, 8.0)):  # none, and all, occupied
        p = observables.density_matrix(np.diag([0.0, 1.0, 2.0, 3.0]), eye, n)
        assert float(jnp.trace(p)) == pytest.approx(total, abs=EXACT)
