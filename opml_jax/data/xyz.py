"""Frames of xyz and extended xyz files, as many programs write them.

A frame is a line with the number of its atoms, a comment, and a line for each atom. Blank lines
between frames, carriage returns and white space at the end of lines mean nothing; anything else
outside of a frame is refused, with the number of the line, because frames after it would be lost.
Of a comment ``key=value`` is read; a word is a word.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Code, DataError, OpmlError, counted
from ..structures.elements import WEIGHTS, isotope
from ..units import ENERGY
from .keys import CHARGE, MULTIPLICITY, is_suggestive, states_charge_or_spin
from .labels import plain_unit
from .records import Record

MAX_COLUMNS = 1000
"""Of a line of an extxyz file."""

PLAIN = "species:S:1:pos:R:3"
"""Columns of a file that does not say what they are."""

SPECIES = ("species", "element", "elements", "symbols", "symbol")
NUMBERS = ("Z", "numbers", "atomic_numbers", "atomic_number")
MASSES = ("masses", "mass")
POSITIONS = ("pos", "positions", "position", "coords", "coordinates")

_QUOTED = r'"(?:\\.|[^"\\])*"|\'[^\']*\'|\{[^{}]*\}|\[(?:[^\[\]]|\[[^\[\]]*\])*\]'
_KEY = r'"[^"=]+"|[^\s=,;"\'\[\]{}]+'
_PAIR = re.compile(
    rf"({_KEY})(?:=({_QUOTED}|[^\s\"'\[\]{{}}]+)"
    # with spaces, a value that is followed by another = is a key, and the first = a stray one
    rf"|\s*=\s*({_QUOTED}|[^\s=\"'\[\]{{}}]++(?!\s*=)))"
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:\*?[eEdD^]+[-+]?\d+)?")
_BARE = re.compile(rf"([A-Za-z_][\w-]*)[\"']?\s*[:\s]\s*[\"']?({_NUMBER.pattern})(?![\w.+-])")
_LOST = re.compile(r"([A-Za-z_][\w-]*)\s*=")
_UNIT = re.compile(r"\s+([A-Za-zÅ][^\s=]*)(?=\s|$)")
_KINDS = {"S": np.str_, "R": np.float64, "I": np.int64, "L": np.bool_}


def read_frames(path: Path) -> Iterator[Record]:
    """Molecules of a file, one by one.

    Raises:
      DataError: text that is no frame, a frame that is cut off, or a periodic cell; it says which
        line, and how many frames are complete before it.
    """
    n, line = 0, 0
    try:
        with _opened(path) as file:
            lines = enumerate(file, start=1)
            for line, text in lines:  # noqa: B007  (the error says which)
                if text.strip():
                    yield _frame(text, lines, n)
                    n += 1
    except OpmlError as err:
        raise err.within(path) from err
    except (EOFError, OSError, ValueError) as err:
        raise DataError(
            str(path),
            got=f"after {counted(n, 'frame')}, near line {line}: {err}",
            expected="a complete xyz or extxyz file",
            hint="A frame: number of atoms, a comment, then symbol x y z (Angstrom) of each.",
            code=Code.DAMAGED,
        ) from err


def _opened(path: Path):
    """The text of a file, plain or gzipped."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    # with a mark of byte order or not; a comment may be in any encoding
    return opened(path, "rt", encoding="utf-8-sig", errors="replace", newline=None)


def _frame(text: str, lines: Iterator[tuple[int, str]], n: int) -> Record:
    """The frame that begins with a line."""
    count = text.strip()
    if not (count.isascii() and count.isdigit()):
        raise ValueError(f"{count[:60]!r} is no number of atoms")
    if int(count) == 0:
        raise DataError(f"frame {n}", got="no atoms", expected="at least one", code=Code.EMPTY)
    comment = next(lines, (0, None))[1]
    rows = [row.split() for _, row in zip(range(int(count)), (t for _, t in lines), strict=False)]
    if comment is None or len(rows) < int(count):
        raise ValueError(
            f"the file ends within frame {n}, after {len(rows)} of {counted(int(count), 'atom')}"
        )
    info, words = read_comment(comment)
    try:
        return _record(info, words, rows)
    except OpmlError as err:
        raise err.within(f"frame {n}") from err


def _record(info: dict[str, Any], words: str, rows: list[list[str]]) -> Record:
    if _periodic(info):
        raise DataError(
            "cell",
            got="a periodic cell",
            expected="molecules",
            hint="Set pbc to F F F if the cell is only a box.",
            code=Code.PERIODIC,
        )
    properties = info.pop("Properties", info.pop("properties", None))
    unread = []
    if properties is None:
        rows, longest = [row[:4] for row in rows], max(map(len, rows))
        unread += ["columns after x y z"] * (longest > 4)
    columns = _columns(PLAIN if properties is None else str(properties), rows)
    stated = any(states_charge_or_spin(key) for key in info)
    for match in _BARE.finditer(words):
        name, value = match.groups()
        if name.lower() in (*CHARGE, *MULTIPLICITY):
            if not stated:  # an integer without a unit; the rest has no plain meaning
                info[name] = value
        elif is_suggestive(name):
            unread.append(f"{name} {value}")
    numbers, masses = _atoms(columns)
    positions = _first(columns, POSITIONS)
    if positions is None:
        raise ValueError("no column of positions (pos)")
    return Record(numbers, positions, info, columns, masses, tuple(unread))


