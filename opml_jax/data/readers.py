"""Readers of structure and label files. Units are known from the format or asked for."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..conventions import CONVENTION
from ..errors import Code, DataError, DataWarning, OpmlError, near_path, nearest, one_of
from ..quantities import LABELS
from ..structures import Structure
from ..structures.elements import atomic_number
from ..units import ENERGY, LENGTH
from .databases import identify, read_rows
from .dataset import Dataset
from .labels import Source, chosen_sources, factor_of
from .matrices import MATRICES, own_matrices
from .plausibility import check_labels, check_lengths
from .store import label_names as hdf5_label_names
from .store import read_hdf5

_NPZ_NUMBERS = ("nuclear_charges", "z", "Z", "numbers", "atomic_numbers")
_NPZ_POSITIONS = ("coords", "R", "positions")
_NPZ_STATED = ("basis", "convention")
MAX_COLUMNS = 1000
"""Of a line of an extxyz file."""
SUFFIXES = (".xyz", ".extxyz", ".npz", ".db", ".h5", ".hdf5")


def read_structures(
    path: str | os.PathLike, *, length_unit: str | None = None, charge: int = 0, spin: int = 0
) -> list[Structure]:
    """Structures from xyz, extxyz, rMD17/MD17 npz, Hamiltonian databases, or the library's HDF5.

    Args:
      path: the file; its suffix names the format.
      length_unit: ``"angstrom"`` or ``"bohr"``. Default: the unit the format means (Angstrom
        for xyz and npz; for databases see :mod:`opml_jax.data.databases`; HDF5 states its own).
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
    return _read(path, {}, length_unit, charge, spin, None).structures


