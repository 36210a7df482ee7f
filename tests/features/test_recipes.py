"""Features of several operators, of pairs, of large batches and of restricted operators."""

import functools

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from opml_jax import operators
from opml_jax.basis import batch, bucket_of, layout_of, load_basis
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.features import (
    AtomFeatures,
    PairFeatures,
    atom_features,
    couple,
    hierarchy,
)
from opml_jax.operators import (
    Operator,
    blocks,
    chebyshev,
    lowdin,
    plan,
    powers,
    product,
    resolvent,
)
from opml_jax.structures import Structure
from opml_jax.testing import assert_equivariant

# Of sums in another order, relative to the largest feature
REORDERING = 1e-12
# The same, for operators that went through a rotation; V's elements keep 1e-12
ROTATION = 1e-11

BASIS = load_basis("sto-3g", [1, 6, 7, 8])
SPEC = BASIS.spec


def _close(ours, theirs, tolerance=REORDERING):
    scale = np.abs(theirs).max()
    assert scale > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module")
def physical(molecules):
    """``physical(name)``: V and S of a molecule."""

    @functools.cache
    def of(name):
        s = molecules[name]
        return {"V": operators.external_potential(s, BASIS), "S": operators.overlap(s, BASIS)}

    return of


def _random(structure, rng, symmetric=True):
    """A random operator of norm about 1, so that its powers are all of one size."""
    layout = layout_of(structure, BASIS)
    a = rng.normal(size=(layout.nao, layout.nao)) / layout.nao**0.5
    return Operator(jnp.asarray(a + a.T if symmetric else a), layout, symmetric=symmetric)


def _by_channel(recipe, x):
    """``{channel: (n, 2 L + 1)}``."""
    out, start = {}, 0
    for c in recipe.channels:
        out[c] = np.asarray(x.array)[:, start : start + 2 * c.l + 1]
        start += 2 * c.l + 1
    assert start == recipe.irreps.dim == x.shape[-1]
    assert len(out) == recipe.irreps.num_irreps
    return out


def _block(channel, parts, layout, i, j):
    """The irrep of a channel in one atom pair, by coupling its block; None without such shells."""

    def shell(atom, l, n):
        own = [k for k, x in enumerate(layout.atom_ls[atom]) if x == l]
        return own[n] if n < len(own) else None

    a, b = shell(i, channel.l1, channel.n1), shell(j, channel.l2, channel.n2)
    if a is None or b is None:
        return np.zeros(2 * channel.l + 1)
    return np.asarray(couple(parts[i, j, a, b], channel.l1, channel.l2)[channel.l])


# several operators


@pytest.mark.parametrize("pair", [True, False])
def test_several_operators_are_each_of_them(physical, pair):
    found = physical("water")
    named = AtomFeatures(SPEC, {"V": (1, 2), "S": (1,)}, pair)
    x = jax.jit(named)(found)
    assert x.irreps == named.irreps
    ours = _by_channel(named, x)
    theirs = {}
    for name, ks in (("V", (1, 2)), ("S", (1,))):
        alone = AtomFeatures(SPEC, {name: ks}, pair)
        theirs |= _by_channel(alone, jax.jit(alone)(found[name]))
    assert set(ours) == set(theirs)
    assert {(c.operator, c.power) for c in ours} == {("V", 1), ("V", 2), ("S", 1)}
    for channel, values in theirs.items():
        scale = REORDERING * np.abs(x.array).max()
        np.testing.assert_allclose(ours[channel], values, rtol=0, atol=scale, err_msg=str(channel))
    extra = jax.jit(named)({**found, "T": found["S"]})  # one that is not asked for
    _close(extra.array, x.array)


