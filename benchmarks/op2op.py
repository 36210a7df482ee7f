"""Fock matrices of water and ethanol: learned self-consistent fields, and what they are worth.

    python benchmarks/op2op.py DIR --json

DIR holds ``water_pbe_def2svp.npz`` and ``ethanol_pbe_def2svp.npz`` (``R`` in Angstrom, ``Z``, ``F``
in Hartree and PySCF's AO order). Splits by position in the file: water 500 for training, 100 for
validation, 100 for test, then 100 at 300 K and 60 with 0.08 Angstrom of noise; ethanol 130, 20 and
50. ``--scf N`` starts PySCF from the predictions of the first N test structures, beside its own
guesses. ``--more`` adds training structures of ethanol from an HDF5 file of ``opml generate
--no-forces --grid-level 1`` (geometries 200 to 999 of rMD17's train_01; the npz holds the first
200), for a learning curve with ``--n-train``. What the errors are:
:mod:`opml_jax.training.operator_metrics`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from environment import environment

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.interfaces.pyscf import compare_guesses
from opml_jax.models import Op2Op, Op2OpConfig, OperatorModel
from opml_jax.training.metrics import errors
from opml_jax.training.op2op import fit_op2op
from opml_jax.units import ANGSTROM_PER_BOHR

SPLITS = {
    "water": {
        "train": range(500),
        "validation": range(500, 600),
        "test": range(600, 700),
        "300K": range(700, 800),
        "noise": range(800, 860),
    },
    "ethanol": {
        "train": range(130),
        "validation": range(130, 150),
        "test": range(150, 200),
    },
}
GRIDS = {"water": 4, "ethanol": 1}


def read(file: Path) -> Dataset:
    """Fock matrices in the library's order."""
    with np.load(file) as f:
        numbers, positions, fock = f["Z"], f["R"] / ANGSTROM_PER_BOHR, f["F"]
        energy = f["E"]
    structures = [opml.Structure(numbers, r) for r in positions]
    basis = opml.load_basis("def2-svp", numbers)
    fock = [opml.from_pyscf(m, s, basis) for s, m in zip(structures, fock, strict=True)]
    meta = {"method": "pbe", "basis": "def2-svp", "grid_level": GRIDS[file.name.split("_")[0]]}
    return Dataset(structures, {"fock": fock, "energy": list(energy)}, meta)


def joined(first: Dataset, more: Dataset) -> Dataset:
    """Structures and Fock matrices of both."""
    fock = first.labels["fock"] + more.labels["fock"]
    return Dataset(first.structures + more.structures, {"fock": fock}, first.meta)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Fock matrices (npz)")
    parser.add_argument("--molecules", nargs="*", choices=[*SPLITS], default=[*SPLITS])
    parser.add_argument("--n-train", type=int, nargs="*", default=[], help="fewer, from the first")
    parser.add_argument("--guess", action="store_true", help="also without the density")
    parser.add_argument("--scf", type=int, default=0, help="structures to restart PySCF for")
    parser.add_argument("--quick", action="store_true", help="50 waters")
    parser.add_argument("--json", action="store_true", help="append lines to results/op2op.jsonl")
    parser.add_argument("--more", type=Path, help="HDF5 with more ethanols for training")
    args = parser.parse_args()
    if args.quick:
        args.molecules, args.n_train = ["water"], [50]
    jax.config.update("jax_enable_x64", True)
    for molecule in args.molecules:
        data = read(args.folder / f"{molecule}_pbe_def2svp.npz")
        split = SPLITS[molecule]
        pool = data.subset(split["train"])
        if args.more and molecule == "ethanol":
            pool = joined(pool, opml.read_dataset(args.more))
        basis = opml.load_basis("def2-svp", data.elements)
        definition = Op2Op(Op2OpConfig(), basis)
        for n in args.n_train or [len(pool)]:
            start = time.perf_counter()
            validation = data.subset(split["validation"])
            fit = fit_op2op(definition, pool.subset(range(n)), validation)
            seconds = time.perf_counter() - start
            models = {"self-consistent": OperatorModel(definition, fit.params)}
            if args.guess:
                first = dataclasses.replace(definition.config, density_words=())
                only = dataclasses.replace(definition, config=first)
                models["guess"] = OperatorModel(only, fit.params)
            for name, model in models.items():
                line = {"name": name, "molecule": molecule, "n_train": n, "fit_seconds": seconds}
                for key in list(split)[2:]:
                    part = data.subset(split[key])
                    model.predict(part.structures)  # compiles
                    start = time.perf_counter()
                    line[key] = errors(model.predict(part.structures), part)
                    line[key]["ms_per_molecule"] = (time.perf_counter() - start) / len(part) * 1e3
                if args.scf:
                    part = data.subset(list(split["test"])[: args.scf])
                    line["scf"] = compare_guesses(model, part)
                line |= environment()
                print(json.dumps(line), flush=True)
                if args.json and not args.quick:
                    with open(Path(__file__).parent / "results" / "op2op.jsonl", "a") as f:
                        f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
