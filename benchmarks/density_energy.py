"""Energies, forces and dipoles from a predicted density, beside those from the operator.

    python benchmarks/density_energy.py check DIR
    python benchmarks/density_energy.py water DIR --json
    python benchmarks/density_energy.py ethanol DENSITIES.npz --energies RMD17.npz --json
    python benchmarks/density_energy.py cost DIR --json

``DIR`` holds DenSNet's water (``h2o_small_{train,valid}_augccpvdz_df_augccpvqzjkfit.npz`` of
github.com/MihailBogojeski/equiv_dens_ml: PBE/aug-cc-pVDZ, coefficients in aug-cc-pVQZ-JKFIT). 100
geometries train; of the other file a half of seed 0 validates, the other half tests. ``check``
repeats an energy and a fit by PySCF. ``ethanol``: Fock matrices of PBE/def2-SVP of the first
geometries of a split of rMD17, energies and forces from the split itself; the first N train, 35
validate, the last 65 test. Both: a density model is trained first, then energies and forces on it,
N geometries each: ``density`` alone, ``beside`` the operator, and ``operator`` alone (the same
products of mixtures without a density). Dipoles are the density's, of ``operator`` its head's,
against those of density matrices. ``cost``: seconds of one call for energy and forces.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import record

import opml_jax as opml
from opml_jax import density
from opml_jax.data.reference import molecule
from opml_jax.models import DensityModel, Op2Density, Op2DensityConfig, Op2PropConfig
from opml_jax.training import TrainConfig, evaluate, train
from opml_jax.training import density as training
from opml_jax.training.config import OptimConfig
from opml_jax.training.density_metrics import coefficient_errors
from opml_jax.units import ANGSTROM_PER_BOHR

WATER = Op2DensityConfig(aux_basis="aug-cc-pvqz-jkfit")
ETHANOL = Op2DensityConfig()
OPERATOR = Op2PropConfig(
    basis="even-tempered", metric="lifted", others=("overlap",), powers=(1,), channels=64
)
FILES = (
    "h2o_small_train_augccpvdz_df_augccpvqzjkfit",
    "h2o_small_valid_augccpvdz_df_augccpvqzjkfit",
)


@dataclasses.dataclass
class Labelled:
    """Molecules with energies, forces, dipoles and coefficients of densities."""

    dataset: opml.Dataset
    coefficients: list
    atoms: dict
    definition: Op2Density
    splits: dict


def published(folder: Path) -> tuple[opml.Dataset, list, list]:
    """DenSNet's waters, training file first: labels, coefficients, PySCF's density matrices."""
    structures, energies, forces, c, dms = [], [], [], [], []
    aux = opml.load_basis(WATER.aux_basis, [1, 8])
    for name in FILES:
        with np.load(folder / f"{name}.npz") as f:
            for i, x in enumerate(f["calc_positions"]):
                s = opml.Structure([8, 1, 1], x / ANGSTROM_PER_BOHR)
                structures.append(s)
                c.append(density.from_pyscf(f["df_coeff"][i], s, aux))
                dms.append((f["mo_coeff"][i] * f["mo_occ"][i]) @ f["mo_coeff"][i].T)
            energies += f["calc_energy_hartree"].tolist()
            forces += list(f["calc_forces"] * ANGSTROM_PER_BOHR)  # they are in Hartree/Angstrom
    dipoles = [dipole(s, "aug-cc-pvdz", dm) for s, dm in zip(structures, dms, strict=True)]
    labels = {"energy": np.array(energies), "forces": forces, "dipole": np.array(dipoles)}
    return opml.Dataset(structures, labels, {"method": "pbe", "basis": "aug-cc-pvdz"}), c, dms


def dipole(structure: opml.Structure, basis: str, dm: np.ndarray) -> np.ndarray:
    """Of a density matrix in PySCF's order, about the centre of nuclear charge."""
    mol = molecule(structure, basis)
    z, x = mol.atom_charges(), mol.atom_coords()
    with mol.with_common_origin(z @ x / z.sum()):
        return -np.einsum("xij,ij->x", mol.intor("int1e_r"), dm)


def check(args) -> None:
    """The published numbers repeated."""
    from pyscf import dft

    dataset, c, dms = published(args.data)
    s, aux = dataset.structures[0], opml.load_basis(WATER.aux_basis, [1, 8])
    basis = opml.load_basis("aug-cc-pvdz", [1, 8])
    own = density.fit(opml.from_pyscf(dms[0], s, basis), s, basis, aux)
    mol = molecule(s, "aug-cc-pvdz")
    calculation = dft.RKS(mol, xc="pbe").run(verbose=0, conv_tol=1e-10)
    force = -calculation.nuc_grad_method().set(verbose=0).kernel()
    print("energy", calculation.e_tot - dataset["energy"][0])
    print("forces", np.abs(force - dataset["forces"][0]).max())
    print("coefficients", np.abs(own - c[0]).max(), "of", np.abs(c[0]).max())


