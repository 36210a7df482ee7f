"""Solid harmonics against e3nn's, and the tables that multiply, translate and differentiate."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.conventions import cartesian_to_e3nn
from opml_jax.integrals.harmonics import (
    addition,
    gradient,
    product,
    solid_harmonics,
    stacked_harmonics,
)

LMAX = 5
# Polynomials of degree at most 10 of numbers of order 1, values up to 1e2: a few hundred roundings.
ROUND_OFF = 1e-12
# e3nn builds its constants by its own recursion and rounds them once more.
THEIRS = 1e-11


@pytest.fixture
def points(rng):
    return rng.normal(size=(20, 3))


def _stacked(l, points):
    """``(2l+1, n)`` of one degree."""
    return np.stack(solid_harmonics(l, *np.asarray(points).T)[l])


@pytest.mark.parametrize("lmax", range(LMAX + 1))
def test_both_ways_to_make_them_agree(points, lmax):
    one_by_one = solid_harmonics(lmax, *points.T)
    stacked = stacked_harmonics(lmax, *jnp.asarray(points.T))
    assert [len(x) for x in one_by_one] == [x.shape[0] for x in stacked]
    assert [x.shape for x in stacked] == [(2 * l + 1, 20) for l in range(lmax + 1)]
    for a, b in zip(one_by_one, stacked, strict=True):
        np.testing.assert_allclose(np.stack(a), b, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("l", range(LMAX + 1))
def test_they_are_e3nns_with_racahs_normalisation(points, l):
    """e3nn's "norm" harmonics have unit length on the sphere: sqrt(4 pi / (2l+1)) Y."""
    vectors = cartesian_to_e3nn(points)
    irreps = e3nn.Irreps([(1, (l, (-1) ** l))])
    theirs = e3nn.spherical_harmonics(irreps, vectors, False, normalization="norm").array
    np.testing.assert_allclose(_stacked(l, points), theirs.T, rtol=0, atol=THEIRS)
    whole = e3nn.spherical_harmonics(irreps, vectors, False, normalization="integral").array
    scale = np.sqrt(4 * np.pi / (2 * l + 1))
    np.testing.assert_allclose(_stacked(l, points), scale * whole.T, rtol=0, atol=THEIRS)


def test_the_first_ones_are_what_the_docstring_says(points):
    x, y, z = points.T
    np.testing.assert_array_equal(_stacked(0, points), np.ones((1, 20)))
    np.testing.assert_array_equal(_stacked(1, points), [y, z, x])
    d = [3**0.5 * x * y, 3**0.5 * y * z, z * z - 0.5 * (x * x + y * y), 3**0.5 * x * z]
    d.append(3**0.5 / 2 * (x * x - y * y))
    np.testing.assert_allclose(_stacked(2, points), d, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("l", range(LMAX + 1))
def test_their_laplacian_vanishes(points, l):
    def values(r):
        return jnp.stack([jnp.asarray(s) for s in solid_harmonics(l, *r)[l]])

    hessian = jax.vmap(jax.jacfwd(jax.jacfwd(values)))(jnp.asarray(points))
    if l > 1:
        assert np.abs(hessian).max() > 1  # there is something to cancel
    np.testing.assert_allclose(np.trace(hessian, axis1=-2, axis2=-1), 0.0, atol=ROUND_OFF)


@pytest.mark.parametrize("i", range(LMAX + 1))
@pytest.mark.parametrize("j", range(LMAX + 1))
def test_a_product_is_a_sum_of_harmonics(points, i, j):
    r2 = (points**2).sum(axis=1)
    expected = _stacked(i, points)[:, None] * _stacked(j, points)[None]
    table = product(i, j)
    assert list(table) == list(range(abs(i - j), i + j + 1, 2))
    ours = sum(
        r2 ** ((i + j - l) // 2) * np.einsum("abc,cn->abn", t, _stacked(l, points))
        for l, t in table.items()
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("l", range(LMAX + 1))
def test_a_translated_harmonic_is_a_sum_of_products(points, l):
    u, w = points[:10], points[10:]
    ours = sum(
        np.einsum("mab,an,bn->mn", addition(l, i), _stacked(i, u), _stacked(l - i, w))
        for i in range(l + 1)
    )
    expected = _stacked(l, u + w)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("l", range(1, LMAX + 1))
def test_a_gradient_is_made_of_the_harmonics_below(points, l):
    def values(r):
        return jnp.stack([jnp.asarray(s) for s in solid_harmonics(l, *r)[l]])

    expected = jax.vmap(jax.jacfwd(values))(jnp.asarray(points))
    ours = np.einsum("xmk,kn->nmx", gradient(l), _stacked(l - 1, points))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e2 * ROUND_OFF)  # values up to 1e3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_keep_the_precision_they_are_given(points, dtype):
    given = [jnp.asarray(x, dtype) for x in points.T]
    for s in stacked_harmonics(LMAX, *given):
        assert s.dtype == dtype
    for row in solid_harmonics(LMAX, *given):
        assert {jnp.asarray(s).dtype for s in row} == {np.dtype(dtype)}
