"""Data sets in SQLite files, read as they are published; nothing is unpickled.

Layouts are told apart by their tables, those of ASE by what rows hold:

* QH9 (Yu et al., NeurIPS 2023; ``dataset_generation_examples`` and ``datasets.py`` of
  ``OpenDFT/QHBench/QH9`` in divelab/AIRS): table ``data`` with ``N``, ``Z`` (int32), ``pos`` and
  ``Ham`` (float64), B3LYP/def2-SVP of PySCF in its AO order. Positions are in Angstrom in the
  stable set, and in Bohr in the dynamic ones, which have ``geo_id``, ``epot`` and ``converged``.
  The LMDB folders that code makes of them hold pickles and are not read.
* PhiSNet's ``HamiltonianDatabase`` (Unke et al., NeurIPS 2021): tables ``data`` with ``R``, ``E``,
  ``F``, ``H``, ``S`` in float32 and atomic units, and ``nuclear_charges``; m = -l..l as here.
* SchNOrb's MD17 Hamiltonians (Schütt et al., Nat. Commun. 10, 5024 (2019); ``src/schnorb/data.py``
  of atomistic-machine-learning/SchNOrb, ``OpenDFT/QHNet/ori_dataset.py`` of divelab/AIRS): a
  database of ASE with ``hamiltonian``, ``overlap``, ``energy`` (Hartree, less the set's mean) and
  ``forces`` (Hartree/Angstrom) among the ``data`` of a row; def2-SVP, ORCA's AO order.
* ASE's own: Angstrom, eV and e Angstrom of the columns that a calculator filled. Of SchNetPack's
  (``_distance_unit`` and ``_property_unit_dict`` in the metadata) units are as they say.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Code, DataError, DataWarning, OpmlError
from .labels import Source, plain_unit
from .matrices import MATRICES
from .records import Layout, Record

Connection = sqlite3.Connection

_QH9 = {"basis": "def2-svp", "method": "b3lyp", "grid_level": 3}
_PHISNET = {"fock": ("H",), "overlap": ("S",), "energy": ("E",), "forces": ("F",)}
_ATOMIC = {"length": "bohr", "energy": "hartree", "forces": "hartree/bohr"}
_ASE = {"energy": ("energy",), "forces": ("forces",)}
_ASE_UNITS = {
    "length": "angstrom",
    "energy": "ev",
    "forces": "ev/angstrom",
    "dipole": "e angstrom",
}
_SCHNETPACK = {
    "energy": ("energy", "energy_U0"),
    "forces": ("forces",),
    "dipole": ("dipole_moment", "dipole"),
    "polarizability": ("polarizability",),
}
"""Properties that SchNetPack has a name for; their units are in the file."""


def database_layout(path: Path) -> Layout:
    """Which layout a file has.

    Raises:
      DataError: none of those known, or not a readable SQLite file.
    """
    with _connected(path) as connection:
        tables = {name: _columns(connection, name) for name in _tables(connection)}

        def has(table: str, *columns: str) -> bool:
            return {*columns} <= tables.get(table, set())

        if has("data", "N", "Z", "pos", "Ham"):
            dynamic = has("data", "geo_id", "epot", "converged")
            return Layout(
                "QH9's database",
                functools.partial(_rows, path, _qh9_dynamic if dynamic else _qh9),
                {"energy": ("epot",)} if dynamic else {},
                _ATOMIC if dynamic else {"length": "angstrom"},
                fixed=True,
                sources=MATRICES,
                meta=_QH9,
                convention="pyscf",
            )
        if has("data", "R", "E", "F", "H", "S") and has("nuclear_charges", "N", "Z"):
            return Layout(
                "PhiSNet's database",
                functools.partial(_rows, path, _phisnet),
                {k: _PHISNET[k] for k in ("energy", "forces")},
                _ATOMIC,
                fixed=True,
                sources={k: Source(_PHISNET[k], 1.0) for k in ("fock", "overlap")},
                meta={"basis": "def2-svp"},
                convention="opml",
            )
        if has("systems", "natoms", "numbers", "positions", "pbc", "data"):
            return _ase_layout(path, connection, tables)
    raise DataError(
        str(path),
        got=f"tables {', '.join(sorted(tables)) or 'none'}",
        expected="a database of QH9, PhiSNet, SchNOrb, SchNetPack or ASE",
    )


def _ase_layout(path: Path, connection: Connection, tables: Mapping[str, set[str]]) -> Layout:
    """Which of those that write databases with ASE wrote this one."""
    rows = functools.partial(_rows, path, functools.partial(_ase, tables["systems"]))
    about = {}
    if "information" in tables:
        found = connection.execute("SELECT value FROM information WHERE name = 'metadata'")
        about = json.loads((found.fetchone() or ("{}",))[0] or "{}")
    if units := about.get("_property_unit_dict"):
        length = plain_unit(about.get("_distance_unit", "angstrom"))
        names = {
            field: tuple(n for n in known if n in units) for field, known in _SCHNETPACK.items()
        }
        names = {field: found for field, found in names.items() if found}
        units = {field: plain_unit(units[found[0]]) for field, found in names.items()}
        return Layout("SchNetPack's database", rows, names, units | {"length": length}, fixed=True)
    first = next(iter(_ase(tables["systems"], connection)), None)
    if first is not None and "hamiltonian" in first.info:
        return Layout(
            "SchNOrb's database",
            rows,
            _ASE,
            {"length": "angstrom", "energy": "hartree", "forces": "hartree/angstrom"},
            fixed=True,
            sources={k: Source(v.names[:2], 1.0) for k, v in MATRICES.items()},
            meta={"basis": "def2-svp"},
            convention="orca",
        )
    return Layout("ASE's database", rows, _ASE | {"dipole": ("dipole",)}, _ASE_UNITS)


def _rows(path: Path, rows: Callable[[Connection], Iterator[Record]]) -> Iterator[Record]:
    with _connected(path) as connection:
        yield from rows(connection)


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[Connection]:
    """The file, opened so that reading it changes nothing and its schema runs nothing."""
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            # no value is longer than the file, whatever an expression in it may claim
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, path.stat().st_size)
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection
    except OpmlError as err:
        if str(path) in err.message:
            raise
        raise err.within(path) from err
    except Exception as err:  # SQLite and ASE's decoder raise many kinds on a damaged file
        raise DataError(
            str(path),
            got=f"an unreadable file ({type(err).__name__}: {err})".replace("\n", " "),
            expected="a complete SQLite database",
            code=Code.DAMAGED,
        ) from err


def _tables(connection: Connection) -> list[str]:
    """Plain tables: a view or a virtual table would run what the file says."""
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return [name for name, sql in found if sql and not sql.upper().startswith("CREATE VIRTUAL")]


def _columns(connection: Connection, table: str) -> set[str]:
    """Stored columns, not generated ones."""
    found = connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", [table])
    return {name for (name,) in found}


def _array(value: Any, dtype: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A blob as an array; little-endian, as all three write it. One axis may be -1."""
    dtype = np.dtype(dtype).newbyteorder("<")
    size = -1 if not isinstance(value, bytes) else len(value) / dtype.itemsize
    wanted = np.prod([n for n in shape if n >= 0], dtype=int)
    if size < 1 or (size % wanted if -1 in shape else size != wanted):
        got = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise DataError(what, got=got, expected=f"{dtype.name} of shape {shape}", code=Code.DAMAGED)
    return np.frombuffer(value, dtype).reshape(shape)


