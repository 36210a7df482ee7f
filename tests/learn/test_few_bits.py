"""Weights in 16 bits: exact when packed, with rounding errors that cancel on training rows."""

import numpy as np
import pytest

from opml_jax.learn.few_bits import packed, rounded, unpacked
from opml_jax.learn.keyed_ridge import KeyedSystem, best_of, solve_key, spectrum

OUTPUTS, LAMBDA = 3, 1e-8


@pytest.fixture
def system(rng):
    """Rows of 40 columns of ever less that is new, of sizes from 1e-3 to 1e3."""
    new = rng.normal(size=(400, 40)) * np.logspace(0, -5, 40)
    x = new @ rng.normal(size=(40, 40)) * np.logspace(-3, 3, 40) + 2.0
    x[:, 7] = 0.0
    y = np.sin(new @ rng.normal(size=(40, OUTPUTS))) + 0.5
    out = KeyedSystem()
    out.add(x, y)
    return out, x


@pytest.mark.parametrize("constant", [True, False])
def test_errors_of_rounding_cancel(system, constant):
    rows, x = system
    weights, fit = best_of(solve_key(rows, rows, OUTPUTS, constant), LAMBDA)
    assert 0.9 * LAMBDA < fit.lam < 1.1 * LAMBDA
    own = rounded(weights, spectrum(rows, OUTPUTS, constant), fit.lam)
    integers, exponents = packed(own["weights"])
    assert (integers.dtype, exponents.dtype) == (np.int16, np.int8)
    np.testing.assert_array_equal(unpacked(integers, exponents), own["weights"])

    def change(other):
        moved = x @ (other["weights"] - weights["weights"])
        return np.sqrt(
            np.mean((moved + other.get("constant", 0) - weights.get("constant", 0)) ** 2)
        )

    step = 2.0**exponents
    alone = {**weights, "weights": step * np.rint(weights["weights"] / step)}
    assert change(own) < 0.1 * change(alone)
    assert change(own) < 1e-2 * fit.rmse
    assert ("constant" in own) == constant


def test_what_needs_more_bits_is_not_packed(rng):
    assert packed(rng.normal(size=(3, 2))) is None
    integers, exponents = packed(np.array([[0.0, 0.0], [1.5, -(2.0**-13)], [3e4, 1.0]]))
    assert not integers[0].any()
    assert exponents[0] == 0
    np.testing.assert_array_equal(integers[1] * 2.0 ** exponents[1], [1.5, -(2.0**-13)])
