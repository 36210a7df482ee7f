"""The streamed ridge of a key against one solved in one piece."""

import numpy as np
import pytest

from opml_jax.learn.keyed_ridge import LAMBDAS, UNJUDGED, KeyedSystem, best_of, solve_key


def _stream(x, y, chunk):
    system = KeyedSystem()
    for i in range(0, len(x), chunk):
        system.add(x[i : i + chunk], y[i : i + chunk])
    return system


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("n", [30, 400], ids=["fewer rows than columns", "more"])
def test_it_is_ridge_regression(constant, n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + 50, 40)) * 10.0 ** rng.uniform(-3, 3, size=40) + 3.0
    x[:, 7] = x[:, 3]  # collinear
    y = x @ rng.normal(size=(40, 2)) / np.abs(x).max() + 0.7 + 0.01 * rng.normal(size=(n + 50, 2))
    train, validation = _stream(x[:n], y[:n], 7), _stream(x[n:], y[n:], 7)
    candidates = solve_key(train, validation, 2, constant)
    weights, fit = best_of(candidates)

    mean = x[:n].mean(axis=0) if constant else np.zeros(40)
    middle = y[:n].mean(axis=0) if constant else np.zeros(2)
    spread = np.sqrt(((x[:n] - mean) ** 2).mean(axis=0))
    a = (x[:n] - mean) / spread
    errors = {}
    for lam in LAMBDAS:
        w = np.linalg.solve(a.T @ a + lam * n * np.eye(40), a.T @ (y[:n] - middle))
        found = (x[n:] - mean) / spread @ w + middle
        errors[lam] = np.sqrt(((found - y[n:]) ** 2).mean())
        if lam == fit.lam:
            own = x[n:] @ weights["weights"] + weights.get("constant", 0.0)
            assert np.abs(own - found).max() < 1e-5 * np.abs(found).max()
    assert fit.rmse == pytest.approx(errors[fit.lam], rel=1e-4)
    assert fit.rmse <= 1.0001 * min(errors.values())
    assert ("constant" in weights) == constant
    _, above = best_of(candidates, floor=10.0)
    assert above.lam == pytest.approx(10.0)
    assert above.rmse == pytest.approx(errors[max(LAMBDAS)], rel=1e-4)


def test_what_vanishes_has_no_weights():
    x = np.ones((50, 3))
    nothing = _stream(0 * x, 0 * x[:, :1], 10)
    assert solve_key(nothing, nothing, 1, False) == []


def test_what_validation_lacks_is_not_judged_by_what_it_fits():
    """Fewer rows than columns: the smallest lambda leaves nothing of them, and is not taken."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 20)), rng.normal(size=(8, 1))
    system = _stream(x, y, 5)
    assert best_of(solve_key(system, system, 1, False))[1].lam == min(LAMBDAS)
    weights, fit = best_of(solve_key(system, None, 1, False))
    assert fit.lam == pytest.approx(UNJUDGED)
    a = x / np.sqrt((x**2).mean(axis=0))
    dual = np.linalg.solve(a @ a.T + UNJUDGED * 8 * np.eye(8), y)  # ridge in its other form
    np.testing.assert_allclose(x @ weights["weights"], a @ a.T @ dual, rtol=1e-8)
