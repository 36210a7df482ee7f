"""Densities of the first cycles of reference SCFs as training rows."""

import jax
import numpy as np
import pytest

from opml_jax.basis import load_basis
from opml_jax.data import Dataset
from opml_jax.data.reference import Method, calculate
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.config import Op2OpFit
from opml_jax.models.op2op.rows import labelled_batches

METHOD = Method("pbe", "sto-3g", grid_level=1, forces=False, iterates=2)


@pytest.fixture(scope="module")
def sets(water):
    rng = np.random.default_rng(0)
    moved = [
        water.replace(positions=water.positions + rng.normal(0, 0.1, (3, 3))) for _ in "x" * 14
    ]
    rows = [calculate(s, METHOD) for s in moved]
    labels = {name: [row[name] for row in rows] for name in rows[0] if name != "energy"}
    data = Dataset(moved, labels, METHOD.meta())
    return {"train": data.subset(range(8)), "validation": data.subset(range(8, 14))}


@pytest.mark.slow
def test_a_functional_that_saw_iterates_is_right_at_those_of_others(sets):
    basis = load_basis("sto-3g", [1, 8])
    definition = Op2Op(Op2OpConfig(basis="sto-3g"), basis)

    def errors(params, cycle):
        """Mean error of F at a density of validation that is on the way."""
        part, found = sets["validation"], []
        focks = labelled_batches(definition, part, 6, f"fock_cycle_{cycle}")
        dms = labelled_batches(definition, part, 6, f"dm_cycle_{cycle}")
        for (structures, table, fock, _), (*_, dm, _) in zip(focks, dms, strict=True):
            operators = definition.operators(structures, table)
            known = definition.known_irreps(operators, table)
            read = structures, operators, known, table, operators["T"]
            found.append(np.abs(definition._functional(params, *read)(dm) - fock).mean())
        return np.mean(found)

    fits = {
        weight: fit_closed_form(definition, sets, Run(), Op2OpFit(iterates=weight)).params
        for weight in (0.0, 0.25)
    }
    assert errors(fits[0.25], 1) < 0.5 * errors(fits[0.0], 1)
    assert errors(fits[0.25], 2) < errors(fits[0.0], 2)
    plain = Dataset(
        sets["train"].structures, {"fock": sets["train"].labels["fock"]}, sets["train"].meta
    )
    again = fit_closed_form(definition, {**sets, "train": plain}, Run()).params
    jax.tree.map(np.testing.assert_array_equal, again, fits[0.0])
