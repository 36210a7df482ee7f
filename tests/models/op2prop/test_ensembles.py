"""Ensembles on bundled water: what their standard deviations are worth."""

import jax
import numpy as np
import pytest

import opml_jax as opml
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
def water():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(scope="module")
def model(water):
    config = _config(members=4, hidden=(16,), epochs=100)
    splits = {"train": [*range(60)], "validation": [*range(60, 120)]}
    splits["calibration"] = [*range(120, 180)]
    return train(water, splits, config).model


def test_molecules_of_their_own_scale_it(water):
    config = _config(members=2, hidden=(4,), epochs=2)
    splits = {"train": [*range(20)], "validation": [*range(20, 30)]}
    apart = water.subset(range(100, 200))
    before = train(water, splits, config).model
    model = train(water, {**splits, "calibration": [*range(100, 200)]}, config).model
    found = model.predict(apart.structures, uncertainty=True)
    for name in ("energy", "forces"):
        error = np.abs(found[name] - np.array(apart.labels[name]))
        share = (error < found[f"{name}_uncertainty"]).mean()
        assert share == pytest.approx(WITHIN, abs=1 / 100)  # one of 100 energies
        assert model.params["calibration"][name] != before.params["calibration"][name]


@pytest.mark.slow
def test_most_errors_are_within_one_standard_deviation(model, water):
    """Scaled by the molecules that chose the epoch, 59 % of force components are."""
    test = water.subset(range(180, 420))
    found = model.predict(test.structures, uncertainty=True)
    for name in ("energy", "forces"):
        error = np.abs(found[name] - np.array(test.labels[name]))
        within = float((error < found[f"{name}_uncertainty"]).mean())
        assert BETWEEN[0] < within < BETWEEN[1], (name, within)
    plain = {k: v for k, v in model.params.items() if k != "calibration"}
    bare = Op2PropModel(model.definition, plain, model.card).predict(
        test.structures[:3], uncertainty=True
    )
    factor = model.params["calibration"]["energy"]
    np.testing.assert_allclose(
        found["energy_uncertainty"][:3], factor * bare["energy_uncertainty"], rtol=1e-9
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the standard deviation is more than")
def test_it_rises_with_the_distance_from_the_training_set(model, water):
    near = water.structures[180:220]
    sigma = []
    for stretch in (1.0, 1.1, 1.2, 1.3):
        far = [s.replace(positions=stretch * np.asarray(s.positions)) for s in near]
        found = jax.tree.map(np.median, model.predict(far, uncertainty=True))
        sigma.append((found["energy_uncertainty"], found["forces_uncertainty"]))
    assert (np.diff(sigma, axis=0) > 0).all(), sigma
