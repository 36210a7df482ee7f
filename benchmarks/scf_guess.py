"""What a predicted density saves PySCF: cycles and processor time of SCFs from several guesses.

    python benchmarks/scf_guess.py molecules.xyz --json
    python benchmarks/scf_guess.py molecules.xyz --xc b3lyp --basis def2-tzvp --density-fit

Every SCF must end at the same energy. The time of the model is that of its prediction and of the
SCF from it; its first prediction of a composition compiles, and is timed apart. ``vsap`` is the
superposition of atomic potentials. One core: ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import ase.io
import jax
import numpy as np
from environment import record
from pyscf import dft

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.errors import OpmlError
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.interfaces.pyscf import HIGHER, SHIPPED, guess, pyscf_guesses


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules", type=Path, help="xyz")
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--xc", default="pbe")
    parser.add_argument("--basis", default="def2-svp")
    parser.add_argument("--density-fit", action="store_true")
    parser.add_argument("--grid-level", type=int, default=3)
    parser.add_argument("--conv-tol", type=float, default=1e-9)
    parser.add_argument("--guesses", nargs="+", default=["minao", "atom", "vsap"])
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    model = opml.load_model(args.model)
    rows = []
    for atoms in ase.io.read(args.molecules, ":")[: args.limit or None]:
        structure = structure_from_ase(atoms)
        mol = molecule(structure, args.basis)

        def mean_field(mol=mol):
            mf = dft.RKS(mol, xc=args.xc)
            mf.grids.level, mf.conv_tol = args.grid_level, args.conv_tol
            return mf.density_fit() if args.density_fit else mf

        line = {"molecule": atoms.get_chemical_formula(), "nao": mol.nao}
        mf, start = mean_field(), time.process_time()
        try:
            guess(mf, model, fallback=None)
        except OpmlError as err:
            record({**line, "refused": err.message}, "scf_guess", args.json)
            continue
        line["first_prediction_cpu_s"] = time.process_time() - start
        energies = {}
        for name in (*args.guesses, "model"):
            mf, start = mean_field(), time.process_time()
            if name == "model":
                dm = guess(mf, model, fallback=None)
                line["prediction_cpu_s"] = time.process_time() - start
            else:
                dm = pyscf_guesses(mf, (name,))[name]
            mf.kernel(dm0=dm)
            line[f"cpu_s_{name}"] = time.process_time() - start
            line[f"cycles_{name}"] = mf.cycles
            energies[name] = float(mf.e_tot) if mf.converged else float("nan")
        lowest = np.nanmin([*energies.values()])
        line["elsewhere"] = [k for k, e in energies.items() if not e <= lowest + HIGHER]
        rows.append(line)
        print(line, flush=True)
    line = {"set": args.molecules.stem, "xc": args.xc, "basis": args.basis, "n": len(rows)}
    line |= {"density_fit": args.density_fit, "grid_level": args.grid_level}
    line["elsewhere"] = sum(bool(row["elsewhere"]) for row in rows)
    for name in rows[0]:
        if name.startswith(("cpu_s", "cycles", "prediction", "first")):
            line[name] = float(np.mean([row[name] for row in rows]))
    for name in args.guesses:
        for what in ("cycles", "cpu_s"):
            ratio = [row[f"{what}_model"] / row[f"{what}_{name}"] for row in rows]
            line[f"{what}_of_{name}"] = float(np.mean(ratio))
    record(line, "scf_guess", args.json)


if __name__ == "__main__":
    main()
