import numpy as np
import pytest
from pyscf.hessian import thermo

from opml_jax.data.minima import hessian, relax
from opml_jax.data.reference import Method, converge, mean_field
from opml_jax.data.sampling import internal_motion, is_linear, normal_modes, sample_thermal
from opml_jax.errors import OpmlError
from opml_jax.structures import Structure
from opml_jax.units import (
    ELECTRON_MASS_PER_DALTON,
    HARTREE_PER_KELVIN,
    WAVENUMBER_PER_HARTREE,
)

MASSES = {1: 1.008, 8: 15.999}
WAVENUMBER = 1.0  # cm^-1; PySCF's table of masses is a few 1e-5 away from ours

TEMPERATURE = 300.0


@pytest.fixture(scope="module")
def minimum(water):
    method = Method("hf", "sto-3g")
    relaxed = relax(water, method)
    return relaxed, hessian(relaxed, method)


def test_frequencies_are_pyscfs(minimum):
    structure, h = minimum
    frequencies, modes = normal_modes(structure, h)
    mf, _ = converge(mean_field(structure, Method("hf", "sto-3g")))
    theirs = thermo.harmonic_analysis(mf.mol, mf.Hessian().kernel())["freq_wavenumber"]
    assert modes.shape == (3, 3, 3)
    np.testing.assert_allclose(
        frequencies * WAVENUMBER_PER_HARTREE, np.asarray(theirs).real, rtol=0, atol=WAVENUMBER
    )


def test_modes_are_normal(minimum):
    structure, h = minimum
    frequencies, modes = normal_modes(structure, h)
    mass = np.array([MASSES[z] for z in structure.numbers]) * ELECTRON_MASS_PER_DALTON
    np.testing.assert_allclose(
        np.einsum("kax,a,lax->kl", modes, mass, modes), np.eye(3), atol=1e-12
    )
    flat = modes.reshape(3, -1)
    curvature = flat @ h @ flat.T
    np.testing.assert_allclose(np.diag(curvature), frequencies**2, rtol=1e-9)
    np.testing.assert_allclose(np.einsum("kax,a->kx", modes, mass), 0, atol=1e-9)  # no translation
    turning = np.einsum("a,kax->kax", mass, np.cross(structure.positions, modes)).sum(axis=1)
    np.testing.assert_allclose(turning, 0, atol=1e-8)  # no rotation


def test_linear_and_single_atoms():
    h2 = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    spring = 0.37  # Hartree/Bohr^2
    h = np.zeros((6, 6))
    h[2, 2] = h[5, 5] = spring
    h[2, 5] = h[5, 2] = -spring
    frequencies, modes = normal_modes(h2, h)
    assert modes.shape == (1, 2, 3)
    reduced = MASSES[1] / 2 * ELECTRON_MASS_PER_DALTON
    assert frequencies[0] == pytest.approx((spring / reduced) ** 0.5, rel=1e-6)
    frequencies, modes = normal_modes(Structure([2], [[0.0, 0.0, 0.0]]), np.zeros((3, 3)))
    assert (len(frequencies), modes.shape) == (0, (0, 1, 3))


def _aligned(structure, reference, mass):
    """Displacements after the mass-weighted rotation onto the reference (Eckart frame)."""
    centre = mass @ reference / mass.sum()
    x, y = structure.positions - mass @ structure.positions / mass.sum(), reference - centre
    u, _, vt = np.linalg.svd((mass[:, None] * x).T @ y)
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return x @ u @ vt - y


