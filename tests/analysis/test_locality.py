import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from opml_jax.analysis import block_norms, plot_block_norms
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError
from opml_jax.operators import Operator
from opml_jax.units import ANGSTROM_PER_BOHR

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


def _drawn(figure):
    """A figure of its own, which pyplot does not know, and which can be drawn."""
    assert isinstance(figure, Figure)
    assert figure.canvas.manager is None
    figure.savefig(io.BytesIO(), format="png")
    return figure.axes


def test_picture_of_block_norms(molecules, rng):
    s = molecules["formamide"]
    layout = layout_of(s, load_basis("sto-3g", s.numbers))
    a = rng.normal(size=(layout.nao, layout.nao))
    one = Operator(a + a.T, layout, symmetric=True)
    axes = _drawn(plot_block_norms({"A": one, "2 A": 2 * one}, s))
    norms = block_norms(one, s)
    names = ["H-H", "H-C", "H-N", "H-O", "C-N", "C-O", "N-O"]
    assert [ax.get_title() for ax in axes] == names
    for ax, (distance, norm) in zip(axes, norms.values(), strict=True):
        first, second = ax.lines
        np.testing.assert_allclose(first.get_xdata(), distance * ANGSTROM_PER_BOHR)
        np.testing.assert_allclose(first.get_ydata(), norm)
        np.testing.assert_allclose(second.get_ydata(), 2 * norm)
        assert ax.get_yscale() == "log"
    assert [t.get_text() for t in axes[-1].get_legend().texts] == ["A", "2 A"]
