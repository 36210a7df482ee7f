"""Spectra of trajectories: vibrational density of states, and infrared absorption.

Wavenumbers are in cm^-1. A spectrum is the Fourier transform of an autocorrelation, found through
FFTs (Wiener and Khinchin) and multiplied with a window of lags, which sets the resolution. What
velocity Verlet does to the frequency of a harmonic mode is undone, exactly.
"""

from __future__ import annotations

import numpy as np

from ..errors import OpmlError, one_of
from ..units import (
    FEMTOSECOND_PER_ATOMIC_TIME,
    HARTREE_PER_KELVIN,
    KILOMETRE_PER_MOL_PER_BOHR,
    SPEED_OF_LIGHT,
    WAVENUMBER_PER_HARTREE,
)
from .trajectory import Trajectory

WINDOWS = {
    "hann": lambda x: np.cos(0.5 * np.pi * x) ** 2,
    "gaussian": lambda x: np.exp(-4.5 * x**2),
    "none": np.ones_like,
}
"""Factors of an autocorrelation at lags from 0 to the longest, ``x`` from 0 to 1."""

CORRECTIONS = {
    "harmonic": np.ones_like,
    "none": lambda x: -np.expm1(-x) / x,
    "standard": lambda x: -np.expm1(-x) / x * 2 / (1 + np.exp(-x)),
    "schofield": lambda x: -np.expm1(-x) / x * np.exp(x / 2),
}
"""Quantum corrections of a classical autocorrelation, as factors of its absorption.

``x`` is hbar omega / kT. Absorption is omega (1 - exp(-x)) Q(x) times the classical spectrum; with
the harmonic Q = x / (1 - exp(-x)) that is omega^2 / kT times the spectrum, and intensities of a
harmonic molecule are exact. Ramirez, Lopez-Ciudad, Kumar, Marx, J. Chem. Phys. 121, 3973 (2004).
"""


def autocorrelation(signal: np.ndarray, n_lags: int) -> np.ndarray:
    """Mean over times of signal(t) signal(t + lag), summed over all axes but the first.

    Args:
      signal: ``(n_times, ...)``.
      n_lags: number of lags, from 0.

    Returns:
      ``(n_lags,)``; the mean is over the times that both factors have.
    """
    n = len(signal)
    flat = np.asarray(signal, float).reshape(n, -1)
    padded = np.fft.rfft(flat, n=2 * n, axis=0)
    power = (padded.real**2 + padded.imag**2).sum(axis=1)
    return np.fft.irfft(power)[:n_lags] / (n - np.arange(n_lags))


def power_spectrum(
    signal: np.ndarray, interval: float, *, resolution: float = 10.0, window: str = "hann"
) -> tuple[np.ndarray, np.ndarray]:
    """Spectral density of a signal.

    Args:
      signal: ``(n_times, ...)``; other axes are summed over.
      interval: time between two of them, atomic units.
      resolution: cm^-1; lags go to its inverse (3.3 ps for 10 cm^-1), or as far as the signal.
      window: one of :data:`WINDOWS`.

    Returns:
      ``(wavenumbers, density)``, from 0 to half the sampling frequency. The integral of the density
      is the mean square of the signal.

    Raises:
      OpmlError: a signal of fewer than four times, or a resolution that is not positive.
      ConfigError: an unknown window.
    """
    one_of("window", window, WINDOWS)
    if len(signal) < 4:
        raise OpmlError("signal", got=f"{len(signal)} times", expected="four or more")
    if not resolution > 0:
        raise OpmlError("resolution", got=resolution, expected="positive, in cm^-1")
    per_wavenumber = interval / WAVENUMBER_PER_HARTREE  # phase of one lag per cm^-1
    n_lags = int(min(len(signal) - 1, max(3, 2 * np.pi / (resolution * per_wavenumber))))
    lags = autocorrelation(signal, n_lags + 1) * WINDOWS[window](np.linspace(0, 1, n_lags + 1))
    size = 8 * n_lags  # zeros after the lags: points between those of the resolution
    even = np.concatenate([lags, np.zeros(size - 2 * n_lags - 1), lags[:0:-1]])
    density = np.fft.rfft(even).real
    wavenumbers = 2 * np.pi * np.fft.rfftfreq(size) / per_wavenumber
    return wavenumbers, 2 * density * per_wavenumber / (2 * np.pi)


