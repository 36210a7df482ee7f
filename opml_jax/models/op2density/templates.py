"""Configurations of Op2Density to start from."""

from __future__ import annotations

from ..family import Template
from .config import Op2DensityConfig

TEMPLATES = {
    "density": Template(
        "Electron densities of bundled water, PBE/def2-SVP: runs as it is. Own "
        "molecules: opml generate --no-forces, set data.path.",
        {"n_train": 100, "n_validation": 50},
        Op2DensityConfig(),
    )
}
