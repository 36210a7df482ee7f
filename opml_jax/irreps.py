"""e3nn, without the seconds that importing what nothing here uses takes.

``from .irreps import e3nn`` stands for ``import e3nn_jax as e3nn``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_UNUSED = ("e3nn_jax.flax", "scipy.signal", "scipy.spatial", "sympy")
"""What e3nn imports at once, and reads in few of its functions: its layers, of which importing Flax
and with it rich takes long, resampling on spheres, and symbolic spherical harmonics."""


class _Later(ModuleType):
    """Stands for a module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:  # e3nn is being imported
            if name.startswith("__"):
                raise AttributeError(name)
            return Any  # an annotation
        return getattr(importlib.import_module(self.__name__), name)


if "e3nn_jax" not in sys.modules:
    _stand_ins = {name: _Later(name) for name in _UNUSED if name not in sys.modules}
    sys.modules.update(_stand_ins)
    try:
        importlib.import_module("e3nn_jax")
    finally:
        for _name in _stand_ins:
            del sys.modules[_name]

import e3nn_jax as e3nn  # noqa: E402, F401
