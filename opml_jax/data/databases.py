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
from typing import Any, cast

import numpy as np

from ..errors import Code, DataError, DataWarning, OpmlError
from .labels import Source, plain_unit
from .matrices import MATRICES
from .records import Layout, Record

Connection = sqlite3.Connection

_B3LYP = {"basis": "def2-svp", "method": "b3lyp5", "grid_level": 3}
_ATOMIC = {"length": "bohr", "energy": "hartree", "forces": "hartree/bohr"}

QH9 = Layout(
    "QH9's database (stable)",
    "table `data` with `N`, `Z`, `pos`, `Ham`",
    units={"length": "angstrom"},
    fixed=True,
    sources=MATRICES,
    meta=_B3LYP,
    convention="pyscf",
)
QH9_DYNAMIC = Layout(
    "QH9's database (dynamic)",
    "also `geo_id`, `epot`, `converged`",
    {"energy": ("epot",)},
    _ATOMIC,
    fixed=True,
    sources=MATRICES,
    meta=_B3LYP,
    convention="pyscf",
)
PHISNET = Layout(
    "PhiSNet's database",
    "tables `data` with `R`, `E`, `F`, `H`, `S` and `nuclear_charges`",
    {"energy": ("E",), "forces": ("F",)},
    _ATOMIC,
    fixed=True,
    sources={"fock": Source(("H",), 1.0), "overlap": Source(("S",), 1.0)},
    meta={"basis": "def2-svp"},
    convention="opml",
)
SCHNORB = Layout(
    "SchNOrb's database",
    "of ASE, with `hamiltonian` among the data of a row",
    {"energy": ("energy",), "forces": ("forces",)},
    {"length": "angstrom", "energy": "hartree", "forces": "hartree/angstrom"},
    fixed=True,
    sources={k: Source(v.names[:2], 1.0) for k, v in MATRICES.items()},
    meta={"basis": "def2-svp"},
    convention="orca",
)
SCHNETPACK = Layout(
    "SchNetPack's database",
    "of ASE, with `_property_unit_dict` in its metadata, whose units are obeyed",
    {
        "energy": ("energy", "energy_U0"),
        "forces": ("forces",),
        "dipole": ("dipole_moment", "dipole"),
        "polarizability": ("polarizability",),
    },
    fixed=True,
)
ASE = Layout(
    "ASE's database",
    "table `systems`",
    {"energy": ("energy",), "forces": ("forces",), "dipole": ("dipole",)},
    {"length": "angstrom", "energy": "ev", "forces": "ev/angstrom", "dipole": "e angstrom"},
)
LAYOUTS = (QH9, QH9_DYNAMIC, PHISNET, SCHNORB, SCHNETPACK, ASE)


def database_layout(path: Path) -> Layout:
    """Which layout a file has.

    Raises:
      DataError: none of those known, or not a readable SQLite file.
    """
    with _connected(path) as connection:
        tables = {name: _columns(connection, name) for name in _tables(connection)}

        def has(table: str, *columns: str) -> bool:
            return {*columns} <= tables.get(table, set())

        def rows(of: Callable[[Connection], Iterator[Record]]) -> Callable[[], Iterator[Record]]:
            return functools.partial(_rows, path, of)

        if has("data", "geo_id", "N", "Z", "pos", "Ham", "epot", "converged"):
            return QH9_DYNAMIC.of(rows(_qh9_dynamic))
        if has("data", "N", "Z", "pos", "Ham"):
            return QH9.of(rows(_qh9))
        if has("data", "R", "E", "F", "H", "S") and has("nuclear_charges", "N", "Z"):
            return PHISNET.of(rows(_phisnet))
        if has("systems", "natoms", "numbers", "positions", "pbc", "data"):
            records = functools.partial(_ase, tables["systems"])
            about = _metadata(connection) if "information" in tables else {}
            if units := about.get("_property_unit_dict"):
                return _schnetpack(rows(records), about, units)
            first = next(iter(records(connection)), None)
            is_schnorb = first is not None and "hamiltonian" in first.info
            return (SCHNORB if is_schnorb else ASE).of(rows(records))
    raise DataError(
        str(path),
        got=f"tables {', '.join(sorted(tables)) or 'none'}",
        expected="a database of QH9, PhiSNet, SchNOrb, SchNetPack or ASE",
    )


def _metadata(connection: Connection) -> dict[str, Any]:
    """What ASE keeps of a database as a whole."""
    text = connection.execute("SELECT value FROM information WHERE name = 'metadata'").fetchone()
    return json.loads((text or ("{}",))[0] or "{}")


def _schnetpack(records, about: Mapping[str, Any], units: Mapping[str, str]) -> Layout:
    """With the properties that a file has, in its units."""
    there = {
        field: tuple(n for n in names if n in units) for field, names in SCHNETPACK.names.items()
    }
    there = {field: names for field, names in there.items() if names}
    stated = {field: plain_unit(units[names[0]]) for field, names in there.items()}
    stated["length"] = plain_unit(about.get("_distance_unit", "angstrom"))
    return SCHNETPACK.of(records, names=there, units=stated)


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
                info |= cast(dict[str, Any], decode(value))
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
