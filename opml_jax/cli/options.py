"""Options of every command that reads labelled data."""

from __future__ import annotations

import argparse

from ..conventions import AO_ORDERS


def add_reading_options(p: argparse.ArgumentParser) -> None:
    """Units of a file, and which of its labels mean what."""
    p.add_argument("--length-unit", choices=("angstrom", "bohr"))
    p.add_argument("--energy-unit", choices=("hartree", "ev", "kcal/mol"))
    p.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="FIELD=NAME:UNIT",
        help="read this label instead of the format's, such as energy=U0:hartree; may be repeated",
    )
    p.add_argument("--basis", metavar="NAME", help="of AO matrices in npz and database files")
    p.add_argument(
        "--convention",
        choices=AO_ORDERS,
        help="order of AO matrices in npz and database files (default: what file or format says)",
    )
    p.add_argument("--limit", type=int, metavar="N", help="read only the first N structures")


def read_labelled(path, args: argparse.Namespace, lazy: bool = False):
    """The :class:`opml_jax.data.Dataset` of a file, as the options say; ``lazy``: of HDF5."""
    from ..data import read_dataset
    from ..data.labels import parse_labels

    return read_dataset(
        path,
        labels=parse_labels(args.label),
        length_unit=args.length_unit,
        energy_unit=args.energy_unit,
        basis=args.basis,
        convention=args.convention,
        limit=args.limit,
        lazy=lazy,
    )
