"""Rows of the closed form, which a killed run goes on from, and weights rounded on them."""

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ModelFileError
from opml_jax.learn.few_bits import packed
from opml_jax.learn.run import Run
from opml_jax.models.op2op import Op2Op, Op2OpConfig, Op2OpFit, Op2OpModel, rows
from opml_jax.models.op2op.closed_form import fit_closed_form


@pytest.fixture(scope="module")
def data():
    return opml.read_dataset(opml.bundled("water"))


@pytest.fixture(scope="module")
def sets(data):
    return {"train": data.subset(range(24)), "validation": data.subset(range(24, 40))}


@pytest.fixture(scope="module")
def definition(data):
    config = Op2OpConfig(words=("S", "T", "W"), density_words=(), exponents=(0.6,))
    return Op2Op(config, opml.load_basis("def2-svp", data.elements))


def test_weights_of_16_bits_predict_alike(data, sets, definition, tmp_path):
    """Their difference is a hundredth of the error, and a file loses nothing of them."""
    whole, few = (
        fit_closed_form(definition, sets, Run(), Op2OpFit(bits=bits)).params for bits in (64, 16)
    )
    assert all(packed(linear["weights"]) for linear in few["guess"].values())
    assert not all(packed(linear["weights"]) for linear in whole["guess"].values())
    test = data.subset(range(40, 48))
    ours, theirs = (
        Op2OpModel(definition, p).predict(test.structures)["fock"] for p in (few, whole)
    )
    error = np.abs(theirs - np.stack(test.labels["fock"])).mean()
    assert np.abs(ours - theirs).mean() < 0.01 * error
    opml.save_model(tmp_path / "model.safetensors", Op2OpModel(definition, few))
    back = opml.load_model(tmp_path / "model.safetensors").params
    jax.tree.map(np.testing.assert_array_equal, back, few)


def test_a_killed_run_goes_on_from_its_rows(sets, definition, tmp_path, monkeypatch):
    """To the same triangles, bit for bit, without computing what was kept."""
    monkeypatch.setattr(rows, "BETWEEN_STATES", 1)
    calls, last = [], 3

    def sides(*arguments):
        if len(calls) == last:
            raise KeyboardInterrupt
        calls.append(arguments)
        return rows.sides_at_reference(*arguments)

    run = Run(tmp_path, fingerprint="this one")
    with pytest.raises(KeyboardInterrupt):
        rows.gathered(definition, {}, sets, run, sides)
    last = 5
    found = rows.gathered(definition, {}, sets, run, sides)["guess"]
    assert len(calls) == 5
    whole = rows.gathered(definition, {}, sets, Run(), rows.sides_at_reference)["guess"]
    for name, systems in whole.items():
        assert found[name].keys() == systems.keys()
        for key, system in systems.items():
            assert found[name][key].n_rows == system.n_rows
            np.testing.assert_array_equal(found[name][key].triangle(), system.triangle())
    with pytest.raises(ModelFileError, match="another configuration"):
        rows.gathered(definition, {}, sets, Run(tmp_path, fingerprint="another"), sides)
