"""Kohn-Sham calculations in JAX: what do energies and forces cost beside PySCF's?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/kohn_sham.py --json

CPU seconds, medians of ``--repeats``, compilation apart, of molecules in def2-SVP displaced by
0.05 A (seed 0), grids of level 1 that move with the atoms, both programs in one process. PySCF fits
densities with the same functions, so that energies and forces are to agree, and again as it comes
(``pyscf_default``: def2-universal-jfit, no response of grid and fit), where they need not. Both
begin with their own guess and end at a commutator of 1e-6 (here) or a change of energy of 1e-9.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax

jax.config.update("jax_enable_x64", True)

import ase.build
import numpy as np
from environment import record
from pyscf import dft

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.density import atomic_grids
from opml_jax.integrals import FINE
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.mean_field import kohn_sham
from opml_jax.structures.elements import symbol

NAMES = {"lda": "lda,pw_mod", "pbe": "pbe"}


def measured(function: Callable[[], object], repeats: int):
    """The result and the median of CPU seconds."""
    runs, out = [], None
    for _ in range(repeats):
        start = time.process_time()
        out = jax.block_until_ready(function())
        runs.append(time.process_time() - start)
    return out, float(np.median(runs))


def pyscf(structure, basis, functional: str, level: int, functions=None):
    """A function that calculates energy and gradient anew."""

    def calculated():
        mf = dft.RKS(molecule(structure, basis), xc=NAMES[functional])
        mf = mf.density_fit(auxbasis=functions)
        mf.grids.level = level
        start = time.process_time()
        mf.kernel()
        middle = time.process_time() - start
        gradient = mf.nuc_grad_method()
        gradient.grid_response = gradient.auxbasis_response = functions is not None
        return mf.e_tot, gradient.kernel(), middle

    return calculated


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", nargs="*", default=["CH3CH2OH", "C6H6"], help="of ASE's G2")
    parser.add_argument("--functionals", nargs="*", choices=NAMES, default=["lda", "pbe"])
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="water, LDA, one repeat")
    parser.add_argument("--json", action="store_true", help="append lines to results/")
    args = parser.parse_args()
    if args.quick:
        args.molecules, args.functionals, args.repeats = ["H2O"], ["lda"], 1
    basis = opml.load_basis("def2-svp", [1, 6, 7, 8])
    for name in args.molecules:
        structure = structure_from_ase(ase.build.molecule(name))
        change = 0.05 * np.random.default_rng(0).normal(size=(len(structure.numbers), 3))
        structure = structure.replace(positions=np.asarray(structure.positions) + change)
        grids, x = atomic_grids(structure, args.level), structure.positions
        for functional in args.functionals:

            def energy(positions, functional=functional, structure=structure, grids=grids):
                moved = structure.replace(positions=positions)
                return kohn_sham(moved, basis, grids, functional)["energy"]

            alone, both = jax.jit(energy), jax.jit(jax.value_and_grad(energy))
            _, compile_energy = measured(lambda f=alone, x=x: f(x), 1)
            _, compile_both = measured(lambda f=both, x=x: f(x), 1)
            _, seconds = measured(lambda f=alone, x=x: f(x), args.repeats)
            (found, gradient), with_forces = measured(lambda f=both, x=x: f(x), args.repeats)
            functions = {
                symbol(z): [
                    [f.l, [a, 1.0]] for f in FINE if not (f.heavy and z <= 2) for a in f.exponents
                ]
                for z in set(structure.numbers)
            }
            same = pyscf(structure, basis, functional, args.level, functions)
            (wanted, theirs, scf), peer = measured(same, args.repeats)
            (_, _, scf_default), default = measured(
                pyscf(structure, basis, functional, args.level), args.repeats
            )
            line = {
                "molecule": name,
                "nao": opml.basis.layout_of(structure, basis).nao,
                "functional": functional,
                "level": args.level,
                "cpu_s": {"energy": seconds, "with_forces": with_forces},
                "compile_cpu_s": {"energy": compile_energy, "with_forces": compile_both},
                "pyscf_cpu_s": {"energy": scf, "with_forces": peer},
                "pyscf_default_cpu_s": {"energy": scf_default, "with_forces": default},
                "ratio": with_forces / peer,
                "ratio_default": with_forces / default,
                "energy_error": abs(float(found) - wanted),
                "gradient_error": float(np.abs(np.asarray(gradient) - theirs).max()),
            }
            record(line, "kohn_sham", args.json and not args.quick)


if __name__ == "__main__":
    main()
