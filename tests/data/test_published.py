"""Published files, where the environment variable OPML_DATA names a folder that has them."""

import os
from pathlib import Path

import numpy as np
import pytest

from opml_jax.data import duplicates, leakage, read_dataset
from opml_jax.errors import DataError

FOLDER = Path(os.environ.get("OPML_DATA", "/nonexistent"))
QM9 = {
    "energy": ("U0", "hartree"),
    "dipole_norm": ("mu", "debye"),
    "isotropic_polarizability": ("alpha", "bohr^3"),
}
FILES = {  # options, structures, labels
    "rmd17/rmd17_ethanol_train_01.npz": ({}, 1000, "energy forces frame"),
    "qm7_qml/qm7_pbe0_hof.extxyz": (
        {"labels": {"energy": ("hof_pbe0_def2tzvp_kcalmol", "kcal/mol")}},
        7101,
        "energy",
    ),
    "metatrain_examples/qm9_reduced_100.xyz": ({"labels": QM9}, 100, " ".join(QM9)),
    "metatrain_examples/qm7x_reduced_100.xyz": (
        {"labels": {"polarizability": ("polarizability", "bohr^3")}},
        100,
        "polarizability",
    ),
    "metatrain_examples/ethanol_reduced_100.xyz": (
        {"energy_unit": "kcal/mol"},
        100,
        "energy forces",
    ),
    "botnet/dataset_3BPA_train_300K.xyz": ({}, 500, "energy forces"),
    "botnet/dataset_3BPA_train_mixedT.xyz": ({}, 500, "energy forces"),
    "botnet/dataset_acac_train_300K.xyz": ({}, 500, "energy forces"),
}


def _existing(name):
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not below OPML_DATA")
    return FOLDER / name


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_read_without_a_warning(name):
    options, n, labels = FILES[name]
    ds = read_dataset(_existing(name), **options)
    assert len(ds) == n
    assert set(ds.labels) == set(labels.split())


def test_units_of_published_files_are_held_against_composition():
    with pytest.raises(DataError, match="fit kcal/mol"):
        read_dataset(_existing("metatrain_examples/ethanol_reduced_100.xyz"))


def test_qm7_holds_some_molecules_twice():
    name = "qm7_qml/qm7_pbe0_hof.extxyz"
    ds = read_dataset(_existing(name), **FILES[name][0])
    pairs = duplicates(ds.structures)
    assert len(pairs) == 13
    energies = ds["energy"][pairs]
    np.testing.assert_allclose(energies[:, 0], energies[:, 1], atol=1e-9)  # they are equal indeed


def test_the_two_training_sets_of_3bpa_overlap():
    a, b = (
        read_dataset(_existing(f"botnet/dataset_3BPA_train_{t}.xyz")) for t in ("300K", "mixedT")
    )
    assert len(leakage(a, b).duplicates) == 31
