import functools
import itertools

import jax
import numpy as np
import pytest

from opml_jax import operators
from opml_jax.analysis import body_order
from opml_jax.basis import batch, bucket_of, load_basis
from opml_jax.errors import OpmlError
from opml_jax.features import AtomFeatures
from opml_jax.structures import Structure

# Alternating sums of up to 64 features of order 1, over the largest term
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def cluster():
    """Oxygen among six hydrogens, about 2 Bohr away in random directions."""
    rng = np.random.default_rng(3)
    directions = []
    while len(directions) < 6:
        x = rng.normal(size=3)
        x /= np.linalg.norm(x)
        if all(x @ y < 0.6 for y in directions):
            directions.append(x)
    radii = rng.uniform(1.6, 2.4, size=(6, 1))
    return Structure([8, *[1] * 6], np.concatenate([np.zeros((1, 3)), radii * directions]))


@pytest.fixture(scope="module")
def on_site(cluster):
    """``on_site(k)``: features of V^k of a structure, in one program for all subsets."""
    basis = load_basis("sto-3g", [1, 8])
    bucket = bucket_of([cluster], basis)
    recipes = [AtomFeatures(basis.spec, (k,), pair=False) for k in (1, 2, 3)]

    @jax.jit
    def compiled(structures):
        v = operators.external_potential(structures, basis)
        return [recipe(v).array[0] for recipe in recipes]

    known = {}

    def features(s, k):
        key = s.positions.tobytes()
        if key not in known:
            known[key] = compiled(batch([s], basis, bucket=bucket))
        return known[key][k - 1][: s.n_atoms]

    yield lambda k: functools.partial(features, k=k)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_powers_of_the_potential_correlate_twice_as_many_bodies(cluster, on_site, k):
    """On-site blocks of V^k: k - 1 atoms on the way, and a nucleus for each V."""
    order, terms = body_order(on_site(k), cluster)
    assert order == 2 * k
    assert terms.shape == (7,)
    assert terms.max() == 1
    assert (terms[: 2 * k] > 1e-7).all()
    assert (terms[2 * k :] < ROUNDING).all()


def _by_hand(bodies):
    """Sums over sets of ``bodies - 1`` neighbours of an atom, for every atom."""

    def featuriser(s):
        out = []
        for a in range(s.n_atoms):
            x = np.delete(s.positions, a, axis=0) - s.positions[a]
            own = np.exp(-np.linalg.norm(x, axis=1)) * np.delete(s.numbers, a)
            sets = itertools.combinations(range(len(x)), bodies - 1)
            out.append([sum(np.prod(own[[*n]]) * x[[*n]].sum() for n in sets)])
        return np.array(out)

    return featuriser


@pytest.mark.parametrize("centre", [0, 3])
@pytest.mark.parametrize("bodies", [2, 3, 5])
def test_a_sum_over_sets_of_neighbours_has_terms_of_their_size_alone(cluster, bodies, centre):
    order, terms = body_order(_by_hand(bodies), cluster, centre=centre)
    assert order == bodies
    assert terms[bodies - 1] == 1
    assert (np.delete(terms, bodies - 1) < ROUNDING).all()


def test_every_atom_at_once_is_the_highest_order(cluster):
    order, _ = body_order(lambda s: np.full((s.n_atoms, 1), np.exp(s.n_atoms)), cluster)
    assert order == cluster.n_atoms


def test_what_depends_on_no_neighbour_is_of_order_one(cluster):
    order, terms = body_order(lambda s: np.array(s.numbers)[:, None], cluster)
    assert order == 1
    np.testing.assert_array_equal(terms, [1, 0, 0, 0, 0, 0, 0])


def test_tolerance_says_what_is_rounding(cluster):
    def featuriser(s):
        return _by_hand(2)(s) + 1e-4 * _by_hand(4)(s)

    assert body_order(featuriser, cluster)[0] == 4
    assert body_order(featuriser, cluster, tolerance=0.1)[0] == 2


def test_refuses(cluster):
    for centre in (-1, 7):
        with pytest.raises(OpmlError, match=f"structure must be .*; got 6 neighbours.*{centre}"):
            body_order(_by_hand(2), cluster, centre=centre)
    line = np.arange(12)[:, None] * [2.0, 0.0, 0.0]
    with pytest.raises(OpmlError, match="at most 10; got 11 neighbours"):
        body_order(_by_hand(2), Structure([1] * 12, line))
