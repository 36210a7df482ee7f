"""Equivariant features of operators: coupled blocks, pooled by atom, and their invariants."""

from .couple import clebsch_gordan as clebsch_gordan
from .couple import couple as couple
from .couple import couple_species as couple_species
from .couple import species_channels as species_channels
from .couple import species_coupling as species_coupling
from .couple import species_irreps_norm as species_irreps_norm
from .couple import uncouple as uncouple
from .couple import uncouple_species as uncouple_species
from .hierarchy import AtomFeatures as AtomFeatures
from .hierarchy import Channel as Channel
from .hierarchy import PairFeatures as PairFeatures
from .hierarchy import atom_features as atom_features
from .inputs import Inputs as Inputs
from .invariants import invariants as invariants
from .invariants import n_invariants as n_invariants
from .products import Products as Products
from .products import pairs_of_atoms as pairs_of_atoms
