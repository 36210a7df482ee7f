"""Exchange and correlation on a grid: what do energies, matrices and gradients cost beside PySCF's?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/exchange_correlation.py --json

CPU milliseconds, medians of ``--repeats``, compilation apart, of molecules in def2-SVP on grids of
level 1, both programs in one process: ``setup`` (grid and values of orbitals), ``density`` (energy
and matrix of one density matrix) and ``gradient`` (of the energy in positions at one density
matrix, with points and weights that move). PySCF computes values of orbitals for every density.
Errors are differences from PySCF of the same run, Hartree and Hartree/Bohr.
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
from pyscf.grad import rks as rks_grad

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.density import atomic_grids, exchange_correlation
from opml_jax.interfaces.ase import structure_from_ase

NAMES = {"lda": "lda,pw_mod", "pbe": "pbe"}


def measured(function: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds of a call, the median, after one that compiles."""
    jax.block_until_ready(function())
    runs = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(function())
        runs.append(time.process_time() - start)
    return float(1e3 * np.median(runs))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", nargs="*", default=["CH3CH2OH", "C6H6"], help="of ASE's G2")
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="water, three repeats")
    parser.add_argument("--json", action="store_true", help="append lines to results/")
    args = parser.parse_args()
    if args.quick:
        args.molecules, args.repeats = ["H2O"], 3
    basis = opml.load_basis("def2-svp", [1, 6, 7, 8])
    for name in args.molecules:
        structure = structure_from_ase(ase.build.molecule(name))
        grids, mol = atomic_grids(structure, args.level), molecule(structure, basis)
        for functional, theirs in NAMES.items():
            mf = dft.RKS(mol, xc=theirs)
            mf.grids.level = args.level
            mf.kernel()
            of_pyscf = mf.make_rdm1()
            dm = opml.from_pyscf(of_pyscf, structure, basis)

            def made(positions, functional=functional, structure=structure, grids=grids):
                moved = structure.replace(positions=positions)
                return exchange_correlation(moved, basis, grids, functional)

            setup, density = jax.jit(made), jax.jit(lambda own, dm: own(dm))
            gradient = jax.jit(jax.grad(lambda x, dm, made=made: made(x)(dm)[0]))
            own = setup(structure.positions)
            line = {"molecule": name, "nao": len(dm), "functional": functional}
            line |= {"level": args.level, "points": len(mf.grids.weights)}
            calls = {
                "setup": lambda setup=setup, x=structure.positions: setup(x),
                "density": lambda own=own, dm=dm, density=density: density(own, dm),
                "gradient": lambda g=gradient, x=structure.positions, dm=dm: g(x, dm),
            }
            numint, read = mf._numint, (mf.mol, mf.grids, mf.xc, of_pyscf)
            peers = {
                "setup": lambda grids=mf.grids: grids.build(with_non0tab=True),
                "density": lambda numint=numint, read=read: numint.nr_rks(*read),
                "gradient": lambda numint=numint, read=read: rks_grad.get_vxc_full_response(
                    numint, *read
                ),
            }
            for what, call in calls.items():
                ms, peer = measured(call, args.repeats), measured(peers[what], args.repeats)
                line[what] = {"cpu_ms": ms, "pyscf_cpu_ms": peer, "ratio": ms / peer}
            _, energy, matrix = numint.nr_rks(*read)
            found, potential = density(own, dm)
            change = opml.to_pyscf(potential, structure, basis) - matrix
            line["energy_error"] = abs(float(found) - float(energy))
            line["matrix_error"] = float(np.abs(change).max())
            of_points, pulay = rks_grad.get_vxc_full_response(numint, *read)
            wanted = [
                g + 2 * np.einsum("xij,ij->x", pulay[:, a:b], of_pyscf[a:b])
                for g, (_, _, a, b) in zip(of_points, mol.aoslice_by_atom(), strict=True)
            ]
            error = np.asarray(gradient(structure.positions, dm)) - wanted
            line["gradient_error"] = float(np.abs(error).max())
            record(line, "exchange_correlation", args.json and not args.quick)


if __name__ == "__main__":
    main()
