import itertools

import e3nn_jax as e3nn
import numpy as np
import pytest

from opml_jax.conventions import rotation_to_e3nn
from opml_jax.features import clebsch_gordan, couple, uncouple

ROUND_OFF = 1e-13  # sums of at most 81 products of numbers of order 1
# e3nn's D matrices come from angles, which cost a digit or two
WIGNER = 1e-12

PAIRS = [*itertools.combinations_with_replacement(range(5), 2), (2, 1), (4, 0), (3, 2)]


@pytest.mark.parametrize(("l1", "l2"), PAIRS)
def test_coefficients_are_orthonormal(l1, l2):
    ls = range(abs(l1 - l2), l1 + l2 + 1)
    all_l = np.concatenate([clebsch_gordan(l1, l2, l) for l in ls], axis=-1)
    assert all_l.dtype == np.float64
    n = (2 * l1 + 1) * (2 * l2 + 1)
    flat = all_l.reshape(n, n)
    np.testing.assert_allclose(flat.T @ flat, np.eye(n), atol=ROUND_OFF)


def test_scalars_are_traces(rng):
    block = rng.normal(size=(5, 5))
    scalar = couple(block, 2, 2)[0]
    assert abs(scalar[0]) == pytest.approx(abs(np.trace(block)) / 5**0.5)


def test_vectors_are_cross_products(rng):
    a, b = rng.normal(size=(2, 3))
    index = [1, 2, 0]
    vector = couple(np.outer(a[index], b[index]), 1, 1)[1]
    cross = np.cross(a, b)[index] / 2**0.5
    sign = np.sign(vector[0] * cross[0])
    np.testing.assert_allclose(vector, sign * cross, atol=ROUND_OFF)


@pytest.mark.parametrize(("l1", "l2"), PAIRS)
def test_uncoupling_undoes_coupling(rng, l1, l2):
    block = rng.normal(size=(3, 2 * l1 + 1, 2 * l2 + 1))
    parts = couple(block, l1, l2)
    assert {l: x.shape for l, x in parts.items()} == {
        l: (3, 2 * l + 1) for l in range(abs(l1 - l2), l1 + l2 + 1)
    }
    np.testing.assert_allclose(uncouple(parts, l1, l2), block, atol=ROUND_OFF)
    norms = sum((np.asarray(x) ** 2).sum() for x in parts.values())
    assert norms == pytest.approx((block**2).sum())


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize(("l1", "l2"), PAIRS)
def test_coupled_blocks_turn_as_irreps(rng, random_rotation, l1, l2, improper):
    r = rotation_to_e3nn(random_rotation(rng, improper))
    parity1, parity2 = (-1) ** l1, (-1) ** l2
    d1, d2 = (
        np.asarray(e3nn.Irrep(l, p).D_from_matrix(r)) for l, p in ((l1, parity1), (l2, parity2))
    )
    block = rng.normal(size=(2 * l1 + 1, 2 * l2 + 1))
    turned = couple(d1 @ block @ d2.T, l1, l2)
    for l, x in couple(block, l1, l2).items():
        d = e3nn.Irrep(l, parity1 * parity2).D_from_matrix(r)
        np.testing.assert_allclose(turned[l], d @ x, atol=WIGNER)
