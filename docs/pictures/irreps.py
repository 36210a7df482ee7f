"""A block and its irreps, before and after a rotation; and how many irreps atoms of water have."""

import matplotlib.pyplot as plt
import numpy as np
from style import WATER, save

import opml_jax as opml
from opml_jax.features.couple import couple
from opml_jax.testing import random_rotation


def block():
    """The block of O 2p and H 2p of V: nine numbers, as 1 + 3 + 5."""
    basis = opml.load_basis("def2-svp", WATER.numbers)
    turned = WATER.replace(positions=WATER.positions @ random_rotation(3).T)
    figure, axes = plt.subplots(
        2, 4, figsize=(8.4, 3.6), width_ratios=[1.4, 0.5, 1, 1.6], sharey="col"
    )
    for row, (name, molecule) in zip(
        axes, {"as given": WATER, "rotated": turned}.items(), strict=True
    ):
        parts = opml.operators.blocks(opml.operators.external_potential(molecule, basis))
        p, q = (ls.index(1) for ls in opml.basis.layout_of(WATER, basis).atom_ls[:2])
        matrix = np.asarray(parts[0, 1, p, q])
        image = row[0].imshow(matrix, cmap="RdBu_r", vmin=-3, vmax=3)
        row[0].set(xticks=range(3), yticks=range(3), xticklabels="yzx", yticklabels="yzx")
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=row[0])
        for axis, (l, b) in zip(row[1:], couple(matrix, 1, 1).items(), strict=True):
            axis.bar(range(-l, l + 1), b, color=f"C{l}")
            axis.axhline(0, color="black", lw=0.6)
            axis.set_xticks(range(-l, l + 1))
            norm = np.linalg.norm(b)
            axis.set_title(f"{l}e, norm {norm:.3f}" if norm > 1e-9 else f"{l}e, norm 0", fontsize=8)
    axes[0, 0].set_title("V between O 2p and H 2p", fontsize=8)
    for axis in axes[1, 1:]:
        axis.set_xlabel("m")
    save(figure, "block")


def counts():
    """Irreps of an atom's features by L, for two powers."""
    basis = opml.load_basis("def2-svp", WATER.numbers)
    irreps = opml.features.AtomFeatures(basis.spec, powers=(1, 2)).irreps
    figure, axis = plt.subplots(figsize=(5.2, 2.6))
    for shift, parity, label in ((-0.2, 1, "even"), (0.2, -1, "odd")):
        ls = range(irreps.lmax + 1)
        n = [sum(m for m, ir in irreps if ir.l == l and ir.p == parity) for l in ls]
        bars = axis.bar(np.array(ls) + shift, n, 0.4, label=label)
        axis.bar_label(bars, fontsize=7)
    axis.set(xlabel="L", ylabel="channels of an atom", xticks=range(irreps.lmax + 1))
    axis.legend(title="parity")
    print(irreps)
    save(figure, "irreps")


if __name__ == "__main__":
    block()
    counts()
