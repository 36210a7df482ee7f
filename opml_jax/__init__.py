"""Machine learning on quantum-mechanical operators, in JAX.

The external potential of a molecule, as an operator in an atomic-orbital basis, goes in;
properties come out; every derivative is one ``jax.grad`` away. Atomic units throughout.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from . import analysis as analysis
    from . import basis as basis
    from . import conventions as conventions
    from . import data as data
    from . import density as density
    from . import dynamics as dynamics
    from . import errors as errors
    from . import features as features
    from . import integrals as integrals
    from . import interfaces as interfaces
    from . import mean_field as mean_field
    from . import models as models
    from . import observables as observables
    from . import operators as operators
    from . import structures as structures
    from . import testing as testing
    from . import training as training
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
    from .models import pretrained as pretrained
    from .models import save_model as save_model
    from .structures import Structure as Structure
    from .structures import StructureBatch as StructureBatch

_ROOMS = (
    *("analysis", "basis", "conventions", "data", "density", "dynamics", "errors", "features"),
    *("integrals", "interfaces", "mean_field", "models", "observables", "operators"),
    *("structures", "testing", "training", "units"),
)
_NAMES = {
    "basis": ("Basis", "batch", "from_pyscf", "load_basis", "to_pyscf"),
    "data": ("Dataset", "bundled", "read_dataset", "read_structures"),
    "models": ("Model", "load_model", "pretrained", "save_model"),
    "structures": ("Structure", "StructureBatch"),
}
_HOME = {name: room for room, names in _NAMES.items() for name in names}


def __getattr__(name: str):
    """Everything loads on first use: the command line need not wait for JAX to print its help."""
    if name in _ROOMS:
        return _import_module(f".{name}", __name__)
    if name == "__version__":
        value = _import_module("importlib.metadata").version(__name__)
    elif name in _HOME:
        value = getattr(_import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_HOME, "__version__"})
