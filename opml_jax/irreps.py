"""e3nn, without the second that importing SciPy's signal processing takes: nothing here uses it.

``from .irreps import e3nn`` stands for ``import e3nn_jax as e3nn``.
"""

from __future__ import annotations

import sys
from types import ModuleType

_UNUSED = "scipy.signal"
"""e3nn names it when it is imported; SciPy itself imports it when something in it is asked for."""

_stands_in = sys.modules.setdefault(_UNUSED, ModuleType(_UNUSED))
try:
    import e3nn_jax as e3nn  # noqa: F401
finally:
    if not hasattr(_stands_in, "__file__"):
        del sys.modules[_UNUSED]