def read_comment(comment: str) -> tuple[dict[str, Any], str]:
    """``{key: value}`` of a comment line, and the words beside these pairs."""
    info: dict[str, Any] = {}
    for match in _PAIR.finditer(comment):
        key, text = match[1].strip('"'), match[2] or match[3]
        value = _value(text.rstrip(",;") or text)
        if key in info and repr(info[key]) != repr(value):
            got = f"{info[key]} and {value}"
            raise DataError(f"{key} of a comment", got=got, expected="one value", code=Code.LABEL)
        info[key] = value
        unit = _UNIT.match(comment, match.end())
        if unit and key.lower().endswith("energy") and plain_unit(unit[1]) in ENERGY:
            info.setdefault("energy_unit", unit[1])  # energy=-76.4 Hartree
    words = _PAIR.sub(" | ", comment)
    for name in _LOST.findall(words):
        if is_suggestive(name):
            got = f"{name} and an equal sign that is not of a pair"
            raise DataError("comment", got=got, expected="key=value", code=Code.LABEL)
    return info, words


def _value(text: str) -> Any:
    """A number, truth value, word, or array of them."""
    quoted = text[0] in "\"'"
    inner = text[1:-1] if text[0] in "\"'{[" else text
    if quoted and inner.startswith("_JSON "):
        return _json(inner[6:].replace('\\"', '"'))
    if text[0] in "{[":
        listed = _json(text)
        if not isinstance(listed, str):
            return listed
    parts = inner.replace(",", " ").split() if text[0] in "{[" else inner.split()
    for kind in (_integer, _real, _truth):
        try:
            values = [kind(part) for part in parts]
        except ValueError:
            continue
        if len(values) == 1 and text[0] not in "{[":
            return values[0]
        return np.array(values) if values else inner
    return inner


def _json(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    try:
        return np.array(value) if isinstance(value, list) else value
    except ValueError:  # lists of different lengths
        return value


def _integer(text: str) -> int:
    return int(text.replace("_", "x"))  # Python would read 1_000


def _real(text: str) -> float:
    """A real number, also in the ways of Fortran (1.0D-3) and Mathematica (1.0*^-3)."""
    return float(re.sub(r"\*\^|(?<=[\d.])[dD](?=[-+\d])", "e", text.replace("_", "x")))


def _truth(text: str) -> bool:
    truths = {"T": True, "True": True, "true": True, "F": False, "False": False, "false": False}
    if text not in truths:
        raise ValueError(text)
    return truths[text]


def _periodic(info: dict[str, Any]) -> bool:
    """Whether the frame has a cell, and does not say that it is only a box."""
    lattice = next((v for k, v in info.items() if k.lower() in ("lattice", "cell")), None)
    pbc = info.pop("pbc", None)
    if pbc is None:
        return lattice is not None and bool(np.any(np.asarray(lattice, dtype=object) != 0))
    return bool(np.any(np.asarray(pbc)))


def _columns(properties: str, rows: list[list[str]]) -> dict[str, np.ndarray]:
    """Columns of atoms by name, as ``Properties`` lays them out."""
    parts = properties.split(":")
    names, kinds, widths = parts[::3], parts[1::3], parts[2::3]
    if len(parts) % 3 or not all(w.isdigit() for w in widths) or not {*kinds} <= {*_KINDS}:
        raise ValueError(f"Properties={properties[:80]} is not name:type:columns")
    counts = [int(w) for w in widths]
    if sum(counts) > MAX_COLUMNS:
        raise ValueError(f"more than {MAX_COLUMNS} columns")
    if short := [i for i, row in enumerate(rows) if len(row) < sum(counts)]:
        got = " ".join(rows[short[0]])[:60]
        raise ValueError(f"atom {short[0]} has {got!r} in place of {sum(counts)} columns")
    if long := [i for i, row in enumerate(rows) if len(row) > sum(counts)]:
        raise ValueError(f"atom {long[0]} has more columns than Properties says")
    columns, start = {}, 0
    for name, kind, width in zip(names, kinds, counts, strict=True):
        cells = [row[start : start + width] for row in rows]
        columns[name] = _cells(name, kind, cells)
        start += width
    return {k: v[:, 0] if v.shape[1] == 1 else v for k, v in columns.items()}


def _cells(name: str, kind: str, cells: list[list[str]]) -> np.ndarray:
    convert = {"R": _real, "I": _integer, "L": _truth, "S": str}[kind]
    try:
        return np.array([[convert(c) for c in row] for row in cells], _KINDS[kind])
    except (OverflowError, ValueError) as err:
        raise ValueError(f"column {name}: {err}") from err


def _atoms(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Atomic numbers, and masses if the file has some."""
    symbols, numbers = _first(columns, SPECIES), _first(columns, NUMBERS)
    elements = numbers if symbols is None else symbols
    if elements is None:
        raise ValueError("no column of symbols (species) or atomic numbers (Z)")
    named = [isotope(str(x)) for x in elements]
    read, masses = np.array([z for z, _ in named]), _first(columns, MASSES)
    if masses is None and any(mass for _, mass in named):
        masses = np.array([mass or WEIGHTS[z] for z, mass in named])
    return read, masses


def _first(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((columns.pop(name) for name in names if name in columns), None)
