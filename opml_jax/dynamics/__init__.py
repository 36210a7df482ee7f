"""Molecular dynamics in one jitted loop, and what follows from motion: spectra, distributions."""

from .distributions import angular_distribution as angular_distribution
from .distributions import radial_distribution as radial_distribution
from .domain import DomainError as DomainError
from .harmonic import Harmonic as Harmonic
from .harmonic import Raman as Raman
from .harmonic import harmonic as harmonic
from .harmonic import raman as raman
from .harmonic import relax as relax
from .simulation import Settings as Settings
from .simulation import simulate as simulate
from .spectra import autocorrelation as autocorrelation
from .spectra import infrared as infrared
from .spectra import peaks as peaks
from .spectra import power_spectrum as power_spectrum
from .spectra import vibrational_dos as vibrational_dos
from .trajectory import Trajectory as Trajectory
