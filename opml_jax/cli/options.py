"""Options of every command that reads labelled data."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from ..conventions import AO_ORDERS
from ..errors import OpmlError
from ..units import ENERGY, LENGTH

SAID = "default: what file or format says"
UNSTATED = "of a file that does not state it (default: the format's own, see the page Files)"


def add_geometry_options(p: argparse.ArgumentParser) -> None:
    """What a file of structures may not state itself."""
    p.add_argument("--length-unit", choices=(*LENGTH,), help=UNSTATED)
    p.add_argument(
        "--charge", type=int, help="total charge, of a file that states none (default: 0)"
    )
    p.add_argument("--spin", type=int, help="2S, of a file that states none (default: 0)")


def read_geometries(path: str, args: argparse.Namespace):
    """The structures of a file, as the options say; ``-`` is standard input, extended xyz."""
    from ..data import read_structures

    given = {"length_unit": args.length_unit, "charge": args.charge, "spin": args.spin}
    if path != "-":
        return read_structures(path, **given)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "stdin.xyz")
        file.write_bytes(sys.stdin.buffer.read())
        try:
            return read_structures(file, **given)
        except OpmlError as err:
            raise type(err)(err.message.replace(str(file), "stdin"), code=err.code) from err


def add_reading_options(p: argparse.ArgumentParser) -> None:
    """Units of a file, and which of its labels mean what."""
    add_geometry_options(p)
    p.add_argument("--energy-unit", choices=(*ENERGY,), help=UNSTATED)
    p.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="FIELD=NAME:UNIT",
        help="read this label instead of the format's, such as energy=U0:hartree; may be repeated",
    )
    p.add_argument(
        "--basis", metavar="NAME", help=f"of AO matrices in npz and database files ({SAID})"
    )
    p.add_argument(
        "--convention",
        choices=AO_ORDERS,
        help=f"order of AO matrices in npz and database files ({SAID})",
    )
    p.add_argument(
        "--limit", type=int, metavar="N", help="read only the first N structures (default: all)"
    )


def read_labelled(path, args: argparse.Namespace, lazy: bool = False):
    """The :class:`opml_jax.data.Dataset` of a file, as the options say; ``lazy``: of HDF5."""
    from ..data import read_dataset
    from ..data.labels import parse_labels

    return read_dataset(
        path,
        labels=parse_labels(args.label),
        length_unit=args.length_unit,
        energy_unit=args.energy_unit,
        charge=args.charge,
        spin=args.spin,
        basis=args.basis,
        convention=args.convention,
        limit=args.limit,
        lazy=lazy,
    )
