"""Geometries of small molecules of H, C, N and O, for the model of them that is shipped.

    python benchmarks/small_molecules.py DIR
    opml generate DIR/small.xyz -o DIR/small.h5 --method pbe --basis def2-svp --grid-level 3

The molecules are those of the G2 set (geometries in ASE) with neutral closed shells and at most
four atoms other than hydrogen. Each is displaced along its harmonic modes (HF/STO-3G) as at
``--temperature``; modes softer than 300 cm^-1 move as if they were at 300, because torsions are not
straight lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase.collections import g2

from opml_jax.data.minima import hessian
from opml_jax.data.reference import Method
from opml_jax.data.sampling import normal_modes
from opml_jax.interfaces.ase import structure_from_ase, structure_to_ase
from opml_jax.units import HARTREE_PER_KELVIN, WAVENUMBER_PER_HARTREE

ELEMENTS = {1, 6, 7, 8}
MOST_HEAVY = 4
SOFTEST = 300.0 / WAVENUMBER_PER_HARTREE
OPEN = {"CH2_s1A1d", "O3"}
"""Singlets whose ground state is no closed shell, or hardly one."""


def molecules() -> dict[str, ase.Atoms]:
    """Those of the set, by its names."""

    def fits(atoms) -> bool:
        z = atoms.numbers
        closed = z.sum() % 2 == 0 and not atoms.get_initial_magnetic_moments().any()
        return closed and len(z) > 1 and set(z) <= ELEMENTS and (z > 1).sum() <= MOST_HEAVY

    return {name: g2[name] for name in g2.names if name not in OPEN and fits(g2[name])}


def displaced(structure, temperature: float, n: int, seed: int) -> list:
    """Geometries of the classical Boltzmann distribution of the modes, turned at random."""
    frequencies, modes = normal_modes(structure, hessian(structure, Method("hf", "sto-3g")))
    width = (HARTREE_PER_KELVIN * temperature) ** 0.5 / np.maximum(frequencies, SOFTEST)
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        moved = structure.positions + np.tensordot(rng.normal(size=len(width)) * width, modes, 1)
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        out.append(structure.replace(positions=moved @ (q * np.sign(np.diag(r)))))
    return out


def main() -> None:
    """Write the geometries, molecule after molecule within each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--temperature", type=float, default=500.0, help="Kelvin")
    parser.add_argument("--rounds", type=int, default=24, help="geometries of each molecule")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i, (name, atoms) in enumerate(molecules().items()):
        start = structure_from_ase(atoms)
        found.append(displaced(start, args.temperature, args.rounds, seed=i))
        print(f"{name}: {start.n_atoms} atoms", flush=True)
    rounds = [structure_to_ase(own[k]) for k in range(args.rounds) for own in found]
    ase.io.write(args.folder / "small.xyz", rounds)


if __name__ == "__main__":
    main()
