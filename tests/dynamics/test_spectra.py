"""Spectra and distributions of motion that is known in closed form."""

import dataclasses

import numpy as np
import pytest
from scipy import constants, signal

from opml_jax.dynamics import (
    Settings,
    Trajectory,
    angular_distribution,
    autocorrelation,
    infrared,
    peaks,
    power_spectrum,
    radial_distribution,
    simulate,
    vibrational_dos,
)
from opml_jax.dynamics.spectra import CORRECTIONS, WINDOWS
from opml_jax.errors import ConfigError, DataError, OpmlError
from opml_jax.structures import Structure
from opml_jax.units import (
    ANGSTROM_PER_BOHR,
    FEMTOSECOND_PER_ATOMIC_TIME,
    HARTREE_PER_KELVIN,
    WAVENUMBER_PER_HARTREE,
)

pytest.importorskip("jax_md")
HIDDEN = 0.02  # cm^-1: a peak in the grid of 1.25 cm^-1, by a parabola


@pytest.fixture(scope="module")
def vibration(spring):
    """2.5 ps of the diatomic molecule."""
    settings = Settings(steps=5000, stride=1, timestep_fs=0.5)
    return simulate(spring.properties, spring.start, settings)


def test_autocorrelation_is_the_sum_it_stands_for():
    x = np.random.default_rng(0).normal(size=(60, 2, 3))
    expected = [(x[: 60 - k] * x[k:]).sum() / (60 - k) for k in range(20)]
    np.testing.assert_allclose(autocorrelation(x, 20), expected, rtol=0, atol=1e-12)


