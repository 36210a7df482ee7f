"""The operator network: symmetries, extensivity, derivatives, padding, training, files.

It is experimental and slow to compile: most of this runs with ``-m slow``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.errors import ConfigError, ModelFileError
from opml_jax.models import Model, OperatorNetwork, OperatorNetworkConfig, save_model
from opml_jax.training.cache import build_cache
from opml_jax.training.config import OptimConfig
from opml_jax.training.operator_network import predict, train_network

INVARIANCE = 1e-10  # relative: float64 network on float64 integrals
DIFFERENCES = 1e-6  # Hartree/Bohr; step error of fourth-order central differences
ADDITIVE = 1e-9  # Hartree, for molecules that share no overlap
SINGLE = 3e-5  # relative to the largest force: cached training runs in single precision

CONFIG = OperatorNetworkConfig(basis="sto-3g", channels=4, hidden=8)
ELEMENTS = (1, 6, 7, 8)


@pytest.fixture(scope="module")
def model(molecules):
    """Random weights: physics must hold for any."""
    basis = opml.load_basis("sto-3g", ELEMENTS)
    definition = OperatorNetwork(CONFIG, basis)
    rng = np.random.default_rng(0)
    seen = [molecules[k] for k in ("formamide", "water", "carbon_dioxide") for _ in range(4)]
    moved = [s.positions + 0.1 * rng.normal(size=(s.n_atoms, 3)) for s in seen]
    batch = opml.batch([s.replace(positions=x) for s, x in zip(seen, moved, strict=True)], basis)
    inputs, one_hot = definition.inputs(batch), definition.one_hot(batch)
    scaler = definition.fit_scaler(np.asarray(inputs), np.asarray(one_hot))
    variables = definition.init(jax.random.key(0), scaler, inputs, one_hot)
    params = {
        "scaler": scaler,
        "network": variables["params"],
        "norms": variables["norms"],
        "scale": np.array(0.1),
        "offsets": np.array([-0.5, -37.0, -54.0, -75.0]),
    }
    return Model(definition, params)


@pytest.mark.slow
def test_equivariance(model, molecules):
    s = molecules["formamide"]
    energy = model.energy_fn()
    f = jax.jit(lambda x: energy(s.replace(positions=x)))
    for seed in range(3):
        for improper in (False, True):
            q = opml.testing.random_rotation(seed, improper=improper)
            turned = np.asarray(s.positions) @ q.T + np.array([0.3, -1.0, 2.0])
            np.testing.assert_allclose(f(turned), f(s.positions), rtol=INVARIANCE)
    assert abs(float(f(s.positions)) - float(model.params["offsets"] @ [3, 1, 1, 1])) > 1e-3


@pytest.mark.slow
def test_equal_atoms_are_equal(model, molecules):
    s = molecules["formamide"]
    order = [0, 1, 2, 5, 3, 4]
    turned = opml.Structure([s.numbers[i] for i in order], np.asarray(s.positions)[order])
    energy = jax.jit(model.energy_fn())
    np.testing.assert_allclose(energy(turned), energy(s), rtol=INVARIANCE)


@pytest.mark.slow
def test_forces_are_minus_the_energy_gradient(model, molecules):
    s = molecules["carbon_dioxide"]
    energy = model.energy_fn()
    f = jax.jit(lambda x: energy(s.replace(positions=x)))
    opml.testing.assert_grad_matches_fd(f, s.positions, atol=DIFFERENCES)


@pytest.mark.slow
def test_far_molecules_add_up(model, molecules):
    water = molecules["water"]
    x = np.asarray(water.positions)
    pair = opml.Structure(water.numbers * 2, np.concatenate([x, x + np.array([0.0, 0.0, 45.0])]))
    energy = jax.jit(model.energy_fn())
    assert abs(float(energy(pair)) - 2 * float(energy(water))) < ADDITIVE


@pytest.mark.slow
def test_padding_changes_nothing(model, molecules):
    structures = [molecules["formamide"], molecules["hydrogen_cyanide"], molecules["water"]]
    found = model.predict(structures)
    for i, s in enumerate(structures):
        alone = model.predict(s)
        np.testing.assert_allclose(found["energy"][i], alone["energy"], rtol=1e-12)
        np.testing.assert_allclose(found["forces"][i, : s.n_atoms], alone["forces"], atol=1e-10)


def test_an_element_without_d_functions_or_a_lower_lmax(molecules):
    basis = opml.load_basis("sto-3g", [1, 8])
    config = dataclasses.replace(CONFIG, lmax=1, message_lmax=0, layers=1)
    definition = OperatorNetwork(config, basis)
    assert set(definition._columns[0]) == {0, 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny network on bundled waters, with its caches."""
    data = opml.data.read_dataset(opml.data.bundled("water", ".h5"))
    data = Dataset(
        data.structures[:60], {k: data.labels[k][:60] for k in ("energy", "forces")}, data.meta
    )
    definition = OperatorNetwork(CONFIG, opml.load_basis("sto-3g", [1, 8]))
    cache = build_cache(definition, data.structures, derivatives=True)
    parts = {"train": range(48), "validation": range(48, 60)}
    caches = {k: cache.subset(i) for k, i in parts.items()}
    labels = {k: {n: np.array(data[n])[list(i)] for n in data.labels} for k, i in parts.items()}
    optim = OptimConfig(epochs=10, batch_size=6, learning_rate=5e-3, energy_weight=0.05)
    arguments = (
        definition,
        caches["train"],
        caches["validation"],
        labels["train"],
        labels["validation"],
    )
    folder = tmp_path_factory.mktemp("network")
    params, history = train_network(
        *arguments, optim, 0, state=folder / "state.npz", fingerprint="water"
    )
    return arguments, optim, params, history, folder, data


