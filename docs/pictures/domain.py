"""Where a model of water knows what it says: energies along a stretched bond, beside PBE."""

import matplotlib.pyplot as plt
import numpy as np
from style import save

import opml_jax as opml
from opml_jax.data.reference import Method, calculate
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE


def draw():
    """Errors of energy; in grey the bonds that training had."""
    data = opml.read_dataset(opml.bundled("water"))
    config = TrainConfig(model=Op2PropConfig(basis="sto-3g", fit=Op2PropFit(epochs=0)))
    splits = {"train": list(range(80)), "validation": list(range(80, 100))}
    model = train(data, splits, config).model
    seen = np.concatenate(
        [
            np.linalg.norm(
                np.asarray(data.structures[i].positions)[1:] - data.structures[i].positions[0],
                axis=1,
            )
            for i in splits["train"]
        ]
    )
    how = data.meta["sampling"]
    minimum = np.array(how["minimum_bohr"])
    method = Method.from_meta(data.meta, forces=False)
    bond = minimum[1] - minimum[0]
    lengths = (
        np.array([0.75, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.7]) / ANGSTROM_PER_BOHR
    )
    errors = []
    for length in lengths:
        positions = minimum.copy()
        positions[1] = minimum[0] + bond * length / np.linalg.norm(bond)
        molecule = opml.Structure(how["numbers"], positions)
        reference = calculate(molecule, method)["energy"]
        errors.append(
            1e3 * EV_PER_HARTREE * abs(float(model.predict(molecule)["energy"]) - float(reference))
        )
        print(length * ANGSTROM_PER_BOHR, errors[-1])
    figure, axis = plt.subplots(figsize=(5.4, 3.0))
    axis.axvspan(
        *(ANGSTROM_PER_BOHR * np.quantile(seen, [0, 1])), color="0.85", label="bonds in training"
    )
    axis.semilogy(lengths * ANGSTROM_PER_BOHR, errors, "o-", ms=4)
    axis.set(xlabel="length of one O-H bond, Å", ylabel="error of the energy, meV")
    axis.legend()
    save(figure, "domain")


if __name__ == "__main__":
    draw()
