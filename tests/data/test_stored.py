"""Labels that stay in their file: the same values, refusals and batches, in less memory."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from opml_jax.basis import layout_of, load_basis
from opml_jax.data import Dataset, Loader, StoredLabel, concatenate, read_dataset
from opml_jax.data.store import read_hdf5, write_hdf5
from opml_jax.errors import Code, DataError, OpmlError
from opml_jax.quantities import LABELS

NAMES = ("water", "methane", "formamide", "hydrogen_cyanide", "fluoromethane")


@pytest.fixture(scope="module")
def basis():
    return load_basis("sto-3g", [1, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def dataset(molecules, basis):
    """23 molecules of five compositions with a random value of every field."""
    rng = np.random.default_rng(0)
    structures = [molecules[NAMES[i % 5]] for i in range(23)]
    labels = {name: [] for name in LABELS}
    for s in structures:
        size = {"atom": s.n_atoms, "ao": layout_of(s, basis).nao, "aux": 5 * s.n_atoms}
        size |= {"shell": 3 * s.n_atoms, "mo": size["ao"] - s.n_atoms % 2}
        for name, field in LABELS.items():
            x = rng.normal(size=[size.get(a, a) for a in field.axes])
            labels[name].append(x + x.T if field.symmetric else x)
    hashes = [layout_of(s, basis).hash for s in structures]
    return Dataset(structures, labels, {"method": "hf", "basis": "sto-3g"}, hashes)


@pytest.fixture
def path(tmp_path, dataset):
    write_hdf5(tmp_path / "set.h5", dataset)
    return tmp_path / "set.h5"


def assert_same_labels(ours, theirs):
    assert list(ours.labels) == list(theirs.labels)
    for name in theirs.labels:
        assert ours.shapes(name) == theirs.shapes(name)
        for a, b in zip(ours.labels[name], theirs.labels[name], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == np.float64


def test_values_are_those_of_the_eager_reader(path):
    lazy, eager = read_dataset(path, lazy=True), read_dataset(path)
    assert len(lazy) == len(eager) == 23
    assert lazy.meta == eager.meta
    assert lazy.layout_hashes == eager.layout_hashes
    assert "fock" in lazy
    assert "fox" not in lazy
    assert all(isinstance(v, StoredLabel) for v in lazy.labels.values())
    assert_same_labels(lazy, eager)
    np.testing.assert_array_equal(lazy.labels["fock"][-1], eager.labels["fock"][-1])
    structure, labels = lazy[7]
    assert structure.numbers == eager.structures[7].numbers
    np.testing.assert_array_equal(labels["forces"], eager.labels["forces"][7])
    assert len([labels["energy"] for _, labels in lazy]) == 23


def test_all_values_of_a_label(path):
    """What is a few numbers a structure is an array; what grows with the molecule is not read."""
    lazy, eager = read_dataset(path, lazy=True), read_dataset(path)
    for name in ("energy", "dipole", "polarizability"):
        np.testing.assert_array_equal(lazy[name], eager[name])
    assert isinstance(lazy["fock"], StoredLabel)
    waters = range(0, 23, 5)
    np.testing.assert_array_equal(
        np.array(lazy.subset(waters)["fock"]), eager.subset(waters)["fock"]
    )
    with pytest.raises(DataError, match="got 'fox', not in this data set"):
        lazy["fox"]


def test_subsets_stay_in_the_file(path):
    lazy, eager = read_dataset(path, lazy=True), read_dataset(path)
    index = [20, 3, 3, 11]
    part = lazy.subset(index).subset([3, 0, 1])
    assert isinstance(part.labels["fock"], StoredLabel)
    assert_same_labels(part, eager.subset(index).subset([3, 0, 1]))
    assert_same_labels(read_dataset(path, lazy=True, limit=4), read_dataset(path, limit=4))
    some = lazy.labels["forces"][2:9:3]
    assert isinstance(some, StoredLabel)
    assert [v.shape for v in some] == [v.shape for v in eager.labels["forces"][2:9:3]]
    with pytest.raises(DataError, match="up to 23"):
        lazy.subset([23])


def test_joined_sets_stay_in_their_files(path, tmp_path, dataset):
    write_hdf5(tmp_path / "two.h5", dataset.subset([5, 1]))
    eager, two = read_dataset(path), read_dataset(tmp_path / "two.h5")
    parts = [read_dataset(tmp_path / "two.h5", lazy=True), eager, read_dataset(path, lazy=True)]
    joined = concatenate(parts)
    assert all(isinstance(v, StoredLabel) for v in joined.labels.values())
    assert_same_labels(joined, concatenate([two, eager, eager]))
    assert_same_labels(
        joined.subset([40, 0, 9]), concatenate([two, eager, eager]).subset([40, 0, 9])
    )


def test_it_says_what_it_is(path):
    lazy = read_dataset(path, lazy=True).subset([1, 2])
    assert repr(lazy).startswith("Dataset(2 structures, ")
    assert repr(lazy).endswith("hf/sto-3g, lazy)")
    assert repr(lazy.labels["fock"]) == "StoredLabel(2 values in set.h5)"
    assert "lazy" not in repr(read_dataset(path))


def test_only_hdf5_is_read_label_by_label(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=-77.0\nHe 0 0 0\n")
    with pytest.raises(DataError, match=r"lazy.*only HDF5.*got True for a\.xyz.*opml data pack"):
        read_dataset(tmp_path / "a.xyz", lazy=True)


def _same(a, b):
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_the_eager_set(path, basis, shuffle):
    options = {"batch_size": 4, "n_buckets": 3, "seed": 2, "shuffle": shuffle}
    ours = Loader(read_dataset(path, lazy=True), basis, **options)
    theirs = Loader(read_dataset(path), basis, **options)
    for epoch, start in ((0, 0), (0, 3), (5, 0), (5, len(theirs) - 1), (5, len(theirs))):
        pairs = zip(ours.epoch(epoch, start), theirs.epoch(epoch, start), strict=True)
        found = [_same(a, b) for a, b in pairs]
        assert found == [True] * (len(theirs) - start)


def test_only_what_a_batch_needs_is_read(path, basis, monkeypatch):
    from opml_jax.data.stored import FileRows

    read = []
    get = FileRows.__getitem__
    monkeypatch.setattr(
        FileRows, "__getitem__", lambda rows, i: read.append((rows.name, int(i))) or get(rows, i)
    )
    loader = Loader(
        read_dataset(path, lazy=True), basis, batch_size=4, labels=("fock", "coefficients")
    )
    assert read == []
    batches = loader.epoch(0, start=2)
    for _ in range(2):
        read.clear()
        b = next(batches)
        assert sorted(read) == sorted((k, int(i)) for k in loader.labels for i in b.index)


def test_writing_again_is_exact(path, tmp_path, monkeypatch):
    """Also where values are cut into blocks, and into the file they are read from."""
    monkeypatch.setattr("opml_jax.data.store.BLOCK", 1000)
    eager = read_dataset(path)
    write_hdf5(tmp_path / "again.h5", read_dataset(path, lazy=True))
    assert_same_labels(read_dataset(tmp_path / "again.h5"), eager)
    assert read_dataset(tmp_path / "again.h5").meta == eager.meta
    write_hdf5(path, read_dataset(path, lazy=True).subset([4, 2]), ["forces", "fock"])
    assert list(read_dataset(path).labels) == ["fock", "forces"]
    assert_same_labels(
        read_dataset(path),
        Dataset.subset(read_hdf5(tmp_path / "again.h5", fields=["fock", "forces"]), [4, 2]),
    )
    assert {p.name for p in tmp_path.iterdir()} == {"set.h5", "again.h5"}


def test_a_full_disk_is_noticed_before_writing(path, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    with pytest.raises(OSError, match=r"No space left.*/out\.h5"):
        write_hdf5(tmp_path / "out.h5", read_dataset(path, lazy=True))
    assert [p.name for p in tmp_path.iterdir()] == ["set.h5"]


def test_copies_and_threads(path):
    eager, lazy = read_dataset(path), read_dataset(path, lazy=True)
    for other in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy)):
        assert_same_labels(other, eager)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: list(lazy.labels["fock"]), range(8)):
            for a, b in zip(found, eager.labels["fock"], strict=True):
                np.testing.assert_array_equal(a, b)


def _norm(label, i):
    return float(np.linalg.norm(label[i]))


def test_other_processes(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    path = path.name
    label = read_dataset(path, lazy=True).labels["fock"]
    expected = [_norm(label, i) for i in (3, 17)]  # it is open when it is sent
    monkeypatch.chdir("/")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(_norm, [(label, 3), (label, 17)]) == expected


FORK = """
import os, sys
import numpy as np
from opml_jax.data import read_dataset