def _square(value: Any, dtype: Any, what: str) -> np.ndarray:
    flat = _array(value, dtype, (-1,), what)
    n = round(flat.size**0.5)
    return _array(value, dtype, (n, n), what)


def _count(value: Any, what: str) -> int:
    """A number of atoms."""
    if not isinstance(value, int) or not 0 < value < 10**6:
        raise DataError(what, got=repr(value), expected="a number of atoms", code=Code.DAMAGED)
    return value


def _qh9(connection: Connection, extra: str = "") -> Iterator[Record]:
    found = connection.execute(f"SELECT N, Z, pos, Ham{extra} FROM data ORDER BY rowid")
    left_out = False
    for i, (n, z, r, h, *more) in enumerate(found):
        if more and not more[1]:
            if not left_out:
                text = f"rows whose SCF did not converge are left out, the first: row {i}."
                warnings.warn(text, DataWarning, stacklevel=2)
            left_out = True
            continue
        n = _count(n, f"N of row {i}")
        labels = {"Ham": _square(h, np.float64, f"Ham of row {i}")}
        if more:
            labels["epot"] = more[0]
        yield Record(
            _array(z, np.int32, (n,), f"Z of row {i}"),
            _array(r, np.float64, (n, 3), f"pos of row {i}"),
            labels,
        )


