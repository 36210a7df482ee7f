"""Operators that models read: pieces add up to the whole, metrics are their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ConfigError
from opml_jax.features import Inputs

ALGEBRA = 1e-12  # relative to the largest element: sums of a few hundred float64 products
POWERS = (1, 2, 3)


@pytest.fixture(scope="module")
def basis():
    return opml.load_basis("sto-3g", [1, 6, 7, 8])


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=ALGEBRA * np.abs(expected).max())


def test_charges_add_up_to_the_potential(molecules, basis):
    s = molecules["formamide"]
    for operator in ("external_potential", "screened_potential"):
        inputs = Inputs(operator, resolve="charges")
        found = inputs(s, basis, POWERS)
        assert (
            list(found)
            == ["V", "V_H", "V_C", "V_N", "V_O"]
            == [*inputs.sources(basis.spec, POWERS)]
        )
        _close(sum(found[f"V_{z}"].values for z in "HCNO"), found["V"].values)


def test_one_element_alone_is_that_potential(molecules, basis):
    """V_O of water is the potential of an oxygen nucleus, in the same basis functions."""
    s = molecules["water"]
    found = Inputs("external_potential", resolve="charges")(s, basis, (1,))
    charges = jnp.asarray([8.0, 0.0, 0.0])
    _close(found["V_O"].values, opml.integrals.external_potential(s, basis, charges=charges))
    assert np.abs(found["V_C"].values).max() == 0.0


@pytest.mark.parametrize("metric", ["plain", "lowdin"])
def test_intermediates_add_up_to_the_square(molecules, basis, metric):
    s = molecules["formamide"]
    inputs = Inputs(resolve="intermediates", metric=metric)
    found = inputs(s, basis, POWERS)
    assert inputs.sources(basis.spec, POWERS)["V"] == (1, 3)  # the square is there in pieces
    whole = found["V"].values @ found["V"].values
    _close(sum(found[f"V[{z}]V"].values for z in "HCNO"), whole)
    assert all(o.symmetric for o in found.values())


def test_metrics_are_their_formulas(molecules, basis):
    s = molecules["water"]
    v = np.asarray(opml.integrals.screened_potential(s, basis))
    overlap = np.asarray(opml.integrals.overlap(s, basis))
    values, u = np.linalg.eigh(overlap)
    x = u @ np.diag(values**-0.5) @ u.T
    _close(Inputs(metric="lowdin")(s, basis, (1, 2))["V"].values, x @ v @ x)
    found = Inputs(metric="overlap")(s, basis, (1, 2, 3))
    inverse = np.linalg.inv(overlap)
    _close(found["(V^2)"].values, v @ inverse @ v)
    _close(found["(V^3)"].values, v @ inverse @ v @ inverse @ v)


def test_a_field_adds_its_potential(molecules, basis):
    s = molecules["water"]
    field = jnp.asarray([0.01, -0.02, 0.03])
    inputs = Inputs()

    def v(f):
        return inputs(s, basis, (1,), field=f)["V"].values

    slope = jax.jvp(v, (jnp.zeros(3),), (field,))[1]
    r = opml.integrals.position(s, basis)
    _close(slope, np.einsum("x,xij->ij", field, r))


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(
            Inputs(resolve="charges", others=("overlap", "kinetic")), marks=pytest.mark.slow
        ),
        pytest.param(Inputs(resolve="intermediates", metric="lowdin"), marks=pytest.mark.slow),
        pytest.param(Inputs(metric="overlap"), marks=pytest.mark.slow),
    ],
    ids=["charges", "intermediates", "overlap"],
)
def test_features_of_a_padded_batch_are_those_of_its_molecules(molecules, basis, inputs):
    names = ("formamide", "water")
    structures = [molecules[n] for n in names]
    recipe = opml.features.AtomFeatures(basis.spec, inputs.sources(basis.spec, POWERS))
    batched = recipe(inputs(opml.batch(structures, basis), basis, POWERS)).array
    for s, rows in zip(structures, batched, strict=True):
        alone = recipe(inputs(s, basis, POWERS)).array
        _close(rows[: s.n_atoms], alone)
        assert np.abs(rows[s.n_atoms :]).max(initial=0.0) == 0.0


def test_products_of_chosen_operators_alone(molecules, basis):
    """Scalar products by operator: those of V are a part of those of everything."""
    inputs = Inputs(others=("overlap",))
    sources = inputs.sources(basis.spec, POWERS)
    recipe = opml.features.AtomFeatures(basis.spec, sources)
    gram = inputs.gram(basis.spec, (1, 2))
    assert gram == {"V": (1, 2)}
    some = opml.features.n_invariants(recipe, gram)
    every = opml.features.n_invariants(recipe, (1, 2))
    scalars = sum(c.l == 0 and c.parity == 1 for c in recipe.channels)
    assert scalars < some < every


@pytest.mark.parametrize("name", ["overlap", "kinetic"])
def test_another_operator_in_the_place_of_v(name, molecules, basis):
    structure = molecules["water"]
    found = Inputs(operator=name)(structure, basis, POWERS)
    assert list(found) == ["V"]
    wanted = getattr(opml.operators, name)(structure, basis)
    np.testing.assert_array_equal(found["V"].values, wanted.values)
    with pytest.raises(ConfigError, match="screened_potential or external_potential"):
        Inputs(operator=name)(structure, basis, POWERS, field=np.ones(3))


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"operator": "screened_potental"}, "screened_potential"),
        ({"metric": "loewdin"}, "lowdin"),
        ({"resolve": "charge"}, "charges"),
        ({"others": ("overlapp",)}, "overlap"),
        ({"operator": "neutral_atom_potential", "resolve": "charges"}, "screened_potential"),
        ({"operator": "kinetic", "resolve": "charges"}, "screened_potential"),
        ({"metric": "overlap", "resolve": "intermediates"}, "plain or lowdin"),
    ],
)
def test_what_does_not_exist_is_named(arguments, pattern):
    with pytest.raises(ConfigError, match=pattern):
        Inputs(**arguments)


def test_even_tempered_basis_is_the_same_for_every_element():
    basis = opml.load_basis("even-tempered", [1, 8, 17])
    layout = opml.basis.layout_of(opml.Structure([1, 17], [[0, 0, 0], [0, 0, 2.4]]), basis)
    assert layout.nao == 28
    assert len({tuple(s.exponents[0] for s in row) for row in basis.shells}) == 1
