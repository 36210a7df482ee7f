"""Matrices of water: V, its square, the screened V; and what a Fock matrix adds to known ones."""

import matplotlib.pyplot as plt
import numpy as np
from style import WATER, save

import opml_jax as opml

ops = opml.operators


def show(axis, matrix, layout, **colours):
    """A matrix with its shells marked."""
    image = axis.imshow(matrix, **colours)
    edges, names, at = [], [], []
    start = 0
    for ls in layout.atom_ls:
        counts = {}
        for l in ls:
            counts[l] = counts.get(l, 0) + 1
            edges.append(start)
            names.append(f"{counts[l] + l}{'spdf'[l]}")
            at.append(start + l)
            start += 2 * l + 1
        axis.axhline(start - 0.5, color="white", lw=1.2)
        axis.axvline(start - 0.5, color="white", lw=1.2)
    for edge in edges[1:]:
        axis.axhline(edge - 0.5, color="white", lw=0.3)
        axis.axvline(edge - 0.5, color="white", lw=0.3)
    axis.set_yticks(at, names, fontsize=6)
    axis.set_xticks(at, names, fontsize=6, rotation=90)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def potentials():
    """V, V V and the screened V on one logarithmic scale."""
    basis = opml.load_basis("def2-svp", WATER.numbers)
    V = ops.external_potential(WATER, basis)
    shown = {
        "V": V,
        "V V": V @ V,
        "screened V": ops.screened_potential(WATER, basis),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3))
    for axis, (name, operator) in zip(axes, shown.items(), strict=True):
        matrix = np.log10(np.abs(np.asarray(operator.to_dense())) + 1e-12)
        image = show(axis, matrix, V.layout, cmap="viridis", vmin=-4, vmax=4)
        axis.set_title(name)
    figure.colorbar(image, ax=axes, label="log10 |element|, Hartree (V V: Hartree²)", shrink=0.9)
    save(figure, "potentials")


def fock():
    """A Fock matrix, T + W, and the difference, of the first bundled water."""
    data = opml.read_dataset(opml.bundled("water"))
    water, F = data.structures[0], np.asarray(data["fock"][0])
    basis = opml.load_basis(data.meta["basis"], water.numbers)
    W = ops.neutral_atom_potential(water, basis)
    known = np.asarray((ops.kinetic(water, basis) + W).to_dense())
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3))
    for axis, (name, matrix) in zip(
        axes,
        {"F (PBE)": F, "T + W, known": known, "F - T - W, learned": F - known}.items(),
        strict=True,
    ):
        shown = np.log10(np.abs(matrix) + 1e-12)
        image = show(axis, shown, W.layout, cmap="viridis", vmin=-4, vmax=2)
        axis.set_title(f"{name}: mean |element| {np.abs(matrix).mean():.2g}", fontsize=8)
    figure.colorbar(image, ax=axes, label="log10 |element|, Hartree", shrink=0.9)
    save(figure, "fock")


if __name__ == "__main__":
    potentials()
    fock()
