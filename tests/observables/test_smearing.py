"""Finite electronic temperature against PySCF, finite differences and the closed shell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from pyscf import gto, scf

import opml_jax as opml
from opml_jax import observables
from opml_jax.errors import OpmlError
from opml_jax.observables.smearing import divided, twice_divided

ELECTRONS = 1e-10  # the number of electrons that is kept
ROUNDING = 1e-13  # divided differences, which are at most 1/4
CONVERGED = 1e-7  # density matrices of PySCF at its convergence
DIFFERENCES = 1e-7  # relative to the largest derivative; fourth-order differences

LEVELS = {  # Hartree, and electrons: what is degenerate, and where the potential is
    "partly filled triplet": ((-1.0, -0.3, -0.3, -0.3, 0.2, 0.5), 4),
    "half a pair": ((-1.0, -0.3, -0.1, -0.1, 0.2, 0.5), 6),
    "nearly degenerate": ((-1.0, -0.3, -0.1, -0.1 + 1e-9, 0.2, 0.2), 6),
    "odd number": ((-1.0, -0.3, -0.3, 0.0, 0.2, 0.5), 5),
}


def _stretched(atom, smearing):
    """A molecule whose gap is small: RHF in STO-3G with PySCF's smearing."""
    mol = gto.M(atom=atom, basis="sto-3g", verbose=0)
    mf = scf.addons.smearing_(scf.RHF(mol), sigma=smearing, method="fermi")
    mf.run(conv_tol=1e-12, conv_tol_grad=1e-8, max_cycle=200)
    assert mf.converged
    structure = opml.Structure(mol.atom_charges().tolist(), mol.atom_coords())
    return mf, structure, opml.load_basis("sto-3g", structure.numbers)


@pytest.mark.parametrize(
    ("atom", "smearing"),
    [("H 0 0 0; H 0 0.3 2.5", 0.02), ("N 0 0 0; N 0.1 0.2 1.9", 0.03)],
)
def test_density_entropy_and_energy_of_pyscf(atom, smearing):
    mf, structure, basis = _stretched(atom, smearing)
    own = [opml.from_pyscf(x, structure, basis) for x in (mf.get_fock(), mf.get_ovlp())]
    n = mf.mol.nelectron
    assert mf.entropy > 0.01
    dm = observables.density_matrix(*own, n, smearing=smearing)
    expected = opml.from_pyscf(mf.make_rdm1(), structure, basis)
    np.testing.assert_allclose(dm, expected, atol=CONVERGED)
    assert float(observables.electron_number(dm, own[1])) == pytest.approx(n, abs=ELECTRONS)
    entropy = float(observables.electronic_entropy(*own, n, smearing))
    assert entropy == pytest.approx(mf.entropy, abs=CONVERGED)
    assert mf.e_tot - smearing * entropy == pytest.approx(mf.e_free, abs=CONVERGED)
    band = float(np.sum(mf.mo_occ * mf.mo_energy)) - smearing * mf.entropy
    free = observables.free_energy(*own, n, smearing)
    assert float(free) == pytest.approx(band, abs=10 * CONVERGED)


def _matrices(levels, rng):
    """F with these levels in a basis of overlap S, both full."""
    s = np.eye(len(levels)) + 0.05 * _symmetric(rng, len(levels))
    return _with_levels(levels, s, rng), s


def _with_levels(levels, s, rng):
    root = scipy.linalg.sqrtm(s).real
    q = np.linalg.qr(rng.normal(size=s.shape))[0]
    return root @ (q * np.array(levels)) @ q.T @ root


def _symmetric(rng, n):
    x = rng.normal(size=(n, n))
    return x + x.T


def _differences(f, h):
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


_WEIGHTS = np.random.default_rng(5).normal(size=(6, 6))
_OVERLAP = np.eye(6) + 0.05 * _symmetric(np.random.default_rng(6), 6)


@jax.jit
def _observed(f, n, t):
    """A number that sees every element of the density matrix, and the entropy."""
    dm = observables.density_matrix(f, _OVERLAP, n, smearing=t)
    return jnp.sum(_WEIGHTS * dm) + observables.electronic_entropy(f, _OVERLAP, n, t)


_GRADIENT = jax.jit(jax.grad(_observed, argnums=(0, 2)))


