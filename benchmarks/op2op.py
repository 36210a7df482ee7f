"""Fock matrices of water and ethanol: learned self-consistent fields, and what they are worth.

    python benchmarks/op2op.py DIR --json

DIR holds ``water_pbe_def2svp.npz`` and ``ethanol_pbe_def2svp.npz`` (``R`` in Angstrom, ``Z``, ``F``
in Hartree and PySCF's AO order). Splits by position in the file: water 500 for training, 100 for
validation, 100 for test, then 100 at 300 K and 60 with 0.08 Angstrom of noise; ethanol 130, 20 and
50. ``--scf N`` starts PySCF from the predictions of the first N test structures, beside its own
guesses. Errors in 1e-6: mean over all matrix elements (``fock_mae_uha``, the convention of SchNOrb,
PhiSNet and QHNet), occupied levels, gap, density matrix.
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
from opml_jax.data.reference import Method, mean_field
from opml_jax.models import Op2Op, Op2OpConfig, OperatorModel
from opml_jax.observables import density_matrix, orbitals
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
MICRO = 1e6


def read(file: Path) -> Dataset:
    """Fock matrices in the library's order."""
    with np.load(file) as f:
        numbers, positions, fock = f["Z"], f["R"] / ANGSTROM_PER_BOHR, f["F"]
        energy = f["E"]
    structures = [opml.Structure(numbers, r) for r in positions]
    basis = opml.load_basis("def2-svp", numbers)
    fock = [opml.from_pyscf(m, s, basis) for s, m in zip(structures, fock, strict=True)]
    return Dataset(structures, {"fock": fock, "energy": list(energy)})


def errors(predicted: dict[str, np.ndarray], part: Dataset) -> dict[str, float]:
    """Errors in 1e-6 atomic units."""
    wanted = np.array(part.labels["fock"])
    s, pairs = predicted["overlap"], sum(part.structures[0].numbers) // 2
    level = np.asarray(orbitals(wanted, s)[0]) - predicted["mo_energy"]
    left = predicted["fock"] - wanted
    dm = predicted["dm"] - np.asarray(density_matrix(wanted, s, 2 * pairs))
    return {
        "fock_mae_uha": MICRO * np.abs(left).mean(),
        "fock_rmse_uha": MICRO * np.sqrt((left**2).sum(axis=(1, 2)).mean() / left.shape[1]),
        "eigenvalue_occupied_mae_uha": MICRO * np.abs(level[:, :pairs]).mean(),
        "gap_mae_uha": MICRO * np.abs(level[:, pairs] - level[:, pairs - 1]).mean(),
        "dm_mae_1e6": MICRO * np.abs(dm).mean(),
        "residual_uha": MICRO * predicted["residual"].max(),
    }


def restarts(model: OperatorModel, part: Dataset, grid_level: int) -> dict[str, float]:
    """SCF cycles from the prediction and from PySCF's guesses, and the energy at the prediction."""
    method = Method(grid_level=grid_level, conv_tol=1e-9)
    predicted = model.predict(part.structures)
    cycles: dict[str, list[int]] = {}
    energy = []
    for i, structure in enumerate(part.structures):
        mf = mean_field(structure, method)
        dm = opml.to_pyscf(predicted["dm"][i], structure, model.definition.basis)
        guesses = {k: mf.get_init_guess(key=k) for k in ("minao", "atom")} | {"model": dm}
        energies = {}
        for name, start in guesses.items():
            mf.kernel(dm0=start)
            assert mf.converged
            energies[name] = mf.e_tot
            cycles.setdefault(name, []).append(mf.cycles)
        spread = max(energies.values()) - min(energies.values())
        assert spread < 1e-6, "the SCF found two solutions"
        energy.append(abs(mf.energy_tot(dm=dm) - min(energies.values())))
    mean = {f"scf_cycles_{k}": float(np.mean(v)) for k, v in cycles.items()}
    return {
        **mean,
        "scf_iterations_ratio_minao": mean["scf_cycles_model"] / mean["scf_cycles_minao"],
        "energy_of_density_mae_uha": MICRO * float(np.mean(energy)),
        "n": len(part),
    }


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
    args = parser.parse_args()
    if args.quick:
        args.molecules, args.n_train = ["water"], [50]
    jax.config.update("jax_enable_x64", True)
    for molecule in args.molecules:
        data = read(args.folder / f"{molecule}_pbe_def2svp.npz")
        split = SPLITS[molecule]
        basis = opml.load_basis("def2-svp", data.elements)
        definition = Op2Op(Op2OpConfig(), basis)
        for n in args.n_train or [len(split["train"])]:
            start = time.perf_counter()
            validation = data.subset(split["validation"])
            fit = fit_op2op(definition, data.subset(range(n)), validation)
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
                    line["scf"] = restarts(model, part, GRIDS[molecule])
                line |= environment()
                print(json.dumps(line), flush=True)
                if args.json and not args.quick:
                    with open(Path(__file__).parent / "results" / "op2op.jsonl", "a") as f:
                        f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