@pytest.mark.slow
def test_it_learns(trained):
    (*_, held_out), _, _, history, _, _ = trained
    spread = np.sqrt(np.mean(held_out["forces"] ** 2))
    assert [row["epoch"] for row in history] == [5, 10]
    assert history[-1]["validation_forces_rmse"] < 0.3 * spread


@pytest.mark.slow
def test_the_readout_helps_on_validation(trained):
    arguments, _, params, _, _, _ = trained
    assert "readout" in params
    definition, _, validation, _, held_out = arguments
    own = {**held_out, "energy": held_out["energy"] - validation.one_hot.sum(1) @ params["offsets"]}
    bare = {k: v for k, v in params.items() if k != "readout"}
    batch = {k: jnp.asarray(getattr(validation, k)) for k in ("x", "dx", "one_hot")}

    def error(p):
        p = {**p, "offsets": np.zeros(2)}
        _, forces = jax.jit(lambda *x: predict(definition, p, *x))(*batch.values())
        return np.sqrt(np.mean((np.asarray(forces).reshape(-1) - own["forces"].reshape(-1)) ** 2))

    assert error(params) < error(bare)


@pytest.mark.slow
def test_cached_forces_are_those_through_the_integrals(trained):
    arguments, _, params, _, _, data = trained
    definition, _, validation, _, _ = arguments
    model = Model(definition, params)
    direct = model.predict(data.structures[48:60])
    _, forces = jax.jit(lambda *x: predict(definition, params, *x))(
        jnp.asarray(validation.x),
        jnp.asarray(validation.dx),
        jnp.asarray(validation.one_hot),
    )
    largest = np.abs(direct["forces"]).max()
    np.testing.assert_allclose(
        np.asarray(forces).reshape(direct["forces"].shape), direct["forces"], atol=SINGLE * largest
    )


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(trained, tmp_path):
    arguments, optim, params, history, _, _ = trained

    class Killed(Exception):
        pass

    def kill(epoch, row):
        if epoch == 5 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
        elif epoch == 10 and first:
            raise Killed

    state, first = tmp_path / "state.npz", True
    with pytest.raises(Killed):
        train_network(*arguments, optim, 0, state=state, fingerprint="water", on_epoch=kill)
    first = False
    again, rows = train_network(*arguments, optim, 0, state=state, fingerprint="water")
    assert rows == history
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ModelFileError, match="another configuration"):
        train_network(*arguments, optim, 0, state=state, fingerprint="ethanol")


@pytest.mark.slow
def test_file_round_trip(trained, tmp_path):
    arguments, _, params, _, _, _ = trained
    model = Model(arguments[0], params, {"n_train": 48})
    save_model(tmp_path / "m.safetensors", model)
    again = opml.load_model(tmp_path / "m.safetensors")
    assert repr(again) == "Model(OperatorNetwork, sto-3g, elements H O)"
    assert again.definition == model.definition
    assert again.definition.config == model.definition.config
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"operators": ("screened_potential",)}, "'overlap' among them"),
        ({"operators": ("screened", "overlap")}, "screened_potential"),
        ({"channels": 0}, "positive sizes"),
        ({"message_lmax": 4}, "message_lmax <= lmax"),
    ],
)
def test_configuration_is_checked(change, pattern):
    with pytest.raises(ConfigError, match=pattern):
        OperatorNetworkConfig(**change)
