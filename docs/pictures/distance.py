"""How far operators reach: blocks of n-octane against distance, and a second water far away."""

import matplotlib.pyplot as plt
import numpy as np
from style import WATER, alkane, save

import opml_jax as opml
from opml_jax.analysis import block_norms
from opml_jax.units import ANGSTROM_PER_BOHR

ops = opml.operators


def blocks():
    """Norms of blocks between carbons."""
    octane = alkane(8)
    basis = opml.load_basis("def2-svp", octane.numbers)
    V = ops.external_potential(octane, basis)
    screened = ops.screened_potential(octane, basis)
    figure, axis = plt.subplots(figsize=(5.6, 3.4))
    shown = {
        "V": V,
        "V V": V @ V,
        "screened V": screened,
        "its square": screened @ screened,
        "S": ops.overlap(octane, basis),
    }
    for marker, (name, operator) in zip("osx+.", shown.items(), strict=True):
        distance, norm = block_norms(operator, octane)[6, 6]
        axis.semilogy(distance * ANGSTROM_PER_BOHR, norm, marker, ms=4, label=name)
    axis.set(xlabel="distance of two carbons, Å", ylabel="norm of their block")
    axis.legend()
    save(figure, "blocks")


def far_water():
    """Change of the oxygen's own block by a second water."""
    basis = opml.load_basis("sto-3g", WATER.numbers)
    n = opml.basis.layout_of(WATER, basis).offsets[1]

    def change(build, distance):
        moved = WATER.positions + np.array([distance, 0.0, 0.0])
        pair = opml.Structure(WATER.numbers * 2, np.concatenate([WATER.positions, moved]))
        alone = build(WATER, basis).to_dense()[:n, :n]
        return float(np.abs(build(pair, basis).to_dense()[:n, :n] - alone).max())

    distances = np.linspace(5, 40, 15)
    figure, axis = plt.subplots(figsize=(5.6, 3.0))
    for name in ("external_potential", "neutral_atom_potential", "screened_potential"):
        values = np.array([change(getattr(ops, name), d) for d in distances])
        seen = values > 1e-12  # below: rounding
        axis.semilogy(distances[seen] * ANGSTROM_PER_BOHR, values[seen], "o-", ms=4, label=name)
    axis.set(xlabel="distance of the second water, Å", ylabel="change of the O block, Hartree")
    axis.legend()
    save(figure, "far_water")


if __name__ == "__main__":
    blocks()
    far_water()
