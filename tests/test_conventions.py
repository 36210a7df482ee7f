import itertools

import e3nn_jax as e3nn
import numpy as np
import pytest
from pyscf import gto

from opml_jax.basis import layout_of, load_basis, to_pyscf
from opml_jax.conventions import (
    cartesian_to_e3nn,
    check_convention,
    diagnose,
    e3nn_to_cartesian,
    e3nn_to_matrix,
    matrix_to_e3nn,
    pyscf_order,
    pyscf_permutation,
    rotation_to_e3nn,
)
from opml_jax.errors import ConventionError
from opml_jax.integrals import overlap

ROUND_OFF = 1e-12  # values of order 1 in double precision


def _shell_values(l: int, points: np.ndarray) -> np.ndarray:
    """Values of one PySCF shell exp(-r^2) r^l Y_lm, divided by its radial part."""
    mol = gto.M(atom="H 0 0 0", basis={"H": [[l, [1.0, 1.0]]]}, spin=1)
    r2 = (points**2).sum(axis=-1, keepdims=True)
    return mol.eval_gto("GTOval_sph", points) * np.exp(r2)


@pytest.mark.parametrize("l", range(5))
def test_permuted_pyscf_harmonics_are_e3nn_harmonics(l, rng):
    points = rng.normal(size=(40, 3))
    ours = _shell_values(l, points)[:, pyscf_permutation([l])]
    vectors = e3nn.IrrepsArray("1o", cartesian_to_e3nn(points))
    theirs = np.asarray(e3nn.spherical_harmonics(l, vectors, normalize=False).array)
    factor = (ours * theirs).sum() / (theirs * theirs).sum()
    assert factor > 0
    np.testing.assert_allclose(ours / factor, theirs, atol=ROUND_OFF * np.abs(theirs).max())


def test_only_p_is_permuted():
    assert pyscf_order(1) == (1, 2, 0)
    assert pyscf_permutation([0, 1, 2, 1]).tolist() == [0, 2, 3, 1, 4, 5, 6, 7, 8, 10, 11, 9]


def test_vectors_go_there_and_back(rng):
    v = rng.normal(size=(5, 3))
    np.testing.assert_array_equal(cartesian_to_e3nn(v), v[:, [1, 2, 0]])
    np.testing.assert_array_equal(e3nn_to_cartesian(cartesian_to_e3nn(v)), v)


@pytest.mark.parametrize("improper", [False, True])
def test_rotation_to_e3nn(rng, random_rotation, improper):
    r, v = random_rotation(rng, improper), rng.normal(size=3)
    turned = rotation_to_e3nn(r) @ cartesian_to_e3nn(v)
    np.testing.assert_allclose(turned, cartesian_to_e3nn(r @ v), atol=ROUND_OFF)
    feature = e3nn.IrrepsArray("1o", cartesian_to_e3nn(v))
    turned = feature.transform_by_matrix(rotation_to_e3nn(r)).array
    np.testing.assert_allclose(turned, cartesian_to_e3nn(r @ v), atol=ROUND_OFF)


@pytest.fixture(scope="module")
def known(water):
    basis = load_basis("def2-svp", water.numbers)
    return np.asarray(overlap(water, basis)), layout_of(water, basis).shell_ls, basis


def _stored_as(matrix, ls, p_order, reverse=False):
    """``matrix`` as a program with other component orders would store it."""
    index, start = [], 0
    for l in ls:
        own = ["yzx".index(c) for c in p_order] if l == 1 else list(range(2 * l + 1))
        if reverse and l > 1:
            own = own[::-1]
        index += [start + k for k in own]
        start += 2 * l + 1
    return matrix[np.ix_(index, index)]


@pytest.mark.parametrize("p_order", ["".join(p) for p in itertools.permutations("xyz")])
@pytest.mark.parametrize("reverse", [False, True])
def test_names_the_permutation(known, p_order, reverse):
    s, ls, _ = known
    verdict = diagnose(_stored_as(s, ls, p_order, reverse), s, ls)
    text = f"p components stored as ({', '.join(p_order)})"
    text += " and m = l..-l for l > 1" if reverse else ""
    assert verdict == ("agrees" if (p_order, reverse) == ("yzx", False) else text)


def test_names_pyscf_order(known, water):
    s, ls, basis = known
    assert diagnose(to_pyscf(s, water, basis), s, ls) == "p components stored as (x, y, z)"


def test_says_when_it_does_not_know(known):
    s, ls, _ = known
    assert diagnose(2 * s, s, ls) == "unknown"
    assert diagnose(np.full_like(s, np.nan), s, ls) == "unknown"
    assert diagnose(s[:-1, :-1], s, ls) == f"shape {s[:-1, :-1].shape} instead of {s.shape}"


def test_check_convention(known, water):
    s, ls, basis = known
    check_convention(s, s, ls)
    with pytest.raises(ConventionError) as caught:
        check_convention(to_pyscf(s, water, basis), s, ls, where="overlap of file.h5")
    for words in ("overlap of file.h5", "(x, y, z)", "y, z, x", "from_pyscf"):
        assert words in str(caught.value)


def test_matrices_are_second_harmonics(rng):
    """r r^T holds the harmonics of L = 2 in e3nn's order, one factor for all of them."""
    r = rng.normal(size=(20, 3))
    ours = matrix_to_e3nn(r[:, :, None] * r[:, None, :])
    vectors = e3nn.IrrepsArray("1o", cartesian_to_e3nn(r))
    theirs = np.asarray(e3nn.spherical_harmonics(2, vectors, normalize=False).array)
    factor = (ours * theirs).sum() / (theirs * theirs).sum()
    assert factor > 0
    np.testing.assert_allclose(ours, factor * theirs, atol=ROUND_OFF * np.abs(ours).max())


def test_matrices_go_there_and_back(rng):
    m = rng.normal(size=(4, 3, 3))
    m = m + np.swapaxes(m, 1, 2)
    traceless = m - np.trace(m, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
    components = matrix_to_e3nn(m)
    np.testing.assert_allclose(e3nn_to_matrix(components), traceless, atol=ROUND_OFF)
    norms = (traceless**2).sum(axis=(1, 2))
    np.testing.assert_allclose((components**2).sum(axis=1), norms, rtol=ROUND_OFF)
