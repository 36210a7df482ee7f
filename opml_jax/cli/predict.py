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
        help="also standard deviations: of energy and forces over the members of an ensemble or by "
        "the last layer, of densities by their kernels, of Fock matrices and what follows by the "
        "weights of the last map",
    )
    p.add_argument(
        "--allow-unconverged",
        action="store_true",
        help="NaN for molecules whose predicted density does not become self-consistent, instead "
        "of an error",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from ..data import read_structures
    from ..errors import OpmlError, one_of, refusal
    from ..models import OperatorModel, load_model
    from .progress import working
    from .runs import enable_x64

    enable_x64()
    suffix = Path(args.output).suffix
    one_of("suffix of --output", suffix, (".extxyz", ".xyz", ".h5", ".hdf5"))
    model = load_model(args.run)
    structures = read_structures(args.structures, length_unit=args.length_unit, charge=args.charge)
    operators = isinstance(model, OperatorModel)
    if not operators and args.allow_unconverged:
        raise OpmlError(refusal("--allow-unconverged", got=repr(model), expected="an Op2Op model"))
    options = {"uncertainty": args.uncertainty}
    if operators:
        options["allow_unconverged"] = args.allow_unconverged
    with working(f"predicting {len(structures)} structures (compiles first)"):
        predicted = model.predict(structures, **options)
    if suffix in (".h5", ".hdf5"):
        _write_hdf5(args.output, structures, predicted, model)
    else:
        write_extxyz(args.output, structures, predicted)
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
        "gap": EV_PER_HARTREE,
        "mulliken_charges": 1.0,
        "lowdin_charges": 1.0,
        "density": 1.0,  # its uncertainty; square roots of Hartree in Coulomb's metric
        "atom_density": 1.0,
    }
    of_atoms = ("forces", "mulliken_charges", "lowdin_charges", "atom_density")
    frames = []
    for i, s in enumerate(structures):
        atoms = structure_to_ase(s)
        for name, values in predicted.items():
            quantity = name.removesuffix("_uncertainty")
            if quantity in of_atoms:
                atoms.arrays[f"opml_{name}"] = values[i, : s.n_atoms] * units[quantity]
            elif quantity in units:
                atoms.info[f"opml_{name}"] = values[i] * units[quantity]
        frames.append(atoms)
    with atomic_path(path) as temporary:
        write(temporary, frames, format="extxyz")


def _write_hdf5(path, structures, predicted, model) -> None:
    """Structures and predictions in atomic units; matrices as :mod:`opml_jax.data.store` has."""
    import numpy as np

    from ..basis import layout_of
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
    meta, hashes = {"predicted_by": "opml_jax"}, None
    if "dm" in predicted:
        basis = model.definition.basis
        meta["basis"] = basis.name
        hashes = [layout_of(s, basis).hash for s in structures]
        if "dipole" in predicted:
            # the field is about the coordinate origin: that matters for ions
            origins = [s.charge * np.asarray(centre_of_nuclear_charge(s)) for s in structures]
            predicted = {**predicted, "dipole": predicted["dipole"] + np.array(origins)}
    if "coefficients" in predicted:
        meta["aux_basis"] = model.definition.aux_basis.name
    lengths = (("atom", "n_atoms"), ("ao", "nao"), ("aux", "naux"), ("shell", "n_shells"))
    sizes = {k: predicted[n] for k, n in lengths if n in predicted}
    for name in (k for k in predicted if k in FIELDS):
        padded = [a if a in sizes else None for a in FIELDS[name].axes]
        labels[name] = [
            row[tuple(slice(sizes[a][i] if a else None) for a in padded)]
            for i, row in enumerate(predicted[name])
        ]
    write_hdf5(path, Dataset(structures, labels, meta, hashes))
