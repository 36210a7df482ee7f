"""Readers of structure and label files. Units are known from the format or asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError, DataWarning, OpmlError, nearest, one_of, refusal
from ..structures import Structure
from ..structures.elements import atomic_number
from ..units import ENERGY, LENGTH
from .dataset import FIELDS, Dataset
from .labels import Source, chosen_sources, factor_of
from .plausibility import check_labels, check_lengths
from .store import label_names as hdf5_label_names
from .store import read_hdf5

_NPZ_NUMBERS = ("nuclear_charges", "z", "Z", "numbers", "atomic_numbers")
_NPZ_POSITIONS = ("coords", "R", "positions")
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
    return _read(path, {}, length_unit, charge, spin).structures


def read_dataset(
    path: str | os.PathLike,
    *,
    labels: Mapping[str, tuple[str, str]] | None = None,
    length_unit: str | None = None,
    energy_unit: str | None = None,
    charge: int = 0,
    spin: int = 0,
) -> Dataset:
    """Structures with their labels, converted to atomic units.

    Without ``labels`` only names whose unit the format fixes are read. extxyz: ``energy`` and
    ``forces`` (or ``REF_energy``, ``REF_forces``) in eV and eV/Angstrom, ``dipole`` in
    e Angstrom, ASE's units, unless ``energy_unit`` says otherwise. rMD17/MD17 npz: kcal/mol and
    kcal/mol/Angstrom, and rMD17's ``old_indices`` as ``frame``. HDF5 states its own units.

    Args:
      path: the file; its suffix names the format.
      labels: which labels to read instead, by field: name in the file and unit, for example
        ``{"energy": ("U0", "hartree"), "polarizability": ("alpha", "angstrom^3")}``. Fields and
        units are those of :data:`opml_jax.data.labels.UNITS`.
      length_unit: ``"angstrom"`` (default for xyz and npz) or ``"bohr"``.
      energy_unit: ``"hartree"``, ``"ev"`` or ``"kcal/mol"``. Forces are in energy_unit/length_unit.
      charge: total charge, for formats that carry none.
      spin: 2S, for formats that carry none.

    Raises:
      DataError: as :func:`read_structures`; also labels asked for that a structure lacks, NaN
        labels, and labels no molecule can have (:mod:`opml_jax.data.plausibility`).

    Warns:
      UnitWarning: bonds or labels that look like another unit.
      DataWarning: labels are left unread: some structures lack them, or their unit is not known.
    """
    path = _existing(path)
    if path.suffix in (".h5", ".hdf5"):
        if labels:
            got = f"a choice of labels for {path.name}"
            expected = "left out: HDF5 states fields and units itself"
            raise DataError(refusal("labels", got=got, expected=expected))
        return read_hdf5(path)
    if labels and energy_unit:
        expected = "left out: each of the labels names its unit"
        raise DataError(refusal("energy_unit", got=repr(energy_unit), expected=expected))
    sources = chosen_sources(labels) if labels else _known_sources(path, energy_unit, length_unit)
    return _read(path, sources, length_unit, charge, spin)


def label_names(path: str | os.PathLike) -> list[str]:
    """Names a file has labels under, whatever they mean; of an xyz file, its first structure's.

    Raises:
      DataError: as :func:`read_structures`.
    """
    path = _existing(path)
    if path.suffix in (".h5", ".hdf5"):
        return hdf5_label_names(path)
    if path.suffix == ".npz":
        names = _open_npz(path, lambda f: f.files)
        return sorted({*names} - {*_NPZ_NUMBERS, *_NPZ_POSITIONS})
    _, found = next(_iterate_xyz(path))
    return sorted(k for k, v in found.items() if np.asarray(v).dtype.kind in "fiu")


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(refusal("path", got=f"{path}, which is not a file", expected="a file"))
    one_of(f"suffix of {path.name}", path.suffix, SUFFIXES, DataError)
    if path.stat().st_size == 0:
        raise DataError(refusal(str(path), got="an empty file", expected="structures"))
    return path


def _known_sources(path: Path, energy_unit: str | None, length_unit: str | None):
    """What is read without being asked: names whose unit is the format's."""
    npz = path.suffix == ".npz"
    energy = factor_of("energy_unit", energy_unit or ("kcal/mol" if npz else "ev"), ENERGY)
    forces = energy / factor_of("length_unit", length_unit or "angstrom", LENGTH)
    if npz:
        return {
            "energy": Source(("energies", "E", "energy"), energy),
            "forces": Source(("forces", "F"), forces),  # MD17 calls them F
            "frame": Source(("old_indices",), 1.0),
        }
    return {
        "energy": Source(("REF_energy", "energy"), energy),
        "forces": Source(("REF_forces", "forces"), forces),
        "dipole": Source(("REF_dipole", "dipole"), LENGTH["angstrom"]),
    }


