"""Op2Op in stages, each of which reads the density of the one before; water in Hartree-Fock."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data.reference import Method, calculate
from opml_jax.errors import ConfigError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.network import Op2OpNetworkConfig
from opml_jax.observables import dipole, orbitals
from opml_jax.testing import assert_equivariant, assert_grad_matches_fd
from opml_jax.training.metrics import errors

FEW = Op2OpConfig(
    "sto-3g",
    words=("S", "W", "W S", "W W", "E"),
    density_words=("P", "S P S", "U", "U S", "U P S"),
    exponents=(0.6,),
)
DIFFERENCES = 1e-7  # relative; central differences in float64


@pytest.fixture(scope="module")
def parts():
    geometries = opml.read_dataset(opml.bundled("water")).structures[:40]
    found = [calculate(s, Method("hf", "sto-3g", forces=False)) for s in geometries]
    water = opml.Dataset(geometries, {"fock": [f["fock"] for f in found]})
    cuts = np.split(np.arange(40), [24, 32])
    return dict(zip(("train", "validation", "test"), map(water.subset, cuts), strict=True))


def fitted(parts, **changes):
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(dataclasses.replace(FEW, **changes), basis)
    fit = fit_closed_form(definition, parts, Run())
    return Op2OpModel(definition, fit.params), fit


@pytest.fixture(scope="module")
def one(parts):
    return fitted(parts, stages=1)


def left_on(test, model):
    return errors(model.predict(test.structures), test, model)["fock_mae_uha"]


@pytest.mark.slow
def test_a_stage_is_better_than_the_guess(one, parts):
    model, fit = one
    assert left_on(parts["test"], model) < 0.5 * left_on(parts["test"], model.first_guess)
    assert {*fit.keys} == {"guess", "stage 1"}


@pytest.mark.slow
def test_a_second_stage_is_better_than_the_first(one, parts):
    model, _ = fitted(parts, stages=2)
    first = model.params["stages"]["0"]["density"]
    for name, own in one[0].params["stages"]["0"]["density"].items():  # fitted the same way
        np.testing.assert_allclose(first[name]["weights"], own["weights"], rtol=1e-6, atol=1e-9)
    assert left_on(parts["test"], model) < left_on(parts["test"], one[0])


@pytest.mark.slow
def test_many_stages_are_self_consistency(parts):
    """With the weights of the functional in every stage, from another way of getting there."""
    model, _ = fitted(parts, tolerance=1e-10, projection="none")
    structures = parts["test"].structures[:2]
    wanted = model.predict(structures)["fock"]
    own = {k: model.params[k] for k in ("known", "density")}
    left = [np.abs(model.first_guess.predict(structures)["fock"] - wanted).max()]
    for n in (2, 4):
        config = dataclasses.replace(model.definition.config, stages=n)
        params = {"guess": model.params["guess"], "stages": {str(i): own for i in range(n)}}
        staged = Op2OpModel(dataclasses.replace(model.definition, config=config), params)
        left.append(np.abs(staged.predict(structures)["fock"] - wanted).max())
    assert left[2] < 0.3 * left[1] < 0.1 * left[0]


@pytest.mark.slow
def test_derivatives_and_symmetry(one, parts):
    model, _ = one
    structure, basis = parts["test"].structures[0], model.definition.basis

    def observables(molecule):
        found = model.definition.apply(model.params, molecule)
        return {
            "mo_energy": orbitals(found["fock"], found["overlap"])[0],
            "dipole": dipole(found["dm"], molecule, basis),
        }

    assert_equivariant(observables, structure, rtol=1e-9)

    def number(r):
        found = observables(structure.replace(positions=r))
        return jnp.sum(found["mo_energy"][:5]) + found["dipole"] @ jnp.array([0.3, -0.7, 0.5])

    assert_grad_matches_fd(jax.jit(number), structure.positions, rtol=DIFFERENCES)


def test_refusals():
    for bad in (
        {"stages": -1},
        {"stages": 1, "density_words": ()},
        {"stages": 1, "network": Op2OpNetworkConfig()},
    ):
        with pytest.raises(ConfigError, match=r"model\.stages"):
            dataclasses.replace(FEW, **bad)
