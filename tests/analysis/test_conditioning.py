import jax
import numpy as np
import pytest

from opml_jax import operators
from opml_jax.analysis import condition_number
from opml_jax.basis import batch, load_basis
from opml_jax.errors import OpmlError
from opml_jax.operators import chebyshev, lowdin, on_site_blocks, powers, spectral_bounds

# Singular values in double precision, of matrices of condition below 1e3
ROUND_OFF = 1e-11


@pytest.fixture
def matrix(rng):
    return rng.normal(size=(40, 7)) @ np.diag([1, 2, 3, 0.1, 5, 1, 1]) + 0.3


def test_is_numpys(matrix):
    expected = np.linalg.cond(matrix)
    np.testing.assert_allclose(condition_number(matrix, standardise=False), expected, ROUND_OFF)
    scaled = matrix / np.linalg.norm(matrix, axis=0)
    np.testing.assert_allclose(condition_number(matrix), np.linalg.cond(scaled), ROUND_OFF)


def test_leading_axes_are_samples(matrix):
    ours = condition_number(matrix.reshape(5, 8, 7))
    assert ours == condition_number(matrix)


def test_scales_of_features_do_not_matter_once_standardised(matrix, rng):
    scaled = matrix * 10.0 ** rng.uniform(-6, 6, size=7)
    np.testing.assert_allclose(condition_number(scaled), condition_number(matrix), ROUND_OFF)
    assert condition_number(scaled, standardise=False) > 1e3 * condition_number(matrix)


def test_a_common_scale_never_matters(matrix):
    for standardise in (True, False):
        ours = condition_number(1e5 * matrix, standardise=standardise)
        theirs = condition_number(matrix, standardise=standardise)
        np.testing.assert_allclose(ours, theirs, ROUND_OFF)


def test_features_that_vanish_are_left_out_once_standardised(matrix):
    wider = np.insert(matrix, 3, 0.0, axis=1)
    np.testing.assert_allclose(condition_number(wider), condition_number(matrix), ROUND_OFF)
    assert condition_number(wider, standardise=False) > 1e15


def test_orthogonal_features_are_perfect_and_dependent_ones_hopeless(rng):
    q, _ = np.linalg.qr(rng.normal(size=(9, 4)))
    np.testing.assert_allclose(condition_number(q * [1, 10, 100, 1000]), 1, ROUND_OFF)
    assert condition_number(np.column_stack([q, q.sum(axis=1)])) > 1e14


def test_too_few_samples_are_refused(rng):
    with pytest.raises(OpmlError, match="samples must be at least 7, one for each feature; got 6"):
        condition_number(rng.normal(size=(2, 3, 7)))


@pytest.fixture(scope="module")
def potential(water):
    """Screened potential of 64 displaced waters in Löwdin's basis, and the basis."""
    rng, basis = np.random.default_rng(0), load_basis("sto-3g", water.numbers)
    moves = 0.15 * rng.normal(size=(64, 3, 3))
    moved = batch([water.replace(positions=water.positions + m) for m in moves], basis)

    @jax.jit
    def compiled(s):
        return lowdin(operators.screened_potential(s, basis), operators.overlap(s, basis))

    return compiled(moved), basis


# Trace of the oxygen's block of degrees 1 to K, at 64 waters: measured condition numbers
#   K    powers    Chebyshev
#   4    3.1e+05   2.4e+04
#   6    8.2e+07   2.2e+05
#   8    5.1e+09   1.2e+06
@pytest.mark.parametrize(("degree", "gain"), [(6, 100), (8, 1000)])
def test_chebyshev_polynomials_are_far_better_than_powers(potential, degree, gain):
    v, basis = potential
    bounds = spectral_bounds(basis)

    def condition(found):
        traces = [np.trace(on_site_blocks(o)[:, 0], axis1=1, axis2=2) for o in found]
        return condition_number(np.stack(traces, axis=-1))

    degrees = range(1, degree + 1)
    ours, theirs = condition(chebyshev(v, degrees, bounds)), condition(powers(v, degrees))
    assert ours < theirs / gain
