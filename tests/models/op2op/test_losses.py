"""Losses of Fock matrices against finite differences of what they stand for."""

import jax.test_util
import numpy as np
import pytest
import scipy.linalg

from opml_jax.errors import ConfigError
from opml_jax.models.op2op.losses import (
    OperatorLosses,
    commutator_loss,
    density_of,
    levels_loss,
    matrix_loss,
    mixing_loss,
    occupied_loss,
    reference,
    total_loss,
)
from opml_jax.observables import density_matrix, orbitals

N, ELECTRONS, PADDED = 7, 6, 9
STEP = 1e-5  # of central differences; third derivatives here are of order 10
FIRST_ORDER = 1e-7
EXACT = 1e-12


def _symmetric(rng, n):
    x = rng.normal(size=(n, n))
    return x + x.T


@pytest.fixture
def case(rng):
    s = scipy.linalg.expm(0.2 * _symmetric(rng, N))
    f = _symmetric(rng, N) + np.diag(np.arange(N) * 3.0)
    return f, s, _symmetric(rng, N)


def test_mixing_is_the_first_order_change_of_the_density(case):
    f, s, d = case
    dm = [np.asarray(density_matrix(f + x * d, s, ELECTRONS)) for x in (STEP, -STEP)]
    root = scipy.linalg.sqrtm(s)
    change = root @ (dm[0] - dm[1]) / (2 * STEP) @ root
    found = mixing_loss(f + d, reference(f, s, ELECTRONS))
    assert found == pytest.approx((change**2).sum() / 8 / N, rel=FIRST_ORDER)


def test_errors_between_occupied_orbitals_move_the_sum_of_their_levels(case):
    f, s, d = case
    r = reference(f, s, ELECTRONS)
    energy = [np.asarray(orbitals(f + x * d, s)[0]) for x in (STEP, -STEP)]
    change = (energy[0] - energy[1]) / (2 * STEP)
    only = (np.asarray(r.mo_coeff) * change) @ np.asarray(r.mo_coeff).T  # diagonal Delta
    only = s @ only @ s
    for frontier in (0, 2):
        n = ELECTRONS // 2 + frontier
        expected = (change[:n] ** 2).sum() / N
        assert occupied_loss(f + only, r, frontier) == pytest.approx(expected, rel=FIRST_ORDER)
        exact = (scipy.linalg.eigh(f + d, s)[0] - np.asarray(r.mo_energy))[:n]
        assert levels_loss(f + d, r, frontier) == pytest.approx((exact**2).sum() / N)


def test_all_elements_and_the_commutator(case):
    f, s, d = case
    r = reference(f, s, ELECTRONS)
    assert matrix_loss(f + d, r) == pytest.approx((d**2).sum() / N)
    dm = np.asarray(density_matrix(f, s, ELECTRONS))
    assert np.abs(density_of(r) - dm).max() < EXACT
    assert commutator_loss(f, dm, r) < EXACT**2
    inverse = scipy.linalg.inv(scipy.linalg.sqrtm(s))
    left = inverse @ ((f + d) @ dm @ s - s @ dm @ (f + d)) @ inverse
    assert commutator_loss(f + d, dm, r) == pytest.approx((left**2).sum() / N)


def test_padding_counts_for_nothing_and_derivatives_are_right(case, rng):
    f, s, d = case

    def padded(x):
        return np.pad(x, ((0, PADDED - N),) * 2)

    weights = OperatorLosses(1.0, 2.0, 3.0, 4.0, 5.0, frontier=2)
    mask = np.arange(PADDED) < N
    r = reference(padded(f)[None], padded(s)[None], np.array([ELECTRONS]), mask[None])
    noisy = np.where(mask[:, None] & mask, padded(f + 0.1 * d), rng.normal(size=(PADDED, PADDED)))
    own = reference(f, s, ELECTRONS)
    expected = float(total_loss(weights, f + 0.1 * d, own))
    assert total_loss(weights, noisy[None], r)[0] == pytest.approx(expected, rel=1e-9)
    jax.test_util.check_grads(
        lambda x: total_loss(weights, f + 0.1 * d + x * d, own), (0.0,), 1, ["rev"], rtol=1e-5
    )


def test_weights_are_checked():
    for wrong in ({"matrix": 0.0}, {"mixing": -1.0}, {"frontier": -1}):
        with pytest.raises(ConfigError, match="losses"):
            OperatorLosses(**wrong)
