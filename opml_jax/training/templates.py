"""Configurations to start from, one an experiment."""

from __future__ import annotations

import dataclasses

from ..models import Op2DensityConfig, Op2OpConfig, Op2PropConfig
from .config import DataConfig, EffectiveConfig, OptimConfig, TrainConfig, explained

_PRODUCTS = Op2PropConfig(
    basis="even-tempered",
    metric="lifted",
    powers=(1,),
    others=("overlap",),
    channels=64,
    components=200,
    hidden=(96, 96),
    members=4,
)
_LONG = OptimConfig(batch_size=10, weight_decay=1e-2, ema=0.995)
_ENERGY_FORCES = ("energy", "forces")

TEMPLATES: dict[str, tuple[str, TrainConfig]] = {
    "water": (
        "Bundled water, PBE/def2-SVP: runs as it is, in a minute.",
        TrainConfig(),
    ),
    "rmd17-ethanol": (
        "Ethanol of the revised MD17 (figshare 12672038), 950 training and 50 validation "
        "geometries, PBE/def2-SVP. Set data.path.",
        TrainConfig(
            DataConfig("rmd17_ethanol.npz", n_train=950, n_validation=50, n_test=1000),
            dataclasses.replace(_PRODUCTS, channels=128),
            optim=_LONG,
            targets=_ENERGY_FORCES,
        ),
    ),
    "3bpa": (
        "3BPA at 300 K (github.com/davkovacs/BOTNet-datasets), 450 training and 50 validation "
        "geometries; opml evaluate on its other files. Set data.path.",
        TrainConfig(
            DataConfig("train_300K.xyz", n_train=450, n_validation=50),
            _PRODUCTS,
            optim=_LONG,
            targets=_ENERGY_FORCES,
        ),
    ),
    "qm7": (
        "Energies of QM7's molecules, 5130 training and 570 validation, PBE0/def2-TZVP (extxyz of "
        "github.com/qmlcode/qml). Set data.path.",
        TrainConfig(
            DataConfig(
                "qm7.extxyz",
                n_train=5130,
                n_validation=570,
                labels=("energy=hof_pbe0_def2tzvp_kcalmol:kcal/mol",),
            ),
            dataclasses.replace(_PRODUCTS, metric="damped", references=1500),
            optim=OptimConfig(epochs=0),
            targets=("energy",),
        ),
    ),
    "op2op": (
        "Fock matrices of bundled water, PBE/def2-SVP, from Op2Op: runs as it is, in a minute. Own "
        "molecules: opml generate --no-forces, set data.path and operator.basis to those labels'.",
        TrainConfig(
            DataConfig(n_train=100, n_validation=50), operator=Op2OpConfig(), targets=("fock",)
        ),
    ),
    "density": (
        "Electron densities of bundled water, PBE/def2-SVP: runs as it is, in two minutes. Own "
        "molecules: opml generate --no-forces, set data.path.",
        TrainConfig(
            DataConfig(n_train=100, n_validation=50),
            density=Op2DensityConfig(),
            targets=("density",),
        ),
    ),
    "density-energy": (
        "Energies and forces of bundled water as functions of a predicted density, whose dipole is "
        "theirs: opml config template density > density.yaml, opml train density.yaml -o density, "
        "then this one; the density model is copied into it.",
        TrainConfig(
            DataConfig(n_train=100, n_validation=50),
            Op2PropConfig(
                basis="even-tempered-f",
                metric="lifted",
                powers=(1,),
                others=("overlap",),
                channels=64,
                components=200,
                hidden=(96, 96),
                density="density",
            ),
            optim=_LONG,
            targets=_ENERGY_FORCES,
        ),
    ),
    "effective": (
        "A minimal-basis operator of bundled water whose levels, dipoles and charges are those of "
        "PBE/def2-SVP: runs as it is, in two minutes. Own molecules: opml generate --no-forces in "
        "a large basis, set data.path.",
        TrainConfig(
            DataConfig(n_train=100, n_validation=50),
            operator=Op2OpConfig(basis="sto-3g", density_words=()),
            effective=EffectiveConfig(),
            targets=("mo_energy", "dipole", "lowdin_charges"),
        ),
    ),
    "own": (
        "Your own molecules, labelled by opml generate, or any file that opml data check reads. "
        "Set data.path, the sizes of the split, and targets to what the file has.",
        TrainConfig(DataConfig("mine.h5"), _PRODUCTS),
    ),
}
"""What it is, and the configuration, by name; the first is the default."""


def template(name: str = "water") -> str:
    """One of :data:`TEMPLATES` as YAML, every key explained."""
    about, config = TEMPLATES[name]
    return f"# {about}\n{explained(config)}"
