"""Op2Op that reads operators in another basis than that of its matrices."""

import dataclasses

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis import layout_of
from opml_jax.data.reference import molecule
from opml_jax.errors import ConfigError, DataWarning
from opml_jax.features.couple import couple_species
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.operators.species import gather_species, species_table
from opml_jax.testing import assert_grad_matches_fd

OWN = Op2OpConfig("sto-3g", words=("V", "V V", "V S"), density_words=(), exponents=())
RICHER = dataclasses.replace(OWN, input_basis="6-31g")
ROUNDING = 1e-10  # Hartree: V V has elements of 1000


@pytest.fixture(scope="module")
def bases():
    return [opml.load_basis(name, [1, 8]) for name in ("sto-3g", "6-31g")]


@pytest.fixture(scope="module")
def parts(superposed_waters):
    sets = {"train": range(24), "validation": range(24, 32), "test": range(32, 40)}
    return {name: superposed_waters.subset(i) for name, i in sets.items()}


@pytest.fixture(scope="module")
def fitted(bases, parts):
    definition = Op2Op(RICHER, *bases)
    return definition, fit_closed_form(definition, parts, Run()).params


@pytest.fixture(scope="module")
def model(fitted):
    return Op2OpModel(*fitted, {"elements": ["H", "O"]})


def test_columns_are_irreps_of_the_input_basis(bases, water):
    """Of V, V V and V S by PySCF, in the larger basis, and only kinds the smaller one has."""
    definition = Op2Op(RICHER, *bases)
    table = definition.table(water)
    found = definition.known_irreps(definition.operators(water, table), table)
    mol = molecule(water, "6-31g")
    v, s = (opml.from_pyscf(mol.intor(k), water, bases[1]) for k in ("int1e_nuc", "int1e_ovlp"))
    layout = layout_of(water, bases[1])
    blocks = gather_species(
        np.stack([v, v @ v, 0.5 * (v @ s + s @ v)])[:, None], species_table([layout])
    )
    wanted = couple_species(blocks, bases[1].spec)
    assert set(found) == {k for k in wanted if definition.n_outputs(k)}
    for key, x in found.items():
        columns = np.moveaxis(np.asarray(wanted[key]), 0, -2)
        assert np.abs(x - columns.reshape(x.shape)).max() < ROUNDING
        assert x.shape[-1] == definition.n_known(key) > 3 * definition.n_outputs(key)


@pytest.mark.slow
def test_a_richer_input_is_worth_it(bases, parts, model):
    """The same words in STO-3G leave three times the error and more."""
    definition = Op2Op(OWN, bases[0])
    own = Op2OpModel(definition, fit_closed_form(definition, parts, Run()).params, model.card)
    errors = [
        np.abs(m.predict(parts["test"].structures)["fock"] - np.array(parts["test"]["fock"])).mean()
        for m in (model, own)
    ]
    assert 3 * errors[0] < errors[1]


@pytest.mark.slow
def test_derivatives(fitted, parts):
    definition, params = fitted
    structure = parts["test"].structures[0]

    def some(r):
        return definition.apply(params, structure.replace(positions=r))["fock"][:4, 4:].sum()

    assert_grad_matches_fd(some, structure.positions)


@pytest.mark.slow
def test_batches(model, parts):
    """A mixed batch is its molecules."""
    hydrogen = opml.Structure([1, 1], [[0.0, 0, 0], [1.4, 0, 0]])
    mixed = [hydrogen, *parts["test"].structures[:2]]
    found = model.predict(mixed)
    for i, s in enumerate(mixed):
        alone = np.asarray(model.fock_fn()(s)["fock"])
        assert np.abs(found["fock"][i, : len(alone), : len(alone)] - alone).max() < ROUNDING


@pytest.mark.slow
def test_what_the_input_basis_lacks_is_said():
    """STO-3G has no d functions on oxygen and no p functions on hydrogen."""
    data = opml.read_dataset(opml.bundled("water")).subset(range(6))
    bases = [opml.load_basis(name, [1, 8]) for name in ("def2-svp", "sto-3g")]
    config = dataclasses.replace(OWN, basis="def2-svp", input_basis="sto-3g")
    definition = Op2Op(config, *bases)
    sets = {"train": data.subset(range(4)), "validation": data.subset(range(4, 6))}
    with pytest.warns(DataWarning, match=r"'sto-3g' has no irreps for \d+ kinds .*H, L = 1"):
        params = fit_closed_form(definition, sets, Run()).params
    assert not any(name.startswith("0_1_1_1") for name in params["guess"])


def test_refusals(bases):
    with pytest.raises(ConfigError, match="input_basis must be None"):
        Op2Op(OWN, *bases)
    with pytest.raises(ConfigError, match="input_basis must be '6-31g'"):
        Op2Op(RICHER, bases[0])