def test_one_operator_needs_no_name(physical):
    V = physical("water")["V"]
    plain = AtomFeatures(SPEC, (1, 2), lmax=0)
    named = AtomFeatures(SPEC, {"V": (1, 2)}, lmax=0)
    assert plain.channels == named.channels
    x = jax.jit(plain)(V).array
    for ours in (jax.jit(plain)({"V": V}), jax.jit(named)({"V": V}), jax.jit(named)(V)):
        np.testing.assert_array_equal(ours.array, x)
    assert hash(plain) == hash(AtomFeatures(SPEC, [1, 2], lmax=0))
    assert named == AtomFeatures(SPEC, {"V": [1, 2]}, lmax=0)


def test_the_convenience_takes_several_names(physical, molecules):
    s, found = molecules["water"], physical("water")
    powers = {"external_potential": (1, 2), "overlap": (1,)}
    recipe = AtomFeatures(SPEC, powers, lmax=0)
    theirs = recipe({"external_potential": found["V"], "overlap": found["S"]})
    ours = atom_features(s, BASIS, powers, lmax=0)
    assert ours.irreps == theirs.irreps
    _close(ours.array, theirs.array)
    with pytest.raises(OpmlError, match=r"operator must be one of .*'overlp'.*'overlap'"):
        atom_features(s, BASIS, {"overlp": (1,)})


# operators that are not symmetric


def test_nothing_of_an_unsymmetric_operator_is_lost(molecules, rng):
    """All blocks are kept, and each is what coupling it by hand gives."""
    s = molecules["hydrogen_cyanide"]
    A, B = (_random(s, rng, symmetric=False) for _ in range(2))
    recipe = AtomFeatures(SPEC, {"A": (1, 2), "B": (1,)}, symmetric=False)
    n = SPEC.n_slots
    assert recipe.irreps.dim == 3 * (1 + len(SPEC.elements)) * n * n
    ours = _by_channel(recipe, jax.jit(recipe)({"A": A, "B": B}))
    found = {("A", 1): blocks(A), ("A", 2): blocks(A @ A), ("B", 1): blocks(B)}
    for channel, values in ours.items():
        parts = found[channel.operator, channel.power]
        for i, value in enumerate(values):
            z = channel.neighbour
            others = [j for j, y in enumerate(s.numbers) if y == z and j != i] if z else [i]
            theirs = sum(
                (_block(channel, parts, A.layout, i, j) for j in others),
                np.zeros(2 * channel.l + 1),
            )
            np.testing.assert_allclose(value, theirs, rtol=0, atol=REORDERING)


def test_an_unsymmetric_recipe_of_a_symmetric_operator_holds_the_symmetric_one(physical):
    V = physical("water")["V"]
    every, some = AtomFeatures(SPEC, (1, 2), symmetric=False), AtomFeatures(SPEC, (1, 2))
    assert set(some.channels) < set(every.channels)
    ours, theirs = _by_channel(every, jax.jit(every)(V)), _by_channel(some, jax.jit(some)(V))
    scale = max(np.abs(x).max() for x in theirs.values())
    for channel, values in theirs.items():
        np.testing.assert_allclose(ours[channel], values, rtol=0, atol=REORDERING * scale)


def test_products_of_two_operators_must_say_what_they_are(physical):
    V, S = physical("water").values()
    product = V @ S
    for recipe in (AtomFeatures(SPEC, (1,)), AtomFeatures(SPEC, (1,), pair=False)):
        with pytest.raises(OpmlError, match=r"not known to be symmetric.*symmetrised\(\)"):
            recipe(product)
    symmetric = AtomFeatures(SPEC, (1,))
    half = Operator((V @ S + S @ V).values / 2, V.layout, symmetric=True)
    compiled = jax.jit(symmetric)
    _close(compiled(product.symmetrised()).array, compiled(half).array)
    free = AtomFeatures(SPEC, (1,), symmetric=False)
    assert jax.eval_shape(free, product).shape == (3, free.irreps.dim)


# on-site blocks from half powers


