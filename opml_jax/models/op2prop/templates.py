"""Configurations of Op2Prop to start from."""

from __future__ import annotations

import dataclasses

from ..family import Template
from .config import Op2PropConfig, Op2PropFit

FORCES = Op2PropFit(targets=("energy", "forces"), batch_size=10, weight_decay=1e-2, ema=0.995)
"""Energies and forces, long averages."""

PRODUCTS = Op2PropConfig(
    basis="even-tempered",
    metric="lifted",
    powers=(1,),
    others=("overlap",),
    channels=64,
    components=200,
    hidden=(96, 96),
    members=4,
    fit=FORCES,
)

TEMPLATES = {
    "water": Template(
        "Bundled water, PBE/def2-SVP: runs as it is, in a minute.", {}, Op2PropConfig()
    ),
    "rmd17-ethanol": Template(
        "Ethanol of the revised MD17 (figshare 12672038), 950 training and 50 validation "
        "geometries, PBE/def2-SVP. Set data.path.",
        {"path": "rmd17_ethanol.npz", "n_train": 950, "n_validation": 50, "n_test": 1000},
        dataclasses.replace(PRODUCTS, channels=128),
    ),
    "3bpa": Template(
        "3BPA at 300 K (github.com/davkovacs/BOTNet-datasets), 450 training and 50 validation "
        "geometries; opml evaluate on its other files. Set data.path.",
        {"path": "train_300K.xyz", "n_train": 450, "n_validation": 50},
        PRODUCTS,
    ),
    "qm7": Template(
        "Energies of QM7's molecules, 5130 training and 570 validation, PBE0/def2-TZVP (extxyz of "
        "github.com/qmlcode/qml). Set data.path.",
        {
            "path": "qm7.extxyz",
            "n_train": 5130,
            "n_validation": 570,
            "labels": ("energy=hof_pbe0_def2tzvp_kcalmol:kcal/mol",),
        },
        dataclasses.replace(
            PRODUCTS,
            metric="damped",
            references=1500,
            fit=Op2PropFit(targets=("energy",), epochs=0),
        ),
    ),
    "own": Template(
        "Your own molecules, labelled by opml generate, or any file that opml data check reads. "
        "Set data.path, the sizes of the split, and model.fit.targets to what the file has.",
        {"path": "mine.h5"},
        dataclasses.replace(PRODUCTS, channels=128, members=1, last_layer=True, fit=Op2PropFit()),
    ),
}
