"""Readers of structure and label files. Units are known from the format or asked for."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from ..errors import DataError, OpmlError, UnitWarning, nearest, refusal
from ..structures import Structure, check_length_unit
from ..structures.elements import atomic_number
from ..units import ENERGY, LENGTH
from .dataset import Dataset
from .store import read_hdf5

_NPZ_NUMBERS = ("nuclear_charges", "z", "Z", "numbers", "atomic_numbers")
_NPZ_POSITIONS = ("coords", "R", "positions")
_NPZ_ENERGY = ("energies", "E", "energy")
_NPZ_FORCES = ("forces", "F")  # MD17 calls them F
_XYZ_ENERGY = ("REF_energy", "energy")
_XYZ_FORCES = ("REF_forces", "forces")
_XYZ_DIPOLE = ("REF_dipole", "dipole")
MAX_FORCE = 50.0  # eV/Angstrom; larger forces on average are a wrong unit
SUFFIXES = (".xyz", ".extxyz", ".npz", ".h5", ".hdf5")


def read_structures(
    path: str | os.PathLike, *, length_unit: str | None = None, charge: int = 0, spin: int = 0
) -> list[Structure]:
    """Structures from xyz, extxyz, rMD17/MD17 npz, or the library's HDF5.

    Args:
      path: the file; its suffix names the format.
      length_unit: ``"angstrom"`` or ``"bohr"``. Default: the unit the format means (Angstrom
        for xyz and npz; HDF5 states its own).
      charge: total charge, for formats that carry none.
      spin: 2S, for formats that carry none.

    Returns:
      Structures with positions in Bohr.

    Raises:
      DataError: missing, empty, truncated, unsafe or of an unknown format.
      StructureError: a geometry that cannot be meant (NaN, contact, electron count).

    Warns:
      UnitWarning: bonds that look like another unit of length.
    """
    path = _existing(path)
    if path.suffix in (".h5", ".hdf5"):
        return read_hdf5(path, fields=()).structures
    dataset = _read_labelled(path, length_unit, None, charge, spin, labels=False)
    return dataset.structures


def read_dataset(
    path: str | os.PathLike,
    *,
    length_unit: str | None = None,
    energy_unit: str | None = None,
    charge: int = 0,
    spin: int = 0,
) -> Dataset:
    """Structures with their labels, converted to atomic units.

    extxyz: ``energy`` and ``forces`` (or ``REF_energy``, ``REF_forces``) in eV and eV/Angstrom,
    ``dipole`` in e Angstrom, ASE's units, unless ``energy_unit`` says otherwise. rMD17/MD17 npz:
    kcal/mol and kcal/mol/Angstrom. HDF5 states its own units.

    Args:
      path: the file; its suffix names the format.
      length_unit: ``"angstrom"`` (default for xyz and npz) or ``"bohr"``.
      energy_unit: ``"hartree"``, ``"ev"`` or ``"kcal/mol"``. Forces are in energy_unit/length_unit.
      charge: total charge, for formats that carry none.
      spin: 2S, for formats that carry none.

    Raises:
      DataError: as :func:`read_structures`; also NaN labels, or forces beyond any molecule's.
    """
    path = _existing(path)
    if path.suffix in (".h5", ".hdf5"):
        return read_hdf5(path)
    return _read_labelled(path, length_unit, energy_unit, charge, spin, labels=True)


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(refusal("path", got=f"{path}, which is not a file", expected="a file"))
    if path.suffix not in SUFFIXES:
        raise DataError(
            refusal(
                "path",
                got=f"{path.name}",
                expected=f"one of {', '.join(SUFFIXES)}",
                hint=nearest(path.suffix, SUFFIXES),
            )
        )
    if path.stat().st_size == 0:
        raise DataError(refusal(str(path), got="an empty file", expected="structures"))
    return path


def _unit(name: str, value: str, known: dict[str, float]) -> float:
    if value.lower() not in known:
        raise DataError(
            refusal(
                name,
                got=repr(value),
                expected=f"one of {', '.join(known)}",
                hint=nearest(value, known),
            )
        )
    return known[value.lower()]


def _read_labelled(path, length_unit, energy_unit, charge, spin, *, labels) -> Dataset:
    read = _read_npz if path.suffix == ".npz" else _read_xyz
    length = _unit("length_unit", length_unit or "angstrom", LENGTH)
    default_energy = "kcal/mol" if path.suffix == ".npz" else "ev"
    energy = _unit("energy_unit", energy_unit or default_energy, ENERGY)
    structures, found = [], []
    for i, (numbers, positions, own_charge, raw) in enumerate(read(path)):
        try:
            s = Structure(
                numbers,
                np.asarray(positions, np.float64) * length,
                charge=charge if own_charge is None else own_charge,
                spin=spin,
            )
        except OpmlError as err:
            raise type(err)(f"{path}, structure {i}: {err}") from err
        structures.append(s)
        found.append(raw)
    if not structures:
        raise DataError(refusal(str(path), got="no structures", expected="at least one"))
    _check_units(path, structures)
    if not labels:
        return Dataset(structures)
    scale = {"energy": energy, "forces": energy / length, "dipole": LENGTH["angstrom"]}
    names = [n for n in scale if all(n in raw for raw in found)]
    try:
        values = {n: [np.asarray(raw[n], np.float64) * scale[n] for raw in found] for n in names}
    except (TypeError, ValueError) as err:
        raise DataError(refusal(f"labels of {path}", got=f"{err}", expected="numbers")) from err
    for n, v in values.items():
        bad = [i for i, x in enumerate(v) if not np.isfinite(x).all()]
        if bad:
            raise DataError(
                refusal(
                    f"{n} of {path}", got=f"NaN in structure {bad[0]}", expected="finite labels"
                )
            )
    if "forces" in values:
        typical = np.median([np.abs(f).max() for f in values["forces"]]) / ENERGY["ev"]
        typical *= LENGTH["angstrom"]
        if typical > MAX_FORCE:
            raise DataError(
                refusal(
                    f"forces of {path}",
                    got=f"{typical:.0f} eV/Angstrom at the median maximum",
                    expected=f"below {MAX_FORCE:.0f}",
                    hint="Pass energy_unit and length_unit.",
                )
            )
    try:
        return Dataset(structures, values, {"source": path.name})
    except DataError as err:
        raise DataError(f"{path}: {err}") from err


def _check_units(path: Path, structures: list[Structure]) -> None:
    """One warning for the file, decided by at most ten structures spread over it."""
    sample = structures[:: max(1, len(structures) // 10)][:10]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnitWarning)
        for s in sample:
            check_length_unit(s.numbers, s.positions, where=str(path))
    if 2 * len(caught) > len(sample):
        warnings.warn(str(caught[0].message), UnitWarning, stacklevel=5)


def _first(keys, mapping):
    return next((mapping[k] for k in keys if k in mapping), None)


def _read_xyz(path: Path):
    from ase.io import iread

    try:
        for atoms in iread(path, index=":", format="extxyz"):
            if atoms.pbc.any():
                raise DataError(
                    refusal(
                        str(path),
                        got="a periodic cell",
                        expected="molecules",
                        hint="Set pbc to F F F if the cell is only a box.",
                    )
                )
            results = atoms.calc.results if atoms.calc is not None else {}
            raw = {
                "energy": _first(_XYZ_ENERGY, {**results, **atoms.info}),
                "forces": _first(_XYZ_FORCES, {**results, **atoms.arrays}),
                "dipole": _first(_XYZ_DIPOLE, {**results, **atoms.info}),
            }
            charge = atoms.info.get("charge")
            yield (
                atoms.numbers,
                atoms.positions,
                None if charge is None else int(charge),
                {k: v for k, v in raw.items() if v is not None},
            )
    except OpmlError:
        raise
    except Exception as err:  # ASE raises many kinds on a malformed file
        raise DataError(
            refusal(
                str(path),
                got=f"text that is not xyz ({type(err).__name__}: {err})",
                expected="a complete xyz or extxyz file",
            )
        ) from err


def _read_npz(path: Path):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
            arrays = {}
            for key in f.files:
                if key in (*_NPZ_NUMBERS, *_NPZ_POSITIONS, *_NPZ_ENERGY, *_NPZ_FORCES):
                    arrays[key] = f[key]
    except Exception as err:  # zip, zlib and NumPy raise many kinds on a damaged file
        pickled = "pickle" in str(err).lower()
        raise DataError(
            refusal(
                str(path),
                got="object arrays, which can run code when loaded"
                if pickled
                else f"an unreadable file ({err})",
                expected="an npz of plain arrays",
                hint="Store numbers, not Python objects." if pickled else "",
            )
        ) from err
    numbers, positions = _first(_NPZ_NUMBERS, arrays), _first(_NPZ_POSITIONS, arrays)
    if numbers is None or positions is None:
        raise DataError(
            refusal(
                str(path),
                got=f"arrays {sorted(arrays)}",
                expected="nuclear_charges and coords (rMD17) or z and R (MD17)",
            )
        )
    if positions.ndim != 3 or positions.shape[-1] != 3 or positions.dtype.kind not in "fiu":
        raise DataError(
            refusal(
                f"coordinates of {path}",
                got=f"shape {positions.shape}, dtype {positions.dtype}",
                expected="numbers of shape (n_structures, n_atoms, 3)",
            )
        )
    n, n_atoms = positions.shape[:2]
    if numbers.dtype.kind in "US":
        try:
            numbers = np.vectorize(atomic_number)(numbers.astype(str))
        except OpmlError as err:
            raise DataError(f"{path}: {err}") from err
    whole = numbers.dtype.kind in "fiu" and np.array_equal(numbers, np.round(numbers))
    if numbers.shape not in ((n_atoms,), (n, n_atoms)) or not whole:
        raise DataError(
            refusal(
                f"atomic numbers of {path}",
                got=f"shape {numbers.shape}, dtype {numbers.dtype}",
                expected=f"whole numbers of shape ({n_atoms},) or ({n}, {n_atoms})",
            )
        )
    energy, forces = _first(_NPZ_ENERGY, arrays), _first(_NPZ_FORCES, arrays)
    if energy is not None and energy.size != n:
        raise DataError(
            refusal(
                f"energies of {path}", got=f"{energy.size} values", expected=f"{n}, one a structure"
            )
        )
    if forces is not None and forces.shape != positions.shape:
        raise DataError(
            refusal(
                f"forces of {path}",
                got=f"shape {forces.shape}",
                expected=f"{positions.shape}, as the coordinates",
            )
        )
    for i in range(n):
        z = numbers[i] if numbers.ndim == 2 else numbers
        real = np.asarray(z) > 0  # QM7-style files pad with zeros
        raw = {}
        if energy is not None:
            raw["energy"] = np.asarray(energy[i]).reshape(())
        if forces is not None:
            raw["forces"] = forces[i][real]
        yield np.asarray(z)[real], positions[i][real], None, raw
