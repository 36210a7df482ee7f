"""What do free atoms look like as a few Gaussian clouds?

Fits the clouds of ``opml_jax.integrals.neutral_atoms``: spherically averaged Hartree-Fock densities
(PySCF, def2-QZVPP) as positive Gaussian charges that add up to Z. The fit minimises the
electrostatic self-energy of the difference, 1/2 int dQ(r)^2 / r^2 dr with dQ the difference in
enclosed charge. Prints the table, and for each
element the self-energy left and the largest error of the potential beyond 0.5 Bohr.

    OMP_NUM_THREADS=1 python benchmarks/neutral_atoms.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from pyscf import gto
from pyscf.scf import atom_hf
from scipy.integrate import cumulative_trapezoid
from scipy.optimize import least_squares
from scipy.special import erf

from opml_jax.structures.elements import symbol

RADII = np.geomspace(1e-4, 40.0, 4000)


def n_clouds(z: int) -> int:
    """Two for the first row, then 4, 5, 6: potentials to about 0.01 Hartree beyond 0.5 Bohr."""
    return (2, 4, 5, 6)[sum(z > noble for noble in (2, 10, 18))]


def enclosed(z: int) -> np.ndarray:
    """Electrons within each radius, of the averaged Hartree-Fock atom."""
    mol = gto.M(atom=[(symbol(z), (0, 0, 0))], basis="def2-qzvpp", spin=None, verbose=0)
    _, _, coefficients, occupation = atom_hf.get_atm_nrhf(mol)[symbol(z)]
    points = RADII[:, None] * np.array([[0.6, 0.0, 0.8]])
    orbitals = mol.eval_gto("GTOval_sph", points) @ coefficients
    density = (orbitals**2) @ occupation
    q = cumulative_trapezoid(4 * np.pi * RADII**2 * density, RADII, initial=0.0)
    return q * (z / q[-1])


def gaussian_enclosed(width: np.ndarray) -> np.ndarray:
    """Part of a unit Gaussian charge within each radius: (n, n_radii)."""
    x = RADII / (np.sqrt(2) * width[:, None])
    return erf(x) - 2 / np.sqrt(np.pi) * x * np.exp(-(x**2))


def unpack(z: int, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Charges (positive, adding up to Z) and widths."""
    logits, log_width = np.split(parameters, 2)
    share = np.exp(logits - logits.max())
    return z * share / share.sum(), np.exp(log_width)


def fit(z: int) -> dict[str, object]:
    """Best of several starts."""
    target, n = enclosed(z), n_clouds(z)
    weight = np.sqrt(np.gradient(RADII)) / RADII

    def residual(parameters):
        charge, width = unpack(z, parameters)
        return weight * (charge @ gaussian_enclosed(width) - target)

    rng = np.random.default_rng(z)
    best = None
    for _ in range(8):
        start = np.concatenate(
            [rng.normal(size=n), np.sort(rng.uniform(np.log(0.5 / z), np.log(2.0), n))]
        )
        found = least_squares(residual, start, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=2000)
        if best is None or found.cost < best.cost:
            best = found
    charge, width = unpack(z, best.x)
    order = np.argsort(width)
    charge, width = np.round(charge[order], 5), np.round(width[order], 5)
    charge[-1] = round(z - charge[:-1].sum(), 5)
    difference = charge @ gaussian_enclosed(width) - target
    # potential: integrate dQ / r^2 from infinity
    field = difference / RADII**2
    potential = -np.concatenate([[0.0], cumulative_trapezoid(field[::-1], RADII[::-1])])[::-1]
    return {
        "name": f"neutral_atom_{symbol(z)}",
        "z": z,
        "clouds": list(zip(charge.tolist(), width.tolist(), strict=True)),
        "self_energy_hartree": float(best.cost),
        "potential_error_beyond_half_bohr_hartree": float(np.abs(potential[RADII > 0.5]).max()),
    }


def main() -> None:
    """Print one line for each element."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only up to Ne")
    args = parser.parse_args()
    for z in range(1, 11 if args.quick else 37):
        row = fit(z)
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        clouds = ", ".join(f"({c:.5f}, {w:.5f})" for c, w in row["clouds"])
        print(
            f"    {z}: ({clouds}),  # {symbol(z)} {row['self_energy_hartree']:.1e} "
            f"{row['potential_error_beyond_half_bohr_hartree']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
