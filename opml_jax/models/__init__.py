"""Models: pure functions of parameters and structures, by families, and their files."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from .base import Definition as Definition
    from .base import EnergyModel as EnergyModel
    from .base import Model as Model
    from .density2prop import Density2Prop as Density2Prop
    from .density2prop import Density2PropConfig as Density2PropConfig
    from .density2prop import Density2PropModel as Density2PropModel
    from .family import Family as Family
    from .family import families as families
    from .family import family_of as family_of
    from .family import register as register
    from .files import load_model as load_model
    from .files import pretrained as pretrained
    from .files import save_model as save_model
    from .op2density import Op2Density as Op2Density
    from .op2density import Op2DensityConfig as Op2DensityConfig
    from .op2density import Op2DensityModel as Op2DensityModel
    from .op2density import Op2DensityNetworkConfig as Op2DensityNetworkConfig
    from .op2op import Op2Op as Op2Op
    from .op2op import Op2OpConfig as Op2OpConfig
    from .op2op import Op2OpModel as Op2OpModel
    from .op2op import Op2OpNetworkConfig as Op2OpNetworkConfig
    from .op2prop import Op2Prop as Op2Prop
    from .op2prop import Op2PropConfig as Op2PropConfig
    from .op2prop import Op2PropModel as Op2PropModel

_NAMES = {
    "base": ("Definition", "EnergyModel", "Model"),
    "density2prop": ("Density2Prop", "Density2PropConfig", "Density2PropModel"),
    "family": ("Family", "families", "family_of", "register"),
    "files": ("load_model", "pretrained", "save_model"),
    "op2density": (
        *("Op2Density", "Op2DensityConfig", "Op2DensityModel", "Op2DensityNetworkConfig"),
    ),
    "op2op": ("Op2Op", "Op2OpConfig", "Op2OpModel", "Op2OpNetworkConfig"),
    "op2prop": ("Op2Prop", "Op2PropConfig", "Op2PropModel"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_RENAMED = {"OperatorModel": "Op2OpModel", "DensityModel": "Op2DensityModel"}


def __getattr__(name: str):
    """Families load on first use; names of version 0.1 still lead to them."""
    if name in _RENAMED:
        from warnings import warn

        warn(f"{name} is {_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
