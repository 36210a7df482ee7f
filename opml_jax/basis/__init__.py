"""Gaussian basis sets: shells, the AO layout they imply, and batches laid out for one basis."""

from .buckets import Bucket as Bucket
from .buckets import bucket_of as bucket_of
from .buckets import buckets as buckets
from .layout import AOLayout as AOLayout
from .layout import BasisSpec as BasisSpec
from .layout import BatchLayout as BatchLayout
from .layout import batch as batch
from .layout import from_pyscf as from_pyscf
from .layout import layout_of as layout_of
from .layout import to_pyscf as to_pyscf
from .library import load_basis as load_basis
from .shells import Basis as Basis
from .shells import Shell as Shell
from .widths import check_widths as check_widths
from .widths import scale_of_coefficients as scale_of_coefficients
