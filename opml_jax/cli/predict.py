"""``opml predict``: energies, forces and dipoles of structures."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("structures", metavar="STRUCTURES", help="xyz, extxyz, npz or HDF5 file")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=".extxyz (eV, eV/Angstrom, e Angstrom) or .h5 (atomic units)",
    )
    p.add_argument("--length-unit", choices=("angstrom", "bohr"))
    p.add_argument("--charge", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from ..data import read_structures
    from ..errors import OpmlError, nearest, refusal
    from ..models import load_model
    from .runs import enable_x64

    enable_x64()
    suffix = Path(args.output).suffix
    writers = {
        ".extxyz": write_extxyz,
        ".xyz": write_extxyz,
        ".h5": _write_hdf5,
        ".hdf5": _write_hdf5,
    }
    if suffix not in writers:
        raise OpmlError(
            refusal(
                "--output",
                got=repr(args.output),
                expected=f"a name ending in {', '.join(writers)}",
                hint=nearest(suffix, writers),
            )
        )
    model = load_model(args.run)
    structures = read_structures(args.structures, length_unit=args.length_unit, charge=args.charge)
    predicted = model.predict(structures)
    writers[suffix](args.output, structures, predicted)
    print(f"{args.output}: {len(structures)} structures")
    return 0


def write_extxyz(path, structures, predicted) -> None:
    """Structures and predictions in ASE's units, under ``opml_`` names."""
    from ase.io import write

    from ..data.files import atomic_path
    from ..interfaces.ase import structure_to_ase
    from ..units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

    frames = []
    for i, s in enumerate(structures):
        atoms = structure_to_ase(s)
        atoms.info["opml_energy"] = float(predicted["energy"][i] * EV_PER_HARTREE)
        atoms.arrays["opml_forces"] = (
            predicted["forces"][i, : s.n_atoms] * EV_PER_ANGSTROM_PER_ATOMIC_FORCE
        )
        if "dipole" in predicted:
            atoms.info["opml_dipole"] = predicted["dipole"][i] * ANGSTROM_PER_BOHR
        frames.append(atoms)
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def _write_hdf5(path, structures, predicted) -> None:
    """Structures and predictions in atomic units."""
    from ..data import Dataset
    from ..data.store import write_hdf5

    labels = {
        "energy": list(predicted["energy"]),
        "forces": [predicted["forces"][i, : s.n_atoms] for i, s in enumerate(structures)],
    }
    if "dipole" in predicted:
        labels["dipole"] = list(predicted["dipole"])
    write_hdf5(path, Dataset(structures, labels, {"predicted_by": "opml_jax"}))
