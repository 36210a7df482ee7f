import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import gto

from opml_jax.basis import AOLayout, batch, from_pyscf, layout_of, load_basis, to_pyscf
from opml_jax.basis.buckets import capacity
from opml_jax.errors import BasisError, ConventionError, StructureError
from opml_jax.integrals import overlap
from opml_jax.structures import Structure

ROUND_OFF = 1e-12  # overlaps are of order 1
BASES = ["sto-3g", "6-31g**", "def2-svp", "def2-tzvp", "cc-pvtz", "cc-pvqz"]
# PySCF's names of the components, by l; s and f, g as it prints them
COMPONENTS = {0: [""], 1: ["y", "z", "x"], 2: ["xy", "yz", "z^2", "xz", "x2-y2"]}


def _mol(structure, name):
    atoms = list(zip(structure.symbols, structure.positions.tolist(), strict=True))
    return gto.M(atom=atoms, unit="Bohr", basis=name)


@pytest.mark.parametrize("basis_name", BASES)
@pytest.mark.parametrize("name", ["water", "formamide", "hydrogen_sulfide"])
def test_order_is_pyscfs_but_for_p(molecules, name, basis_name):
    s = molecules[name]
    layout = layout_of(s, load_basis(basis_name, s.numbers))
    theirs = _mol(s, basis_name).ao_labels(fmt=None)
    assert layout.nao == len(theirs)
    ours = zip(layout.atom, layout.n, layout.l, layout.m, strict=True)
    for k, (atom, n, l, m) in zip(layout.from_pyscf_index, ours, strict=True):
        their_atom, symbol, shell, component = theirs[k]
        assert (their_atom, symbol, shell) == (atom, s.symbols[atom], f"{n}{'spdfg'[l]}")
        assert component == COMPONENTS[l][m + l] if l in COMPONENTS else component == f"{m:+d}"


def test_labels(water):
    layout = layout_of(water, load_basis("sto-3g", water.numbers))
    oxygen = ["0 O 1s", "0 O 2s", "0 O 2p y", "0 O 2p z", "0 O 2p x"]
    assert layout.labels == [*oxygen, "1 H 1s", "2 H 1s"]
    assert layout.offsets.tolist() == [0, 5, 6, 7]
    assert layout.m.tolist() == [0, 0, -1, 0, 1, 0, 0]
    d = layout_of(water, load_basis("def2-svp", water.numbers)).labels[9:14]
    assert d == ["0 O 3d xy", "0 O 3d yz", "0 O 3d z2", "0 O 3d xz", "0 O 3d x2-y2"]


def test_irreps(water):
    layout = layout_of(water, load_basis("def2-svp", water.numbers))
    assert str(layout.irreps(0).simplify()) == "3x0e+2x1o+1x2e"
    assert str(layout.irreps(1).simplify()) == "2x0e+1x1o"
    layout = layout_of(water, load_basis("cc-pvqz", water.numbers))
    assert str(layout.irreps(0).simplify()) == "5x0e+4x1o+3x2e+2x3o+1x4e"
    assert sum(layout.irreps(a).dim for a in range(3)) == layout.nao


@pytest.mark.parametrize("name", ["water", "formamide"])
def test_pyscf_order_and_back(molecules, name, rng):
    s = molecules[name]
    basis = load_basis("def2-svp", s.numbers)
    nao = layout_of(s, basis).nao
    m = rng.normal(size=(2, nao, nao))
    np.testing.assert_array_equal(from_pyscf(to_pyscf(m, s, basis), s, basis), m)
    np.testing.assert_array_equal(to_pyscf(from_pyscf(m, s, basis), s, basis), m)
    assert not np.array_equal(to_pyscf(m, s, basis), m)
    assert isinstance(to_pyscf(m, s, basis), np.ndarray)
    assert isinstance(to_pyscf(jnp.asarray(m), s, basis), jax.Array)
    theirs = _mol(s, "def2-svp").intor("int1e_ovlp")
    ours = overlap(s, basis)
    np.testing.assert_allclose(from_pyscf(theirs, s, basis), ours, atol=ROUND_OFF)
    np.testing.assert_allclose(to_pyscf(ours, s, basis), theirs, atol=ROUND_OFF)


def test_permuting_refuses_another_size(water):
    basis = load_basis("sto-3g", water.numbers)
    for function in (to_pyscf, from_pyscf):
        with pytest.raises(ConventionError, match=r"matrix must be.*nao = 7.*got shape \(8, 8\)"):
            function(np.eye(8), water, basis)


