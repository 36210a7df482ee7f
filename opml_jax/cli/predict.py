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
        help=".extxyz (eV and Angstrom) or .h5 (atomic units)",
    )
    p.add_argument("--length-unit", choices=("angstrom", "bohr"))
    p.add_argument("--charge", type=int, default=0)
    p.add_argument(
        "--uncertainty",
        action="store_true",
        help="also standard deviations of energy and forces over the members of an ensemble",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from ..data import read_structures
    from ..errors import one_of
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
    one_of("suffix of --output", suffix, writers)
    model = load_model(args.run)
    structures = read_structures(args.structures, length_unit=args.length_unit, charge=args.charge)
    predicted = model.predict(structures, uncertainty=args.uncertainty)
    writers[suffix](args.output, structures, predicted)
    print(f"{args.output}: {len(structures)} structures")
    return 0


def write_extxyz(path, structures, predicted) -> None:
    """Structures and predictions in ASE's units, under ``opml_`` names."""
    from ase.io import write

    from ..data.files import atomic_path
    from ..interfaces.ase import structure_to_ase
    from ..units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

    units = {
        "energy": EV_PER_HARTREE,
        "forces": EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
        "dipole": ANGSTROM_PER_BOHR,
        "quadrupole": ANGSTROM_PER_BOHR**2,
        "polarizability": ANGSTROM_PER_BOHR**3,
        "isotropic_polarizability": ANGSTROM_PER_BOHR**3,
    }
    frames = []
    for i, s in enumerate(structures):
        atoms = structure_to_ase(s)
        for name, values in predicted.items():
            quantity = name.removesuffix("_uncertainty")
            if quantity == "forces":
                atoms.arrays[f"opml_{name}"] = values[i, : s.n_atoms] * units[quantity]
            elif quantity in units:
                atoms.info[f"opml_{name}"] = values[i] * units[quantity]
        frames.append(atoms)
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def _write_hdf5(path, structures, predicted) -> None:
    """Structures and predictions in atomic units."""
    import numpy as np

    from ..data import Dataset
    from ..data.dataset import FIELDS
    from ..data.moments import CENTRED, shifted_quadrupole
    from ..data.store import write_hdf5
    from ..structures import centre_of_nuclear_charge

    labels = {}
    if "quadrupole" in predicted:
        # the field is about the coordinate origin, predictions about the centre of nuclear charge
        origins = -np.array([centre_of_nuclear_charge(s) for s in structures])
        dipole = predicted.get("dipole", np.zeros((len(structures), 3)))
        shifted = shifted_quadrupole(predicted["quadrupole"], dipole, origins)
        predicted = {**predicted, "quadrupole": shifted}
        if "dipole" not in predicted and np.abs(origins).max() > CENTRED:
            del predicted["quadrupole"]  # without dipoles it cannot be moved
    for name in (k for k in predicted if k in FIELDS):
        rows = zip(predicted[name], structures, strict=True)
        atomic = FIELDS[name].axes[:1] == ("atom",)
        labels[name] = [row[: s.n_atoms] if atomic else row for row, s in rows]
    write_hdf5(path, Dataset(structures, labels, {"predicted_by": "opml_jax"}))
