"""Geometries and labels in npz files: arrays by name, a row for each structure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import Code, DataError, OpmlError, counted
from ..quantities import LABELS
from ..structures.elements import atomic_number
from .keys import states_charge_or_spin, states_unit
from .labels import Source
from .matrices import MATRICES
from .records import Layout, Record

NUMBERS = ("nuclear_charges", "z", "Z", "numbers", "atomic_numbers")
POSITIONS = ("coords", "R", "positions", "coordinates")
MATRIX_STATEMENTS = ("basis", "convention")

FRAMES = {"frame": ("old_indices",)}

MD17 = Layout(
    "npz of rMD17, MD17, sGDML",
    "`.npz`; sGDML states its units in `e_unit` and `r_unit`",
    {"energy": ("energies", "E", "energy"), "forces": ("forces", "F"), **FRAMES},
    {"length": "angstrom", "energy": "kcal/mol", "forces": "kcal/mol/angstrom"},
    sources=MATRICES,
)
PHYSNET = Layout(
    "npz of PhysNet and SpookyNet",
    "`.npz` with numbers of atoms `N` beside charges `Q` or dipoles `D`",
    {"energy": ("E",), "forces": ("F",), "dipole": ("D",), **FRAMES},
    {"length": "angstrom", "energy": "ev", "forces": "ev/angstrom", "dipole": "e angstrom"},
    sources=MATRICES,
)

T = TypeVar("T")


def npz_layout(path: Path, labels: Mapping[str, str]) -> Layout:
    """What a file is, by the names of its arrays; ``labels`` are fields to read too, by name."""
    names = array_names(path)
    texts = _arrays(path, {n for n in names if states_unit(n)} | {*MATRIX_STATEMENTS})
    stated = {k: v.item() for k, v in texts.items() if v.ndim == 0 and v.dtype.kind in "US"}
    physnet = "N" in names and not {"Q", "D"}.isdisjoint(names)
    layout = PHYSNET if physnet else MD17
    fields, matrices = dict(layout.names), dict(MATRICES)
    if "F" in names:  # forces in MD17, and Fock matrices where the shape says so
        is_fock = _is_square(path, "F")
        fields["forces"] = tuple(n for n in fields["forces"] if not is_fock or n != "F")
        fock = tuple(n for n in MATRICES["fock"].names if is_fock or n != "F")
        matrices["fock"] = Source(fock, 1.0)
    every = {field: source.names for field, source in matrices.items()} | fields
    field_of = {name: field for field, names in every.items() for name in names} | {**labels}
    field_of |= {name: "charge" for name in names if states_charge_or_spin(name)}
    return layout.of(
        functools.partial(_records, path, field_of, {"Q": "charge"} if physnet else {}),
        names=fields,
        sources=matrices,
        meta={k: str(stated.pop(k)) for k in MATRIX_STATEMENTS if k in stated},
        stated=stated,
    )


def array_names(path: Path) -> list[str]:
    """Names of the arrays of a file."""
    return _opened(path, lambda f: f.files)


def label_names(path: Path) -> list[str]:
    """Names of the arrays that may be labels."""
    return sorted({*array_names(path)} - {*NUMBERS, *POSITIONS, *MATRIX_STATEMENTS})


def _arrays(path: Path, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of these names, as far as they are there."""

    def read(f) -> dict[str, np.ndarray]:
        arrays = {k: f[k] for k in f.files if k in wanted}
        if odd := [k for k, v in arrays.items() if not isinstance(v, np.ndarray)]:
            raise ValueError(f"{odd[0]} is no array")
        return arrays

    return _opened(path, read)


def _opened(path: Path, read: Callable[[np.lib.npyio.NpzFile], T]) -> T:
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


def _records(
    path: Path, field_of: Mapping[str, str], renamed: Mapping[str, str]
) -> Iterator[Record]:
    arrays = _arrays(path, {*field_of, *renamed, *NUMBERS, *POSITIONS})
    numbers, positions = _geometries(path, arrays)
    n, n_atoms = positions.shape[:2]
    arrays = {k: v for k, v in arrays.items() if k not in (*NUMBERS, *POSITIONS)}
    of_atoms = set()
    for name, array in arrays.items():
        if array.ndim == 0 and states_charge_or_spin(name):  # one for all
            arrays[name] = np.repeat(array, n)
            continue
        axes = LABELS[field_of[name]].axes if field_of.get(name) in LABELS else ()
        shape = (
            n,
            *(n_atoms if a == "atom" else array.shape[-1] if a == "ao" else a for a in axes),
        )
        if "atom" in axes:
            of_atoms.add(name)
        flat = "atom" not in axes and array.size == math.prod(shape)  # (n, 1), tensors (n, 9)
        if array.shape != shape and not (flat and array.shape[:1] == (n,)):
            raise DataError(
                f"{name} of {path}",
                got=f"shape {array.shape}",
                expected=f"shape {shape}, a row for each of {counted(n, 'structure')}",
                hint="Is it another quantity? Name what to read with labels.",
                code=Code.LABEL_SHAPE,
            )
    for i in range(n):
        z = np.asarray(numbers[i] if numbers.ndim == 2 else numbers)
        real = z != 0  # QM7-style files pad with zeros
        info = {renamed.get(k, k): v[i] for k, v in arrays.items() if k not in of_atoms}
        yield Record(z[real], positions[i][real], info, {k: arrays[k][i][real] for k in of_atoms})


def _is_square(path: Path, name: str) -> bool:
    """Whether an array is ``(n, m, m)`` with m other than 3, by its header."""

    def shape(f) -> tuple[int, ...]:
        with f.zip.open(f"{name}.npy") as member:
            header = {1: "read_array_header_1_0"}.get(
                np.lib.format.read_magic(member)[0], "read_array_header_2_0"
            )
            return getattr(np.lib.format, header)(member)[0]

    n = _opened(path, shape)
    return len(n) == 3 and n[1] == n[2] != 3


def _geometries(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers ``(n_atoms,)`` or ``(n, n_atoms)`` and positions ``(n, n_atoms, 3)``."""
    numbers, positions = (
        next((arrays[k] for k in names if k in arrays), None) for names in (NUMBERS, POSITIONS)
    )
    if numbers is None or positions is None:
        raise DataError(
            str(path),
            got=f"arrays {sorted(array_names(path))}",
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
