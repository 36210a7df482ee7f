import functools

import chex
import e3nn_jax as e3nn
import jax
import numpy as np
import pytest

from opml_jax import integrals, operators
from opml_jax.basis import batch, bucket_of, layout_of, load_basis
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import BasisError, OpmlError
from opml_jax.features import AtomFeatures, atom_features, clebsch_gordan, invariants, n_invariants
from opml_jax.structures import Structure

# All relative to the largest feature: V^3 multiplies V's 1e-12 by its norm twice, and so the
# features, of order 1e5, keep 11 digits under rotation; what only reorders sums keeps 12.
ROTATION = 1e-11
REORDERING = 1e-12
# Every invariant relative to its own largest value over the atoms: small ones may be differences
# of larger numbers.
PER_COLUMN = 1e-10
# Zero: no atom has such a shell and such a neighbour; or an antisymmetric on-site irrep of V, which
# vanishes because V is local, and is round-off here. The smallest true invariants are above 1e-9.
VANISHING = 1e-13

NAMES = [
    "water",
    "methane",
    "carbon_dioxide",
    "hydrogen_cyanide",
    "fluoromethane",
    "hydrogen_sulfide",
    "formamide",
]
# d functions only where compiling them is worth its time: every element, symmetric and not
RICH = ["water", "formamide", "methane", "hydrogen_sulfide", "fluoromethane"]
in_rich_basis = pytest.mark.parametrize(
    "name", [*RICH[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in RICH[2:])]
)
CASES = [*((name, "sto-3g") for name in NAMES), *((name, "def2-svp") for name in RICH)]


def _every_case(quick):
    """All of ``CASES``, of which the others are slow."""
    return pytest.mark.parametrize(
        ("name", "basis_name"),
        [c if c in quick else pytest.param(*c, marks=pytest.mark.slow) for c in CASES],
    )


@functools.lru_cache  # many tests ask for the same few programs, and compiling is their time
def _compiled(numbers, basis_name, powers):
    basis = load_basis(basis_name, numbers)
    recipe = AtomFeatures(basis.spec, powers)
    return recipe, jax.jit(lambda s: recipe(operators.external_potential(s, basis)))


def _recipe(structure, basis_name, powers=(1, 2, 3)):
    """``(recipe, features)``: a recipe of features and the compiled function of a structure."""
    return _compiled(structure.numbers, basis_name, powers)


def _close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def _close_by_column(ours, theirs):
    scale = np.abs(theirs).max(axis=0)
    real = scale > VANISHING
    assert real.mean() > 0.25  # methane's symmetry leaves no more; the others most of them
    assert (np.abs(ours[:, ~real]) <= VANISHING).all()
    ours, theirs = ours[:, real] / scale[real], theirs[:, real] / scale[real]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=PER_COLUMN)


@_every_case(quick=[*((n, "sto-3g") for n in NAMES if n != "methane"), ("formamide", "def2-svp")])
def test_turn_with_the_molecule(molecules, rng, random_rotation, name, basis_name):
    s = molecules[name]
    _, features = _recipe(s, basis_name)
    x = features(s)
    for improper in (False, True, False, True):
        r = random_rotation(rng, improper)
        turned = features(s.replace(positions=s.positions @ r.T))
        expected = x.transform_by_matrix(rotation_to_e3nn(r))
        _close(turned.array, expected.array, ROTATION)


@in_rich_basis
def test_inversion_flips_odd_irreps_only(molecules, name):
    """Also 1e, 2o, 3e, whose parity is not that of their L."""
    s = molecules[name]
    _, features = _recipe(s, "def2-svp")
    x, inverted = features(s), features(s.replace(positions=-s.positions))
    largest = np.abs(x.array).max()
    seen = {str(ir) for _, ir in x.irreps}
    assert {"0e", "1o", "1e", "2e", "2o", "3o", "3e", "4e"} <= seen
    for (_, ir), a, b in zip(x.irreps, x.chunks, inverted.chunks, strict=True):
        np.testing.assert_allclose(b, ir.p * a, rtol=0, atol=ROTATION * largest)


def test_pseudo_irreps_are_not_zero(molecules):
    s = molecules["formamide"]
    x = _recipe(s, "def2-svp")[1](s)
    for (_, ir), chunk in zip(x.irreps, x.chunks, strict=True):
        assert np.abs(chunk).max() > 1e-3, ir


@pytest.mark.parametrize(
    ("name", "basis_name"),
    [
        ("fluoromethane", "sto-3g"),
        ("formamide", "sto-3g"),
        pytest.param("water", "def2-svp", marks=pytest.mark.slow),
    ],
)
def test_follow_a_permutation_of_the_atoms(molecules, rng, name, basis_name):
    s = molecules[name]
    order = rng.permutation(s.n_atoms)
    shuffled = Structure(np.array(s.numbers)[order], s.positions[order])
    ours = _recipe(shuffled, basis_name)[1](shuffled).array
    _close(ours, _recipe(s, basis_name)[1](s).array[order], REORDERING)


