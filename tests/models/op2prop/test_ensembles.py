"""Ensembles on bundled water: what their standard deviations are worth."""

import numpy as np
import pytest

from opml_jax.learn.calibration import WITHIN
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit, Op2PropModel
from opml_jax.models.op2prop.residual import calibration
from opml_jax.training import TrainConfig, train

BETWEEN = (0.60, 0.76)  # of errors below one standard deviation; 240 energies scatter by 0.03


def test_the_factor_is_that_of_the_errors():
    """Against a distribution that is known: members are right to sigma, and errors are two."""
    rng = np.random.default_rng(0)
    truth, sigma = rng.normal(size=4000), rng.uniform(0.5, 2.0, 4000)
    members = rng.normal(size=(400, 4000)) * sigma + truth
    wanted = truth + 2 * sigma * rng.normal(size=4000)
    found = calibration({"energy": members}, {"energy": wanted, "one_hot": np.ones((4000, 1, 1))})
    assert found["energy"] == pytest.approx(2.0, rel=0.05)
    same = calibration({"energy": 0 * members}, {"energy": wanted, "one_hot": np.ones((1, 1, 1))})
    assert same["energy"] == 1.0


def _config(epochs, **sizes):
    fit = Op2PropFit(epochs=epochs, targets=("energy", "forces"))
    plain = {"basis": "sto-3g", "powers": (1,), "gram_powers": (1,)}
    return TrainConfig(model=Op2PropConfig(**plain, **sizes, fit=fit))


@pytest.fixture(scope="module")
def model(dataset):
    config = _config(members=4, hidden=(16,), epochs=100)
    splits = {"train": [*range(60)], "validation": [*range(60, 120)]}
    splits["calibration"] = [*range(120, 180)]
    return train(dataset, splits, config).model


@pytest.mark.slow
def test_molecules_of_their_own_scale_it(dataset, within):
    config = _config(members=2, hidden=(4,), epochs=2)
    splits = {"train": [*range(20)], "validation": [*range(20, 30)]}
    before = train(dataset, splits, config).model
    model = train(dataset, {**splits, "calibration": [*range(100, 200)]}, config).model
    for name, share in within(model, dataset.subset(range(100, 200))).items():
        assert share == pytest.approx(WITHIN, abs=1 / 100)  # one of 100 energies
        assert model.params["calibration"][name] != before.params["calibration"][name]


@pytest.mark.slow
def test_most_errors_are_within_one_standard_deviation(model, dataset, within):
    """Scaled by the molecules that chose the epoch, 59 % of force components are."""
    test = dataset.subset(range(180, 420))
    for name, share in within(model, test).items():
        assert BETWEEN[0] < share < BETWEEN[1], (name, share)
    plain = {k: v for k, v in model.params.items() if k != "calibration"}
    bare = Op2PropModel(model.definition, plain, model.card)
    found, unscaled = (
        m.predict(test.structures[:3], uncertainty=True)["energy_uncertainty"]
        for m in (model, bare)
    )
    factor = model.params["calibration"]["energy"]
    np.testing.assert_allclose(found, factor * unscaled, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the standard deviation is more than")
def test_it_rises_with_the_distance_from_the_training_set(model, dataset, stretched):
    sigma = stretched(model, dataset.structures[180:220])
    assert (np.diff(sigma, axis=0) > 0).all(), sigma