def _read(path: Path, sources: Mapping[str, Source], length_unit, charge, spin) -> Dataset:
    """Structures and the labels of ``sources``, checked."""
    read = _read_npz if path.suffix == ".npz" else _read_xyz
    length = factor_of("length_unit", length_unit or "angstrom", LENGTH)
    structures, found = [], []
    for i, (numbers, positions, own_charge, raw) in enumerate(read(path, sources)):
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
    check_lengths(str(path), structures)
    names = _complete(path, sources, found)
    try:
        values = {n: [_shaped(n, raw[n]) * sources[n].factor for raw in found] for n in names}
    except (TypeError, ValueError) as err:
        raise DataError(refusal(f"labels of {path}", got=f"{err}", expected="numbers")) from err
    try:
        dataset = Dataset(structures, values, {"source": path.name})
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    check_labels(str(path), structures, dataset.labels, {n: sources[n].factor for n in names})
    return dataset


def _complete(path: Path, sources: Mapping[str, Source], found: list[dict]) -> list[str]:
    """Fields that every structure has; what is left unread is said."""
    names = []
    for field, source in sources.items():
        lacking = [i for i, raw in enumerate(found) if field not in raw]
        if not lacking:
            names.append(field)
        elif source.required:
            have = label_names(path)
            raise DataError(
                refusal(
                    f"label {source.names[0]!r} of {path}",
                    got=f"none in structure {lacking[0]}",
                    expected=f"one in every structure, under one of its names: {', '.join(have)}",
                    hint=nearest(source.names[0], have),
                )
            )
        elif len(lacking) < len(found):
            warnings.warn(
                f"{field} of {path} is not read: {len(lacking)} of {len(found)} structures lack "
                f"it, first structure {lacking[0]}.",
                DataWarning,
                stacklevel=4,
            )
    if sources and not any(found) and (have := label_names(path)):
        warnings.warn(
            f"no label of {path} is read: the units of {', '.join(have)} are not known. Name "
            "field, label and unit: labels={'energy': ('U0', 'hartree')} (energy=U0:hartree on the "
            "command line).",
            DataWarning,
            stacklevel=4,
        )
    return names


def _shaped(field: str, value) -> np.ndarray:
    """A label as float64; a tensor written as nine numbers in its shape."""
    array, axes = np.asarray(value, np.float64), FIELDS[field].axes
    fixed = "atom" not in axes
    return array.reshape(axes) if fixed and array.size == np.prod(axes, dtype=int) else array


def _first(keys, mapping):
    return next((mapping[k] for k in keys if k in mapping), None)


def _iterate_xyz(path: Path):
    """ASE's ``Atoms`` one by one, each with everything that may be a label."""
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
            # ASE moves the names it knows from info and arrays into a calculator
            results = atoms.calc.results if atoms.calc is not None else {}
            labels = {**results, **atoms.info, **atoms.arrays}
            yield atoms, {k: v for k, v in labels.items() if k not in ("numbers", "positions")}
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


def _read_xyz(path: Path, sources: Mapping[str, Source]):
    for atoms, found in _iterate_xyz(path):
        raw = {field: _first(source.names, found) for field, source in sources.items()}
        charge = atoms.info.get("charge")
        yield (
            atoms.numbers,
            atoms.positions,
            None if charge is None else int(charge),
            {k: v for k, v in raw.items() if v is not None},
        )


def _open_npz(path: Path, read):
    """``read(file)`` of an npz; nothing in it is ever unpickled."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
            return read(f)
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


def _read_npz(path: Path, sources: Mapping[str, Source]):
    wanted = {*_NPZ_NUMBERS, *_NPZ_POSITIONS, *(n for s in sources.values() for n in s.names)}
    arrays = _open_npz(path, lambda f: {k: f[k] for k in f.files if k in wanted})
    numbers, positions = _npz_geometries(path, arrays)
    n, n_atoms = positions.shape[:2]
    found = {field: _first(source.names, arrays) for field, source in sources.items()}
    found = {field: array for field, array in found.items() if array is not None}
    for field, array in found.items():
        axes = FIELDS[field].axes
        shape = (n, *(n_atoms if a == "atom" else a for a in axes))
        flat = "atom" not in axes and array.shape[:1] == (n,) and array.size == np.prod(shape)
        if array.shape != shape and not flat:  # energies may be (n, 1), tensors (n, 9)
            raise DataError(
                refusal(
                    f"{field} of {path}",
                    got=f"shape {array.shape}",
                    expected=f"shape {shape}, one for each of {n} structures",
                    hint="Is it another quantity? Name what to read with labels.",
                )
            )
    for i in range(n):
        z = np.asarray(numbers[i] if numbers.ndim == 2 else numbers)
        real = z > 0  # QM7-style files pad with zeros
        raw = {k: v[i][real] if "atom" in FIELDS[k].axes else v[i] for k, v in found.items()}
        yield z[real], positions[i][real], None, raw


def _npz_geometries(path: Path, arrays: Mapping[str, np.ndarray]):
    """Atomic numbers ``(n_atoms,)`` or ``(n, n_atoms)`` and positions ``(n, n_atoms, 3)``."""
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
    return numbers, positions