@in_rich_basis
def test_do_not_notice_a_translation(molecules, rng, name):
    s = molecules[name]
    _, features = _recipe(s, "def2-svp")
    moved = s.replace(positions=s.positions + rng.normal(size=3) * 5)
    _close(features(moved).array, features(s).array, ROTATION)


def test_batch_is_its_molecules(molecules):
    chosen = [molecules[n] for n in ("water", "methane", "hydrogen_cyanide")]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    features = jax.jit(lambda s: atom_features(s, basis))
    together = features(batch(chosen, basis))
    assert together.shape[:2] == (3, 6)
    for x, s in zip(together, chosen, strict=True):
        alone = features(s)
        assert alone.irreps == together.irreps
        _close(x.array[: s.n_atoms], alone.array, REORDERING)
        assert not np.asarray(x.array[s.n_atoms :]).any()


def _by_hand(channel, matrix, layout, atom):
    """One irrep of one atom, from the matrix power and the Clebsch-Gordan coefficients."""

    def shell(a, l, n):
        """Rows of the n-th shell of l on atom a, or None."""
        starts = np.flatnonzero((layout.atom == a) & (layout.l == l) & (layout.m == -l))
        return range(starts[n], starts[n] + 2 * l + 1) if n < len(starts) else None

    out = np.zeros(2 * channel.l + 1)
    rows = shell(atom, channel.l1, channel.n1)
    for other, z in enumerate(layout.numbers):
        wanted = z == channel.neighbour and other != atom if channel.neighbour else other == atom
        columns = shell(other, channel.l2, channel.n2)
        if wanted and rows is not None and columns is not None:
            c = clebsch_gordan(channel.l1, channel.l2, channel.l)
            out += np.einsum("mn,mnk->k", matrix[np.ix_(rows, columns)], c)
    return out


@pytest.mark.parametrize(
    ("name", "basis_name"),
    [
        pytest.param("water", "def2-svp", marks=pytest.mark.slow),
        ("hydrogen_cyanide", "sto-3g"),
    ],
)
def test_channels_say_what_the_irreps_are(molecules, name, basis_name):
    s = molecules[name]
    recipe, features = _recipe(s, basis_name, powers=(1, 3))
    x = np.asarray(features(s).array)
    layout = layout_of(s, load_basis(basis_name, s.numbers))
    v = np.asarray(integrals.external_potential(s, load_basis(basis_name, s.numbers)))
    assert len(recipe.channels) == recipe.irreps.num_irreps
    start = 0
    for channel, ir in zip(recipe.channels, _each_irrep(recipe.irreps), strict=True):
        assert (channel.l, channel.parity) == (ir.l, ir.p)
        matrix = np.linalg.matrix_power(v, channel.power)
        for atom in range(s.n_atoms):
            expected = _by_hand(channel, matrix, layout, atom)
            ours = x[atom, start : start + ir.dim]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=REORDERING * np.abs(x).max())
        start += ir.dim
    assert start == recipe.irreps.dim


def _each_irrep(irreps):
    return [ir for n, ir in irreps for _ in range(n)]


def test_nothing_is_lost():
    """On-site and pooled irreps of one power span the symmetric blocks and the pooled ones."""
    spec = load_basis("def2-svp", [1, 8]).spec
    n = spec.n_slots
    assert AtomFeatures(spec, powers=(1,), pair=False).irreps.dim == n * (n + 1) // 2
    assert AtomFeatures(spec, powers=(1,)).irreps.dim == n * (n + 1) // 2 + 2 * n * n


def test_options_choose_channels():
    spec = load_basis("def2-svp", [1, 8]).spec
    every = set(AtomFeatures(spec).channels)
    assert {c.power for c in every} == {1, 2, 3}
    assert {c.neighbour for c in every} == {0, 1, 8}
    onsite = AtomFeatures(spec, pair=False)
    assert set(onsite.channels) == {c for c in every if not c.neighbour}
    low = AtomFeatures(spec, lmax=1)
    assert set(low.channels) == {c for c in every if c.l <= 1}
    assert low.irreps.lmax == 1
    text = [str(c) for c in AtomFeatures(load_basis("sto-3g", [1, 8]).spec).channels]
    assert text[0] == "V^1 on-site 1s,1s -> 0e"
    assert "V^2 sum over H 2p,1s -> 1o" in text
    assert len(set(text)) == len(text)


