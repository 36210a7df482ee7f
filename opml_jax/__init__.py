"""Machine learning on quantum-mechanical operators, in JAX.

The external potential of a molecule, as an operator in an atomic-orbital basis, goes in;
properties come out; every derivative is one ``jax.grad`` away. Atomic units throughout.
"""

from importlib.metadata import version as _version

from . import conventions as conventions
from . import density as density
from . import errors as errors
from . import features as features
from . import integrals as integrals
from . import models as models
from . import observables as observables
from . import operators as operators
from . import units as units
from .basis import Basis as Basis
from .basis import batch as batch
from .basis import from_pyscf as from_pyscf
from .basis import load_basis as load_basis
from .basis import to_pyscf as to_pyscf
from .data import Dataset as Dataset
from .data import bundled as bundled
from .data import read_dataset as read_dataset
from .data import read_structures as read_structures
from .models import Model as Model
from .models import load_model as load_model
from .models import save_model as save_model
from .structures import Structure as Structure
from .structures import StructureBatch as StructureBatch

__version__ = _version("opml_jax")


def __getattr__(name: str):
    """Rooms that not everyone needs load on first use."""
    if name in ("analysis", "dynamics", "interfaces", "testing", "training"):
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
