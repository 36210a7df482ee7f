"""Predictions in files: extended xyz for ASE and others, HDF5 in atomic units."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..basis import layout_of
from ..data import Dataset
from ..data.files import atomic_path
from ..data.moments import CENTRED, shifted_quadrupole
from ..data.store import write_hdf5
from ..models.base import Model
from ..quantities import LABELS, cut_rows, in_ase_units, quantity
from ..structures import Structure, centre_of_nuclear_charge

Predicted = Mapping[str, np.ndarray]


def write_extxyz(
    path: str | os.PathLike, structures: Sequence[Structure], predicted: Predicted
) -> None:
    """Write structures and predictions in eV and Angstrom, under ``opml_`` names.

    Args:
      path: the file, written whole or not at all.
      structures: molecules.
      predicted: of these, from ``model.predict``; what ASE has no unit for is left out.
    """
    from ase.io import write

    from .ase import structure_to_ase

    frames = [structure_to_ase(s) for s in structures]
    sizes = {"n_atoms": np.array([s.n_atoms for s in structures])}
    for name, values in in_ase_units(predicted).items():
        known = quantity(name)
        of_atoms = known is not None and known.axes[:1] == ("atom",)
        for atoms, row in zip(frames, cut_rows(name, values, sizes), strict=True):
            (atoms.arrays if of_atoms else atoms.info)[f"opml_{name}"] = row
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def write_predictions(
    path: str | os.PathLike, structures: Sequence[Structure], predicted: Predicted, model: Model
) -> None:
    """Write structures and predictions in atomic units, in the fields of data sets.

    Args:
      path: HDF5 file, which :func:`opml_jax.read_dataset` reads.
      structures: molecules.
      predicted: of these, from ``model.predict``.
      model: what predicted them.
    """
    definition: Any = model.definition
    meta, hashes = {"predicted_by": "opml_jax"}, None
    if "dm" in predicted:
        meta["basis"] = definition.basis.name
        hashes = [layout_of(s, definition.basis).hash for s in structures]
    if "coefficients" in predicted:
        meta["aux_basis"] = definition.aux_basis.name
    labels = {
        name: cut_rows(name, values, predicted)
        for name, values in _about_origin(structures, predicted).items()
        if name in LABELS
    }
    write_hdf5(path, Dataset(structures, labels, meta, hashes))


def _about_origin(structures: Sequence[Structure], predicted: Predicted) -> dict[str, np.ndarray]:
    """Predictions with moments about the coordinate origin instead of nuclear charge's centre.

    Quadrupoles that cannot be moved, because there are no dipoles, are left out.
    """
    moved = dict(predicted)
    centres = np.array([centre_of_nuclear_charge(s) for s in structures])
    if "quadrupole" in predicted:
        dipole = predicted.get("dipole", np.zeros_like(centres))
        moved["quadrupole"] = shifted_quadrupole(predicted["quadrupole"], dipole, -centres)
        if "dipole" not in predicted and np.abs(centres).max() > CENTRED:
            del moved["quadrupole"]
    if "dm" in predicted and "dipole" in predicted:  # ions: those of neutral molecules stay
        charges = np.array([s.charge for s in structures])
        moved["dipole"] = predicted["dipole"] + charges[:, None] * centres
    return moved