label = read_dataset(sys.argv[1], lazy=True).labels["fock"]
expected = [v.copy() for v in label]  # the file is open in both
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        same = all(np.array_equal(label[i % 23], expected[i % 23]) for i in range(2000))
        os._exit(0 if same else 1)
    children.append(child)
assert all(np.array_equal(label[i % 23], expected[i % 23]) for i in range(2000))
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="no fork")
def test_forked_processes(path):
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_that_was_changed_is_refused(path, dataset):
    lazy = read_dataset(path, lazy=True)
    write_hdf5(path, dataset.subset(range(22)))
    with pytest.raises(DataError, match=r"set\.h5 must be as it was.*another file.*again") as err:
        lazy.labels["energy"][0]
    assert err.value.code == Code.DAMAGED
    lazy = read_dataset(path, lazy=True)
    path.unlink()
    with pytest.raises(DataError, match=r"set\.h5.*unreadable"):
        lazy.labels["energy"][0]


def test_an_open_file_outlives_its_replacement(path, dataset):
    lazy = read_dataset(path, lazy=True)
    lazy.labels["energy"][0]
    write_hdf5(path, dataset.subset([1]))
    np.testing.assert_array_equal(lazy.labels["energy"][9], dataset.labels["energy"][9])


@pytest.mark.parametrize("name", ["energy", "forces", "fock"])
def test_labels_that_are_not_numbers_are_refused(path, name):
    with h5py.File(path, "r+") as f:
        f["labels"][name][0] = np.nan
    lazy = read_dataset(path, lazy=True)
    lazy.labels[name][1]
    with pytest.raises(DataError, match=rf"{name} of .*set\.h5.*NaN in structure 0") as err:
        lazy.subset([2, 0]).labels[name][1]
    assert err.value.code == Code.NOT_FINITE


