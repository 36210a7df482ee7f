"""What follows from operators: orbitals, density matrices, charges, bond orders, moments."""

from .energy import hartree_fock_energy as hartree_fock_energy
from .energy import nuclear_repulsion as nuclear_repulsion
from .moments import dipole as dipole
from .moments import polarizability as polarizability
from .moments import quadrupole as quadrupole
from .orbitals import density_matrix as density_matrix
from .orbitals import electron_number as electron_number
from .orbitals import electronic_entropy as electronic_entropy
from .orbitals import free_energy as free_energy
from .orbitals import gap as gap
from .orbitals import idempotency_error as idempotency_error
from .orbitals import orbitals as orbitals
from .orbitals import project as project
from .orbitals import purify as purify
from .orbitals import sign as sign
from .populations import lowdin_charges as lowdin_charges
from .populations import mayer_bond_orders as mayer_bond_orders
from .populations import mulliken_charges as mulliken_charges
