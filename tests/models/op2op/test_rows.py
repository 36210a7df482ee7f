"""Rows of the closed form: a killed run goes on from those that it kept."""

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ModelFileError
from opml_jax.learn.run import Run
from opml_jax.models.op2op import Op2Op, Op2OpConfig, rows


def test_a_killed_run_goes_on_from_its_rows(tmp_path, monkeypatch):
    """To the same triangles, bit for bit, without computing what was kept."""
    monkeypatch.setattr(rows, "BETWEEN_STATES", 1)
    data = opml.read_dataset(opml.bundled("water"))
    config = Op2OpConfig(words=("S", "T", "W"), density_words=(), exponents=(0.6,))
    definition = Op2Op(config, opml.load_basis("def2-svp", data.elements))
    sets = {"train": data.subset(range(24)), "validation": data.subset(range(24, 40))}
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
