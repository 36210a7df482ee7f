"""Ridge regression against its definition and against scikit-free brute force."""

import numpy as np
import pytest

from opml_jax.learn import ridge as linear
from opml_jax.learn.ridge import composition_offsets, ridge_leave_one_out, ridge_validated

EXACT = 1e-9  # relative; well-conditioned systems solved twice in float64


def _problem(rng, n=60, p=8, noise=0.1):
    a = rng.normal(size=(n, p))
    return a, a @ rng.normal(size=p) + noise * rng.normal(size=n)


def test_weights_solve_the_normal_equations(rng):
    a, y = _problem(rng)
    fit = ridge_leave_one_out(a, y, [0.3])
    expected = np.linalg.solve(a.T @ a + 0.3 * np.eye(8), a.T @ y)
    np.testing.assert_allclose(fit.weights, expected, rtol=EXACT)


def test_leave_one_out_error_equals_leaving_one_out(rng):
    a, y = _problem(rng, n=25)
    fit = ridge_leave_one_out(a, y, [0.7])
    residuals = []
    for i in range(len(a)):
        keep = np.arange(len(a)) != i
        w = np.linalg.solve(a[keep].T @ a[keep] + 0.7 * np.eye(8), a[keep].T @ y[keep])
        residuals.append(y[i] - a[i] @ w)
    assert fit.score == pytest.approx(np.sqrt(np.mean(np.square(residuals))), rel=EXACT)


@pytest.mark.parametrize("lam", [1e-2, 1e-10])
def test_leave_one_out_is_not_fooled_by_interpolation(rng, lam):
    """With more columns than rows every row is fitted; left out, none is."""
    a, y = _problem(rng, n=12, p=30)
    fit = ridge_leave_one_out(a, y, [lam])
    residuals = []
    for i in range(len(a)):
        own, others = a[np.arange(len(a)) != i], y[np.arange(len(a)) != i]
        dual = np.linalg.solve(own @ own.T + lam * np.eye(len(own)), others)
        residuals.append(y[i] - a[i] @ own.T @ dual)
    assert fit.score == pytest.approx(np.sqrt(np.mean(np.square(residuals))), rel=1e-7)
    assert fit.score > 1.0


def test_streamed_fit_equals_one_solve(rng):
    a, y = _problem(rng, n=90)
    held_out = _problem(rng, n=10)
    chunks = ((a[i : i + 17], y[i : i + 17]) for i in range(0, 90, 17))
    fit = ridge_validated(chunks, held_out, [0.05])
    expected = np.linalg.solve(a.T @ a + 0.05 * np.eye(8), a.T @ y)
    np.testing.assert_allclose(fit.weights, expected, rtol=EXACT)
    error = np.sqrt(np.mean((held_out[0] @ expected - held_out[1]) ** 2))
    assert fit.score == pytest.approx(error, rel=EXACT)


@pytest.mark.parametrize(("n", "p"), [(90, 8), (6, 12)], ids=["more rows", "fewer rows"])
def test_many_columns_go_through_normal_equations(rng, monkeypatch, n, p):
    a, y = _problem(rng, n=n, p=p)
    held_out = _problem(rng, n=30, p=p)
    every = [(a[i : i + 17], y[i : i + 17]) for i in range(0, n, 17)]
    lambdas = [1e-3, 0.05, 3.0]
    one = ridge_validated(every, held_out, lambdas, refit=n > p)
    monkeypatch.setattr(linear, "MANY", 4)
    other = ridge_validated(every, held_out, lambdas, refit=n > p)
    assert other.lam == one.lam
    np.testing.assert_allclose(other.weights, one.weights, rtol=EXACT)
    np.testing.assert_allclose(other.scores, one.scores, rtol=EXACT)


def test_fewer_rows_than_columns(rng):
    a, y = _problem(rng, n=6, p=12)
    fit = ridge_validated([(a[:2], y[:2]), (a[2:], y[2:])], _problem(rng, n=5, p=12), [0.1])
    expected = a.T @ np.linalg.solve(a @ a.T + 0.1 * np.eye(6), y)
    np.testing.assert_allclose(fit.weights, expected, rtol=EXACT)


def test_refit_solves_for_all_rows(rng):
    a, y = _problem(rng, n=50)
    fit = ridge_validated([(a[:40], y[:40])], (a[40:], y[40:]), [0.05], refit=True)
    expected = np.linalg.solve(a.T @ a + 0.05 * np.eye(8), a.T @ y)
    np.testing.assert_allclose(fit.weights, expected, rtol=EXACT)


def test_strongest_regularisation_among_equals(rng):
    a, y = _problem(rng, noise=0.0)
    lambdas = [1e-12, 1e-8, 1e-4, 1e2]
    assert ridge_leave_one_out(a, y, lambdas).lam <= 1e-8
    assert ridge_leave_one_out(a, y, lambdas, tolerance=1e-3).lam == 1e-4


def test_rank_deficient_columns_stay_finite(rng):
    a, y = _problem(rng)
    a = np.column_stack([a, a[:, 0], np.zeros(len(a))])
    fit = ridge_leave_one_out(a, y, [1e-10])
    assert np.isfinite(fit.weights).all()
    assert np.abs(a @ fit.weights - y).max() < 1.0


def test_composition_offsets_recover_atomic_energies():
    counts = np.array([[2, 1], [4, 1], [0, 2], [6, 3]])
    exact = np.array([-0.5, -75.0])
    np.testing.assert_allclose(composition_offsets(counts, counts @ exact), exact, rtol=EXACT)


def test_refuses_lengths_that_differ(rng):
    with pytest.raises(ValueError, match="rows must be"):
        ridge_leave_one_out(np.ones((3, 2)), np.ones(4))
