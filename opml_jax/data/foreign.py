"""HDF5 files of others: SPICE, ANI-1, ANI-1x, told by what their groups hold.

A group has the conformations of one molecule: geometries and labels with a row for each.

* SPICE (Eastman et al., Sci. Data 10, 11 (2023)): ``conformations``, ``dft_total_energy``,
  ``dft_total_gradient``, each with an attribute ``units``; the total charge is that of the SMILES.
* ANI-1x (Smith et al., Sci. Data 7, 134 (2020)): ``coordinates``, ``wb97x_dz.energy``,
  ``wb97x_dz.forces``: Angstrom, Hartree, Hartree/Angstrom; NaN where a label was not computed.
* ANI-1 (Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017)): ``coordinates``, ``species``,
  ``energies``: Angstrom, Hartree.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ..errors import Code, DataError, OpmlError, counted
from ..structures.elements import atomic_number
from .hdf5 import load, one_line, read_whole
from .records import Layout, Record

SPICE = Layout(
    "HDF5 of SPICE",
    "groups with `conformations` and `dft_total_energy`, whose attributes `units` are obeyed",
    {"energy": ("dft_total_energy",), "forces": ("dft_total_gradient",)},
    {"length": "bohr", "energy": "hartree", "forces": "hartree/bohr"},
    fixed=True,
    meta={"method": "wb97m-d3bj", "basis": "def2-tzvppd"},
)
_UNITS = {"length": "angstrom", "energy": "hartree", "forces": "hartree/angstrom"}
ANI1X = Layout(
    "HDF5 of ANI-1x",
    "groups with `coordinates` and `wb97x_dz.energy`",
    {"energy": ("wb97x_dz.energy",), "forces": ("wb97x_dz.forces",)},
    _UNITS,
    fixed=True,
    meta={"method": "wb97x", "basis": "6-31g*"},
)
ANI1 = Layout(
    "HDF5 of ANI-1",
    "groups with `coordinates`, `energies`, `species`",
    {"energy": ("energies",), "forces": ("forces",)},
    _UNITS,
    fixed=True,
)
LAYOUTS = (SPICE, ANI1X, ANI1)

EXPECTED = "a data set of opml_jax, SPICE or ANI"


def foreign_layout(path: Path) -> Layout:
    """What an HDF5 file is that is not the library's own.

    Raises:
      DataError: a file that HDF5 cannot open, or groups of another kind.
    """

    def layout(file: h5py.File) -> Layout:
        group = next(_molecules(file), file)
        names = set(group)
        if {"conformations", "dft_total_energy", "atomic_numbers"} <= names:
            arrays = {"length": "conformations"} | {k: v[0] for k, v in SPICE.names.items()}
            units = {k: _unit(group, name, SPICE.units[k]) for k, name in arrays.items()}
            return SPICE.of(functools.partial(_records, path, "conformations", SPICE), units=units)
        if {"coordinates", "wb97x_dz.energy", "atomic_numbers"} <= names:
            return ANI1X.of(functools.partial(_records, path, "coordinates", ANI1X))
        if {"coordinates", "energies", "species"} <= names:
            return ANI1.of(functools.partial(_records, path, "coordinates", ANI1))
        got = f"HDF5 with {', '.join(sorted(names)[:8]) or 'nothing'} in {group.name}"
        raise DataError(str(path), got=got, expected=EXPECTED)

    return read_whole(path, layout, EXPECTED)


def _molecules(file: h5py.Group) -> Iterator[h5py.Group]:
    """Groups with data sets, at a depth of three at most; links are not followed."""

    def walk(group: h5py.Group, depth: int) -> Iterator[h5py.Group]:
        hard = [k for k in group if isinstance(group.get(k, getlink=True), h5py.HardLink)]
        items = [group[k] for k in hard]
        if any(isinstance(item, h5py.Dataset) for item in items):
            yield group
        elif depth:
            for item in items:
                if isinstance(item, h5py.Group):
                    yield from walk(item, depth - 1)

    return walk(file, 3)


def _unit(group: h5py.Group, name: str, default: str) -> str:
    """The unit that an array states."""
    return _text(group[name].attrs.get("units", default) if name in group else default)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _records(path: Path, geometries: str, layout: Layout) -> Iterator[Record]:
    """Conformations of all molecules, one after the other."""
    labels = [name for names in layout.names.values() for name in names]
    with one_line(path, EXPECTED), h5py.File(path, "r") as file:
        for group in _molecules(file):
            try:
                yield from _conformations(group, path, geometries, labels)
            except OpmlError as err:
                raise err.within(f"{path}:{group.name}") from err


def _conformations(
    group: h5py.Group, path: Path, geometries: str, labels: list[str]
) -> Iterator[Record]:
    if "atomic_numbers" in group:
        numbers = np.asarray(load(group, "atomic_numbers", path), np.int64).ravel()
    else:
        symbols = load(group, "species", path).ravel()
        numbers = np.array(
            [atomic_number(s.decode() if isinstance(s, bytes) else s) for s in symbols]
        )
    positions = np.asarray(load(group, geometries, path), np.float64)
    if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3):
        got, expected = f"shape {positions.shape}", f"(n, {len(numbers)}, 3)"
        raise DataError(geometries, got=got, expected=expected, code=Code.SHAPE)
    info = {}
    if "smiles" in group:
        smiles = np.ravel(load(group, "smiles", path))[0]
        info["charge"] = smiles_charge(
            smiles.decode() if isinstance(smiles, bytes) else str(smiles)
        )
    values = {k: np.asarray(load(group, k, path), np.float64) for k in labels if k in group}
    if odd := [k for k, v in values.items() if v.shape[:1] != (len(positions),)]:
        got = f"shape {values[odd[0]].shape}"
        expected = f"a row for each of {counted(len(positions), 'geometry')}"
        raise DataError(odd[0], got=got, expected=expected, code=Code.LABEL_SHAPE)
    if "dft_total_gradient" in values:
        values["dft_total_gradient"] *= -1  # forces from here on
    for i, x in enumerate(positions):
        present = {k: v[i] for k, v in values.items() if np.isfinite(v[i]).all()}
        yield Record(numbers, x, info | present)


def smiles_charge(smiles: str) -> int:
    """Total formal charge of a SMILES: that of its atoms in brackets, ``[NH3+:1]``, ``[O-2]``."""
    total = 0
    for atom in re.findall(r"\[([^\]]*)\]", smiles):
        for sign, digits in re.findall(r"([+-]+)(\d*)", atom.split(":")[0]):
            total += (1 if sign[0] == "+" else -1) * (int(digits) if digits else len(sign))
    return total