def _restricted(operator, structure, pattern):
    if pattern == "unrestricted":
        return operator
    tile = 8 if pattern == "tiled" else None
    p = plan(structure, BASIS, 3.0, storage=pattern, tile=tile)
    assert p.occupation < 1
    return operator.restrict(p)


@pytest.mark.parametrize(
    ("pattern", "symmetric"),
    [("unrestricted", False), ("dense", True), ("tiled", True)],
)
def test_on_site_alone_is_the_on_site_part_of_all(molecules, rng, pattern, symmetric):
    s = molecules["formamide"]
    A = _restricted(_random(s, rng, symmetric), s, pattern)
    ks = (1, 2, 3, 4, 5)
    alone = AtomFeatures(SPEC, ks, pair=False, symmetric=symmetric)
    both = AtomFeatures(SPEC, ks, symmetric=symmetric)
    ours, theirs = _by_channel(alone, jax.jit(alone)(A)), _by_channel(both, jax.jit(both)(A))
    assert set(ours) == {c for c in theirs if not c.neighbour}
    for k in ks:
        own = [c for c in ours if c.power == k]
        scale = max(np.abs(theirs[c]).max() for c in own)
        for c in own:
            np.testing.assert_allclose(ours[c], theirs[c], rtol=0, atol=REORDERING * scale)


def test_half_powers_do_less(physical, monkeypatch):
    """On-site blocks of V^4 of a large molecule need one full product."""
    monkeypatch.setattr(product, "ON_SITE_FROM", 0)
    V = physical("water")["V"]

    def full_products(recipe):
        text = str(jax.make_jaxpr(lambda v: recipe(V._with(v, symmetric=True)).array)(V.values))
        n = V.nao
        return sum(f":f64[{n},{n}] = dot_general" in line for line in text.splitlines())

    assert full_products(AtomFeatures(SPEC, (4,), pair=False)) == 1
    assert full_products(AtomFeatures(SPEC, (4,))) == 2


# restricted operators


def _by_the_pattern(matrix, structure, layout):
    x = structure.positions
    near = np.array([[np.linalg.norm(a - b) <= 3.0 for b in x] for a in x])
    return np.where(near[np.ix_(layout.atom, layout.atom)], matrix, 0)


@pytest.mark.parametrize(
    ("pair", "pattern"),
    [
        (True, "dense"),
        (True, "tiled"),
        (False, "dense"),
        pytest.param(False, "tiled", marks=pytest.mark.slow),
    ],
)
def test_features_of_restricted_operators(molecules, rng, pair, pattern):
    """Those of the restricted powers, made in NumPy; and derivatives of both storages agree."""
    s = molecules["formamide"]
    A = _random(s, rng)
    recipe = AtomFeatures(SPEC, (1, 2, 3), pair)

    @jax.jit
    def ours(a):
        return recipe(_restricted(Operator(a, A.layout, symmetric=True), s, pattern)).array

    cut = functools.partial(_by_the_pattern, structure=s, layout=A.layout)
    a = cut(np.asarray(A.values))
    square = cut(a @ a)
    cube = cut(square @ a)
    found = {"1": a, "2": square, "3": (cube + cube.T) / 2}
    plain = AtomFeatures(SPEC, {name: (1,) for name in found}, pair)

    def theirs(found):
        return plain({k: Operator(m, A.layout, symmetric=True) for k, m in found.items()}).array

    _close(ours(A.values), jax.jit(theirs)({k: jnp.asarray(m) for k, m in found.items()}))
    d, h = np.asarray(_random(s, rng).values), 1e-3
    weights = rng.normal(size=(s.n_atoms, recipe.irreps.dim))

    @jax.jit
    def total(a):
        return jnp.sum(weights * ours(a))

    moved = [total(A.values + k * h * d) for k in (-2, -1, 1, 2)]
    differences = (8 * (moved[2] - moved[1]) - (moved[3] - moved[0])) / (12 * h)
    slope = float(jnp.sum(jax.jit(jax.grad(total))(A.values) * d))
    # of a polynomial of third degree: rounding over h alone
    assert slope == pytest.approx(float(differences), rel=1e-9)


