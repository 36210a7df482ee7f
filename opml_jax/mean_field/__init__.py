"""Self-consistent fields: the solver that every one of them shares, and Kohn and Sham's."""

from .commutator import commutator as commutator
from .commutator import orthogonal as orthogonal
from .fixed_point import fixed_point as fixed_point
from .kohn_sham import Hamiltonian as Hamiltonian
from .kohn_sham import hamiltonian as hamiltonian
from .kohn_sham import kohn_sham as kohn_sham