def waters(args) -> Labelled:
    """DenSNet's."""
    dataset, c, _ = published(args.data)
    definition = defined(WATER, [1, 8])
    orbital = opml.load_basis("aug-cc-pvdz", [1, 8])
    atoms = {z: density.atomic_coefficients(z, orbital, definition.aux_basis) for z in (1, 8)}
    held_out = 100 + np.random.default_rng(0).permutation(100)
    splits = {"validation": held_out[:50].tolist(), "test": held_out[50:].tolist()}
    return Labelled(dataset, c, atoms, definition, splits)


def ethanols(args) -> Labelled:
    """Densities from Fock matrices, energies and forces from rMD17."""
    focks = opml.read_dataset(args.data, basis="def2-svp", convention="pyscf")
    energies = opml.read_dataset(args.energies).subset(range(len(focks)))
    x, y = (np.array([s.positions for s in d.structures]) for d in (focks, energies))
    assert np.abs(x - y).max() < 1e-6
    definition = defined(ETHANOL, focks.elements)
    orbital = opml.load_basis("def2-svp", focks.elements)
    dipoles = [
        dipole(s, "def2-svp", opml.to_pyscf(training.density_matrix(focks, i, orbital), s, orbital))
        for i, s in enumerate(focks.structures)
    ]
    labels = {k: energies.labels[k] for k in ("energy", "forces")} | {"dipole": np.array(dipoles)}
    dataset = opml.Dataset(energies.structures, labels, {"method": "pbe", "basis": "def2-svp"})
    atoms = training.free_atoms(definition, focks)
    c = training.labelled_coefficients(definition, focks)
    n = len(focks)
    splits = {"validation": list(range(n - 100, n - 65)), "test": list(range(n - 65, n))}
    return Labelled(dataset, c, atoms, definition, splits)


def defined(config: Op2DensityConfig, elements) -> Op2Density:
    """The functions of a density model."""
    bases = (opml.load_basis(n, elements) for n in (config.basis, config.aux_basis))
    return Op2Density(config, *bases)


def timed(function):
    """Result and CPU seconds."""
    start = time.process_time()
    return function(), time.process_time() - start


def learn(args, name: str, own: Labelled) -> None:
    """Learning curves."""
    test = own.dataset.subset(own.splits["test"])
    wanted = [own.coefficients[i] for i in own.splits["test"]]
    options = {"model": OPERATOR, "optim": OptimConfig(epochs=args.epochs)}
    for n in args.sizes:
        splits = {"train": list(range(n)), **own.splits}
        structures = own.dataset.subset(range(n)).structures
        path = args.folder / f"{name}_{n}.safetensors"
        line = {"n_train": n, "n_validation": len(splits["validation"]), "n_test": len(test)}
        seconds = 0.0
        if not path.exists() and set(args.kinds) - {"operator"}:
            fitted = functools.partial(
                training.fit_density, own.definition, structures, own.coefficients[:n], own.atoms
            )
            (params, _), seconds = timed(fitted)
            opml.save_model(path, DensityModel(own.definition, params))
        for kind in args.kinds:
            config = TrainConfig(targets=("energy", "forces"), **options)
            row = {"name": f"{name}_{kind}", **line}
            if kind == "operator":
                config = dataclasses.replace(config, targets=("energy", "forces", "dipole"))
            else:
                model = dataclasses.replace(
                    OPERATOR, density=str(path), density_beside=kind == "beside"
                )
                config = dataclasses.replace(config, model=model)
            trained, spent = timed(functools.partial(train, own.dataset, splits, config))
            row |= {"density_fit_cpu_seconds": seconds} if kind != "operator" else {}
            row |= {"fit_cpu_seconds": spent, **evaluate(trained.model, test)}
            if kind == "density":
                found = trained.model.density.predict(test.structures)["coefficients"]
                row |= coefficient_errors(found, wanted, test.structures, own.definition)
            opml.save_model(args.folder / f"{name}_{kind}_{n}.safetensors", trained.model)
            record(row, "density_energy", args.json)


def water(args) -> None:
    """Learning curves of DenSNet's water."""
    learn(args, "water", waters(args))


def ethanol(args) -> None:
    """Learning curves of ethanol."""
    learn(args, "ethanol", ethanols(args))


TASKS = {f.__name__: f for f in (check, water, ethanol)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("data", type=Path)
    parser.add_argument("--energies", type=Path, help="of ethanol: a split of rMD17")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--kinds", nargs="+", default=["density", "beside", "operator"])
    parser.add_argument("--epochs", type=int, default=0, help="of the networks")
    parser.add_argument("--folder", type=Path, help="keeps models (default: nothing is kept)")
    parser.add_argument(
        "--json", action="store_true", help="append to results/density_energy.jsonl"
    )
    args = parser.parse_args()
    args.sizes = args.sizes or ([25, 50, 100] if args.task == "water" else [66, 132, 265])
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        args.folder.mkdir(parents=True, exist_ok=True)
        TASKS[args.task](args)


if __name__ == "__main__":
    main()
