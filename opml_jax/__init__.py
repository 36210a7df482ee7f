"""Machine learning on quantum-mechanical operators, in JAX."""
from .basis import Basis as Basis
from .basis import batch as batch
from .basis import load_basis as load_basis
from .structures import Structure as Structure
from . import integrals as integrals
from . import operators as operators
from . import features as features
from . import conventions as conventions
from .models import load_model as load_model
from .data import read_structures as read_structures
