"""Which observables suffer when Fock or density matrices are cut off at a distance?

    python benchmarks/matrix_cutoff.py --json

Benzo[g]quinoline (an anthracene with a nitrogen) and 1-fluorodecane, planar and all-trans with
standard bond lengths, PBE in ``--basis``: the converged F, and the P of it, restricted to blocks of
atoms within each cutoff, of the AOs and of Löwdin's basis. What the errors are:
:func:`opml_jax.analysis.matrix_cutoff_study`.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.analysis import matrix_cutoff_study
from opml_jax.data.reference import Method, calculate
from opml_jax.units import ANGSTROM_PER_BOHR

CC, CH, CF, RING = 1.53, 1.09, 1.39, 1.40
"""Angstrom: bonds of alkanes, and of rings."""


def benzoquinoline() -> tuple[list[str], np.ndarray]:
    """Three rings in a row, the CH beside a shared atom replaced by N; Angstrom."""
    angles = np.pi / 6 + np.pi / 3 * np.arange(6)
    hexagon = RING * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centres = np.array([[n * RING * 3**0.5, 0.0] for n in range(3)])
    corners = (centres[:, None] + hexagon).reshape(-1, 2)
    _, first = np.unique(np.round(corners, 6) + 0.0, axis=0, return_index=True)
    carbons = corners[np.sort(first)]
    distance = np.linalg.norm(carbons[:, None] - carbons, axis=-1)
    bonded = (distance > 0.1) & (distance < 1.1 * RING)
    edge = np.flatnonzero(bonded.sum(1) == 2)
    shared = bonded.sum(1) == 3
    nitrogen = next(i for i in edge if bonded[i] @ shared == 1)
    symbols = ["N" if i == nitrogen else "C" for i in range(len(carbons))]
    positions = [*carbons]
    for i in edge:
        if i != nitrogen:
            out = carbons[i] - carbons[bonded[i]].mean(0)
            positions.append(carbons[i] + CH * out / np.linalg.norm(out))
            symbols.append("H")
    return symbols, np.pad(np.array(positions), ((0, 0), (0, 1)))


def fluorodecane(n: int = 10) -> tuple[list[str], np.ndarray]:
    """All-trans, tetrahedral, one end a fluorine in the plane; Angstrom."""
    half = np.arccos(-1 / 3) / 2
    step, height = CC * np.sin(half), CC * np.cos(half)
    zigzag = np.array([[i * step, (i % 2) * height, 0.0] for i in range(-1, n + 1)])
    symbols, positions = ["C"] * n, [*zigzag[1:-1]]
    for i in range(1, n + 1):
        up = 1.0 if i % 2 == 0 else -1.0
        for side in (1, -1):
            symbols.append("H")
            h = CH * np.array([0.0, up * np.cos(half), side * np.sin(half)])
            positions.append(zigzag[i] + h)
    for end, inside, symbol, length in ((0, 1, "F", CF), (-1, -2, "H", CH)):
        symbols.append(symbol)
        positions.append(zigzag[inside] + length / CC * (zigzag[end] - zigzag[inside]))
    return symbols, np.array(positions)


MOLECULES = {"benzo[g]quinoline": benzoquinoline, "1-fluorodecane": fluorodecane}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", nargs="*", choices=[*MOLECULES], default=[*MOLECULES])
    parser.add_argument("--basis", default="sto-3g")
    parser.add_argument("--cutoffs", nargs="*", type=float, default=[2, 3, 4, 5, 6, 8, 10])
    parser.add_argument("--widths", nargs="*", type=float, default=[0.0, 2.0], help="Angstrom")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name in args.molecules:
        symbols, positions = MOLECULES[name]()
        numbers = [opml.structures.elements.atomic_number(x) for x in symbols]
        structure = opml.Structure(numbers, positions / ANGSTROM_PER_BOHR)
        basis = opml.load_basis(args.basis, numbers)
        found = calculate(structure, Method("pbe", args.basis, 1, 1e-9, forces=False))
        reach = max(np.linalg.norm(x - y) for x in positions for y in positions)
        for orthogonal in (False, True):
            for width in args.widths:
                cutoffs = np.array(args.cutoffs) / ANGSTROM_PER_BOHR
                study = matrix_cutoff_study(
                    structure,
                    found["fock"],
                    basis,
                    cutoffs,
                    width=min(width / ANGSTROM_PER_BOHR, cutoffs.min()),
                    orthogonal=orthogonal,
                )
                line = {"name": name, "basis": args.basis, "largest_distance_angstrom": reach}
                line |= {"width_angstrom": width, "orthogonal": orthogonal}
                line |= {"cutoff_angstrom": args.cutoffs}
                line |= {k: v.tolist() for k, v in study.items() if k != "cutoff"}
                record(line, "matrix_cutoff", args.json)


if __name__ == "__main__":
    main()
