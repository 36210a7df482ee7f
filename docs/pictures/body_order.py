"""Body order of the on-site block of powers of V, measured by inclusion and exclusion of atoms."""

import matplotlib.pyplot as plt
import numpy as np
from style import save

import opml_jax as opml
from opml_jax.analysis import body_order
from opml_jax.testing import random_structure


def draw():
    """Terms of each order for V, V V, V V V at the centre of seven hydrogens."""
    cluster = random_structure([1] * 7, 0)
    basis = opml.load_basis("sto-3g", cluster.numbers)

    def powers(structure):
        V = opml.operators.external_potential(structure, basis)
        products = opml.operators.powers(V, (1, 2, 3))
        products = products.values() if isinstance(products, dict) else products
        return np.stack([np.diag(np.asarray(p.to_dense())) for p in products], axis=-1)

    figure, axis = plt.subplots(figsize=(5.2, 3.0))
    for k, name in enumerate(("V", "V V", "V V V")):
        order, terms = body_order(lambda s, k=k: powers(s)[:, k : k + 1], cluster)
        print(name, order, terms)
        bodies = 1 + np.flatnonzero(terms)
        axis.semilogy(bodies, terms[terms > 0], "o-", ms=4, label=f"{name}: {order}-body")
    axis.axhline(1e-9, color="grey", lw=0.8, ls="--")
    axis.set(xlabel="bodies, centre included", ylabel="largest term, relative", ylim=(1e-17, 3))
    axis.legend(loc=(0.02, 0.04))
    save(figure, "body_order")


if __name__ == "__main__":
    draw()