def _replace(path, name, **data):
    with h5py.File(path, "r+") as f:
        del f[name]
        f.create_dataset(name, **data)


@pytest.mark.parametrize("name", ["energy", "forces", "fock", "coefficients"])
@pytest.mark.parametrize("change", ["shorter", "longer", "claims", "texts", "complex"])
def test_arrays_that_cannot_be_meant_are_refused_at_once(path, name, change):
    with h5py.File(path) as f:
        value = f["labels"][name][()]
    data = {
        "shorter": {"data": value[:-1]},
        "longer": {"data": np.concatenate([value, value[-1:]])},
        "claims": {"shape": value.shape, "chunks": value.shape, "dtype": "f8"},
        "texts": {"data": value.astype("S8")},
        "complex": {"data": value.astype(complex)},
    }
    _replace(path, f"labels/{name}", **data[change])
    for lazy in (True, False):
        with pytest.raises(DataError, match=r"set\.h5") as err:
            read_dataset(path, lazy=lazy)
        assert err.value.code == Code.DAMAGED


@pytest.mark.parametrize("lengths", [[-3, 13], [2**62, -(2**62)], [2**32, 5]], ids=str)
def test_lengths_that_cannot_be_meant_are_refused(path, lengths):
    with h5py.File(path) as f:
        nao = f["nao"][()].astype(np.int64)
    nao[:2] = lengths
    _replace(path, "nao", data=nao)
    with pytest.raises(DataError, match=r"lengths of fock of .*set\.h5") as err:
        read_hdf5(path, fields=["fock"], lazy=True)
    assert err.value.code == Code.DAMAGED


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_nothing_outside_the_file_is_read(path, tmp_path, kind):
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as f:
        value = f["labels/energy"][()]
        del f["labels/energy"]
        if kind == "external link":
            f["labels/energy"] = h5py.ExternalLink(str(other), "labels/energy")
        elif kind == "soft link":
            f["labels/energy"] = h5py.SoftLink("/positions")
        elif kind == "external storage":
            (tmp_path / "raw").write_bytes(value.tobytes())
            where = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            f.create_dataset("labels/energy", value.shape, value.dtype, external=where)
        else:
            layout = h5py.VirtualLayout(value.shape, value.dtype)
            layout[...] = h5py.VirtualSource(str(other), "labels/energy", value.shape)
            f.create_virtual_dataset("labels/energy", layout)
    with pytest.raises(DataError, match=r"set\.h5.*labels|set\.h5:energy") as err:
        read_dataset(path, lazy=True)
    assert err.value.code == Code.UNSAFE


