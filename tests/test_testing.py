"""The public test helpers accept what is right and refuse what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.testing import (
    assert_equivariant,
    assert_grad_matches_fd,
    random_rotation,
    random_structure,
)


def _distances(s):
    x = jnp.asarray(s.positions)
    return jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, axis=-1) + jnp.eye(len(x)))


def _energy(s):
    return jnp.sum(1.0 / _distances(s))


def test_accepts_invariants_vectors_and_irreps(water):
    basis = opml.load_basis("sto-3g", water.numbers)
    assert_equivariant(_energy, water)
    assert_equivariant(lambda s: opml.features.atom_features(s, basis), water)
    centre = water.positions.mean(axis=0)

    def moments(s):
        weight = np.array(s.numbers, float) - np.mean(s.numbers)
        return {"dipole": weight @ s.positions, "energy": _energy(s)}

    assert_equivariant(moments, water.replace(positions=water.positions - centre))


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (lambda s: s.positions[0, 0], "rotation"),
        (lambda s: jnp.sum(jnp.asarray(s.positions) ** 2), "translation"),
        (lambda s: _distances(s)[0, 1], "permutation"),
        (lambda s: {"dipole": np.ones(3)}, "rotation"),
    ],
)
def test_refuses_what_breaks_a_symmetry(fn, what, water):
    with pytest.raises(AssertionError, match=what):
        assert_equivariant(fn, water)


def test_refuses_a_pseudoscalar():
    """Handedness survives proper rotations; only the improper ones give it away."""
    s = random_structure([1, 6, 8, 9], 0)

    def handedness(s):
        x = jnp.asarray(s.positions)[jnp.argsort(jnp.asarray(s.numbers))]
        return jnp.linalg.det(x[1:] - x[0])

    with pytest.raises(AssertionError, match="improper rotation 1"):
        assert_equivariant(handedness, s)


def test_gradient_check_accepts_and_refuses():
    x = np.array([0.3, -0.7])
    assert_grad_matches_fd(lambda v: jnp.sum(jnp.sin(v) * v**2), x)

    def wrong(v):  # a constant to autodiff, not to finite differences
        return jnp.sum(jnp.round(v * 1e3)) + jnp.sum(v)

    with pytest.raises(AssertionError, match="gradient off by"):
        assert_grad_matches_fd(wrong, x)
    with pytest.raises(AssertionError, match="not finite"):
        assert_grad_matches_fd(jnp.linalg.norm, np.zeros(3))


@pytest.mark.parametrize("improper", [False, True])
def test_random_rotation(improper):
    r = random_rotation(3, improper=improper)
    np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(r) == pytest.approx(-1.0 if improper else 1.0)


def test_random_structure_is_valid_and_repeatable():
    s, again = (random_structure([6, 1, 1, 1, 8], 4) for _ in range(2))
    np.testing.assert_array_equal(s.positions, again.positions)
    d = np.array(_distances(s))[np.triu_indices(5, 1)]
    assert d.min() > 0.9 / opml.units.ANGSTROM_PER_BOHR
    assert random_structure([1], 0).spin == 1
