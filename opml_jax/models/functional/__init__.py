"""A learned functional of the density: energies, forces, matrices and densities of one function."""

from .functions import LearnedFunctional as LearnedFunctional
from .functions import learned_functional as learned_functional
from .functions import superposed as superposed
from .words import Words as Words