@jax.jit
def _along(x, n, dx):
    """First derivative forward; of the gradient, forward and reverse."""
    forward = jax.jvp(lambda f, t: _observed(f, n, t), x, dx)[1]
    second = jax.jvp(lambda f, t: _GRADIENT(f, n, t), x, dx)[1]

    def slope(x):
        gradient = _GRADIENT(x[0], n, x[1])
        return sum(jnp.sum(a * b) for a, b in zip(gradient, dx, strict=True))

    return forward, second, jax.grad(slope)(x)


@pytest.mark.parametrize(
    ("t", "name"),
    [
        pytest.param(0.05, "partly filled triplet", marks=pytest.mark.slow),
        *((0.05, name) for name in LEVELS if name != "partly filled triplet"),
        *((0.002, name) for name in LEVELS),
    ],
)
def test_derivatives_at_degeneracies(name, t, rng):
    """In F and the temperature, first and second order, along directions that split levels."""
    levels, n = LEVELS[name]
    f, n = _with_levels(levels, _OVERLAP, rng), float(n)
    x, dx, h = (f, t), (0.3 * _symmetric(rng, 6), 0.1), 1e-3 * t

    def at(step, function):
        return function(f + step * dx[0], n, t + step * dx[1])

    gradient = _GRADIENT(f, n, t)
    reverse = sum(float(np.sum(a * b)) for a, b in zip(gradient, dx, strict=True))
    forward, second, again = _along(x, n, dx)
    expected = _differences(lambda step: float(at(step, _observed)), h)
    scale = max(float(np.abs(g).max()) for g in gradient)
    assert float(forward) == pytest.approx(expected, abs=DIFFERENCES * scale)
    assert reverse == pytest.approx(float(forward), abs=1e-11 * scale)
    for i in range(2):
        wanted = _differences(lambda step, i=i: np.asarray(at(step, _GRADIENT)[i]), h)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(second[i], wanted, atol=1e-5 * scale)
        np.testing.assert_allclose(_even(again[i]), _even(second[i]), atol=1e-9 * scale)


def _even(x):
    return x if jnp.ndim(x) == 0 else x + jnp.matrix_transpose(x)


def test_free_energy_is_stationary(rng):
    """Its derivative in F is the density matrix, in the temperature minus the entropy."""
    f, s = _matrices(*LEVELS["partly filled triplet"][:1], rng)
    found = jax.jit(jax.grad(observables.free_energy, argnums=(0, 3)))(f, s, 4.0, 0.03)
    dm = observables.density_matrix(f, s, 4, smearing=0.03)
    np.testing.assert_allclose(_even(found[0]), 2 * dm, atol=1e-12)
    entropy = observables.electronic_entropy(f, s, 4, 0.03)
    assert float(found[1]) == pytest.approx(-float(entropy), abs=1e-12)