def test_the_convenience_is_the_recipe(water):
    basis = load_basis("sto-3g", water.numbers)
    recipe = AtomFeatures(basis.spec, (1, 2), pair=False, lmax=1)
    for name in ("external_potential", "screened_potential"):
        ours = atom_features(water, basis, (1, 2), operator=name, pair=False, lmax=1)
        theirs = recipe(getattr(operators, name)(water, basis))
        assert isinstance(ours, e3nn.IrrepsArray)
        assert ours.irreps == recipe.irreps
        _close(ours.array, theirs.array, REORDERING)
    named = atom_features(water, basis, (1,), driver="libcint")
    _close(named.array, atom_features(water, basis, (1,)).array, REORDERING)


def test_refuses(water, molecules):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match=r"operator must be .*external_potential.*'screend'"):
        atom_features(water, basis, operator="screend")
    for powers in ((), (0,), (1, -2)):
        with pytest.raises(OpmlError, match="powers must be positive integers"):
            atom_features(water, basis, powers)
    with pytest.raises(OpmlError, match="driver must be"):
        atom_features(water, basis, driver="magic")
    with pytest.raises(BasisError, match="covers C"):
        atom_features(molecules["methane"], basis)


def test_operator_of_another_basis_is_refused(water):
    recipe = AtomFeatures(load_basis("def2-svp", [1, 8]).spec)
    with pytest.raises(OpmlError, match=r"def2-svp.*sto-3g"):
        recipe(operators.overlap(water, load_basis("sto-3g", [1, 8])))


@_every_case(quick=[(n, "sto-3g") for n in ("water", "methane", "hydrogen_cyanide")])
def test_invariants_are_invariant(molecules, rng, random_rotation, name, basis_name):
    s = molecules[name]
    recipe, features = _recipe(s, basis_name)
    numbers = jax.jit(lambda s: invariants(features(s), recipe))
    i = numbers(s)
    assert i.shape == (s.n_atoms, n_invariants(recipe))
    for improper in (False, True):
        r = random_rotation(rng, improper)
        turned = numbers(s.replace(positions=s.positions @ r.T + rng.normal(size=3)))
        _close_by_column(turned, i)


def test_invariants_are_scalars_and_scalar_products(water):
    recipe, features = _recipe(water, "sto-3g", powers=(1, 2))
    x = features(water)
    i = np.asarray(invariants(x, recipe, gram_powers=(2,)))
    scalars = np.asarray(x.filter("0e").array)
    np.testing.assert_array_equal(i[:, : scalars.shape[1]], scalars)
    column = scalars.shape[1]
    start = 0
    for n, ir in x.irreps:
        own = recipe.channels[start : start + n]
        chunk = x.chunks[[str(a) for _, a in x.irreps].index(str(ir))]
        start += n
        chosen = [k for k, c in enumerate(own) if not c.neighbour and c.power == 2 and ir.l > 0]
        for p, a in enumerate(chosen):
            for b in chosen[p:]:
                expected = (chunk[:, a] * chunk[:, b]).sum(-1) / (2 * ir.l + 1) ** 0.5
                np.testing.assert_allclose(i[:, column], expected)
                column += 1
    assert column == i.shape[1] == n_invariants(recipe, (2,))


@pytest.mark.slow
def test_compile_once_for_a_bucket(molecules, rng):
    """A new geometry, and another molecule that fits, use the program that is there."""
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    recipe = AtomFeatures(basis.spec)

    @jax.jit
    @chex.assert_max_traces(1)
    def features(structures):
        return recipe(operators.external_potential(structures, basis)).array

    water, cyanide = molecules["water"], molecules["hydrogen_cyanide"]
    moved = water.replace(positions=water.positions + 0.1 * rng.normal(size=(3, 3)))
    bucket = bucket_of([water, cyanide], basis)
    for s in (water, moved, cyanide):
        ours = features(batch([s], basis, bucket=bucket))[0, : s.n_atoms]
        _close(ours, atom_features(s, basis).array, REORDERING)


def test_compile_once_for_a_molecule(water, rng):
    basis = load_basis("sto-3g", water.numbers)
    features = jax.jit(chex.assert_max_traces(1)(lambda s: atom_features(s, basis).array))
    first = features(water)
    moved = features(water.replace(positions=water.positions + 0.1 * rng.normal(size=(3, 3))))
    assert np.abs(moved - first).max() > 1e-3


def test_have_derivatives(water):
    """Directional derivative of all features by central differences of fourth order."""
    _, features = _recipe(water, "sto-3g")
    x, h = water.positions, 1e-4
    direction = np.random.default_rng(1).normal(size=x.shape)

    def f(t):
        return features(water.replace(positions=x + t * direction)).array

    _, slope = jax.jvp(f, (0.0,), (1.0,))
    differences = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    # 1e-12 of the largest feature in each value, divided by h
    _close(slope, differences, 1e-8)
