"""How standard deviations are scaled and judged, on errors that are known."""

import numpy as np
import pytest

from opml_jax.data import Dataset
from opml_jax.learn.calibration import WITHIN, scale_of, scale_of_rows
from opml_jax.structures import Structure
from opml_jax.training.calibration import reliability, shares


class Doubtful:
    """A model whose predictions are given."""

    doubted = ("energy", "forces")

    def failed(self, predicted):
        return np.zeros(0, int)

    def __init__(self, found):
        self.found, self.tolerant, self.quick_doubt = found, {}, {"uncertainty": True}

    def predict(self, structures, uncertainty):
        assert uncertainty
        return self.found


def test_errors_of_a_normal_distribution_are_scaled_to_it():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 2.0, 4000)
    error = np.abs(3 * sigma * rng.normal(size=4000))
    scale = scale_of(error, sigma)
    assert scale == pytest.approx(3.0, rel=0.06)
    assert shares({"x": (error, scale * sigma)})["x_within_sigma_percent"] == pytest.approx(
        100 * WITHIN, abs=0.1
    )
    assert shares({"x": (error, sigma)})["x_within_sigma_percent"] == pytest.approx(26.1, abs=3)


def test_where_nothing_is_doubted_an_error_says_nothing():
    error, sigma = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, np.nan, np.inf])
    assert scale_of(error, sigma) == scale_of(error[[0, 3]], sigma[[0, 3]])
    assert scale_of(error[1:3], sigma[1:3]) == 1.0


def test_padding_is_cut_off():
    """Of molecules of two and one atoms, padded to two."""
    structures = [Structure([1, 1], [[0.0, 0, 0], [0, 0, 1.4]]), Structure([2], [[0.0, 0, 0]])]
    forces = [np.ones((2, 3)), np.ones((1, 3))]
    data = Dataset(structures, {"energy": [1.0, 2.0], "forces": forces})
    found = {
        "energy": np.array([1.5, 1.0]),
        "energy_uncertainty": np.array([0.25, 2.0]),
        "forces": np.full((2, 2, 3), 3.0),
        "forces_uncertainty": np.full((2, 2, 3), 4.0),
    }
    pairs = reliability(Doubtful(found), data)
    assert [len(pairs[k][0]) for k in ("energy", "forces")] == [2, 9]
    np.testing.assert_allclose(pairs["energy"], [[0.5, 1.0], [0.25, 2.0]])
    np.testing.assert_allclose(pairs["forces"][0], 2.0)
    assert shares(pairs) == {
        "energy_within_sigma_percent": 50.0,
        "forces_within_sigma_percent": 100.0,
    }
    assert scale_of_rows(found["forces"], found["forces_uncertainty"], forces) == 0.5
    without = Dataset(structures, {"energy": [1.0, 2.0]})
    assert reliability(Doubtful(found), without).keys() == {"energy"}
