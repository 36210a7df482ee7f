"""How standard deviations grow on molecules left out, from errors whose law is known."""

import numpy as np
import pytest

from opml_jax.learn.calibration import WITHIN
from opml_jax.learn.novelty import FEWEST, Growth, growth_of


@pytest.mark.parametrize(("factor", "power"), [(3.0, 1.0), (20.0, 1.5), (400.0, 2.0)])
def test_a_power_is_found_again(factor, power):
    rng = np.random.default_rng(1)
    sigma = np.exp(rng.uniform(-4, 1, 8000))
    error = np.abs(factor * sigma**power * rng.normal(size=sigma.shape))
    found = growth_of(error, sigma)
    assert found.power == pytest.approx(power, abs=0.05)
    assert (error < factor * sigma**power).mean() == pytest.approx(WITHIN, abs=0.02)
    assert (error < found.factor * sigma**found.power).mean() == pytest.approx(WITHIN, abs=1e-3)


def test_powers_are_bounded_and_few_errors_say_nothing():
    sigma = np.linspace(1.0, 2.0, 50)
    assert growth_of(sigma**9, sigma).power == 2.0
    assert growth_of(sigma**-9.0, sigma).power == 1.0
    assert growth_of(sigma[: FEWEST - 1], sigma[: FEWEST - 1]) is None
    nothing = np.array([np.nan, 0.0, np.inf, *sigma[: FEWEST - 1]])
    assert growth_of(nothing, np.abs(nothing)) is None


def test_nothing_shrinks():
    """A molecule that is novel is never surer than the last layer is."""
    growth = Growth(5.0, 2.0)
    np.testing.assert_allclose(growth(np.array([0.1, 0.2, 2.0])), [0.1, 0.2, 20.0])