def _qh9_dynamic(connection: Connection) -> Iterator[Record]:
    return _qh9(connection, ", epot, converged")


def _phisnet(connection: Connection) -> Iterator[Record]:
    first = connection.execute("SELECT N, Z FROM nuclear_charges ORDER BY rowid").fetchone()
    n, z = first or (None, None)
    numbers = _array(z, np.int32, (_count(n, "N of nuclear_charges"),), "Z of nuclear_charges")
    for i, (r, e, f, h, s) in enumerate(
        connection.execute("SELECT R, E, F, H, S FROM data ORDER BY rowid")
    ):
        labels = {"E": e, "H": _square(h, np.float32, f"H of row {i}")}
        if f is not None:
            labels["F"] = _array(f, np.float32, (len(numbers), 3), f"F of row {i}")
        if s is not None:
            labels["S"] = _square(s, np.float32, f"S of row {i}")
        labels = {k: v for k, v in labels.items() if v is not None}
        yield Record(numbers, _array(r, np.float32, (len(numbers), 3), f"R of row {i}"), labels)


_COLUMNS = ("energy", "forces", "dipole", "initial_charges", "initial_magmoms", "masses")
"""Of a row of ASE, beside those that every version has; a blob has a number for each atom."""


def _ase(columns: set[str], connection: Connection) -> Iterator[Record]:
    from ase.db.core import bytes_to_object
    from ase.io.jsonio import decode

    more = [name for name in (*_COLUMNS, "key_value_pairs") if name in columns]
    query = ", ".join(("natoms", "numbers", "positions", "pbc", "data", *more))
    for i, (n, z, r, pbc, data, *values) in enumerate(
        connection.execute(f"SELECT {query} FROM systems ORDER BY id")
    ):
        if pbc:
            raise DataError(
                f"row {i}", got="a periodic cell", expected="molecules", code=Code.PERIODIC
            )
        n = _count(n, f"natoms of row {i}")
        info: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        for name, value in zip(more, values, strict=True):
            if value is None:
                continue
            if name == "key_value_pairs":
                info |= decode(value)
            elif name == "energy":
                info[name] = value
            else:
                width = {"forces": (n, 3), "dipole": (3,)}.get(name, (n,))
                place = info if name == "dipole" else arrays
                place[name] = _array(value, np.float64, width, f"{name} of row {i}")
        # text up to version 8 of ASE's format, then JSON with binary arrays
        found: Any = bytes_to_object(data) if isinstance(data, bytes) else decode(data or "{}")
        if not isinstance(found, dict):
            raise DataError(f"data of row {i}", got=found, expected="a mapping", code=Code.DAMAGED)
        info |= {k: _unpacked(k, v, found) for k, v in found.items() if not k.startswith("_")}
        masses = arrays.pop("masses", None)
        yield Record(
            _array(z, np.int32, (n,), f"numbers of row {i}"),
            _array(r, np.float64, (n, 3), f"positions of row {i}"),
            info,
            arrays,
            masses,
        )


def _unpacked(name: str, value: Any, found: Mapping[str, Any]) -> Any:
    """An array that an old SchNetPack wrote as base64, with shape and dtype beside it."""
    if not isinstance(value, str) or f"_shape_{name}" not in found:
        return value
    shape = tuple(int(n) for n in found[f"_shape_{name}"])
    return _array(base64.b64decode(value), found[f"_dtype_{name}"], shape, name)
