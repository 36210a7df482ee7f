"""Standard deviations of the last layer: what they are made of, and what they are worth."""

import numpy as np
import pytest

from opml_jax.errors import OpmlError
from opml_jax.learn.calibration import WITHIN
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit, Op2PropModel
from opml_jax.models.op2prop.last_layer import feature_rows
from opml_jax.training import TrainConfig, train

BETWEEN = (0.60, 0.76)  # of errors below one standard deviation; 240 energies scatter by 0.03
FINITE = 1e-6  # relative, central differences with steps of 2e-4 Bohr


def _config(targets=("energy", "forces"), epochs=0):
    model = Op2PropConfig(
        basis="sto-3g",
        powers=(1,),
        gram_powers=(1,),
        hidden=(16,),
        last_layer=True,
        fit=Op2PropFit(epochs=epochs, targets=targets),
    )
    return TrainConfig(model=model)


def _splits(n=20, calibration=()):
    splits = {"train": [*range(n)], "validation": [*range(n, 2 * n)]}
    return {**splits, "calibration": list(calibration)}


def _train(dataset, n=20, calibration=(), **config):
    return train(dataset, _splits(n, calibration), _config(**config))


@pytest.fixture(scope="module")
def trained(dataset):
    return _train(dataset)


def test_variances_are_those_of_bayesian_linear_regression(trained, dataset, described):
    """Features of the cache are the model's own, and their inverse Gram matrix the covariance."""
    model, part = trained.model, described(trained, _config(), dataset, _splits()).sets["train"]
    last = model.params["last_layer"]
    rows = feature_rows(model.params, part.cache, True)
    found = model.predict(dataset.structures[:20], uncertainty=True)
    for name in ("energy", "forces"):
        expected = last[name] * np.linalg.norm(rows[name] @ last["factor"], axis=1)
        np.testing.assert_allclose(found[f"{name}_uncertainty"].ravel(), expected, rtol=1e-8)
    sigma = Op2PropFit().sigmas
    gram = sum(rows[k].T @ rows[k] / sigma[k] ** 2 for k in ("energy", "forces"))
    covariance = np.linalg.inv(last["factor"] @ last["factor"].T)
    prior = np.linalg.eigvalsh(covariance - gram)
    # what is added is a multiple of one
    np.testing.assert_allclose(prior, prior.mean(), atol=1e-6 * np.trace(gram) / len(gram))
    assert prior.mean() > 0


def test_forces_are_derivatives_of_the_features(trained, dataset):
    model, s = trained.model, dataset.structures[60]
    last, step = model.params["last_layer"], 2e-4
    found = model.predict([s, s], uncertainty=True)["forces_uncertainty"][0]
    for atom, axis in ((0, 1), (2, 0)):
        move = np.zeros((3, 3))
        move[atom, axis] = step
        moved = [s.replace(positions=s.positions + sign * move) for sign in (1, -1)]
        there, back = (model.definition.last_layer(model.params, m) for m in moved)
        slope = np.linalg.norm(there - back) / (2 * step)
        assert found[atom, axis] == pytest.approx(last["forces"] * slope, rel=FINITE)


def test_it_does_not_depend_on_the_frame(trained, dataset):
    s = dataset.structures[70]
    turned = s.replace(positions=np.asarray(s.positions)[:, [2, 0, 1]] + 1.0)
    one, other = trained.model.predict([s, turned], uncertainty=True)["energy_uncertainty"]
    assert one == pytest.approx(other, rel=1e-8)


def test_of_energies_alone(dataset):
    model = _train(dataset, targets=("energy",)).model
    found = model.predict(dataset.structures[50:52], uncertainty=True)
    assert (found["energy_uncertainty"] > 0).all()
    assert "forces_uncertainty" not in found
    plain = model.predict(dataset.structures[50:52])  # nobody asked
    assert not any(name.endswith("uncertainty") for name in plain)


def test_a_model_without_says_so(trained, dataset):
    params = {k: v for k, v in trained.model.params.items() if k != "last_layer"}
    bare = Op2PropModel(trained.model.definition, params)
    with pytest.raises(OpmlError, match="last_layer=true"):
        bare.predict(dataset.structures[0], uncertainty=True)


def test_molecules_of_their_own_scale_it(trained, dataset, within):
    """Nothing but the scale is another, and 68 % of their errors are below."""
    apart = range(100, 200)
    model = _train(dataset, calibration=apart).model
    for name, share in within(model, dataset.subset(apart)).items():
        assert share == pytest.approx(WITHIN, abs=1 / 100)  # one of 100 energies
        assert model.params["last_layer"][name] != trained.model.params["last_layer"][name]
    factors = [m.params["last_layer"]["factor"] for m in (model, trained.model)]
    np.testing.assert_array_equal(*factors)


@pytest.mark.slow
def test_the_scale_is_right_where_validation_chose_the_epoch(dataset, within):
    """Validation has chosen the epoch, so its errors are too small to be a scale."""
    model = _train(dataset, n=60, epochs=100, calibration=range(120, 180)).model
    for share in within(model, dataset.subset(range(180, 420))).values():
        assert BETWEEN[0] < share < BETWEEN[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the standard deviation is more than")
def test_most_errors_are_within_one_and_it_rises_far_away(dataset, within, stretched):
    model = _train(dataset, n=60, epochs=60).model
    for name, share in within(model, dataset.subset(range(120, 360))).items():
        assert BETWEEN[0] < share < BETWEEN[1], name
    sigma = stretched(model, dataset.structures[120:160])
    assert (np.diff(sigma, axis=0) > 0).all(), sigma
