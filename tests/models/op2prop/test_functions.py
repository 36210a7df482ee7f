"""Op2Prop: physics of its predictions, and its two ways to forces against each other."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.models.base import Params
from opml_jax.models.op2prop import Op2Prop, Op2PropConfig, Op2PropModel
from opml_jax.testing import assert_equivariant

FORCE_FD = 1e-6  # Hartree/Bohr: the bar set for every force of this library
BATCH = 1e-12  # relative: the same sums in another order
INVARIANCE = 1e-10  # relative, float64 features of order 1e7 before standardisation
SLOW = pytest.mark.slow


def _random_model(elements, seed=0) -> Op2PropModel:
    """Op2Prop with random weights of a trained model's size: physics must hold for any weights."""
    config = Op2PropConfig(basis="sto-3g", powers=(1, 2), components=6, hidden=(8,), vectors=3)
    definition = Op2Prop(config, opml.load_basis("sto-3g", elements))
    rng = np.random.default_rng(seed)
    e, f = len(elements), definition.n_invariants
    c, c2 = definition.n_irreps(1), definition.n_irreps(2)
    module = definition.network(dipole=True)
    network = module.init(jax.random.key(seed), jnp.zeros((1, 6)), jnp.zeros((1, e)))
    lively = jax.tree.map(lambda w: rng.normal(size=(1, *w.shape)), network["params"])
    params: Params = {
        "scaler": {"mean": rng.normal(size=(e, f)), "inverse_std": rng.uniform(0, 0.1, (e, f))},
        "linear": {"offsets": rng.normal(size=e), "weights": 0.01 * rng.normal(size=(e, f))},
        "components": 0.1 * rng.normal(size=(e, f, 6)),
        "dipole": {
            "weights": 0.1 * rng.normal(size=(e, c)),
            "mixing": 0.1 * rng.normal(size=(e, c, 3)),
        },
        "quadrupole": {"weights": 0.1 * rng.normal(size=(e, c2))},
        "isotropic_polarizability": {
            "offsets": rng.normal(size=e),
            "weights": 0.01 * rng.normal(size=(e, f)),
        },
        "anisotropic_polarizability": {"weights": 0.1 * rng.normal(size=(e, c2))},
        "residual": lively,
        "scale": {"energy": np.array(0.1), "dipole": np.array(0.1)},
    }
    return Op2PropModel(definition, params)


def _apart(water, distance):
    """Two waters ``distance`` Bohr apart."""
    x = np.asarray(water.positions)
    return opml.Structure(water.numbers * 2, np.concatenate([x, x + np.array([0, 0, distance])]))


def _energy_and_gradient(model, structure):
    """``f(positions)`` as one program: a second one for the energy alone would take seconds."""
    energy = model.energy_fn()
    return jax.jit(jax.value_and_grad(lambda x: energy(structure.replace(positions=x))))


def _assert_differences(energy_and_gradient, x, atol):
    """The gradient at x against fourth-order central differences of the energy."""
    h, finite = 1e-3, np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        far, near = (
            energy_and_gradient(x + k * step)[0] - energy_and_gradient(x - k * step)[0]
            for k in (2, 1)
        )
        finite[index] = (8 * near - far) / (12 * h)
    np.testing.assert_allclose(energy_and_gradient(x)[1], finite, rtol=0, atol=atol)


@pytest.fixture(scope="session")
def random_model():
    return _random_model((1, 6, 8))


@SLOW
@pytest.mark.parametrize("name", ["water", "carbon_dioxide", "methane", "apart"])
def test_forces_are_minus_the_energy_gradient(name, random_model, water, molecules):
    s = _apart(water, 10 / opml.units.ANGSTROM_PER_BOHR) if name == "apart" else molecules[name]
    energy_and_gradient, x = _energy_and_gradient(random_model, s), np.asarray(s.positions)
    _assert_differences(energy_and_gradient, x, atol=FORCE_FD)
    predicted = random_model.predict(s)["forces"]
    np.testing.assert_allclose(predicted, -energy_and_gradient(x)[1], atol=1e-10)
    assert np.abs(predicted.sum(axis=0)).max() < 1e-9  # translation invariance


@pytest.fixture(scope="module")
def trained_energy_and_gradient(model, water):
    return _energy_and_gradient(model, water)


def test_trained_forces_against_finite_differences(trained_energy_and_gradient, water):
    x = np.asarray(water.positions)
    _assert_differences(trained_energy_and_gradient, x, atol=FORCE_FD)


@pytest.mark.parametrize("name", ["water", "carbon_dioxide", pytest.param("methane", marks=SLOW)])
def test_equivariance(name, random_model, molecules):
    assert_equivariant(random_model.predict, molecules[name], n=2, rtol=INVARIANCE)


