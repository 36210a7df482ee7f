"""Op2Prop on products of random mixtures: training, forces through the integrals."""

import numpy as np
import pytest

from opml_jax.errors import OpmlError
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.models.op2prop.residual import make_inputs
from opml_jax.testing import random_rotation
from opml_jax.training import TrainConfig, evaluate, train

CHAIN_RULE = 1e-9  # Hartree/Bohr: cached and direct forces, the same sums in another order
DIFFERENCES = 1e-6  # Hartree/Bohr: the bar set for every force of this library
INVARIANCE = 1e-10  # relative

CONFIG = TrainConfig(
    model=Op2PropConfig(
        basis="sto-3g",
        metric="lifted",
        others=("overlap",),
        powers=(1,),
        channels=6,
        fit=Op2PropFit(epochs=0, targets=("energy", "forces")),
    )
)
SPLITS = {"train": list(range(40)), "validation": list(range(40, 50))}


@pytest.fixture(scope="module")
def trained(dataset):
    return train(dataset, SPLITS, CONFIG)


@pytest.fixture(scope="module")
def predicted(trained, dataset):
    """Predictions for held-out geometries, and for one of them moved about."""
    held_out = dataset.subset(range(40, 50)).structures
    s, h = held_out[0], 1e-3
    x = np.asarray(s.positions)
    moved = []
    for steps in (-2, -1, 1, 2):
        y = x.copy()
        y[1, 2] += steps * h
        moved.append(s.replace(positions=y))
    turned = [s.replace(positions=x @ random_rotation(1, improper=i).T) for i in (False, True)]
    return trained.model.predict(held_out + moved + turned)


def test_it_learns(trained, dataset):
    metrics = evaluate(trained.model, dataset.subset(range(100, 120)))
    spread = np.std(dataset["energy"][100:120]) * 27211
    assert metrics["energy_mae_mev"] < 0.002 * spread
    assert metrics["forces_mae_mev_per_angstrom"] < 5.0


def test_forces(trained, dataset, predicted, described):
    """Those of the cache, those through the integrals and differences of energies."""
    validation = described(trained, CONFIG, dataset, SPLITS).sets["validation"]
    left = make_inputs(trained.model.params, validation)
    cached = validation.labels["forces"] - left["forces"].reshape(10, 3, 3)
    np.testing.assert_allclose(predicted["forces"][:10], cached, atol=CHAIN_RULE)
    e = predicted["energy"][10:14]
    slope = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * 1e-3)
    assert abs(predicted["forces"][0, 1, 2] + slope) < DIFFERENCES
    np.testing.assert_allclose(predicted["energy"][14:], predicted["energy"][0], rtol=INVARIANCE)


def test_descriptors_ask_for_their_mixtures(trained, dataset):
    with pytest.raises(OpmlError, match="no mixing"):
        trained.model.definition.descriptors(dataset.structures[0])
    assert trained.model.definition.n_invariants == 6 * (1 + 3 * 5)  # up to L = 2 in STO-3G