def test_hash_is_stable(water):
    """Pinned: files written by an earlier version must still be recognised."""
    hashes = {
        n: layout_of(water, load_basis(n, water.numbers)).hash for n in ("def2-svp", "sto-3g")
    }
    assert hashes == {"def2-svp": "b2985d5252edde39", "sto-3g": "6ea7bd42ff723481"}


def test_hash_names_basis_and_atoms(water):
    def hash_of(s, name, elements=(1, 8)):
        return layout_of(s, load_basis(name, elements)).hash

    reordered = Structure((1, 8, 1), water.positions[[1, 0, 2]])
    moved = water.replace(positions=water.positions + 1.0)
    assert hash_of(water, "sto-3g") != hash_of(water, "def2-svp")
    assert hash_of(water, "sto-3g") != hash_of(reordered, "sto-3g")
    assert hash_of(water, "sto-3g") == hash_of(moved, "sto-3g")
    assert hash_of(water, "sto-3g") == hash_of(water, "sto3g")
    assert hash_of(water, "sto-3g") == hash_of(water, "sto-3g", (1, 6, 8))  # carbon is not in it


def test_layout_is_static(water):
    basis = load_basis("sto-3g", water.numbers)
    layout = layout_of(water, basis)
    assert isinstance(layout, AOLayout)
    assert jax.tree.leaves(layout) == []
    assert layout_of(water.replace(positions=water.positions + 1), basis) == layout
    assert hash(layout) == hash(layout_of(water, load_basis("sto-3g", water.numbers)))


def test_layout_refuses_uncovered_elements(molecules):
    with pytest.raises(BasisError, match=r"covers C; got .* loaded for H, O"):
        layout_of(molecules["methane"], load_basis("sto-3g", [1, 8]))


def test_capacities_grow_slowly():
    sizes = [capacity(n) for n in range(1, 2000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    ladder = sorted(set(sizes))
    assert ladder[:9] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert all(capacity(size) == size for size in ladder)
    assert all(b <= 2 * a for a, b in itertools.pairwise(ladder))


def test_batch_shapes_and_masks(molecules):
    chosen = [molecules[n] for n in ("water", "methane", "hydrogen_cyanide")]
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    padded = batch(chosen, basis)
    layouts = [layout_of(s, basis) for s in chosen]
    assert (padded.n_structures, padded.n_atoms) == (3, 6)
    assert padded.layout.nao == 16  # 7, 9 and 11 functions, padded to a multiple of 8
    assert padded.mask.sum(axis=1).tolist() == [3, 5, 3]
    assert padded.layout.ao_mask.sum(axis=1).tolist() == [l.nao for l in layouts] == [7, 9, 11]
    width = basis.spec.n_slots
    for b, layout in enumerate(layouts):
        slots, ao_slot = padded.layout.slots[b], padded.layout.ao_slot[b]
        n = len(layout.numbers)
        np.testing.assert_array_equal(padded.layout.element[b, :n], layout.element)
        assert (slots[n:] == padded.layout.nao).all()
        assert (ao_slot[layout.nao :] == padded.n_atoms * width).all()
        for ao in range(layout.nao):  # the two index arrays are inverses of each other
            assert slots.reshape(-1)[ao_slot[ao]] == ao
            assert ao_slot[ao] // width == layout.atom[ao]
        assert sorted(slots[slots < padded.layout.nao]) == list(range(layout.nao))


def test_batch_capacities(molecules):
    basis = load_basis("sto-3g", [1, 8])
    water = molecules["water"]
    padded = batch([water], basis, n_atoms=5, nao=20)
    assert padded.numbers.shape == (1, 5)
    assert padded.layout.ao_mask.shape == (1, 20)
    with pytest.raises(StructureError, match="n_atoms must be at least 3; got 2"):
        batch([water], basis, n_atoms=2)
    with pytest.raises(StructureError, match="nao must be at least 7; got 6"):
        batch([water], basis, nao=6)
    with pytest.raises(StructureError, match="at least one structure"):
        batch([], basis)
    with pytest.raises(BasisError, match="covers C"):
        batch([molecules["methane"]], basis)


def test_batch_of_another_basis_is_refused(water):
    small, large = load_basis("sto-3g", [1, 8]), load_basis("def2-svp", [1, 8])
    padded = batch([water], small)
    with pytest.raises(ConventionError, match=r"opml_jax.batch.*def2-svp.*laid out for sto-3g"):
        overlap(padded, large)
    with pytest.raises(ConventionError, match="a batch laid out for no basis"):
        overlap(padded.replace(layout=None), small)
    with pytest.raises(ConventionError):  # one more element changes the slots
        overlap(padded, load_basis("sto-3g", [1, 6, 8]))
