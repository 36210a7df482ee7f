"""Products of random mixtures: against plain loops, symmetries, derivatives, padding, distance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis import layout_of
from opml_jax.features import AtomFeatures, Inputs, Products, clebsch_gordan, pairs_of_atoms
from opml_jax.features.products import DISTANCES, KEPT, SETS, scalars
from opml_jax.models import Op2Prop, Op2PropConfig
from opml_jax.operators import build, damped, lifted

INVARIANCE = 1e-11  # relative to the largest invariant
EXACT = 1e-12  # relative: the same sums in another order
DIFFERENCES = 1e-8  # relative; fourth-order central differences of polynomials of degree four

ELEMENTS = (1, 6, 7, 8)


@pytest.fixture(scope="module")
def made():
    """Basis, inputs, recipe and random mixtures."""
    basis = opml.load_basis("even-tempered", ELEMENTS)
    inputs = Inputs(metric="lifted", others=("overlap",))
    recipe = AtomFeatures(basis.spec, inputs.sources(basis.spec, (1,)))
    products = Products(recipe, 5)
    kinds, molecules = pairs_of_atoms(ELEMENTS)
    batch = opml.batch(molecules, basis)
    features = jax.jit(lambda s: recipe(inputs(s, basis, (1,))))(batch)
    return basis, inputs, products, kinds, features, products.draw(kinds, features, 0)


def _invariants(made, structure, positions=None):
    basis, inputs, products, *_, mixing = made
    hot = Op2Prop(Op2PropConfig(), basis).one_hot(structure)
    if positions is not None:
        structure = structure.replace(positions=positions)
    return products(products.recipe(inputs(structure, basis, (1,))), mixing, hot)


def test_scalars_against_plain_loops(rng):
    """Couplings written out path by path, one channel at a time."""
    ls, channels = (0, 1, 2), 2
    parts = {l: rng.normal(size=(channels, 2 * l + 1)) for l in ls}
    weights = {l: [] for l in ls}  # by path, in the order of the library's
    squares = {l: [[] for _ in range(channels)] for l in ls}
    for l, l1, l2 in itertools.product(ls, ls, ls):
        if l2 < l1 or (l1 + l2 + l) % 2 or not abs(l1 - l2) <= l <= l1 + l2:
            continue
        weights[l].append(rng.normal(size=(SETS, channels)))
        for c in range(channels):
            b = np.einsum("m,n,mnk->k", parts[l1][c], parts[l2][c], clebsch_gordan(l1, l2, l))
            squares[l][c].append(b)
    expected = []
    for c in range(channels):
        row = [parts[0][c, 0]]
        for l in ls:
            a = parts[l][c]
            b = np.einsum("ps,pM->sM", np.array(weights[l])[:, :, c], np.array(squares[l][c]))
            both = [a @ a, *(b @ a), *(b @ b[0])]
            row.extend(np.array(both) / np.sqrt(2 * l + 1))
        expected.append(row)
    paths = {l: np.swapaxes(w, 0, 1) for l, w in weights.items()}
    found = scalars({l: jnp.asarray(x.T) for l, x in parts.items()}, paths, ls)
    np.testing.assert_allclose(found, expected, rtol=EXACT)


def test_derivatives_of_scalars(rng):
    """In irreps and weights, forward, reverse, and one after the other."""
    ls = (0, 1, 2)
    n_paths = {0: 3, 1: 2, 2: 3}

    def draw():
        a = {l: rng.normal(size=(2 * l + 1, 4, 3)) for l in ls}
        return a, {l: rng.normal(size=(SETS, n, 3)) for l, n in n_paths.items()}

    at, along = draw(), draw()

    def differences(f):
        h = 1e-3

        def moved(h):
            return np.asarray(f(*jax.tree.map(lambda x, dx: x + h * dx, at, along)))

        return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)

    found = jax.jit(lambda x, dx: jax.jvp(lambda a, p: scalars(a, p, ls), x, dx)[1])(at, along)
    expected = differences(lambda a, p: scalars(a, p, ls))
    np.testing.assert_allclose(found, expected, atol=DIFFERENCES * np.abs(expected).max())
    w = rng.normal(size=expected.shape)
    gradient = jax.jit(lambda a, p: jax.grad(lambda a: jnp.sum(w * scalars(a, p, ls)))(a)[2])
    second = jax.jit(lambda x, dx: jax.jvp(gradient, x, dx)[1])(at, along)
    expected = differences(gradient)
    np.testing.assert_allclose(second, expected, atol=DIFFERENCES * np.abs(expected).max())


def test_symmetries_padding_and_distance(made, molecules):
    """One batch: a molecule, turned, reordered; two others, apart and far from each other."""
    s, water, other = (molecules[k] for k in ("formamide", "water", "hydrogen_cyanide"))
    x = np.asarray(s.positions)
    turned = [
        s.replace(positions=x @ opml.testing.random_rotation(1, improper=improper).T + 1.0)
        for improper in (False, True)
    ]
    order = np.array([2, 0, 1, 5, 3, 4])
    reordered = opml.Structure([s.numbers[i] for i in order], x[order])
    ends = [water.positions, np.asarray(other.positions) + np.array([0.0, 0.0, 40.0])]
    both = opml.Structure(water.numbers + other.numbers, np.concatenate(ends))
    structures = [s, *turned, reordered, water, other, both]
    batch = opml.batch(structures, made[0])
    found = np.asarray(jax.jit(lambda s: _invariants(made, s))(batch))
    scale = np.abs(found).max(axis=(0, 1))
    alone = np.asarray(jax.jit(lambda x: _invariants(made, s, x))(x))

    def same(a, b):
        return np.max(np.abs(a - b) / scale) < INVARIANCE

    assert same(found[0], alone)  # padding of AOs
    assert same(found[1], alone)
    assert same(found[2], alone)
    assert same(found[3], alone[order])
    assert same(found[6], np.concatenate([found[4, :3], found[5, :3]]))
    assert np.abs(found[4, 0] - found[0, 0]).max() > 1e-3 * scale.max()


def test_drawn_mixtures(made):
    """Of unit mean square over the atom pairs, repeatable, and of as many directions as it says."""
    _, _, products, kinds, features, mixing = made
    again = products.draw(kinds, features, 0)
    for a, b in zip(jax.tree.leaves(mixing), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = products.draw(kinds, features, 1)
    assert not np.allclose(mixing["mix"]["1"], other["mix"]["1"])
    channels = [c for c in products.recipe.channels if (c.l, c.parity) == (2, 1)]
    own = np.array([c.neighbour == 8 for c in channels])
    weights = mixing["mix"]["2"][ELEMENTS.index(6)] * own[:, None]
    chunk = {(ir.l, ir.p): x for (_, ir), x in zip(features.irreps, features.chunks, strict=True)}
    rows = np.asarray(chunk[2, 1])
    rows = rows.reshape(len(kinds), DISTANCES, 2, *rows.shape[2:])[kinds.index((6, 8)), :, 0]
    mixed = np.einsum("rkm,kc->rmc", rows, weights)
    np.testing.assert_allclose(np.sqrt((mixed**2).mean(axis=(0, 1))), 8**-0.5, rtol=1e-10)
    wide = Products(products.recipe, 40).draw(kinds, features, 0)["mix"]["2"][1][own]
    assert np.linalg.matrix_rank(wide, tol=1e-8 * np.linalg.norm(wide)) <= KEPT
    assert products.n_invariants == 5 * (1 + 4 * 5) == len(products.prior)


def test_prior_follows_the_degree(rng):
    """Invariants expected to be small are those that grow fastest with the irreps."""
    recipe = AtomFeatures(opml.load_basis("even-tempered", [1]).spec, (1,), lmax=2)
    products = Products(recipe, 3, 2)
    a = {l: rng.normal(size=(2 * l + 1, 3)) for l in products.ls}
    paths = {l: rng.normal(size=(SETS, n, 3)) for l, n in {0: 3, 1: 2, 2: 3}.items()}
    one, two = (
        np.asarray(scalars({l: h * jnp.asarray(x) for l, x in a.items()}, paths, products.ls))
        for h in (1, 2)
    )
    degree = np.log2(two / one).ravel()
    np.testing.assert_allclose(products.prior, 0.25 ** (degree - 1), rtol=1e-10)


def test_lifted_and_damped_against_plain_loops(molecules):
    s = molecules["formamide"]
    basis = opml.load_basis("sto-3g", ELEMENTS)
    v = build.screened_potential(s, basis, driver="libcint")
    overlap = build.overlap(s, basis, driver="libcint")
    layout = layout_of(s, basis)
    s_ij = np.ones(v.values.shape)
    for i, j in itertools.product(range(s.n_atoms), repeat=2):
        rows, columns = layout.atom == i, layout.atom == j
        own = np.asarray(overlap.values)[np.ix_(rows & (layout.l == 0), columns & (layout.l == 0))]
        s_ij[np.ix_(rows, columns)] = (np.sum(own**2) + 1e-8) ** 0.5
    batch = opml.batch([molecules["water"], s], basis)

    @jax.jit
    def both(b):
        operators = build.screened_potential(b, basis), build.overlap(b, basis)
        return [change(*operators) for change in (lifted, damped)]

    n = layout.nao
    for change, factor, padded in zip(
        (lifted, damped), (s_ij**-0.5, s_ij), both(batch), strict=True
    ):
        found, expected = change(v, overlap), v.values * factor
        assert found.symmetric
        np.testing.assert_allclose(found.values, expected, rtol=EXACT)
        np.testing.assert_allclose(padded.values[1, :n, :n], expected, rtol=1e-10, atol=1e-14)
        assert not np.any(np.asarray(padded.values)[0, 7:])
