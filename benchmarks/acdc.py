"""Equivariant density correlations (ACDC, nu = 2) on featomic's densities, at any cutoff.

featomic's own Gaussian-type radial integrals fail beyond 11 Angstrom for atoms of width 0.3, and
its spline tool overflows there; here integrals of the same functions are done by quadrature with
scaled Bessel functions and handed over as a table. Densities are coupled with this project's
Clebsch-Gordan coefficients.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import ase
import numpy as np
from featomic import SphericalExpansion, basis, cutoff, density
from featomic.splines import Spline, SplinedRadialBasis
from metatensor import Labels
from scipy.special import ive

from opml_jax.features.couple import coupling_matrix


def _orthonormal(radial: basis.Gto) -> np.ndarray:
    """``(n, n)`` from primitive to orthonormal functions (symmetric)."""
    x, w = np.polynomial.legendre.leggauss(800)
    r, w = 2.5 * radial.radius * (x + 1), 2.5 * radial.radius * w
    p = np.array([radial.compute_primitive(r, n, derivative=False) for n in range(radial.size)])
    norms = 1 / np.sqrt(np.sum(w * (r * p) ** 2, axis=1))
    p *= norms[:, None]
    e, u = np.linalg.eigh((w * (r * p)) @ (r * p).T)
    return (u / np.sqrt(e)) @ u.T * norms


def _table(radial: basis.Gto, orthonormal: np.ndarray, l: int, sigma: float) -> Spline:
    """Radial integrals of an atom of width ``sigma`` against its distance."""
    x, w = np.polynomial.legendre.leggauss(60)

    def values(distances: np.ndarray) -> np.ndarray:
        d = np.abs(distances)[:, None]
        low, high = np.maximum(d - 9 * sigma, 0), d + 9 * sigma
        r = 0.5 * (high - low) * (x + 1) + low
        z = r * d / sigma**2
        safe = np.where(z > 1e-14, z, 1.0)
        bessel = np.where(
            z > 1e-14, np.sqrt(0.5 * np.pi / safe) * ive(l + 0.5, safe), float(l == 0)
        )
        weight = 0.5 * (high - low) * w * r**2 * np.exp(-0.5 * ((r - d) / sigma) ** 2) * bessel
        primitives = [radial.compute_primitive(r, n, derivative=False) for n in range(radial.size)]
        found = np.einsum("nik,ik->in", primitives, weight) @ orthonormal.T
        return 4 * np.pi / (np.pi * sigma**2) ** 0.75 * found * (np.sign(distances) ** l)[:, None]

    h = 1e-4 * sigma
    return Spline.with_accuracy(
        0, radial.radius, values, lambda d: (values(d + h) - values(d - h)) / (2 * h), 1e-8
    )


def expansion(radius: float, n_max: int, l_max: int, sigma: float) -> SphericalExpansion:
    """Density of neighbours in ``n_max`` Gaussian-type radial functions.

    Args:
      radius: cutoff in Angstrom, with a shifted cosine of width 0.1.
      n_max: number of radial functions.
      l_max: highest angular momentum.
      sigma: width of an atom in Angstrom.
    """
    radial = basis.Gto(max_radial=n_max - 1, radius=radius)
    mix = _orthonormal(radial)
    tables = {
        l: SplinedRadialBasis(
            spline=_table(radial, mix, l, sigma), max_radial=n_max - 1, radius=radius
        )
        for l in range(l_max + 1)
    }
    return SphericalExpansion(
        cutoff=cutoff.Cutoff(radius=radius, smoothing=cutoff.ShiftedCosine(width=0.1)),
        density=density.DiracDelta(),
        basis=basis.Explicit(by_angular=tables, spline_accuracy=None),
    )


def densities(
    numbers: Sequence[int], positions: np.ndarray, calculator: SphericalExpansion
) -> list[np.ndarray]:
    """Expansion coefficients ``[(n, n_atoms, n_elements * n_max, 2 l + 1) for each l]``."""
    elements = [[int(z)] for z in np.unique(numbers)]
    found = calculator.compute([ase.Atoms(numbers, r) for r in positions])
    found = found.keys_to_samples("center_type")
    found = found.keys_to_properties(Labels(["neighbor_type"], np.array(elements)))
    out = []
    for l in sorted(found.keys["o3_lambda"]):
        block = found.block(o3_lambda=int(l))
        rho = np.zeros((*positions.shape[:2], block.values.shape[2], 2 * l + 1))
        at = np.asarray(block.samples["system"]), np.asarray(block.samples["atom"])
        rho[at] = np.swapaxes(block.values, 1, 2)
        out.append(rho)
    return out


def correlations(rho: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """nu = 2 correlations that are proper tensors of L = 0 and 1.

    Args:
      rho: one array for each l, ``(..., n_channels, 2 l + 1)``.

    Returns:
      ``{L: (..., n_features, 2 L + 1)}``, each pair of channels once, m = -L..L.
    """
    n = rho[0].shape[-2]
    a, b = np.triu_indices(n)
    weight = np.where(a == b, 1.0, np.sqrt(2.0))
    scalars = [
        weight * np.einsum("...am,...bm->...ab", x, x)[..., a, b] / np.sqrt(2 * l + 1)
        for l, x in enumerate(rho)
    ]
    vectors = []
    for l, (x, y) in enumerate(itertools.pairwise(rho)):
        c = np.asarray(coupling_matrix(l, l + 1))[..., :3]  # L = 1 is the lowest
        v = np.einsum("...am,...bn,mnk->...abk", x, y, c, optimize=True)
        vectors.append(v.reshape(*v.shape[:-3], n * n, 3))
    return {
        0: np.concatenate(scalars, axis=-1)[..., None],
        1: np.concatenate(vectors, axis=-2),
    }