def test_power_spectrum_is_scipys_of_white_and_coloured_noise():
    """Welch's method, from frequencies in Hz, sees the same bands."""
    rng = np.random.default_rng(1)
    x = signal.lfilter([1.0], [1.0, -1.2, 0.8], rng.normal(size=200_000))
    interval = 20.0
    wavenumbers, found = power_spectrum(x, interval, resolution=100.0)
    seconds = interval * constants.physical_constants["atomic unit of time"][0]
    hertz, welch = signal.welch(x, 1 / seconds, nperseg=512)
    scale = 100 * constants.c  # Hz per cm^-1
    band = (wavenumbers > 2000) & (wavenumbers < 30_000)
    expected = np.interp(wavenumbers[band], hertz / scale, welch * scale)
    # scipy's 780 segments scatter by 5 %
    np.testing.assert_allclose(found[band], expected, rtol=0.3)
    assert np.trapezoid(found, wavenumbers) == pytest.approx((x**2).mean(), rel=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_density_of_states_is_a_line_at_the_frequency(vibration, spring, window):
    wavenumbers, density = vibrational_dos(vibration, window=window)
    assert np.trapezoid(density, wavenumbers) == pytest.approx(1.0, rel=1e-3)
    expected = spring.omega * WAVENUMBER_PER_HARTREE
    top = wavenumbers[np.argmax(density)]
    assert top == pytest.approx(expected, abs=wavenumbers[1])
    if window == "hann":
        assert peaks(wavenumbers, density) == pytest.approx([expected], abs=HIDDEN)


def test_infrared_intensity_of_a_diatomic_molecule(vibration, spring):
    """The band of a classical harmonic molecule has the intensity of quantum mechanics."""
    wavenumbers, absorption = infrared(vibration)
    line = spring.omega * WAVENUMBER_PER_HARTREE
    assert peaks(wavenumbers, absorption) == pytest.approx([line], abs=HIDDEN)
    # In SI: N_A / (12 eps0 c^2) |dmu/dQ|^2, with dmu/dQ = q / sqrt(reduced mass); m/mol to km/mol
    si = constants.N_A * (0.4 * constants.e) ** 2 / (spring.reduced * constants.m_e)
    expected = si / (12 * constants.epsilon_0 * constants.c**2) * 1e-3
    band = np.trapezoid(absorption, wavenumbers)
    step = vibration.timestep_fs / FEMTOSECOND_PER_ATOMIC_TIME
    # all times, one oscillator: what is left is its energy over a whole number of periods, and
    # the kinetic temperature at 0.5 fs, which is (omega dt)^2 / 4 = 3.7 % low
    assert band == pytest.approx(expected, rel=5e-3 + (spring.omega * step) ** 2 / 4)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_quantum_corrections(vibration, name):
    wavenumbers, plain = infrared(vibration)
    _, found = infrared(vibration, correction=name, temperature=300.0)
    _, at_300 = infrared(vibration, temperature=300.0)
    top = np.argmax(plain)
    x = wavenumbers[top] / WAVENUMBER_PER_HARTREE / (300 * HARTREE_PER_KELVIN)
    q = {
        "harmonic": x / (1 - np.exp(-x)),
        "none": 1.0,
        "standard": 2 / (1 + np.exp(-x)),
        "schofield": np.exp(x / 2),
    }[name]
    assert found[top] / at_300[top] == pytest.approx(q * (1 - np.exp(-x)) / x, rel=1e-10)


def test_distances_are_boltzmann_distributed(spring):
    settings = Settings(
        steps=8000, stride=20, ensemble="nvt", temperature=300.0, coupling_fs=20.0, warmup_fs=200.0
    )
    found = simulate(spring.properties, spring.start, settings, replicas=8)
    r, density = radial_distribution(found, "F", "H", bins=60)
    width = r[1] - r[0]
    assert density.sum() * width == pytest.approx(1.0)
    mean = (r * density).sum() * width
    spread = np.sqrt(((r - mean) ** 2 * density).sum() * width)
    kT = 300 * HARTREE_PER_KELVIN
    # p(r) is r^2 exp(-k (r - r0)^2 / 2 kT): variance kT/k, mean r0 + 2 kT / (k r0)
    assert mean / ANGSTROM_PER_BOHR == pytest.approx(1.7 + 2 * kT / 0.6 / 1.7, abs=4e-3)
    # 8 replicas of 4000 fs, decorrelated in 20 fs: 1600 samples of a width, each 0.7: 1.8 %
    assert spread / ANGSTROM_PER_BOHR == pytest.approx((kT / 0.6) ** 0.5, rel=4 * 0.018)


def still(structure, n=3):
    """A trajectory in which nothing happens."""
    x = np.broadcast_to(structure.positions, (n, 1, structure.n_atoms, 3))
    frames = {"step": np.arange(n), "positions": x, "energy": np.zeros((n, 1))}
    return Trajectory(structure.numbers, np.ones(structure.n_atoms), 1.0, 3, {}, frames)


def test_distances_and_angles_of_a_square():
    square = Structure(
        [6, 1, 1, 1, 1], 2 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0.0]])
    )
    found = still(square)
    r, density = radial_distribution(found, "H", "H", bins=400, longest=3.0)
    assert density.sum() * (r[1] - r[0]) == pytest.approx(6)
    expected = np.array([8**0.5, 4.0]) * ANGSTROM_PER_BOHR
    np.testing.assert_allclose(r[density > 0], expected, atol=4e-3)
    a, density = angular_distribution(found, "H", "C", "H", cutoff=1.5)
    np.testing.assert_allclose(density[np.searchsorted(a, [90, 179])], [4, 2])
    assert density.sum() == pytest.approx(6)
    _, density = angular_distribution(found, "C", "H", "H", cutoff=1.6)
    assert density.sum() == pytest.approx(4 * 2)  # arms to the next corners only
    assert angular_distribution(found, "H", "C", "H", cutoff=1.0)[1].sum() == 0


def test_refusals(vibration):
    bare = dataclasses.replace(
        vibration, frames={k: v for k, v in vibration.frames.items() if k != "dipole"}
    )
    with pytest.raises(DataError, match="trajectory must be with dipole"):
        infrared(bare)
    with pytest.raises(ConfigError, match="correction must be one of"):
        infrared(vibration, correction="quantum")
    with pytest.raises(ConfigError, match=r"window must be one of .* Did you mean 'hann'"):
        vibrational_dos(vibration, window="hahn")
    with pytest.raises(OpmlError, match="resolution must be positive"):
        vibrational_dos(vibration, resolution=-1.0)
    with pytest.raises(OpmlError, match="four or more"):
        power_spectrum(np.ones(3), 1.0)
    with pytest.raises(OpmlError, match="without H-H pairs"):
        radial_distribution(vibration, "H", "H")
    with pytest.raises(OpmlError, match="without H-F-H angles"):
        angular_distribution(vibration, "H", "F", "H", cutoff=2.0)
