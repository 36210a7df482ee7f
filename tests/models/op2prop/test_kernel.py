"""Columns of the kernel: against plain sums, differences, and what the model predicts with them."""

import dataclasses

import numpy as np
import pytest

from opml_jax.models.op2prop.closed_form import fit_energy
from opml_jax.models.op2prop.descriptors import Cache, Labelled
from opml_jax.models.op2prop.kernel import LENGTH, KernelColumns, fit_references
from opml_jax.models.op2prop.readout import kernel_energy

EXACT = 1e-9  # relative: well-conditioned sums in another order
DIFFERENCES = 1e-7  # relative: central differences of a Gaussian, steps of 1e-4


def _cache(rng, n=12) -> Cache:
    """Three atoms of two elements and a place for padding; 5 invariants, 4 directions."""
    one_hot = np.zeros((n, 4, 2))
    one_hot[:, 0, 0] = one_hot[:, 1, 1] = 1.0
    one_hot[::2, 2, 1] = 1.0
    real = one_hot.sum(axis=-1)
    x = rng.normal(size=(n, 4, 5)) * real[..., None]
    dx = rng.normal(size=(n, 4, 4, 5)) * real[:, None, :, None]
    return Cache(x, dx, {}, one_hot)


@pytest.fixture
def cache():
    return _cache(np.random.default_rng(3))


@pytest.mark.parametrize("m", [4, 40])
def test_columns_are_those_of_the_prediction(cache, m):
    """With 40 references of each element some are absent."""
    columns = KernelColumns(fit_references(cache, m))
    found = columns.energy(cache)
    solution = np.random.default_rng(4).normal(size=found.shape[1])
    kernel = {**columns.kernel, "weights": columns.weights(solution)}
    energy = kernel_energy(kernel, cache.x, cache.one_hot)
    np.testing.assert_allclose(energy, found @ solution, rtol=EXACT)


def test_slopes_against_differences(cache):
    columns = KernelColumns(fit_references(cache, 40))
    slopes = columns.slopes(cache).reshape(*cache.dx.shape[:2], -1)
    for d in range(cache.dx.shape[1]):
        ends = [
            columns.energy(dataclasses.replace(cache, x=cache.x + h * cache.dx[:, d]))
            for h in (1e-4, -1e-4)
        ]
        finite = -(ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(slopes[:, d], finite, atol=DIFFERENCES * np.abs(slopes).max())


def test_the_kernel_of_references_is_the_gaussian_of_full_slope(cache):
    """All atoms are references: products of columns are t^2 exp(-|x - x'|^2 / 2 t^2)."""
    columns = KernelColumns(fit_references(cache, 40))
    found = columns.energy(cache)
    expected = 0.0
    for e in range(2):
        hot = cache.one_hot[..., e]
        rows = cache.x[hot > 0]
        t2 = LENGTH**2 * np.sum(rows**2) / len(rows)
        distance = ((cache.x[:, :, None, None] - cache.x) ** 2).sum(axis=-1)
        gaussians = t2 * np.exp(-0.5 * distance / t2)
        expected = expected + np.einsum("ai,aibj,bj->ab", hot, gaussians, hot)
    np.testing.assert_allclose(found @ found.T, expected, rtol=EXACT)


def test_energies_of_a_gaussian_and_their_slopes_are_learned_together(rng):
    cache, other = _cache(rng, 80), _cache(rng, 20)
    kernel = fit_references(cache, 60)
    width = 1.0 / np.linalg.norm(kernel["components"][1], axis=0).max()

    def labels(c):
        hot, x = c.one_hot[..., 1], c.x / width
        value = hot * np.exp(-0.5 * (x**2).sum(axis=-1))
        slope = np.einsum("ni,nik,ndik->nd", value, x, c.dx) / width
        return {"energy": value.sum(axis=-1), "forces": slope}

    sigma = {"energy": 0.01, "forces": 0.01}
    train, validation = (Labelled(c, labels(c)) for c in (cache, other))
    *_, with_kernel = fit_energy(train, validation, sigma, 0.0, kernel)
    *_, linear = fit_energy(train, validation, sigma, 0.0)
    assert with_kernel.score < 0.2 * linear.score  # a tenth of it
