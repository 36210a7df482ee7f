"""Hamiltonian data sets in SQLite files, read as they are published; nothing is unpickled.

Three layouts, told apart by their tables:

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
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Code, DataError, DataWarning, OpmlError
from ..units import LENGTH
from .labels import Source
from .matrices import MATRICES

Record = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""Atomic numbers, positions in the file's unit, and what else a row has, by its name there."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known of a file from how it is laid out.

    Attributes:
      rows: records of an open file.
      length_unit: of positions.
      convention: order of AO matrices, one of :data:`opml_jax.conventions.AO_ORDERS`.
      sources: labels whose unit is known, AO matrices besides.
      meta: what is known of the level of theory; ``basis`` is that of the matrices.
    """

    rows: Callable[[sqlite3.Connection], Iterator[Record]]
    length_unit: str
    convention: str
    sources: Mapping[str, Source]
    meta: Mapping[str, Any]


def identify(path: Path) -> Layout:
    """Which layout a file has.

    Raises:
      DataError: none of those known, or not a readable SQLite file.
    """
    with _connected(path) as connection:
        tables = {name: _columns(connection, name) for name in _tables(connection)}
    for layout, needed in _LAYOUTS:
        if all(columns <= tables.get(name, set()) for name, columns in needed.items()):
            return layout
    raise DataError(
        str(path),
        got=f"tables {', '.join(sorted(tables)) or 'none'}",
        expected="a database of QH9, PhiSNet or SchNOrb (ASE)",
    )


def read_rows(path: Path) -> Iterator[Record]:
    """Records of a file, one by one.

    Raises:
      DataError: as :func:`identify`; also rows that are incomplete or of another kind.
    """
    rows = identify(path).rows
    with _connected(path) as connection:
        yield from rows(connection)


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
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


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Plain tables: a view or a virtual table would run what the file says."""
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return [name for name, sql in found if sql and not sql.upper().startswith("CREATE VIRTUAL")]


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
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


def _qh9(connection: sqlite3.Connection, extra: str = "") -> Iterator[Record]:
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
        yield (
            _array(z, np.int32, (n,), f"Z of row {i}"),
            _array(r, np.float64, (n, 3), f"pos of row {i}"),
            labels,
        )


def _qh9_dynamic(connection: sqlite3.Connection) -> Iterator[Record]:
    return _qh9(connection, ", epot, converged")


def _phisnet(connection: sqlite3.Connection) -> Iterator[Record]:
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
        yield numbers, _array(r, np.float32, (len(numbers), 3), f"R of row {i}"), labels


def _ase(connection: sqlite3.Connection) -> Iterator[Record]:
    from ase.db.core import bytes_to_object
    from ase.io.jsonio import decode

    for i, (n, z, r, pbc, data) in enumerate(
        connection.execute("SELECT natoms, numbers, positions, pbc, data FROM systems ORDER BY id")
    ):
        if pbc:
            raise DataError(
                f"row {i}", got="a periodic cell", expected="molecules", code=Code.PERIODIC
            )
        n = _count(n, f"natoms of row {i}")
        # text up to version 8 of ASE's format, then JSON with binary arrays
        found: Any = bytes_to_object(data) if isinstance(data, bytes) else decode(data or "{}")
        if not isinstance(found, dict):
            raise DataError(f"data of row {i}", got=found, expected="a mapping", code=Code.DAMAGED)
        labels = {k: _unpacked(k, v, found) for k, v in found.items() if not k.startswith("_")}
        yield (
            _array(z, np.int32, (n,), f"numbers of row {i}"),
            _array(r, np.float64, (n, 3), f"positions of row {i}"),
            labels,
        )


def _unpacked(name: str, value: Any, found: Mapping[str, Any]) -> Any:
    """An array that an old SchNetPack wrote as base64, with shape and dtype beside it."""
    if not isinstance(value, str) or f"_shape_{name}" not in found:
        return value
    shape = tuple(int(n) for n in found[f"_shape_{name}"])
    return _array(base64.b64decode(value), found[f"_dtype_{name}"], shape, name)


_QH9 = {"basis": "def2-svp", "method": "b3lyp5", "grid_level": 3}
_ENERGY = Source(("epot",), 1.0)
_LAYOUTS: tuple[tuple[Layout, dict[str, set[str]]], ...] = (
    (
        Layout(_qh9_dynamic, "bohr", "pyscf", {**MATRICES, "energy": _ENERGY}, _QH9),
        {"data": {"geo_id", "N", "Z", "pos", "Ham", "epot", "converged"}},
    ),
    (Layout(_qh9, "angstrom", "pyscf", MATRICES, _QH9), {"data": {"N", "Z", "pos", "Ham"}}),
    (
        Layout(
            _phisnet,
            "bohr",
            "opml",
            {
                "fock": Source(("H",), 1.0),
                "overlap": Source(("S",), 1.0),
                "energy": Source(("E",), 1.0),
                "forces": Source(("F",), 1.0),
            },
            {"basis": "def2-svp"},
        ),
        {"data": {"R", "E", "F", "H", "S"}, "nuclear_charges": {"N", "Z"}},
    ),
    (
        Layout(
            _ase,
            "angstrom",
            "orca",
            {
                **{k: Source(v.names[:2], 1.0) for k, v in MATRICES.items()},
                "energy": Source(("energy",), 1.0),
                "forces": Source(("forces",), 1.0 / LENGTH["angstrom"]),
            },
            {"basis": "def2-svp"},
        ),
        {"systems": {"natoms", "numbers", "positions", "pbc", "data"}},
    ),
)
"""Layouts, and the columns of tables that tell them; the first that fits is taken."""