def test_every_mode_holds_kt(minimum):
    structure, h = minimum
    frequencies, modes = normal_modes(structure, h)
    n = 2000
    sampled = sample_thermal(structure, h, temperature=TEMPERATURE, n=n, seed=3)
    mass = np.array([MASSES[z] for z in structure.numbers]) * ELECTRON_MASS_PER_DALTON
    moved = np.array([_aligned(s, structure.positions, mass) for s in sampled])
    q = np.einsum("kax,a,nax->nk", modes, mass, moved)
    ratio = (frequencies * q) ** 2 / (HARTREE_PER_KELVIN * TEMPERATURE)
    # the mean of n squares of normal numbers is 1 +- sqrt(2 / n); five of these are 0.16
    np.testing.assert_allclose(ratio.mean(axis=0), 1.0, atol=5 * (2 / n) ** 0.5)
    correlation = np.corrcoef(q.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / n**0.5
    assert np.abs(q.mean(axis=0) / q.std(axis=0)).max() < 5 / n**0.5


def test_orientations_are_uniform(minimum):
    structure, h = minimum
    n = 2000
    sampled = sample_thermal(structure, h, temperature=TEMPERATURE, n=n, seed=3)
    bonds = np.array([s.positions[1] - s.positions[2] for s in sampled])
    bonds /= np.linalg.norm(bonds, axis=1, keepdims=True)
    assert np.abs(bonds.mean(axis=0)).max() < 5 / (3 * n) ** 0.5
    np.testing.assert_allclose((bonds**2).mean(axis=0), 1 / 3, atol=5 * (4 / 45 / n) ** 0.5)


def test_seeds_are_reproducible_and_n_may_grow(minimum):
    def positions(n, seed):
        sampled = sample_thermal(*minimum, temperature=TEMPERATURE, n=n, seed=seed)
        return np.array([s.positions for s in sampled])

    np.testing.assert_array_equal(positions(5, seed=1), positions(8, seed=1)[:5])
    assert np.abs(positions(5, seed=1) - positions(5, seed=2)).min() > 0
    assert positions(0, seed=1).shape == (0,)


def test_what_is_no_minimum_is_refused(minimum):
    structure, h = minimum
    for bad, says in ((-h, "imaginary"), (1e-6 * h, "soft modes")):
        with pytest.raises(OpmlError, match=says):
            sample_thermal(structure, bad, temperature=TEMPERATURE, n=1, seed=0)


LINES = {  # Bohr, near minima; bent and stretched a little, as a user draws them
    "HCN": ([1, 6, 7], [[0.1, 0, -2.0], [0, 0, 0], [-0.1, 0.05, 2.2]]),
    "CO2": ([8, 6, 8], [[0.1, 0, -2.2], [0, 0.05, 0], [0, 0, 2.2]]),
    "C2H2": ([1, 6, 6, 1], [[0.2, 0, -3.1], [0, 0, -1.1], [0, 0.1, 1.1], [0, -0.1, 3.1]]),
}


@pytest.mark.parametrize("name", LINES)
def test_linear_minima_have_all_their_modes(name):
    """Relaxed as ``opml generate --sample`` does, which never ends on an exact line."""
    method = Method("hf", "sto-3g")
    minimum = relax(Structure(*LINES[name]), method)
    n = minimum.n_atoms
    frequencies, modes = normal_modes(minimum, hessian(minimum, method))
    assert modes.shape == (3 * n - 5, n, 3)
    lines = frequencies * WAVENUMBER_PER_HARTREE
    assert lines[0] > 100
    bends = lines[: 2 * (n - 2)].reshape(-1, 2)  # in pairs
    np.testing.assert_allclose(bends[:, 0], bends[:, 1], rtol=0, atol=WAVENUMBER)
    heavy = Structure(minimum.numbers, minimum.positions, masses=[30.0] * n)
    assert internal_motion(heavy, heavy.atomic_masses).shape[1] == 3 * n - 5


@pytest.mark.parametrize("degrees", [0.5, 1.5, 5.0, 30.0])
def test_what_is_bent_keeps_its_three_rotations(degrees):
    half = np.radians(degrees) / 2
    x = 2.2 * np.array(
        [[-np.cos(half), -np.sin(half), 0], [0, 0, 0], [np.cos(half), -np.sin(half), 0]]
    )
    molecule = Structure([8, 6, 8], x)
    assert is_linear(molecule) == (degrees < 1)
    vibrations = internal_motion(molecule, molecule.atomic_masses)
    assert vibrations.shape[1] == (4 if degrees < 1 else 3)
    np.testing.assert_allclose(vibrations.T @ vibrations, np.eye(vibrations.shape[1]), atol=1e-12)


def test_samples_keep_masses(minimum):
    structure, h = minimum
    d2o = Structure(structure.numbers, structure.positions, masses=[15.999, 2.014, 2.014])
    light, heavy = normal_modes(structure, h)[0], normal_modes(d2o, h)[0]
    assert (light / heavy > 1.3).all()
    assert (light / heavy < 2**0.5).all()
    assert sample_thermal(d2o, h, temperature=TEMPERATURE, n=1, seed=0)[0].masses == d2o.masses