def read_dataset(
    path: str | os.PathLike,
    *,
    labels: Mapping[str, tuple[str, str]] | None = None,
    length_unit: str | None = None,
    energy_unit: str | None = None,
    charge: int = 0,
    spin: int = 0,
    basis: str | None = None,
    convention: str | None = None,
    limit: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Structures with their labels, converted to atomic units.

    Without ``labels`` only names whose unit the format fixes are read. extxyz: ``energy`` and
    ``forces`` (or ``REF_energy``, ``REF_forces``) in eV and eV/Angstrom, ``dipole`` in
    e Angstrom, ASE's units, unless ``energy_unit`` says otherwise. rMD17/MD17 npz: kcal/mol and
    kcal/mol/Angstrom, and rMD17's ``old_indices`` as ``frame``. HDF5 states its own units.

    AO matrices, in Hartree, come from npz (``fock``, ``hamiltonian``, ``Ham``, ``H`` or ``F`` of
    shape ``(n, nao, nao)``; ``overlap`` or ``S``; ``dm``, ``density_matrix`` or ``P``) once their
    basis is known, and from the databases of QH9, PhiSNet and SchNOrb
    (:mod:`opml_jax.data.databases`), which fix units, basis and AO order. What is stated is held
    against the geometry (:mod:`opml_jax.data.matrices`), and matrices are put in the library's
    order.

    Args:
      path: the file; its suffix names the format.
      labels: which labels to read instead, by field: name in the file and unit, for example
        ``{"energy": ("U0", "hartree"), "polarizability": ("alpha", "angstrom^3")}``. Fields and
        units are those of :data:`opml_jax.data.labels.UNITS`.
      length_unit: ``"angstrom"`` (default for xyz and npz) or ``"bohr"``.
      energy_unit: ``"hartree"``, ``"ev"`` or ``"kcal/mol"``. Forces are in energy_unit/length_unit.
      charge: total charge, for formats that carry none.
      spin: 2S, for formats that carry none.
      basis: of AO matrices, a name of :func:`opml_jax.load_basis`. Default: what the file (an npz
        may have a string ``basis``) or its format says.
      convention: order of AO matrices: ``"opml"``, ``"pyscf"`` or ``"orca"``
        (:data:`opml_jax.conventions.AO_ORDERS`). Default: likewise.
      limit: read only so many structures, the first.
      lazy: for data sets larger than memory: leave the labels in the file, which must be HDF5 and
        stay as it is, and read each when it is asked for (:class:`opml_jax.data.StoredLabel`).

    Raises:
      DataError: as :func:`read_structures`; also labels asked for that a structure lacks, NaN
        labels, and labels no molecule can have (:mod:`opml_jax.data.plausibility`).
      ConventionError: AO matrices whose order is not stated, or is another than what is stated;
        the message names the order they are in.

    Warns:
      UnitWarning: bonds or labels that look like another unit.
      DataWarning: labels are left unread: some structures lack them, or their unit or basis is not
        known.
    """
    path = _existing(path)
    if limit is not None and limit < 1:
        raise DataError("limit", got=limit, expected="at least 1")
    if path.suffix in (".h5", ".hdf5"):
        given = {"labels": labels, "basis": basis, "convention": convention}
        for name in (n for n, value in given.items() if value):
            got = f"a choice of {name} for {path.name}"
            expected = "left out: HDF5 states fields, units and basis itself"
            raise DataError(name, got=got, expected=expected, code=Code.UNIT)
        dataset = read_hdf5(path, lazy=lazy)
        return dataset if limit is None else dataset.subset(range(min(limit, len(dataset))))
    if lazy:
        got, expected = f"True for {path.name}", "left out: only HDF5 is read label by label"
        hint = "Store it as HDF5 first: opml data pack."
        raise DataError("lazy", got=got, expected=expected, hint=hint)
    if labels and energy_unit:
        expected = "left out: each of the labels names its unit"
        raise DataError("energy_unit", got=repr(energy_unit), expected=expected, code=Code.UNIT)
    known, meta = _known_sources(path, energy_unit, length_unit)
    stated = {"basis": basis, "convention": convention}
    meta |= {k: v for k, v in stated.items() if v is not None}
    sources = known
    if labels:
        sources = {k: v for k, v in known.items() if k in MATRICES} | chosen_sources(labels)
    return _read(path, sources, length_unit, charge, spin, limit, meta)


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
        return sorted({*names} - {*_NPZ_NUMBERS, *_NPZ_POSITIONS, *_NPZ_STATED})
    if path.suffix == ".db":
        _, _, found = next(read_rows(path), (None, None, {}))
        return sorted(found)
    _, found = next(_iterate_xyz(path))
    return sorted(k for k, v in found.items() if np.asarray(v).dtype.kind in "fiu")


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(
            "path",
            got=f"{path}, which is not a file",
            expected="a file",
            hint=near_path(path),
            code=Code.NO_FILE,
        )
    one_of(f"suffix of {path.name}", path.suffix, SUFFIXES, DataError)
    if path.stat().st_size == 0:
        raise DataError(str(path), got="an empty file", expected="structures", code=Code.DAMAGED)
    return path


def _known_sources(
    path: Path, energy_unit: str | None, length_unit: str | None
) -> tuple[dict[str, Source], dict[str, str]]:
    """What is read without being asked, names whose unit is the format's, and what it says."""
    if path.suffix == ".db":
        layout = identify(path)
        if energy_unit:
            expected = "left out: the format fixes it (or name a unit with labels)"
            raise DataError("energy_unit", got=repr(energy_unit), expected=expected, code=Code.UNIT)
        return dict(layout.sources), {**layout.meta, "convention": layout.convention}
    npz = path.suffix == ".npz"
    energy = factor_of("energy_unit", energy_unit or ("kcal/mol" if npz else "ev"), ENERGY)
    forces = energy / factor_of("length_unit", length_unit or "angstrom", LENGTH)
    if npz:
        return {
            "energy": Source(("energies", "E", "energy"), energy),
            "forces": Source(("forces", "F"), forces),  # MD17 calls them F
            "frame": Source(("old_indices",), 1.0),
            **MATRICES,
        }, _npz_statements(path)
    return {
        "energy": Source(("REF_energy", "energy"), energy),
        "forces": Source(("REF_forces", "forces"), forces),
        "dipole": Source(("REF_dipole", "dipole"), LENGTH["angstrom"]),
    }, {}


def _length_unit(path: Path, length_unit: str | None) -> float:
    """Factor from the unit of positions to Bohr."""
    default = identify(path).length_unit if path.suffix == ".db" else "angstrom"
    return factor_of("length_unit", length_unit or default, LENGTH)


def _read(
    path: Path,
    sources: Mapping[str, Source],
    length_unit: str | None,
    charge: int,
    spin: int,
    limit: int | None,
    meta: Mapping[str, str] | None = None,
) -> Dataset:
    """Structures and the labels of ``sources``, checked; ``meta`` says what matrices are in."""
    read = {".npz": _read_npz, ".db": _read_database}.get(path.suffix, _read_xyz)
    length = _length_unit(path, length_unit)
    structures, found = [], []
    rows = itertools.islice(read(path, sources), limit)
    for i, (numbers, positions, own_charge, raw) in enumerate(rows):
        try:
            s = Structure(
                numbers,
                np.asarray(positions, np.float64) * length,
                charge=charge if own_charge is None else own_charge,
                spin=spin,
            )
        except OpmlError as err:
            raise err.within(f"{path}, structure {i}") from err
        structures.append(s)
        found.append(raw)
    if not structures:
        raise DataError(
            f"structures of {path}", got="none", expected="at least one", code=Code.EMPTY
        )
    check_lengths(str(path), structures)
    names = _complete(path, sources, found)
    try:
        values = {n: [_shaped(n, raw[n]) * sources[n].factor for raw in found] for n in names}
    except (TypeError, ValueError) as err:
        raise DataError(
            f"labels of {path}", got=f"{err}", expected="numbers", code=Code.LABEL_SHAPE
        ) from err
    about = dict(meta or {})
    matrices = {n: values.pop(n) for n in MATRICES if n in values}
    order, hashes = about.pop("convention", None), None
    if matrices and "basis" not in about:
        warnings.warn(
            f"{', '.join(matrices)} of {path} not read: the basis is not known. Name basis and AO "
            "order: basis='def2-svp', convention='pyscf' (--basis, --convention).",
            DataWarning,
            stacklevel=3,
        )
    elif matrices:
        own, hashes = own_matrices(path, structures, matrices, about["basis"], order)
        values |= own
        about |= {"convention": CONVENTION, "order_in_file": order}
    try:
        dataset = Dataset(structures, values, {"source": path.name, **about}, hashes)
    except DataError as err:
        raise err.within(path) from err
    numbers = {n: v for n, v in dataset.labels.items() if n not in MATRICES}
    check_labels(str(path), structures, numbers, {n: sources[n].factor for n in numbers})
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
                f"label {source.names[0]!r} of {path}",
                got=f"none in structure {lacking[0]}",
                expected=f"one in every structure, under one of its names: {', '.join(have)}",
                hint=nearest(source.names[0], have),
                code=Code.LABEL,
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
    array, axes = np.asarray(value, np.float64), LABELS[field].axes
    shape = tuple(n for n in axes if isinstance(n, int))
    fixed = len(shape) == len(axes) and array.size == np.prod(shape, dtype=int)
    return array.reshape(shape) if fixed else array


def _first(keys, mapping):
    return next((mapping[k] for k in keys if k in mapping), None)


def _iterate_xyz(path: Path):
    """ASE's ``Atoms`` one by one, each with everything that may be a label."""
    from ase.io import iread

    try:
        _check_claims(path)
        for atoms in iread(path, index=":", format="extxyz"):
            if atoms.pbc.any():
                raise DataError(
                    str(path),
                    got="a periodic cell",
                    expected="molecules",
                    hint="Set pbc to F F F if the cell is only a box.",
                    code=Code.PERIODIC,
                )
            # ASE moves the names it knows from info and arrays into a calculator
            results = atoms.calc.results if atoms.calc is not None else {}
            labels = {**results, **atoms.info, **atoms.arrays}
            yield atoms, {k: v for k, v in labels.items() if k not in ("numbers", "positions")}
    except OpmlError:
        raise
    except Exception as err:  # ASE raises many kinds on a malformed file
        raise DataError(
            str(path),
            got=f"text that is not xyz ({type(err).__name__}: {err})",
            expected="a complete xyz or extxyz file",
            hint="A frame: number of atoms, a comment, then symbol x y z (Angstrom) of each.",
            code=Code.DAMAGED,
        ) from err


def _check_claims(path: Path) -> None:
    """Refuse more columns or atoms than there can be: ASE would count through them."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        for line in file:
            if line.strip().isdigit() and int(line) > size:
                raise ValueError("more atoms than the file has bytes")
            for found in re.findall(rb"Properties=\"?([^\s\"]*)", line):
                counts = found.split(b":")[2::3]
                if sum(int(n) for n in counts if n.isdigit()) > MAX_COLUMNS:
                    raise ValueError(f"more than {MAX_COLUMNS} columns")


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


def _read_database(path: Path, sources: Mapping[str, Source]) -> Iterator[tuple]:
    for numbers, positions, found in read_rows(path):
        raw = {field: _first(source.names, found) for field, source in sources.items()}
        yield numbers, positions, None, {k: v for k, v in raw.items() if v is not None}


def _npz_statements(path: Path) -> dict[str, str]:
    """What an npz says of its AO matrices."""
    found = _npz_arrays(path, _NPZ_STATED)
    return {k: str(v) for k, v in found.items() if v.dtype.kind == "U" and v.ndim == 0}


def _npz_arrays(path: Path, wanted: Container[str]) -> dict[str, np.ndarray]:
    """Arrays of these names, as far as they are there."""

    def read(f):
        found = {k: f[k] for k in f.files if k in wanted}
        if odd := [k for k, v in found.items() if not isinstance(v, np.ndarray)]:
            raise ValueError(f"{odd[0]} is no array")
        return found

    return _open_npz(path, read)


def _open_npz(path: Path, read):
    """``read(file)`` of an npz; nothing in it is ever unpickled."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
            return read(f)
    except Exception as err:  # zip, zlib and NumPy raise many kinds on a damaged file
        pickled = "pickle" in str(err).lower()
        raise DataError(
            str(path),
            got="object arrays, which can run code when loaded"
            if pickled
            else f"an unreadable file ({err})",
            expected="an npz of plain arrays",
            hint="Store numbers, not Python objects." if pickled else "",
            code=Code.UNSAFE if pickled else Code.DAMAGED,
        ) from err


def _read_npz(path: Path, sources: Mapping[str, Source]):
    wanted = {*_NPZ_NUMBERS, *_NPZ_POSITIONS, *(n for s in sources.values() for n in s.names)}
    arrays = _npz_arrays(path, wanted)
    numbers, positions = _npz_geometries(path, arrays)
    n, n_atoms = positions.shape[:2]
    found = {}
    for field, source in sources.items():
        # F is forces in MD17, and a Fock matrix where its shape says so
        names = [
            k for k in source.names if k != "F" or (field == "fock") == _is_fock(arrays.get(k))
        ]
        if (array := _first(names, arrays)) is not None:
            found[field] = array
    for field, array in found.items():
        axes = LABELS[field].axes
        sizes = {"atom": n_atoms, "ao": array.shape[-1] if array.ndim else 0}
        shape = (n, *(a if isinstance(a, int) else sizes[a] for a in axes))
        ragged = any(a in sizes for a in axes)
        flat = not ragged and array.shape[:1] == (n,) and array.size == np.prod(shape)
        if array.shape != shape and not flat:  # energies may be (n, 1), tensors (n, 9)
            raise DataError(
                f"{field} of {path}",
                got=f"shape {array.shape}",
                expected=f"shape {shape}, one for each of {n} structures",
                hint="Is it another quantity? Name what to read with labels.",
                code=Code.LABEL_SHAPE,
            )
    for i in range(n):
        z = np.asarray(numbers[i] if numbers.ndim == 2 else numbers)
        real = z != 0  # QM7-style files pad with zeros
        raw = {k: v[i][real] if "atom" in LABELS[k].axes else v[i] for k, v in found.items()}
        yield z[real], positions[i][real], None, raw


def _is_fock(array: np.ndarray | None) -> bool:
    return array is not None and array.ndim == 3 and array.shape[1] == array.shape[2] != 3


def _npz_geometries(path: Path, arrays: Mapping[str, np.ndarray]):
    """Atomic numbers ``(n_atoms,)`` or ``(n, n_atoms)`` and positions ``(n, n_atoms, 3)``."""
    numbers, positions = _first(_NPZ_NUMBERS, arrays), _first(_NPZ_POSITIONS, arrays)
    if numbers is None or positions is None:
        raise DataError(
            str(path),
            got=f"arrays {sorted(arrays)}",
            expected="nuclear_charges and coords (rMD17) or z and R (MD17)",
        )
    if positions.ndim != 3 or positions.shape[-1] != 3 or positions.dtype.kind not in "fiu":
        raise DataError(
            f"coordinates of {path}",
            got=f"shape {positions.shape}, dtype {positions.dtype}",
            expected="numbers of shape (n_structures, n_atoms, 3)",
            code=Code.SHAPE,
        )
    n, n_atoms = positions.shape[:2]
    if numbers.dtype.kind in "US":
        try:
            numbers = np.vectorize(atomic_number)(numbers.astype(str))
        except OpmlError as err:
            raise err.within(path) from err
    whole = numbers.dtype.kind in "fiu" and np.array_equal(numbers, np.round(numbers))
    if numbers.shape not in ((n_atoms,), (n, n_atoms)) or not whole:
        raise DataError(
            f"atomic numbers of {path}",
            got=f"shape {numbers.shape}, dtype {numbers.dtype}",
            expected=f"whole numbers of shape ({n_atoms},) or ({n}, {n_atoms})",
            code=Code.SHAPE,
        )
    return numbers, positions