def _slowed(
    trajectory: Trajectory, wavenumbers: np.ndarray, density: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A spectral density on the axis of exact dynamics, areas kept.

    Verlet's oscillators are fast: 2 asin(omega dt / 2) / dt, 20 cm^-1 for an O-H stretch at 0.5 fs.
    """
    step = trajectory.timestep_fs / FEMTOSECOND_PER_ATOMIC_TIME / WAVENUMBER_PER_HARTREE
    half = wavenumbers * step / 2
    kept = half < np.pi / 3  # no vibration has fewer than three steps a period
    return 2 / step * np.sin(half[kept]), density[kept] / np.cos(half[kept])


def vibrational_dos(
    trajectory: Trajectory, *, resolution: float = 10.0, window: str = "hann"
) -> tuple[np.ndarray, np.ndarray]:
    """Vibrational density of states: the spectrum of mass-weighted velocities, mean of replicas.

    Args:
      trajectory: with frames close enough for the fastest vibration.
      resolution: cm^-1, see :func:`power_spectrum`.
      window: one of :data:`WINDOWS`.

    Returns:
      ``(wavenumbers, density)``, ``(n,)`` cm^-1 and modes per cm^-1; the integral is the number of
      degrees of freedom.
    """
    v = trajectory["velocities"] * trajectory.masses[:, None] ** 0.5
    found = power_spectrum(v, trajectory.interval, resolution=resolution, window=window)
    wavenumbers, density = _slowed(trajectory, *found)
    return wavenumbers, density * trajectory.degrees_of_freedom / (v**2).sum() * len(v)


def infrared(
    trajectory: Trajectory,
    *,
    resolution: float = 10.0,
    window: str = "hann",
    correction: str = "harmonic",
    temperature: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Infrared absorption from the autocorrelation of the dipole, mean of replicas.

    .. math:: A(\tilde\nu) = \frac{\pi N_A}{3 c^2 kT} \omega^2 I(\tilde\nu)\; q(\hbar\omega / kT)

    in atomic units, with I the spectral density of the dipole and q of :data:`CORRECTIONS`: the
    molar absorption whose integral over the band of a harmonic mode is its intensity
    (McQuarrie, Statistical Mechanics, ch. 21).

    Args:
      trajectory: of a model of dipoles.
      resolution: cm^-1, see :func:`power_spectrum`.
      window: one of :data:`WINDOWS`.
      correction: one of :data:`CORRECTIONS`.
      temperature: Kelvin. Default: the mean of the trajectory.

    Returns:
      ``(wavenumbers, absorption)``, ``(n,)`` cm^-1 and km/mol per cm^-1.

    Raises:
      DataError: a trajectory without dipoles.
      ConfigError: an unknown window or correction.
    """
    one_of("correction", correction, CORRECTIONS)
    dipole = trajectory["dipole"]
    kT = HARTREE_PER_KELVIN * (temperature or trajectory.temperature.mean())
    moving = dipole - dipole.mean(axis=0)
    found = power_spectrum(moving, trajectory.interval, resolution=resolution, window=window)
    wavenumbers, density = _slowed(trajectory, *found)
    omega = wavenumbers / WAVENUMBER_PER_HARTREE
    factor = np.zeros_like(omega)
    factor[1:] = omega[1:] ** 2 / kT * CORRECTIONS[correction](omega[1:] / kT)
    absorption = factor * density / dipole.shape[1]
    return wavenumbers, INTENSITY * absorption


INTENSITY = np.pi / (3 * SPEED_OF_LIGHT**2) * KILOMETRE_PER_MOL_PER_BOHR
"""km/mol per squared derivative of the dipole in a mass-weighted coordinate, e^2 / m_e."""


def peaks(wavenumbers: np.ndarray, spectrum: np.ndarray, *, least: float = 0.02) -> np.ndarray:
    """Positions of the maxima of a spectrum, by parabolas through three points.

    Args:
      wavenumbers: ``(n,)``, ascending and nearly even.
      spectrum: ``(n,)``.
      least: prominence a peak must have, relative to the highest.

    Returns:
      ``(n_peaks,)`` ascending.
    """
    from scipy.signal import find_peaks

    # windows have negative side lobes, which would raise what is between them
    top, _ = find_peaks(np.maximum(spectrum, 0), prominence=least * spectrum.max())
    before, at, after = spectrum[top - 1], spectrum[top], spectrum[top + 1]
    shift = 0.5 * (before - after) / (before - 2 * at + after)
    return np.interp(top + shift, np.arange(len(wavenumbers)), wavenumbers)
