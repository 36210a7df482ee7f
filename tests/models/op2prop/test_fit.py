"""Training: cached derivatives against autodiff, parts of the fit, learning, repeatability."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.errors import DataWarning
from opml_jax.models.op2prop import Op2Prop, Op2PropConfig, Op2PropFit, residual
from opml_jax.models.op2prop.descriptors import CHUNK, Wanted, build_cache, rounding_noise
from opml_jax.models.op2prop.residual import make_inputs, predict_residual, residual_scales
from opml_jax.models.op2prop.scaling import fit_components, fit_scaler, scaled
from opml_jax.training import TrainConfig, evaluate, train
from opml_jax.training.metrics import errors


def _config(**fit):
    """Little here is about d functions, slow to compile."""
    return TrainConfig(model=Op2PropConfig(basis="sto-3g", fit=Op2PropFit(**fit)))


CHAIN_RULE = 1e-10  # Hartree/Bohr: cached and direct forces are the same sums in another order


@pytest.fixture(scope="module")
def small(dataset):
    """Trained on 30 waters with a few epochs, so that closed form and networks both matter."""
    config = _config(epochs=8, batch_size=8)
    splits = {"train": list(range(30)), "validation": list(range(30, 40))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "PAYS", -np.inf)  # few epochs help little
        return train(dataset, splits, config), config, splits


@pytest.fixture(scope="module")
def read(small, dataset, described):
    """What the training has read."""
    trained, config, splits = small
    return described(trained, config, dataset, splits)


def test_cached_forces_equal_gradients_through_the_integrals(small, dataset, read):
    trained, _, splits = small
    part = dataset.subset(splits["validation"])
    definition, params = trained.model.definition, trained.model.params
    labels = read.sets["validation"].labels
    inputs = make_inputs(params, read.sets["validation"])

    def network(z, one_hot):
        local, gates = definition.networks(params["residual"], z, one_hot, dipole=True)
        return local[0], gates[0]

    found = predict_residual(network, params["scale"], inputs)
    direct = trained.model.predict(part.structures)
    # label - closed form - residual = label - prediction
    for name in ("energy", "forces", "dipole"):
        left = inputs[name] - np.asarray(found[name])
        expected = labels[name] - direct[name]
        np.testing.assert_allclose(left.ravel(), expected.ravel(), atol=CHAIN_RULE)


def test_cached_derivatives_against_finite_differences(small, dataset):
    definition = small[0].model.definition
    s = dataset.structures[3]
    # A full chunk, as in training: the program is compiled already.
    cache = build_cache(definition, dataset.structures[:CHUNK], Wanted(True, irreps=(1,)))
    step = 1e-4
    for coordinate in (0, 4, 8):
        moved = []
        for sign in (1, -1):
            x = np.array(s.positions)
            x.flat[coordinate] += sign * step
            moved.append(build_cache(definition, [s.replace(positions=x)], Wanted()).x[0])
        finite = (moved[0] - moved[1]) / (2 * step)
        scale = np.abs(finite).max(axis=0) + 1e-3 * np.abs(cache.x[3]).max(axis=0) + 1e-6
        assert (np.abs(cache.dx[3, coordinate] - finite) / scale).max() < 1e-5  # O(step^2) error


def test_it_learns(small, dataset):
    trained, _, _ = small
    metrics = evaluate(trained.model, dataset.subset(range(100, 120)))
    assert metrics["energy_mae_mev"] < 0.1
    assert metrics["forces_mae_mev_per_angstrom"] < 1.0
    assert metrics["dipole_mae_debye"] < 0.005
    spread = np.std(dataset["energy"][100:120]) * 27211
    assert spread > 20  # the numbers above are not trivial


def test_networks_never_lose_to_the_closed_form_on_validation(small, dataset, read):
    trained, config, splits = small
    part = dataset.subset(splits["validation"])
    scale = residual_scales(make_inputs(trained.model.params, read.sets["train"]))

    def loss(model):
        predicted = model.predict(part.structures)
        return sum(np.mean((predicted[k] - part[k]) ** 2) / scale[k] ** 2 for k in scale)

    assert loss(trained.model) <= loss(trained.model.closed_form) * (1 + 1e-9)
    assert len(trained.history) == config.model.fit.epochs


def test_noise_columns_are_dropped(dataset):
    """Gram products of irreps that vanish in a planar molecule are rounding; none may survive."""
    definition = Op2Prop(Op2PropConfig(), opml.load_basis("def2-svp", [1, 8]))  # with d functions
    structures = dataset.structures[:40]
    cache = build_cache(definition, structures, Wanted())
    noise = rounding_noise(definition, structures, cache, Wanted())
    loud = fit_scaler(cache, np.zeros_like(noise))
    quiet = fit_scaler(cache, noise)
    dropped = (loud["inverse_std"] > 0) & (quiet["inverse_std"] == 0)
    assert dropped.any()
    kept = quiet["inverse_std"] * noise
    assert kept.max() <= 1e-8


def test_components_have_unit_mean_variance(small, read):
    s = scaled(read.sets["train"].cache, small[0].model.params["scaler"])
    components = fit_components(s, 10)
    for e in range(2):
        z = s.x[s.one_hot[..., e] > 0] @ components[e]
        assert np.mean(np.mean(z**2, axis=0)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.slow
def test_energy_only_and_closed_form_only(dataset, described):
    config = _config(targets=("energy",), epochs=0)
    splits = {"train": list(range(20)), "validation": list(range(20, 30))}
    trained = train(dataset, splits, config)
    predicted = trained.model.predict(dataset.structures[40])
    assert "dipole" not in predicted
    assert trained.history == []
    with pytest.raises(ValueError, match="does not predict dipole"):
        trained.model.dipole_fn()
    part = described(trained, config, dataset, splits).sets["train"]
    assert residual_scales(make_inputs(trained.model.params, part)).keys() == {"energy"}


def test_mixed_compositions_train_together():
    """Two molecules of different size with labels of a known pair energy."""
    rng = np.random.default_rng(0)
    structures, energies, forces = [], [], []
    for i in range(24):
        n = 2 + i % 2
        x = np.cumsum(np.c_[np.zeros((n, 2)), 1.4 + 0.1 * rng.normal(size=n)], axis=0)
        s = opml.Structure([1] * n, x, spin=n % 2)
        d = np.diff(x[:, 2])
        f = np.zeros((n, 3))
        f[1:, 2] -= 0.5 * (d - 1.4)
        f[:-1, 2] += 0.5 * (d - 1.4)
        structures.append(s)
        energies.append(0.25 * np.sum((d - 1.4) ** 2) - 0.5 * n)
        forces.append(f)
    dataset = Dataset(structures, {"energy": energies, "forces": forces})
    fit = Op2PropFit(targets=("energy", "forces"), epochs=0)
    config = TrainConfig(model=Op2PropConfig(fit=fit))
    trained = train(dataset, {"train": list(range(18)), "validation": list(range(18, 24))}, config)
    found = errors(trained.model.predict(structures), dataset, trained.model)
    assert found["forces_mae_mev_per_angstrom"] < 20
    assert found["energy_mae_mev"] < 10


def test_nan_among_the_targets(dataset):
    energies = [np.nan if i == 1 else e for i, e in enumerate(dataset.labels["energy"])]
    bad = Dataset(dataset.structures, {"energy": energies})
    config = _config(targets=("energy",))
    with pytest.raises(ValueError, match=r"energy of the data set.*NaN in structure 1"):
        train(bad, {"train": [0, 1], "validation": [2]}, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": []}, "train split must be structures; got an empty split"),
        ({"validation": []}, "validation split must be structures; got an empty split"),
        ({"train": [0, 900]}, "Does this split file belong"),
    ],
)
def test_splits_that_do_not_fit(dataset, change, message):
    with pytest.raises(ValueError, match=message):
        train(dataset, {"train": [0, 1], "validation": [2], **change}, TrainConfig())


def test_element_only_in_validation():
    h2 = opml.Structure([1, 1], [[0, 0, 0], [0, 0, 1.4]])
    he = opml.Structure([2], [[0, 0, 0]])
    dataset = Dataset([h2, he], {"energy": [-1.1, -2.9]})
    with pytest.raises(ValueError, match="only elements of the training split"):
        train(dataset, {"train": [0], "validation": [1]}, _config(targets=("energy",)))


def test_contacts_that_training_lacked_are_named(small, dataset):
    """The card keeps the closest pairs; a model warns of a water with a much shorter bond."""
    model, water = small[0].model, dataset.structures[0]
    assert set(model.card["closest_bohr"]) == {"H-H", "H-O"}
    with pytest.warns(DataWarning, match="H-O at .* A in structure 0"):
        model.predict(water.replace(positions=0.7 * np.asarray(water.positions)))
