"""The loader: every structure once an epoch, few shapes, and the same again from any point."""

import jax
import numpy as np
import pytest

from opml_jax.basis import layout_of, load_basis
from opml_jax.data import Dataset, Loader
from opml_jax.errors import ConventionError, DataError

NAMES = ("water", "methane", "formamide", "hydrogen_cyanide", "fluoromethane")


@pytest.fixture(scope="module")
def basis():
    return load_basis("sto-3g", [1, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def dataset(molecules, basis):
    structures = [molecules[NAMES[i % 5]] for i in range(23)]
    rng = np.random.default_rng(0)
    layouts = [layout_of(s, basis) for s in structures]
    fock = [rng.normal(size=(l.nao, l.nao)) for l in layouts]
    labels = {
        "energy": np.arange(23.0),
        "forces": [rng.normal(size=(s.n_atoms, 3)) for s in structures],
        "dipole": rng.normal(size=(23, 3)),
        "fock": [f + f.T for f in fock],
    }
    return Dataset(structures, labels, layout_hashes=[l.hash for l in layouts])


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_structure_once(dataset, basis, batch_size, shuffle):
    loader = Loader(dataset, basis, batch_size=batch_size, n_buckets=3, shuffle=shuffle)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader)
    seen = [i for b in batches for i, w in zip(b.index, b.weight, strict=True) if w]
    assert sorted(seen) == list(range(23))
    for b in batches:
        assert b.weight.shape == b.index.shape == (batch_size,)
        assert set(b.weight) <= {0.0, 1.0}
        assert b.weight[0] == 1.0


def test_labels_and_padding(dataset, basis):
    for b in Loader(dataset, basis, batch_size=4, n_buckets=2).epoch(1):
        nao = b.structures.layout.nao
        for row, i in enumerate(b.index):
            s, labels = dataset[int(i)]
            n, m = s.n_atoms, layout_of(s, basis).nao
            np.testing.assert_array_equal(
                b.structures.mask[row], np.arange(len(b.structures.mask[row])) < n
            )
            np.testing.assert_array_equal(b.structures.positions[row, :n], s.positions)
            assert b.labels["energy"][row] == labels["energy"]
            np.testing.assert_array_equal(b.labels["dipole"][row], labels["dipole"])
            np.testing.assert_array_equal(b.labels["forces"][row, :n], labels["forces"])
            np.testing.assert_array_equal(b.labels["fock"][row, :m, :m], labels["fock"])
            assert not b.labels["forces"][row, n:].any()
            assert not b.labels["fock"][row, m:].any()
            assert not b.labels["fock"][row, :, m:].any()
        assert b.labels["forces"].shape == (4, b.structures.n_atoms, 3)
        assert b.labels["fock"].shape == (4, nao, nao)


def _same(a, b):
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))


def test_order_is_the_seeds(dataset, basis):
    def orders(seed, epoch, start=0):
        loader = Loader(dataset, basis, batch_size=4, seed=seed)
        return [b.index.tolist() for b in loader.epoch(epoch, start)]

    assert orders(0, 0) == orders(0, 0)
    assert orders(0, 0) != orders(0, 1)
    assert orders(0, 0) != orders(1, 0)


def test_restart_anywhere(dataset, basis):
    whole = list(Loader(dataset, basis, batch_size=4, seed=3).epoch(7))
    for start in (0, 2, len(whole) - 1, len(whole)):
        rest = list(Loader(dataset, basis, batch_size=4, seed=3).epoch(7, start))
        assert len(rest) == len(whole) - start
        assert all(_same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_one_program_a_bucket(dataset, basis):
    loader = Loader(dataset, basis, batch_size=3, n_buckets=2)
    traces = []

    @jax.jit
    def step(total, batch):
        traces.append(None)
        return total + (batch.weight * batch.labels["energy"]).sum()

    for epoch in range(3):
        total = jax.numpy.zeros(())
        for b in loader.epoch(epoch):
            total = step(total, b)
        assert total == np.arange(23).sum()  # fillers do not count
    assert len(traces) <= 2


def test_unshuffled_is_smallest_first(dataset, basis):
    loader = Loader(dataset, basis, batch_size=4, n_buckets=3, shuffle=False)
    sizes = [b.structures.layout.nao for b in loader.epoch(0)]
    assert sizes == sorted(sizes)
    assert [b.index.tolist() for b in loader.epoch(0)] == [
        b.index.tolist() for b in loader.epoch(5)
    ]


def test_labels_can_be_chosen(dataset, basis):
    loader = Loader(dataset, basis, batch_size=4, labels=("energy",))
    assert list(next(loader.epoch(0)).labels) == ["energy"]
    assert next(Loader(dataset, basis, batch_size=4, labels=()).epoch(0)).labels == {}


def test_bad_input(dataset, basis):
    with pytest.raises(DataError, match=r"loader.*at least one of each; got 23.*batch_size=0"):
        Loader(dataset, basis, batch_size=0)
    with pytest.raises(DataError, match="got 0 structures"):
        Loader(Dataset([]), basis, batch_size=4)
    with pytest.raises(DataError, match="'quadrupole', not in this data set"):
        Loader(dataset, basis, batch_size=4, labels=("energy", "quadrupole"))
    other = load_basis("def2-svp", [1, 6, 7, 8, 9])
    with pytest.raises(ConventionError, match="layout hash"):
        Loader(dataset, other, batch_size=4)
    Loader(dataset, other, batch_size=4, labels=("energy",))
