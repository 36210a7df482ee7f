import numpy as np
import pytest

from opml_jax.analysis import block_norms
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError
from opml_jax.operators import Operator

# Sums of the same numbers in another order
ROUND_OFF = 1e-13


@pytest.mark.parametrize("name", ["formamide", "water", "carbon_dioxide"])
def test_norms_are_those_of_each_block(molecules, rng, name):
    s = molecules[name]
    layout = layout_of(s, load_basis("def2-svp", s.numbers))
    a = rng.normal(size=(layout.nao, layout.nao))
    a += a.T
    expected = {}
    for i in range(s.n_atoms):
        for j in range(i + 1, s.n_atoms):
            key = tuple(sorted((s.numbers[i], s.numbers[j])))
            block = a[layout.atom == i][:, layout.atom == j]
            distance = np.linalg.norm(s.positions[i] - s.positions[j])
            expected.setdefault(key, []).append((distance, np.linalg.norm(block)))
    found = block_norms(Operator(a, layout, symmetric=True), s)
    assert [*found] == sorted(expected)
    for key, (distance, norm) in found.items():
        ours = sorted(zip(distance.tolist(), norm.tolist(), strict=True))
        np.testing.assert_allclose(ours, sorted(expected[key]), rtol=ROUND_OFF)


def test_norms_of_a_batch_are_refused(water):
    basis = load_basis("sto-3g", water.numbers)
    layout = layout_of(batch([water], basis), basis)
    operator = Operator(np.zeros((1, layout.nao, layout.nao)), layout, symmetric=True)
    with pytest.raises(ConventionError, match="operator must be that of one molecule"):
        block_norms(operator, water)
