"""Equivariant features of operators: coupled blocks, pooled by atom, and their invariants."""

from .couple import clebsch_gordan as clebsch_gordan
from .couple import couple as couple
from .couple import uncouple as uncouple
from .hierarchy import AtomFeatures as AtomFeatures
from .hierarchy import Channel as Channel
from .hierarchy import PairFeatures as PairFeatures
from .hierarchy import atom_features as atom_features
from .hierarchy import structure_features as structure_features
from .invariants import invariants as invariants
from .invariants import n_invariants as n_invariants
