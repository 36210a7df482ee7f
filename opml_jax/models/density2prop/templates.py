"""Configurations of Density2Prop to start from."""

from __future__ import annotations

from ..family import Template
from .config import Density2PropConfig, Density2PropFit

TEMPLATES = {
    "density-energy": Template(
        "Energies and forces of bundled water as functions of a predicted density, whose dipole is "
        "theirs: opml config template density > density.yaml, opml train density.yaml -o density, "
        "then this one; the density model is copied into it.",
        {"n_train": 100, "n_validation": 50},
        Density2PropConfig(
            density="density",
            channels=64,
            components=200,
            hidden=(96, 96),
            fit=Density2PropFit(batch_size=10, weight_decay=1e-2, ema=0.995),
        ),
    )
}