# large batches


def _many_waters(water, n):
    x = water.positions + 0.1 * np.random.default_rng(3).normal(size=(n, 3, 3))
    return [Structure(water.numbers, p) for p in x]


@pytest.mark.parametrize(
    ("n", "pair", "cutoff"),
    [pytest.param(20, True, 2.2, marks=pytest.mark.slow), (34, False, None)],
)
def test_large_batches_are_their_molecules(water, rng, n, pair, cutoff):
    """Taken a few at a time: 20 in equal parts, 34 with a remainder; derivatives, too."""
    assert n > hierarchy.CHUNK
    many = _many_waters(water, n)
    recipe = AtomFeatures(SPEC, {"A": (1, 3), "B": (2,)}, pair)
    padded = batch(many, BASIS)
    a = rng.normal(size=(2, n, 7, 7))
    a = a + np.swapaxes(a, -1, -2)
    weights = rng.normal(size=recipe.irreps.dim)

    @jax.jit
    def both(structures_operators):
        def total(values):
            x = recipe(
                {
                    k: Operator(values[k], o.layout, o.plan, symmetric=True)
                    for k, o in structures_operators.items()
                }
            ).array
            return jnp.sum(weights * x**2), x

        gradient, x = jax.grad(total, has_aux=True)(
            {k: o.values for k, o in structures_operators.items()}
        )
        return x, gradient

    def given(matrices, layout, structure):
        found = {
            k: Operator(jnp.asarray(m), layout, symmetric=True)
            for k, m in zip("AB", matrices, strict=True)
        }
        if cutoff is None:
            return found
        p = plan(structure, BASIS, cutoff)
        return {k: o.restrict(p) for k, o in found.items()}

    x, gradient = both(given(a, padded.layout, padded))
    layout = layout_of(water, BASIS)
    alone = [both(given(a[:, b], layout, s)) for b, s in enumerate(many)]
    _close(x, np.stack([y for y, _ in alone]))
    for k in "AB":
        _close(gradient[k], np.stack([g[k] for _, g in alone]))


@pytest.mark.slow
def test_gradients_in_positions_of_a_large_batch(rng):
    """Through integrals and features, of hydrogen molecules."""
    basis = load_basis("sto-3g", [1])
    x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]) + 0.1 * rng.normal(size=(20, 2, 3))
    many = [Structure([1, 1], p) for p in x]

    @jax.jit
    def gradient(s):
        def f(x):
            found = atom_features(s.replace(positions=x), basis, (1, 2)).array
            return jnp.sum(jnp.sin(found))

        return jax.grad(f)(s.positions)

    _close(gradient(batch(many, basis)), np.stack([gradient(s) for s in many]))


@pytest.mark.parametrize("n", [3, 20])
def test_what_is_made_of_features_within_a_batch(water, rng, n):
    """As of the features of the whole batch; and of one molecule."""
    padded = batch(_many_waters(water, n), BASIS)
    recipe = AtomFeatures(SPEC, (1, 2), pair=False)
    a = rng.normal(size=(n, 7, 7))
    A = Operator(jnp.asarray(a + np.swapaxes(a, -1, -2)), padded.layout, symmetric=True)
    energy = jax.jit(functools.partial(recipe, then=lambda x: jnp.sum(jnp.sin(x.array))))(A)
    x = jax.jit(recipe)(A).array
    _close(energy, np.sin(x).sum(axis=(1, 2)))
    one = Operator(A.values[0], layout_of(water, BASIS), symmetric=True)
    _close(recipe(one, then=lambda x: x.array[0]), x[0, 0])


