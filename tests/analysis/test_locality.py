import io

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from opml_jax import operators
from opml_jax.analysis import block_norms, cutoff_study, plot_block_norms, plot_cutoff_study
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError
from opml_jax.features import AtomFeatures
from opml_jax.operators import Operator
from opml_jax.units import ANGSTROM_PER_BOHR

# Sums of the same numbers in another order
ROUND_OFF = 1e-13

# Bohr: nothing, the hydrogen's bond, both bonds, everything (the bonds of hydrogen cyanide are 2.0
# and 2.2 long, its ends 4.2 apart)
CUTOFFS = [1.0, 2.1, 3.0, 5.0]


@pytest.fixture(scope="module")
def cyanide(molecules):
    return molecules["hydrogen_cyanide"]


@pytest.fixture(scope="module")
def basis(cyanide):
    return load_basis("sto-3g", cyanide.numbers)


@pytest.fixture(scope="module")
def potential(cyanide, basis):
    return operators.external_potential(cyanide, basis)


def _kept(structure, layout, cutoff):
    x = structure.positions
    near = np.linalg.norm(x[:, None] - x, axis=-1) <= cutoff
    return near[np.ix_(layout.atom, layout.atom)]


@pytest.fixture(scope="module")
def study(cyanide, basis):
    """With two quantities of its own: one linear, one that a restriction does not touch."""
    own = {
        "sum": lambda o: o.to_dense().sum(),
        "diagonal": lambda o: np.diag(o.to_dense()),
        "largest": lambda o: np.linalg.eigvalsh(o.to_dense())[[0, -1]],
    }
    return cutoff_study(cyanide, basis, CUTOFFS, powers=(1, 3), quantities=own)


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


def test_kept_is_the_fraction_of_the_matrix_within_the_cutoff(cyanide, basis, study):
    np.testing.assert_array_equal(study["cutoff"], CUTOFFS)
    layout = layout_of(cyanide, basis)
    fractions = [_kept(cyanide, layout, c).mean() for c in CUTOFFS]
    np.testing.assert_array_equal(study["kept"], fractions)
    assert study["kept"][-1] == 1


def test_errors_decrease_to_nothing(study):
    assert [*study] == [
        *("cutoff", "kept", "V^1 features", "V^3 features"),
        *("sum", "diagonal", "largest"),
    ]
    for name in ("V^1 features", "V^3 features", "sum", "largest"):
        assert (np.diff(study[name]) < 0).all(), name
        assert study[name][-2] > 1e-3, name
        # restricted odd powers are symmetrised, which rounds once more
        assert study[name][-1] <= (1e-15 if "V^3" in name else 0), name


def test_errors_of_features_by_hand(cyanide, basis, potential, study):
    layout, v = potential.layout, np.asarray(potential.to_dense())
    features = jax.jit(AtomFeatures(basis.spec, (1,)))

    def of(matrix):
        return features(Operator(matrix, layout, symmetric=True)).array

    for k in (1, 3):
        exact = of(np.linalg.matrix_power(v, k))
        for n, cutoff in enumerate(CUTOFFS[:-1]):
            mask = _kept(cyanide, layout, cutoff)
            restricted = mask * v
            if k == 3:
                cube = mask * (restricted @ (mask * (restricted @ restricted)))
                restricted = (cube + cube.T) / 2
            expected = np.linalg.norm(of(restricted) - exact) / np.linalg.norm(exact)
            np.testing.assert_allclose(study[f"V^{k} features"][n], expected, rtol=1e-10)


def test_errors_of_quantities_by_hand(cyanide, potential, study):
    v = np.asarray(potential.to_dense())
    for n, cutoff in enumerate(CUTOFFS):
        bare = _kept(cyanide, potential.layout, cutoff) * v
        change = [np.linalg.eigvalsh(m)[[0, -1]] for m in (bare, v)]
        expected = np.sqrt(np.mean((change[0] - change[1]) ** 2))
        np.testing.assert_allclose(study["largest"][n], expected, atol=1e-12)
        np.testing.assert_allclose(study["sum"][n], abs(bare.sum() - v.sum()), atol=1e-12)
    assert not study["diagonal"].any()


def test_eigenvalues_in_lowdins_basis_by_default(cyanide, basis, potential):
    found = cutoff_study(cyanide, basis, [2.1], powers=(1,), operator="external_potential")
    assert [*found] == ["cutoff", "kept", "V^1 features", "eigenvalues"]
    s = np.asarray(operators.overlap(cyanide, basis).to_dense())
    w, u = np.linalg.eigh(s)
    x = u / np.sqrt(w) @ u.T
    v = np.asarray(potential.to_dense())
    bare = _kept(cyanide, potential.layout, 2.1) * v
    difference = np.linalg.eigvalsh(x @ bare @ x) - np.linalg.eigvalsh(x @ v @ x)
    expected = np.sqrt(np.mean(difference**2))
    np.testing.assert_allclose(found["eigenvalues"][0], expected, rtol=1e-10)
    assert expected > 0.1


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


def test_picture_of_a_cutoff_study(study):
    (ax,) = _drawn(plot_cutoff_study(study))
    names = [name for name in study if name not in ("cutoff", "kept")]
    assert [line.get_label() for line in ax.lines] == names
    for line in ax.lines:
        error = study[line.get_label()]
        shown = np.asarray(line.get_ydata())
        np.testing.assert_array_equal(np.isnan(shown), error == 0)
        np.testing.assert_array_equal(shown[error > 0], error[error > 0])
        np.testing.assert_allclose(line.get_xdata(), np.array(CUTOFFS) * ANGSTROM_PER_BOHR)
    assert ax.get_yscale() == "log"
