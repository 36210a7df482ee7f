"""Operators in an AO basis: an algebra over matrices that know their layout."""

from .blocks import blocks as blocks
from .blocks import from_blocks as from_blocks
from .blocks import slot_blocks as slot_blocks
from .build import external_potential as external_potential
from .build import kinetic as kinetic
from .build import neutral_atom_potential as neutral_atom_potential
from .build import overlap as overlap
from .build import screened_potential as screened_potential
from .functions import power as power
from .functions import powers as powers
from .functions import trace as trace
from .operator import Operator as Operator