def test_batching_and_padding_change_nothing(random_model, water, molecules):
    structures = [water, molecules["methane"], molecules["carbon_dioxide"]]
    together = random_model.predict(structures)
    wide = opml.batch(structures, random_model.definition.basis, n_atoms=8, nao=40)
    padded = jax.jit(random_model.definition.apply)(random_model.params, wide)
    for i, s in enumerate(structures):
        alone = random_model.predict(s)
        for name in ("energy", "dipole", "quadrupole", "polarizability"):
            for other in (together[name][i], padded[name][i]):
                np.testing.assert_allclose(other, alone[name], rtol=BATCH, atol=BATCH)
        scale = np.abs(alone["forces"]).max()
        np.testing.assert_allclose(
            together["forces"][i, : s.n_atoms], alone["forces"], atol=BATCH * max(scale, 1.0)
        )
        assert not together["forces"][i, s.n_atoms :].any()


def test_one_bucket_compiles_once(random_model, water, molecules):
    basis, definition = random_model.definition.basis, random_model.definition

    @jax.jit
    @chex.assert_max_traces(n=1)
    def energies(batch):
        return definition.apply(random_model.params, batch)["energy"]

    methane, dioxide = molecules["methane"], molecules["carbon_dioxide"]
    bucket = opml.basis.bucket_of([water, methane, dioxide], basis)
    first = energies(opml.batch([water, methane], basis, bucket=bucket))
    moved = water.replace(positions=water.positions * 1.01)
    second = energies(opml.batch([moved, dioxide], basis, bucket=bucket))
    assert first.shape == second.shape == (2,)


@SLOW
def test_energy_composes_with_transformations(random_model, water):
    """grad outside jit, vmap over geometries, and grad through a scan: all the same numbers."""
    energy = random_model.energy_fn()

    def of_positions(x):
        return energy(water.replace(positions=x))

    x = jnp.asarray(water.positions)
    inside = jax.jit(jax.grad(of_positions))(x)
    outside = jax.grad(jax.jit(of_positions))(x)
    np.testing.assert_allclose(outside, inside, rtol=1e-12, atol=1e-14)
    stack = jnp.stack([x, 1.02 * x])
    many = jax.jit(jax.vmap(jax.grad(of_positions)))(stack)
    scanned = jax.grad(lambda xs: jnp.sum(jax.lax.map(of_positions, xs)))(stack)
    np.testing.assert_allclose(many[0], inside, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(scanned, many, rtol=1e-12, atol=1e-14)


@SLOW
def test_energy_of_far_molecules_is_additive(random_model, water):
    """The screened potential leaves nothing at 20 Angstrom; the bare one leaves electron volts."""
    pair = random_model.predict(_apart(water, 20 / opml.units.ANGSTROM_PER_BOHR))["energy"]
    assert pair == pytest.approx(2 * random_model.predict(water)["energy"], abs=1e-9)


def test_linear_prediction_silences_the_networks(model, random_model, water):
    full, linear = random_model.predict(water), random_model.parts["linear"].predict(water)
    assert abs(full["energy"] - linear["energy"]) > 1e-3
    again = random_model.closed_form.predict(water)
    np.testing.assert_array_equal(linear["forces"], again["forces"])
    bare = {k: v for k, v in random_model.params.items() if k not in ("residual", "scale")}
    assert dataclasses.replace(random_model, params=bare).parts == {}


def test_energy_fn_is_pure_in_its_parameters(model, water, trained_energy_and_gradient):
    shifted = jax.tree.map(lambda x: x, model.params)
    shifted["linear"] = {**shifted["linear"], "offsets": shifted["linear"]["offsets"] + 1.0}
    after, gradient = jax.jit(jax.value_and_grad(lambda p: model.energy_fn(p)(water)))(shifted)
    before, _ = trained_energy_and_gradient(np.asarray(water.positions))
    assert float(after - before) == pytest.approx(3.0, rel=1e-12)
    np.testing.assert_allclose(gradient["linear"]["offsets"], [2.0, 1.0], rtol=1e-12)


@SLOW
def test_hessian_is_symmetric_and_has_rigid_null_space(random_model, water):
    energy = random_model.energy_fn()
    hessian = jax.jit(jax.hessian(lambda x: energy(water.replace(positions=x))))
    h = hessian(jnp.asarray(water.positions))
    h = np.asarray(h).reshape(9, 9)
    np.testing.assert_allclose(h, h.T, atol=1e-8 * np.abs(h).max())
    shift = np.tile(np.eye(3), 3)
    assert np.abs(h @ shift.T).max() < 1e-7 * np.abs(h).max()
