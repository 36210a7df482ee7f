"""Integrals over a molecule or a batch, each differentiable in what it is given."""

from .coulomb import fitted_coulomb as fitted_coulomb
from .density_fitting import COARSE as COARSE
from .density_fitting import FINE as FINE
from .density_fitting import DensityFit as DensityFit
from .density_fitting import density_fit as density_fit
from .density_fitting import density_fit_bytes as density_fit_bytes
from .local import Shells as Shells
from .local import local_potentials as local_potentials
from .local import packed as packed
from .local import unpacked as unpacked
from .one_electron import DRIVERS as DRIVERS
from .one_electron import external_potential as external_potential
from .one_electron import kinetic as kinetic
from .one_electron import neutral_atom_potential as neutral_atom_potential
from .one_electron import overlap as overlap
from .one_electron import position as position
from .one_electron import screened_potential as screened_potential
from .one_electron import second_moments as second_moments
from .screening import ScreenedPairs as ScreenedPairs
from .screening import screen as screen
from .three_center import three_center as three_center
from .two_center import coulomb_metric as coulomb_metric
from .two_center import cross_metric as cross_metric
from .two_center import overlap_metric as overlap_metric
from .two_center import potentials as potentials
from .two_center import values as values