def test_damaged_files_are_refused_or_read_right(path, tmp_path, dataset):
    """Bytes flipped or cut off anywhere: refused at once or at the value, or without effect."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    ends = {"opening": 0, "reading": 0, "same": 0}
    for case in range(150):
        damaged = bytearray(whole)
        if case % 6:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        else:
            del damaged[rng.integers(len(whole)) :]
        other = tmp_path / f"{case}.h5"  # HDF5 would not look again at one that is open
        other.write_bytes(damaged)
        end = "opening"
        try:
            found = read_dataset(other, lazy=True)
            end = "reading"
            for name, values in found.labels.items():
                for ours, theirs in zip(values, dataset.labels[name], strict=True):
                    assert np.array_equal(ours, theirs)
            end = "same"
        except OpmlError:
            pass
        ends[end] += 1
    assert min(ends.values()) > 5, ends


MEMORY = 10 * 2**20
"""Bytes that reading or writing label by label may take, however large the data set is."""
STRUCTURE = 1000
"""Bytes of a small molecule without labels, which is in memory."""

LARGE = """
import json, sys
from pathlib import Path
import numpy as np
import opml_jax as opml
from opml_jax.basis import layout_of
from opml_jax.data import Dataset, Loader, concatenate, read_dataset
from opml_jax.data.store import write_hdf5

def status(name):
    rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(rows[name].split()[0])

def growth():
    # not ru_maxrss, which begins with the peak of the process that started this one
    return status("VmHWM") - start

def epoch(path):
    loader = Loader(read_dataset(path, lazy=True), basis, batch_size=8)
    return sum(int(b.weight.sum()) for b in loader.epoch(0))

part, large, copies = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
basis = opml.load_basis("def2-tzvp", [1, 6, 7, 8])
water = opml.Structure([8, 1, 1], [[0, 0, 0.22], [0, 1.43, -0.88], [0, -1.43, -0.88]])
cyanide = opml.Structure([6, 1, 7], [[0, 0, 0], [0, 0, -2.02], [0, 0, 2.18]])
structures, rng = [water, cyanide] * 20, np.random.default_rng(0)
layouts = [layout_of(s, basis) for s in structures]
fock = [rng.normal(size=(l.nao, l.nao)) for l in layouts]
labels = {"energy": np.arange(40.0), "fock": [f + f.T for f in fock]}
write_hdf5(part, Dataset(structures, labels, None, [l.hash for l in layouts]))
epoch(part)  # loads all that is used
start = status("VmRSS")
if not large.exists():
    joined = concatenate([read_dataset(part, lazy=True)] * copies)
    write_hdf5(large, joined)
    found = {"writing": growth(), "file": large.stat().st_size}
    found["matrices"] = sum(8 * int(np.prod(shape)) for shape in joined.shapes("fock"))
else:
    found = {"seen": epoch(large), "reading": growth()}
    read_dataset(large)
    found["eager"] = growth()
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks as Linux tells them")
@pytest.mark.parametrize("copies", [120, pytest.param(840, marks=pytest.mark.slow)])
def test_more_than_memory_goes_through(tmp_path, copies):
    """124 MB of Fock matrices in a file of 57 MB, or 870 MB in 400 MB."""
    command = [sys.executable, "-c", LARGE, tmp_path / "part.h5", tmp_path / "large.h5", copies]
    found = {}
    for _ in ("write", "read"):  # each in a process that has no memory from the other
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout)
    assert found["seen"] == 40 * copies
    most = MEMORY + STRUCTURE * found["seen"]
    assert found["file"] > 3 * most
    assert found["writing"] < most
    assert found["reading"] < most
    assert found["eager"] > found["matrices"] > 2 * found["file"]
