"""Molecules: one :class:`Structure`, or a padded :class:`StructureBatch` of them."""

from .structure import Structure as Structure
from .structure import StructureBatch as StructureBatch
from .structure import centre_of_nuclear_charge as centre_of_nuclear_charge
from .structure import centred as centred
from .structure import in_float64 as in_float64
from .structure import pad_structures as pad_structures
from .validation import check_length_unit as check_length_unit
