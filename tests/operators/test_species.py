import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.operators import (
    Operator,
    from_species_blocks,
    gather_species,
    scatter_species,
    species_blocks,
    species_capacities,
    species_norm,
    species_pairs,
    species_table,
)
from opml_jax.testing import random_structure

# Elements of order 1 that are divided and multiplied by sqrt(2), and at most once added
ROUND_TRIP = 1e-13
# Sums of at most 1e4 squares of order 1 in another order
NORM = 1e-14

CASES = [
    ("water", "sto-3g"),
    ("carbon_dioxide", "sto-3g"),
    ("fluoromethane", "sto-3g"),
    ("hydrogen_sulfide", "sto-3g"),
    ("formamide", "sto-3g"),
    ("water", "def2-svp"),
    ("methane", "def2-svp"),
]
every_case = pytest.mark.parametrize(("name", "basis_name"), CASES)
both_sets = pytest.mark.parametrize("all_pairs", [False, True], ids=["reduced", "all pairs"])


def _layout(structure, basis_name):
    return layout_of(structure, load_basis(basis_name, structure.numbers))


def _random(layout, rng):
    a = rng.normal(size=(layout.nao, layout.nao))
    return Operator.from_dense(a + a.T, layout, symmetric=True)


@functools.partial(jax.jit, static_argnames="all_pairs")
def _there_and_back(operator, all_pairs):
    found = species_blocks(operator, all_pairs=all_pairs)
    back = from_species_blocks(found, operator.layout, all_pairs=all_pairs)
    return found, back, species_norm(found, all_pairs=all_pairs)


@every_case
@both_sets
def test_blocks_hold_the_whole_operator(molecules, rng, name, basis_name, all_pairs):
    operator = _random(_layout(molecules[name], basis_name), rng)
    found, back, norm = _there_and_back(operator, all_pairs)
    assert back.symmetric
    assert back.layout == operator.layout
    np.testing.assert_allclose(back.to_dense(), operator.to_dense(), rtol=0, atol=ROUND_TRIP)
    np.testing.assert_allclose(norm, np.linalg.norm(operator.to_dense()), rtol=NORM)
    for (kind, a, b), x in found.items():
        spec = operator.layout.spec
        assert x.shape[1:] == (spec.nao(a), spec.nao(b))
        mirrored = np.swapaxes(x, 1, 2)
        if kind in (0, 1, -1):
            np.testing.assert_array_equal(x, -mirrored if kind == -1 else mirrored)
        if (kind, spec.nao(a)) != (-1, 1):  # one function has no antisymmetric block
            assert np.abs(x).max() > 0.1


@both_sets
def test_every_pair_of_atoms_is_there(molecules, all_pairs):
    s = molecules["formamide"]
    n, layout = s.n_atoms, _layout(s, "sto-3g")
    pairs = species_pairs(layout, all_pairs)
    seen = [tuple(p) for (kind, *_), own in pairs.items() if kind != -1 for p in own.tolist()]
    if all_pairs:
        assert sorted(seen) == [*np.ndindex(n, n)]
    else:
        assert len(seen) == n * (n + 1) // 2
        assert len({frozenset(p) for p in seen}) == len(seen)
    for (kind, a, b), own in pairs.items():
        np.testing.assert_array_equal(np.array(s.numbers)[own], np.broadcast_to((a, b), own.shape))
        assert (kind == 0) == (own[0, 0] == own[0, 1])
        if abs(kind) == 1:
            assert a == b
            np.testing.assert_array_equal(own, pairs[-kind, a, b])
        if kind == 2:
            assert a != b if all_pairs else a < b


def test_the_blocks_of_water_by_hand(water, rng):
    """Oxygen is atom 0; atoms 1 and 2 are hydrogens, so kind 2 has rows of hydrogen."""
    layout = _layout(water, "def2-svp")
    operator = _random(layout, rng)
    m, own = operator.to_dense(), [np.flatnonzero(layout.atom == a) for a in range(3)]
    found, *_ = _there_and_back(operator, False)
    assert {*found} == {(0, 1, 1), (0, 8, 8), (1, 1, 1), (-1, 1, 1), (2, 1, 8)}
    hh = m[np.ix_(own[1], own[2])]
    expected = {
        (0, 1, 1): [m[np.ix_(own[1], own[1])], m[np.ix_(own[2], own[2])]],
        (0, 8, 8): [m[np.ix_(own[0], own[0])]],
        (1, 1, 1): [(hh + hh.T) / np.sqrt(2)],
        (-1, 1, 1): [(hh - hh.T) / np.sqrt(2)],
        (2, 1, 8): [m[np.ix_(own[1], own[0])], m[np.ix_(own[2], own[0])]],
    }
    for key, value in found.items():
        np.testing.assert_allclose(value, np.array(expected[key]), rtol=0, atol=ROUND_TRIP)
    every, *_ = _there_and_back(operator, True)
    np.testing.assert_array_equal(every[2, 1, 8], found[2, 1, 8])
    np.testing.assert_array_equal(every[2, 8, 1], np.swapaxes(found[2, 1, 8], 1, 2))
    sign = np.array([1, -1])[:, None, None]
    np.testing.assert_array_equal(every[1, 1, 1], np.repeat(found[1, 1, 1], 2, axis=0))
    np.testing.assert_array_equal(every[-1, 1, 1], sign * found[-1, 1, 1])


