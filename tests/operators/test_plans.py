"""Plans keep the pairs within the cutoff, stay in shape, and are chosen by size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError, StructureError
from opml_jax.operators import Operator, plan

# A product restricted to a few hundred terms an element, in another order of summation
ROUND_OFF = 1e-13
SIX_ANGSTROM = 11.34  # Bohr
LARGE = {"alkane": ("alkane", 24), "waters": ("waters", 20)}  # 74 and 60 atoms
every_large = pytest.mark.parametrize("name", LARGE)
waters_are_slow = pytest.mark.parametrize(
    "name", ["alkane", pytest.param("waters", marks=pytest.mark.slow)]
)
both_storages = pytest.mark.parametrize("storage", ["dense", "tiled"])


@pytest.fixture
def large(request, name):
    builder, n = LARGE[name]
    return request.getfixturevalue(builder)(n)


def _kept_by(p):
    """How often each element of the matrix is kept by a plan, from its tables alone."""
    if p.storage == "dense":
        return np.asarray(p.mask).astype(int)
    n = p.layout.nao
    rows = np.pad(p.ao, ((0, 1), (0, 0)), constant_values=n)
    count = np.zeros((n + 1, n + 1), int)
    for (i, j), mask in zip(p.tiles, p.mask, strict=True):
        np.add.at(count, np.ix_(rows[i], rows[j]), mask.astype(int))
    assert not count[n].any()  # no place without an AO is kept
    assert not count[:, n].any()
    return count[:n, :n]


def _shapes(p):
    return [np.shape(x) for x in jax.tree.leaves(p)]


def _restricted_square_is_right(p, structure, kept, rng, product=lambda a: a @ a):
    layout = p.layout
    a = rng.normal(size=(layout.nao, layout.nao))
    mask = kept(structure, layout, p.cutoff)
    expected = np.where(mask, (a * mask) @ (a * mask), 0)
    ours = product(Operator(jnp.asarray(a), layout).restrict(p)).to_dense()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ROUND_OFF * np.abs(expected).max())


@pytest.mark.parametrize("tile", [None, 16, 48])
@pytest.mark.parametrize("basis_name", ["sto-3g", "def2-svp"])
@every_large
def test_tiles_hold_every_close_pair_once_and_no_other(large, kept, basis_name, tile):
    basis = load_basis(basis_name, large.numbers)
    for cutoff in (2.5, 7.0, SIX_ANGSTROM):
        p = plan(large, basis, cutoff, storage="tiled", tile=tile)
        assert p.storage == "tiled"
        assert tile in (None, p.tile)
        mask = kept(large, p.layout, cutoff)
        np.testing.assert_array_equal(_kept_by(p), mask)
        assert p.occupation == pytest.approx(mask.mean())


@pytest.mark.parametrize("basis_name", ["sto-3g", "def2-svp"])
@every_large
def test_dense_mask_is_the_close_pairs(large, kept, basis_name):
    basis = load_basis(basis_name, large.numbers)
    p = plan(large, basis, 7.0, storage="dense")
    mask = kept(large, p.layout, 7.0)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(_kept_by(p), mask)
    assert p.occupation == pytest.approx(mask.mean())
    assert (p.tile, p.n_tiles) == (0, 0)


@every_large
def test_groups_divide_the_aos_and_no_atom(large):
    basis = load_basis("def2-svp", large.numbers)
    for tile in (16, 24, 48):
        p = plan(large, basis, 7.0, storage="tiled", tile=tile)
        assert p.ao.shape[1] == tile
        np.testing.assert_array_equal(np.sort(p.ao[p.ao < p.layout.nao]), np.arange(p.layout.nao))
        np.testing.assert_array_equal(p.ao[p.place[:, 0], p.place[:, 1]], np.arange(p.layout.nao))
        for group in p.ao:
            own = p.layout.atom[group[group < p.layout.nao]]
            widths = np.diff(p.layout.offsets)[np.unique(own)]
            assert len(own) == widths.sum() <= tile


def test_groups_are_near_in_space(waters):
    """A molecule that fits into a group is not divided: its atoms are closest to each other."""
    s = waters(20)
    p = plan(s, load_basis("sto-3g", s.numbers), 7.0, storage="tiled", tile=16)
    group = p.place[p.layout.offsets[:-1], 0].reshape(20, 3)
    assert (group == group[:, :1]).all()
    centres = s.positions.reshape(20, 3, 3).mean(axis=1)
    apart = [np.linalg.norm(np.ptp(centres[group[:, 0] == g], axis=0)) for g in range(len(p.ao))]
    assert np.mean(apart) < np.linalg.norm(np.ptp(centres, axis=0)) / 2


@every_large
def test_every_tile_knows_its_transpose(large):
    p = plan(large, load_basis("sto-3g", large.numbers), 7.0, storage="tiled", tile=16)
    n, half = len(p.ao), len(p.on_diagonal)
    real = np.flatnonzero(p.tiles[:, 0] < n)
    first, second = p.tiles[real].T
    np.testing.assert_array_equal(p.lookup[first, second], real)
    mirror = p.lookup[second, first]
    np.testing.assert_array_equal(p.tiles[mirror], p.tiles[real][:, ::-1])
    np.testing.assert_array_equal(p.mask[mirror], np.swapaxes(p.mask[real], 1, 2))
    np.testing.assert_array_equal(mirror == real, first == second)
    np.testing.assert_array_equal(real[mirror == real], np.flatnonzero(p.on_diagonal))
    off = real[(real < half) & (first != second)]
    np.testing.assert_array_equal(p.lookup[p.tiles[off, 1], p.tiles[off, 0]], off + half)


@waters_are_slow
def test_a_small_step_keeps_every_shape(large, kept, rng):
    """And so a product compiled for one plan serves the next, with the right result."""
    basis = load_basis("sto-3g", large.numbers)
    p = plan(large, basis, 7.5, storage="tiled", tile=16)
    chex.clear_trace_counter()  # it counts by source line, and this test runs twice
    product = jax.jit(chex.assert_max_traces(1)(lambda a: a @ a))
    _restricted_square_is_right(p, large, kept, rng, product)
    patterns = [_kept_by(p)]
    for step in 0.05 * np.random.default_rng(0).normal(size=(3, *large.positions.shape)):
        moved = large.replace(positions=large.positions + step)
        q = p.update(moved)
        assert _shapes(q) == _shapes(p)
        patterns.append(_kept_by(q))
        np.testing.assert_array_equal(patterns[-1], kept(moved, q.layout, 7.5))
        _restricted_square_is_right(q, moved, kept, rng, product)
    assert any((x != patterns[0]).any() for x in patterns)


@both_storages
@waters_are_slow
def test_a_large_step_grows(large, kept, rng, storage):
    """Compressed by a third, a molecule has many more close pairs than there was room for."""
    basis = load_basis("sto-3g", large.numbers)
    p = plan(large, basis, 7.0, storage=storage, tile=8)
    dense = large.replace(positions=large.positions / 1.5)
    q = p.update(dense)
    assert q.storage == storage
    assert q.cutoff == p.cutoff
    np.testing.assert_array_equal(_kept_by(q), kept(dense, q.layout, 7.0))
    assert _kept_by(q).sum() > 1.3 * _kept_by(p).sum()
    assert (q.n_tiles > p.n_tiles) == (storage == "tiled")
    _restricted_square_is_right(q, dense, kept, rng)
    back = q.update(large)  # the larger shapes stay
    assert _shapes(back) == _shapes(q)
    np.testing.assert_array_equal(_kept_by(back), _kept_by(p))
    _restricted_square_is_right(back, large, kept, rng)


@pytest.mark.parametrize("cutoff", [4.0, 100.0])
def test_update_through_many_geometries(waters, kept, rng, cutoff):
    """Whatever the plan was made for, its update is the pattern of the new geometry."""
    s = waters(6)
    p = plan(s, load_basis("sto-3g", s.numbers), cutoff, storage="tiled", tile=8)
    for scale in (1.3, 0.6, 2.0, 0.9):
        moved = s.replace(positions=scale * s.positions[rng.permutation(6 * 3)])
        p = p.update(moved)
        np.testing.assert_array_equal(_kept_by(p), kept(moved, p.layout, cutoff))
    _restricted_square_is_right(p, moved, kept, rng)


def test_plans_are_cached_by_geometry(water):
    basis = load_basis("sto-3g", water.numbers)
    for storage in (None, "tiled"):
        p = plan(water, basis, 2.0, storage=storage)
        again = water.replace(positions=jnp.array(water.positions))
        assert plan(again, basis, 2.0, storage=storage) is p
        assert plan(water, basis, 2.1, storage=storage) is not p
        moved = water.replace(positions=water.positions * 1.5)
        assert plan(moved, basis, 2.0, storage=storage) is not p
        assert plan(moved, basis, 2.0, storage=storage).occupation < p.occupation


def test_storage_is_chosen_by_size(molecules, alkane):
    for s in molecules.values():
        basis = load_basis("def2-svp", s.numbers)
        assert plan(s, basis, 4.0).storage == "dense"
        assert plan(s, basis, 4.0, storage="tiled").storage == "tiled"
    long = alkane(100)
    basis = load_basis("def2-svp", long.numbers)
    p = plan(long, basis, SIX_ANGSTROM)
    assert p.storage == "tiled"
    assert p.flops < 0.1 * plan(long, basis, SIX_ANGSTROM, storage="dense").flops
    assert plan(long, basis, 1e3).storage == "dense"  # a cutoff that cuts nothing


def test_shows_what_it_is(water):
    basis = load_basis("sto-3g", water.numbers)
    assert repr(plan(water, basis, 2.0)).startswith("Plan(cutoff=2 Bohr, dense, AOLayout(")
    tiled = plan(water, basis, 2.0, storage="tiled", tile=5)
    assert f"tiled, {tiled.n_tiles} tiles of 5" in repr(tiled)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan")])
def test_cutoff_must_be_positive(water, cutoff):
    with pytest.raises(OpmlError, match="cutoff must be a positive length in Bohr"):
        plan(water, load_basis("sto-3g", water.numbers), cutoff)


def test_storage_must_be_known(water):
    with pytest.raises(OpmlError, match="storage must be 'dense' or 'tiled'; got 'sparse'"):
        plan(water, load_basis("sto-3g", water.numbers), 2.0, storage="sparse")


def test_a_tile_must_hold_an_atom(water):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match="tile must be at least 5: one atom; got 4"):
        plan(water, basis, 2.0, storage="tiled", tile=4)
    assert plan(water, basis, 2.0, storage="tiled", tile=5).tile == 5


def test_traced_positions_are_refused(water):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(StructureError, match=r"positions must be numbers.*outside jit"):
        jax.jit(lambda s: plan(s, basis, 2.0).mask)(water)


def test_tiles_for_a_batch_are_refused(water):
    basis = load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match="one molecule for tiles; got a batch of 2"):
        plan(batch([water, water], basis), basis, 2.0, storage="tiled")


def test_plan_of_another_layout_is_refused(molecules):
    water, cyanide = molecules["water"], molecules["hydrogen_cyanide"]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    p = plan(cyanide, basis, 2.0)
    layout = layout_of(water, basis)
    with pytest.raises(ConventionError) as caught:
        Operator(jnp.eye(layout.nao), layout).restrict(p)
    assert layout.hash in str(caught.value)
    assert p.layout.hash in str(caught.value)


def test_batch_is_restricted_as_its_molecules(molecules, kept, rng):
    chosen = [molecules[n] for n in ("water", "formamide", "hydrogen_cyanide")]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    p = plan(padded, basis, 3.0)
    assert p.storage == "dense"
    a = rng.normal(size=(3, padded.layout.nao, padded.layout.nao))
    A = Operator(jnp.asarray(a), padded.layout).restrict(p)
    square = np.asarray((A @ A).to_dense())
    for b, s in enumerate(chosen):
        layout = layout_of(s, basis)
        n, mask = layout.nao, kept(s, layout, 3.0)
        np.testing.assert_array_equal(A.to_dense()[b, :n, :n], a[b, :n, :n] * mask)
        alone = Operator(jnp.asarray(a[b, :n, :n]), layout).restrict(3.0, s)
        np.testing.assert_allclose(
            square[b, :n, :n], (alone @ alone).to_dense(), rtol=0, atol=ROUND_OFF * 10
        )
        assert not square[b, n:].any()
        assert not square[b, :, n:].any()
    moved = padded.replace(positions=padded.positions * 1.2)
    np.testing.assert_array_equal(p.update(moved).mask, plan(moved, basis, 3.0).mask)