@pytest.mark.parametrize("pair", [True, False])
def test_features_are_in_the_precision_of_the_operator(molecules, rng, pair):
    A = _random(molecules["water"], rng)
    single = A._with(A.values.astype(np.float32), symmetric=True)
    recipe = jax.jit(AtomFeatures(SPEC, (1, 2), pair))
    assert recipe(single).array.dtype == np.float32
    _close(recipe(single).array, recipe(A).array, 1e-5)  # a few roundings of float32


def test_pairs_of_a_large_batch(water, rng):
    many = _many_waters(water, 20)
    padded, layout = batch(many, BASIS), layout_of(water, BASIS)
    recipe = PairFeatures(SPEC, (1, 2))
    a = rng.normal(size=(20, 7, 7))
    a = a + np.swapaxes(a, -1, -2)
    pairs = rng.integers(0, 3, size=(20, 4, 2))
    together = jax.jit(recipe)(Operator(jnp.asarray(a), padded.layout, symmetric=True), pairs)
    assert together.shape == (20, 4, recipe.irreps.dim)
    one = jax.jit(lambda a, p: recipe(Operator(a, layout, symmetric=True), p).array)
    _close(together.array, np.stack([one(*x) for x in zip(a, pairs, strict=True)]))


# pairs


@pytest.mark.parametrize("symmetric", [True, False])
def test_pair_features_are_coupled_blocks(molecules, rng, symmetric):
    s = molecules["hydrogen_cyanide"]
    A, B = (_random(s, rng, symmetric) for _ in range(2))
    recipe = PairFeatures(SPEC, {"A": (1, 2), "B": (1,)})
    assert recipe.irreps.dim == 3 * SPEC.n_slots**2
    assert all("pair" in str(c) and c.neighbour == -1 for c in recipe.channels)
    pairs = np.array([[0, 1], [1, 0], [2, 1], [0, 2], [1, 1]])
    ours = _by_channel(recipe, jax.jit(recipe)({"A": A, "B": B}, pairs))
    found = {("A", 1): blocks(A), ("A", 2): blocks(A @ A), ("B", 1): blocks(B)}
    for channel, values in ours.items():
        parts = found[channel.operator, channel.power]
        theirs = [_block(channel, parts, A.layout, i, j) for i, j in pairs]
        np.testing.assert_allclose(values, theirs, rtol=0, atol=REORDERING)
    low = PairFeatures(SPEC, {"A": (1, 2), "B": (1,)}, lmax=1)
    assert set(low.channels) == {c for c in recipe.channels if c.l <= 1}


def test_pair_features_of_restricted_operators(molecules, rng):
    s = molecules["formamide"]
    A = _random(s, rng)
    recipe = PairFeatures(SPEC, (1, 2))
    pairs = np.argwhere(np.ones((6, 6), bool))
    dense, tiled = (jax.jit(recipe)(_restricted(A, s, k), pairs).array for k in ("dense", "tiled"))
    _close(tiled, dense)
    x = s.positions
    far = np.array([np.linalg.norm(x[i] - x[j]) > 3.0 for i, j in pairs])
    assert far.any()
    assert not np.asarray(tiled)[far].any()
    assert np.abs(np.asarray(tiled)[~far]).max(axis=1).min() > 0


@pytest.mark.parametrize("improper", [False, True])
def test_pair_features_turn_with_the_operator(molecules, rng, random_rotation, improper):
    s = molecules["formamide"]
    A = _random(s, rng)
    recipe = jax.jit(PairFeatures(SPEC, (1, 2)))
    pairs = np.argwhere(~np.eye(6, dtype=bool))
    r = rotation_to_e3nn(random_rotation(rng, improper))
    irreps = (e3nn.Irrep(l, (-1) ** l) for l in A.layout.shell_ls)
    turn = scipy.linalg.block_diag(*(np.asarray(ir.D_from_matrix(r)) for ir in irreps))
    turned = A._with(turn @ A.values @ turn.T, symmetric=True)
    expected = recipe(A, pairs).transform_by_matrix(r)
    _close(recipe(turned, pairs).array, expected.array, ROTATION)


# equivariance of functions of operators


