"""Models warn of structures that they doubt much more than what scaled their doubts."""

import warnings

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import DataWarning
from opml_jax.interfaces.ase import OPMLCalculator, structure_to_ase
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train

SPLITS = {"train": [*range(30)], "validation": [*range(30, 50)]}


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(
    scope="module", params=["last layer", pytest.param("ensemble", marks=pytest.mark.slow)]
)
def model(water, request):
    kind = {"last_layer": True} if request.param == "last layer" else {"members": 2}
    sizes = {"basis": "sto-3g", "powers": (1,), "gram_powers": (1,), "hidden": (4,)}
    config = Op2PropConfig(**sizes, **kind, fit=Op2PropFit(targets=("energy",), epochs=2))
    return train(water, SPLITS, TrainConfig(model=config)).model


def test_the_largest_is_that_of_validation(model, water):
    part = water.subset(SPLITS["validation"])
    found = model.predict(part.structures, uncertainty="energy")
    assert "forces_uncertainty" not in found
    whole = model.predict(part.structures, uncertainty=True)
    np.testing.assert_allclose(found["energy_uncertainty"], whole["energy_uncertainty"], rtol=1e-9)
    largest = (found["energy_uncertainty"] / 3).max()  # three atoms
    assert model.card["largest_doubt"] == pytest.approx(largest, rel=1e-9)


@pytest.mark.filterwarnings("ignore:atoms are bonded:opml_jax.errors.DataWarning")
def test_far_structures_are_named(model, water):
    near = water.structures[30]
    far = near.replace(positions=1.6 * np.asarray(near.positions))
    with pytest.warns(DataWarning, match=r"in 2 of 4 structures \(1, 3\)"):
        model.predict([near, far, near, far], uncertainty="energy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", "atoms are bonded as none was"
        )  # so far away they are not
        model.predict([near, near], uncertainty="energy")
        model.predict([near, far])  # nobody asked
    calculator = OPMLCalculator(model, uncertainty=True)
    with pytest.warns(DataWarning, match="in 1 of 1 structure "):
        calculator.get_potential_energy(structure_to_ase(far))
