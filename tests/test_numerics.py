"""Safe mathematics and the pytree decorator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad

from opml_jax.numerics import (
    einsum,
    matmul,
    pytree,
    replace,
    safe_norm,
    safe_sqrt,
    static,
    sum_of_tangents,
)


@pytest.mark.parametrize("x", [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
def test_safe_norm_and_its_gradient(x):
    x = jnp.array(x)
    exact = np.linalg.norm(x)
    assert safe_norm(x) == pytest.approx(exact, rel=1e-15)
    gradient = jax.grad(safe_norm)(x)
    assert np.isfinite(gradient).all()
    if exact > 1:
        np.testing.assert_allclose(gradient, x / exact, rtol=1e-15)


def test_safe_sqrt_is_flat_at_zero():
    assert safe_sqrt(jnp.array(0.0)) == 0.0
    assert jax.grad(safe_sqrt)(0.0) == 0.0
    assert jax.grad(safe_sqrt)(4.0) == 0.25


def test_products_are_float64(rng):
    a, b = rng.normal(size=(2, 30, 30))
    np.testing.assert_allclose(matmul(a, b), a @ b, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(einsum("ij,jk->ik", a, b), a @ b, rtol=1e-13, atol=1e-13)


def test_pytree_separates_leaves_from_structure():
    @pytree
    class Thing:
        name: str = static()
        values: jax.Array

        def __post_init__(self):
            if self.name == "":
                raise ValueError("name must not be empty")

    thing = Thing("a", jnp.arange(3.0))
    leaves, tree = jax.tree.flatten(thing)
    assert len(leaves) == 1
    assert jax.tree.structure(Thing("b", thing.values)) != tree
    doubled = jax.jit(lambda t: jax.tree.map(lambda v: 2 * v, t))(thing)
    np.testing.assert_array_equal(doubled.values, [0.0, 2.0, 4.0])
    assert replace(thing, name="").name == ""  # unchecked, as inside transformations
    with pytest.raises(ValueError, match="empty"):
        Thing("", thing.values)
    with pytest.raises(TypeError, match="no field"):
        replace(thing, other=1)


def test_a_rule_without_tangents_gives_a_zero():
    out = jnp.ones((2, 3))
    zero = sum_of_tangents([], out)
    assert type(zero) is ad.Zero
    assert (zero.aval.shape, zero.aval.dtype) == (out.shape, out.dtype)
    np.testing.assert_array_equal(sum_of_tangents([out, 2 * out], out), 3 * out)
