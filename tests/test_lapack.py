"""Decompositions against scipy, their derivatives, and that CPUs never get a batch of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import opml_jax as opml
from opml_jax import lapack
from opml_jax.models import Op2Op, Op2OpConfig
from opml_jax.numerics import replace
from opml_jax.testing import assert_grad_matches_fd

# Relative to the largest element, of matrices with condition numbers up to 100
ROUND_OFF = 1e-12

BATCHED = re.compile(r'num_batch_dims = "[1-9]"')
CALLS = re.compile(r"@lapack_\w+")


@pytest.fixture
def matrices(rng):
    x = rng.standard_normal((2, 3, 6, 6))
    return x @ np.swapaxes(x, -1, -2) + 6 * np.eye(6)


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUND_OFF * np.abs(expected).max())


def test_batches_are_those_of_scipy(matrices, rng):
    right = rng.standard_normal((2, 3, 6, 2))
    general = matrices + rng.standard_normal((6, 6))
    w, u = jax.jit(lapack.eigh)(matrices)
    _close(u * w[..., None, :] @ np.swapaxes(u, -1, -2), matrices)
    for i in np.ndindex(2, 3):
        _close(w[i], scipy.linalg.eigvalsh(matrices[i]))
        _close(lapack.cholesky(matrices)[i], scipy.linalg.cholesky(matrices[i], lower=True))
        expected = scipy.linalg.solve_triangular(matrices[i], right[i], lower=True)
        _close(lapack.solve_lower(np.tril(matrices), right)[i], expected)
        expected = scipy.linalg.solve(matrices[i], right[i])
        _close(lapack.solve(matrices, right, positive=True)[i], expected)
        _close(lapack.solve(general, right)[i], scipy.linalg.solve(general[i], right[i]))
        shifted = general[i] + 1j * np.eye(6)
        _close(lapack.solve(shifted, right[i] + 0j), scipy.linalg.solve(shifted, right[i]))


@pytest.mark.parametrize("name", ["cholesky", "solve", "solve_lower", "solve_positive"])
def test_derivatives(name, matrices, rng):
    x, right = jnp.asarray(matrices[0]), rng.standard_normal((3, 6, 2))
    functions = {
        "cholesky": lapack.cholesky,
        "solve": lambda a: lapack.solve(a + jnp.triu(a), right),
        "solve_lower": lambda a: lapack.solve_lower(jnp.tril(a), right),
        "solve_positive": lambda a: lapack.solve(a, right, positive=True),
    }

    def value(t):
        a = x + t * (x @ jnp.flip(x, (-1, -2)) + jnp.flip(x, (-1, -2)) @ x) / 100
        return jnp.sum(jnp.sin(functions[name](a)))

    assert_grad_matches_fd(value, jnp.asarray(0.1))
    assert_grad_matches_fd(jax.grad(value), jnp.asarray(0.1))


def test_a_shared_factor_is_not_batched_either(matrices):
    def both(right):
        return lapack.solve(matrices[0, 0], right)

    right = jnp.ones((4, 6, 2))
    _close(jax.vmap(both)(right)[2], np.linalg.solve(matrices[0, 0], np.ones((6, 2))))


def _calls(function, *arguments) -> str:
    text = jax.jit(function).lower(*arguments).as_text()
    assert CALLS.search(text)
    return text


def test_no_batch_reaches_lapack_on_cpu(matrices):
    """Two batched calls that run at once wait for each other's threads for ever."""
    assert BATCHED.search(_calls(jnp.linalg.eigh, matrices))  # what is looked for is there
    solvers = (lambda a: lapack.solve(a, a)), (lambda a: lapack.solve_lower(a, a))
    for function in (lapack.eigh, lapack.cholesky, *solvers):
        assert not BATCHED.search(_calls(function, matrices))


@pytest.mark.slow
def test_nor_in_the_largest_program(molecules):
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(Op2OpConfig("sto-3g", ("W",), ("P",), exponents=(0.6,)), basis)
    structures = opml.batch([molecules["water"]] * 3, basis)
    table = definition.table(structures)
    params = {"guess": {}, "known": {}, "density": {}}

    def levels(positions):
        moved = replace(structures, positions=positions)
        out = definition.apply(params, moved, table)
        return jnp.sum(opml.observables.orbitals(out["fock"], out["overlap"])[0])

    assert not BATCHED.search(_calls(jax.grad(levels), structures.positions))