@pytest.mark.parametrize(
    "name", [pytest.param("water", marks=pytest.mark.slow), "methane", "formamide"]
)
def test_features_of_functions_turn_with_the_molecule(molecules, equivariant_functions, name):
    """Each relative to its own largest: rotations, reflections, translations, permutations."""
    assert_equivariant(equivariant_functions, molecules[name], n=2, rtol=ROTATION, atol=0.0)


@pytest.fixture(scope="module")
def equivariant_functions(molecules):
    bucket = bucket_of([molecules[n] for n in ("water", "methane", "formamide")], BASIS)
    recipe = AtomFeatures(SPEC, (1, 2))

    @jax.jit  # of a bucket: a permutation of the atoms is not compiled again
    def features(structures):
        V = operators.external_potential(structures, BASIS)
        S = operators.overlap(structures, BASIS, padding=1)
        X = lowdin(V, S)
        T2, T5 = chebyshev(X, (2, 5), (-65.0, 5.0))
        (in_metric,) = powers(V, (3,), metric="overlap", overlap=S)
        found = {"V": V, "lowdin": X, "T2": T2, "T5": T5, "overlap metric": in_metric}
        found["resolvent"] = resolvent(V, 1.0, overlap=S)
        pole = resolvent(X, -5.0 + 3.0j)
        for part in ("real", "imag"):
            values = getattr(pole.values, part)
            found[f"{part} resolvent"] = Operator(values, X.layout, symmetric=True)
        return {k: recipe(o).array for k, o in found.items()}

    def of(structure):
        found = features(batch([structure], BASIS, bucket=bucket))
        n = structure.n_atoms
        return {k: e3nn.IrrepsArray(recipe.irreps, x[0, :n]) for k, x in found.items()}

    return of


# what is refused


def test_operators_must_be_there(physical):
    found = physical("water")
    recipe = AtomFeatures(SPEC, {"V": (1,), "S": (1,)})
    for given, got in (
        ({"V": found["V"]}, r"\['V'\]"),
        ({}, r"\[\]"),
        (found["V"], "one operator"),
    ):
        with pytest.raises(OpmlError, match=rf"operators named \['V', 'S'\]; got {got}"):
            recipe(given)
        with pytest.raises(OpmlError, match=rf"operators named \['V', 'S'\]; got {got}"):
            PairFeatures(SPEC, {"V": (1,), "S": (1,)})(given, np.array([[0, 1]]))


def test_operators_must_be_in_the_basis_of_the_recipe(physical, molecules):
    water = molecules["water"]
    layout = layout_of(water, load_basis("def2-svp", water.numbers))
    other = Operator(jnp.eye(layout.nao), layout, symmetric=True)
    recipe = AtomFeatures(SPEC, {"V": (1,), "S": (1,)})
    with pytest.raises(ConventionError, match=r"operator S .*'sto-3g'.*def2-svp"):
        recipe({"V": physical("water")["V"], "S": other})


def test_operators_must_be_of_one_molecule_and_one_plan(physical, molecules, rng):
    recipe = AtomFeatures(SPEC, {"V": (1,), "S": (1,)})
    with pytest.raises(ConventionError, match="operands of features must be in one layout"):
        recipe({"V": physical("water")["V"], "S": _random(molecules["formamide"], rng)})
    V, S = physical("water").values()
    p = plan(molecules["water"], BASIS, 2.0)
    with pytest.raises(ConventionError, match="an unrestricted operator"):
        recipe({"V": V.restrict(p), "S": S})


@pytest.mark.parametrize(
    "powers", [{}, (), {"V": ()}, {"V": (1,), "S": (0,)}, (1.5,), {"V": (-1,)}]
)
def test_powers_must_be_positive_integers(powers):
    for recipe in (AtomFeatures, PairFeatures):
        with pytest.raises(OpmlError, match="powers must be positive integers"):
            recipe(SPEC, powers)
