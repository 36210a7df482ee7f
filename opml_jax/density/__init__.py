"""Electron densities in an auxiliary basis: fitting, moments, free atoms, errors, grids."""

from .atoms import atomic_coefficients as atomic_coefficients
from .atoms import superposed_atoms as superposed_atoms
from .fitting import METRICS as METRICS
from .fitting import Fitting as Fitting
from .fitting import check_coefficients as check_coefficients
from .fitting import check_positive as check_positive
from .fitting import external_energies as external_energies
from .fitting import fit as fit
from .fitting import fitting as fitting
from .fitting import from_pyscf as from_pyscf
from .fitting import metric_matrix as metric_matrix
from .fitting import self_energy as self_energy
from .fitting import to_pyscf as to_pyscf
from .fitting import with_electrons as with_electrons
from .grid import CHUNK as CHUNK
from .grid import density_error_percent as density_error_percent
from .grid import grid as grid
from .grid import matrix_on_points as matrix_on_points
from .grid import on_points as on_points
from .grid import potential_on_points as potential_on_points
from .grid import write_cube as write_cube
from .moments import charges as charges
from .moments import dipole as dipole
from .moments import electron_number as electron_number
from .moments import quadrupole as quadrupole
