"""Operators in an AO basis: an algebra over matrices that know their layout."""

from .blocks import blocks as blocks
from .blocks import from_blocks as from_blocks
from .blocks import on_site_blocks as on_site_blocks
from .blocks import pair_blocks as pair_blocks
from .blocks import pooled_blocks as pooled_blocks
from .blocks import slot_blocks as slot_blocks
from .build import external_potential as external_potential
from .build import kinetic as kinetic
from .build import neutral_atom_potential as neutral_atom_potential
from .build import overlap as overlap
from .build import screened_potential as screened_potential
from .eigen import canonical_orthogonalisation as canonical_orthogonalisation
from .eigen import inverse_sqrt as inverse_sqrt
from .eigen import sqrtm as sqrtm
from .functions import chebyshev as chebyshev
from .functions import commutator as commutator
from .functions import identity as identity
from .functions import lowdin as lowdin
from .functions import power as power
from .functions import powers as powers
from .functions import resolvent as resolvent
from .functions import trace as trace
from .operator import Operator as Operator
from .plans import Plan as Plan
from .plans import plan as plan