@pytest.mark.parametrize("t", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("n", [0, 1, 3.5, 12])
def test_number_of_electrons(t, n, rng):
    f, s = _matrices(*LEVELS["partly filled triplet"][:1], rng)
    dm = observables.density_matrix(f, s, n, smearing=t)
    assert float(observables.electron_number(dm, s)) == pytest.approx(n, abs=ELECTRONS)
    occupations = scipy.linalg.eigh(s @ dm @ s, s, eigvals_only=True)
    assert occupations.min() > -1e-12
    assert occupations.max() < 2 + 1e-12


def test_the_closed_shell_is_the_limit(rng):
    """Of values and derivatives, where there is a gap; a pair that is half filled stays so."""
    f, s = _matrices((-1.0, -0.3, -0.3, 0.1, 0.1, 0.5), rng)
    weights = _symmetric(rng, 6)

    def total(f, s, smearing=None):
        return jnp.sum(weights * observables.density_matrix(f, s, 6, smearing=smearing))

    cold = jax.jit(jax.grad(total, argnums=(0, 1)))(f, s)
    warm = jax.jit(jax.grad(total, argnums=(0, 1)))
    for t in (1e-3, 1e-6, 1e-12):
        np.testing.assert_allclose(
            observables.density_matrix(f, s, 6, smearing=t),
            observables.density_matrix(f, s, 6),
            atol=1e-12,
        )
        found = warm(f, s, t)
        for a, b in zip(found, cold, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max())
        assert float(observables.electronic_entropy(f, s, 6, t)) < 1e-12
    f, s = _matrices(LEVELS["half a pair"][0], rng)
    found = observables.electronic_entropy(f, s, 6, 1e-4)  # two orbitals with a half each
    assert float(found) == pytest.approx(4 * np.log(2), abs=1e-9)


def test_batches_masks_and_vmap(rng):
    cases = [_matrices(levels, rng) for levels, _ in LEVELS.values()]
    electrons = np.array([n for _, n in LEVELS.values()], float)
    t = np.array([0.01, 0.02, 0.03, 0.04])
    single = [
        observables.density_matrix(f, s, n, smearing=own)
        for (f, s), n, own in zip(cases, electrons, t, strict=True)
    ]
    padded = [np.pad(np.array(x), ((0, 0), (0, 3), (0, 3))) for x in zip(*cases, strict=True)]
    mask = np.tile(np.arange(9) < 6, (4, 1))
    weights = np.pad(_WEIGHTS, ((0, 3), (0, 3)))

    def of_batch(f, s):
        return observables.density_matrix(f, s, electrons, mask=mask, smearing=t)

    found = jax.jit(of_batch)(*padded)
    np.testing.assert_allclose(found[:, :6, :6], single, atol=1e-12)
    assert not np.any(found[:, 6:])
    whole = jax.jit(jax.grad(lambda f: jnp.sum(weights * of_batch(f, padded[1]))))(padded[0])

    def of_one(f, s, n, t):
        return jnp.sum(_WEIGHTS * observables.density_matrix(f, s, n, smearing=t))

    stacked = [np.array(x) for x in zip(*cases, strict=True)]
    mapped = jax.jit(jax.vmap(jax.grad(of_one)))(*stacked, electrons, t)
    np.testing.assert_allclose(whole[:, :6, :6], mapped, atol=1e-11 * np.abs(mapped).max())
    entropy = jax.jit(observables.electronic_entropy)(*padded, electrons, t, mask=mask)
    expected = [
        observables.electronic_entropy(f, s, n, own)
        for (f, s), n, own in zip(cases, electrons, t, strict=True)
    ]
    np.testing.assert_allclose(entropy, expected, atol=1e-12)


def test_divided_differences(rng):
    """Against Hermite and Genocchi's integral of the second derivative, and plain quotients."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    nodes, weights = 0.5 * (nodes + 1), 0.5 * weights

    def slope(x):
        return -0.25 / np.cosh(0.5 * x) ** 2

    def curvature(x):
        return 0.25 * np.tanh(0.5 * x) / np.cosh(0.5 * x) ** 2

    for scale in (0.0, 1e-9, 1e-3, 0.0199, 0.0201, 0.1, 1.0):
        x, y, z = rng.normal() + scale * np.array([0.5, -0.5, rng.uniform(-0.5, 0.5)])
        once = np.sum(weights * slope(x + nodes * (y - x)))
        assert float(divided(x, y)) == pytest.approx(once, abs=ROUNDING)
        a, b = nodes[:, None], nodes[None, :]  # of the triangle, by Duffy's map
        inside = curvature(x + a * (y - x) + a * b * (z - y))
        twice = np.sum(weights[:, None] * weights * a * inside)
        for order in ((x, y, z), (z, x, y), (y, z, x)):
            assert float(twice_divided(*map(jnp.asarray, order))) == pytest.approx(
                twice, abs=ROUNDING
            )
    assert float(divided(-1e5, 3e5)) == pytest.approx(-1 / 4e5)  # nothing overflows
    assert float(divided(2e5, 3e5)) == 0.0


def test_single_precision(rng):
    f = _with_levels(LEVELS["half a pair"][0], _OVERLAP, rng)
    found = _GRADIENT(jnp.asarray(f, jnp.float32), jnp.float32(6), jnp.float32(0.05))
    exact = _GRADIENT(f, 6.0, 0.05)
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], exact[0], atol=1e-4 * np.abs(exact[0]).max())


def test_refusals(rng):
    f, s = _matrices(*LEVELS["half a pair"][:1], rng)
    with pytest.raises(OpmlError, match="or give a smearing"):
        observables.density_matrix(f, s, 6)
    with pytest.raises(OpmlError, match="smearing must be positive, Hartree; got 0"):
        observables.density_matrix(f, s, 6, smearing=0)
    with pytest.raises(OpmlError, match="n_electrons must be from 0 to 12"):
        observables.density_matrix(f, s, 13, smearing=0.01)
    third = jax.jacfwd(jax.jacfwd(jax.jacfwd(lambda h: _observed(f + h * s, 6.0, 0.1))))
    with pytest.raises(OpmlError, match="third derivatives"):
        third(0.0)