def test_swapping_two_atoms_of_an_element_changes_signs_and_order_alone(molecules, rng):
    """The first and the last of the three hydrogens, with the other between them."""
    layout = _layout(molecules["formamide"], "sto-3g")
    operator = _random(layout, rng)
    order = np.array([0, 1, 2, 5, 4, 3])
    aos = np.concatenate([np.flatnonzero(layout.atom == a) for a in order])
    swapped = Operator(operator.to_dense()[np.ix_(aos, aos)], layout, symmetric=True)
    before, after = (_there_and_back(o, False)[0] for o in (operator, swapped))
    signs = []
    for key, pairs in species_pairs(layout).items():
        place = {tuple(p): n for n, p in enumerate(pairs.tolist())}
        for n, (i, j) in enumerate(pairs.tolist()):
            origin = int(order[i]), int(order[j])
            sign = 1 if origin in place else key[0]
            old = before[key][place[origin if origin in place else origin[::-1]]]
            np.testing.assert_array_equal(after[key][n], sign * old)
            signs.append(sign)
    assert signs.count(-1) == 3  # of the antisymmetric blocks of hydrogens, none else


def test_absent_kinds_are_zero(water, rng):
    layout = _layout(water, "sto-3g")
    operator = _random(layout, rng)
    found, *_ = _there_and_back(operator, False)
    whole = operator.to_dense()
    on_site = from_species_blocks({k: x for k, x in found.items() if k[0] == 0}, layout)
    same_atom = layout.atom[:, None] == layout.atom
    np.testing.assert_array_equal(on_site.to_dense(), np.where(same_atom, whole, 0))
    assert not np.asarray(from_species_blocks({}, layout).to_dense()).any()


def test_values_of_both_orders_of_a_pair_are_averaged(water, rng):
    layout = _layout(water, "sto-3g")
    found, *_ = _there_and_back(_random(layout, rng), True)
    back = from_species_blocks({**found, (2, 8, 1): 0 * found[2, 8, 1]}, layout, all_pairs=True)
    h, o = np.flatnonzero(layout.atom == 1), np.flatnonzero(layout.atom == 0)
    block = back.to_dense()[np.ix_(h, o)]
    np.testing.assert_allclose(block, found[2, 1, 8][0] / 2, rtol=0, atol=ROUND_TRIP)


@both_sets
def test_tiles_are_cut_like_matrices(molecules, rng, all_pairs):
    s = molecules["formamide"]
    operator = _random(_layout(s, "sto-3g"), rng).restrict(4.0, s, storage="tiled", tile=16)
    bare = operator.restrict(None)
    assert operator.storage == "tiled"
    for x, y in zip(
        species_blocks(operator, all_pairs=all_pairs).values(),
        species_blocks(bare, all_pairs=all_pairs).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_batches_are_refused(water):
    basis = load_basis("sto-3g", water.numbers)
    layout = layout_of(batch([water, water], basis), basis)
    operator = Operator(jnp.zeros((2, layout.nao, layout.nao)), layout, symmetric=True)
    with pytest.raises(ConventionError, match=r"operator must be that of one .*; got .*batch"):
        species_blocks(operator)
    with pytest.raises(ConventionError, match="operator must be that of one molecule"):
        from_species_blocks({}, layout)


def test_a_batch_is_cut_and_put_together():
    """Blocks of a batch of two compositions, padded in every way, are those of its molecules."""
    molecules = ([8, 1, 1], [6, 8, 1, 1])
    basis = load_basis("sto-3g", [1, 6, 8])
    layouts = [layout_of(random_structure(z, seed=0), basis) for z in molecules]
    nao = max(x.nao for x in layouts) + 3
    rng = np.random.default_rng(0)
    full = np.zeros((2, nao, nao))
    for own, layout in zip(full, layouts, strict=True):
        x = rng.normal(size=(layout.nao, layout.nao))
        own[: layout.nao, : layout.nao] = x + x.T
    room = species_capacities([layouts, layouts[:1] * 2])
    table = species_table(layouts, capacities=room)
    found = gather_species(full, table)
    for m, layout in enumerate(layouts):
        alone = species_blocks(
            Operator(jnp.asarray(full[m, : layout.nao, : layout.nao]), layout, symmetric=True)
        )
        for key, blocks in alone.items():
            stored = (abs(key[0]), *key[1:])
            own = (table.molecule[stored] == m) & (table.rows[stored][:, 0] < nao)
            assert np.array_equal(found[key][own], blocks)
    assert np.abs(scatter_species(found, table, 2, nao) - full).max() < 1e-14
    shapes = [x.shape for x in jax.tree.leaves(table)]
    other = species_table([layouts[0]] * 2, capacities=room)
    assert [x.shape for x in jax.tree.leaves(other)] == shapes
    with pytest.raises(OpmlError, match="capacities"):
        species_table(layouts, capacities={**room, (0, 1, 1): 1})
