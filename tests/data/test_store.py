import itertools

import h5py
import numpy as np
import pytest

from opml_jax.basis import layout_of, load_basis
from opml_jax.data import Dataset, read_dataset, read_structures
from opml_jax.data.store import read_hdf5, write_hdf5
from opml_jax.errors import ConventionError, DataError, OpmlError
from opml_jax.quantities import LABELS
from opml_jax.structures import Structure


@pytest.fixture
def dataset(molecules, rng):
    """Molecules of different sizes with a random value of every field."""
    water = molecules["water"]
    structures = [
        water,
        molecules["hydrogen_cyanide"],
        Structure(water.numbers, water.positions, 2),
    ]
    labels = {name: [] for name in LABELS}
    for s in structures:
        size = {"atom": s.n_atoms, "ao": layout_of(s, load_basis("sto-3g", s.numbers)).nao}
        size |= {"mo": size["ao"] - s.n_atoms % 2, "aux": 5 * s.n_atoms, "shell": 3 * s.n_atoms}
        for name, field in LABELS.items():
            x = rng.normal(size=[size.get(a, a) for a in field.axes])
            labels[name].append(x + x.T if field.symmetric else x)
    meta = {"method": "hf", "basis": "sto-3g", "nested": {"a": [1, 2]}}
    hashes = [layout_of(s, load_basis("sto-3g", s.numbers)).hash for s in structures]
    return Dataset(structures, labels, meta, hashes)


@pytest.fixture
def path(tmp_path, dataset):
    write_hdf5(tmp_path / "set.h5", dataset)
    return tmp_path / "set.h5"


def test_round_trip_is_exact(path, dataset):
    found = read_hdf5(path)
    assert found.meta == dataset.meta
    assert found.layout_hashes == dataset.layout_hashes
    found.check_layout(load_basis("sto-3g", found.elements))
    assert set(found.labels) == set(LABELS)
    for ours, theirs in zip(found.structures, dataset.structures, strict=True):
        assert (ours.numbers, ours.charge, ours.spin) == (
            theirs.numbers,
            theirs.charge,
            theirs.spin,
        )
        np.testing.assert_array_equal(ours.positions, theirs.positions)
    for name, values in dataset.labels.items():
        for ours, theirs in zip(found.labels[name], values, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.float64


def test_file_says_what_it_holds(path):
    with h5py.File(path) as f:
        assert f.attrs["format"] == "opml_jax data set"
        assert f.attrs["format_version"] == 1
        assert f.attrs["convention"] == "opml-1"
        assert f["positions"].attrs["unit"] == "Bohr"
        for name, field in LABELS.items():
            assert f["labels"][name].attrs["unit"] == field.unit
            assert f["labels"][name].attrs["description"] == field.text
        units = {name: f["labels"][name].attrs["unit"] for name in f["labels"]}
    assert units["energy"] == units["fock"] == "Hartree"
    assert units["forces"] == "Hartree/Bohr"
    assert units["dipole"] == "e Bohr"


def test_fields_can_be_chosen(path, tmp_path, dataset):
    assert list(read_hdf5(path, fields=("energy", "fock")).labels) == ["energy", "fock"]
    assert read_hdf5(path, fields=()).labels == {}
    write_hdf5(tmp_path / "small.h5", dataset, ["forces"])
    assert list(read_dataset(tmp_path / "small.h5").labels) == ["forces"]
    assert len(read_structures(tmp_path / "small.h5")) == 3
    with pytest.raises(DataError, match=r"one of: forces; got no label 'energy'"):
        read_hdf5(tmp_path / "small.h5", fields=["energy"])


def test_one_structure_without_labels(tmp_path, water):
    write_hdf5(tmp_path / "one.h5", Dataset([water]))
    assert read_structures(tmp_path / "one.h5")[0].numbers == water.numbers


@pytest.mark.parametrize("keep", [1, 7, 100, 0.3, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(DataError, match=r"set\.h5 must be a complete HDF5 data set.*truncated"):
        read_hdf5(path)


def test_empty_and_foreign_files_are_refused(path):
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        read_structures(path)
    path.write_text("3\nwater\nO 0 0 0\n")
    with pytest.raises(DataError, match="unreadable file"):
        read_structures(path)
    with h5py.File(path, "w") as f:
        f["something"] = np.arange(3)
    with pytest.raises(
        DataError, match="a data set of opml_jax, SPICE or ANI; got HDF5 with something in /"
    ):
        read_structures(path)


def _edit(path, edit):
    with h5py.File(path, "r+") as f:
        edit(f)


def test_newer_formats_are_refused(path):
    _edit(path, lambda f: f.attrs.__setitem__("format_version", 2))
    with pytest.raises(DataError, match=r"format_version 2.*Upgrade"):
        read_hdf5(path)


def test_other_conventions_are_refused(path):
    _edit(path, lambda f: f.attrs.__setitem__("convention", "pyscf"))
    with pytest.raises(
        ConventionError, match=r"convention of .*set\.h5 must be 'opml-1'; got 'pyscf'"
    ):
        read_hdf5(path)


def _replace(f, name, make):
    parent, leaf = (f, name) if "/" not in name else (f["labels"], name.split("/")[1])
    del parent[leaf]
    make(parent, leaf)


LINKS, STORAGE = ["external link", "soft link"], ["external storage", "virtual"]
ARRAYS = ["positions", "numbers", "n_atoms", "labels/energy"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product([*ARRAYS, "labels"], LINKS), *itertools.product(ARRAYS, STORAGE)],
)
def test_nothing_outside_the_file_is_read(path, tmp_path, name, kind):
    """A data file from a stranger must not be able to pull in another file of the reader's."""
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())
    with h5py.File(path) as f:
        value = None if name == "labels" else f[name][()]

    def make(parent, leaf):
        if kind == "external link":
            parent[leaf] = h5py.ExternalLink(str(other), name)
        elif kind == "soft link":
            parent[leaf] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            (tmp_path / "raw").write_bytes(value.tobytes())
            where = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            parent.create_dataset(leaf, shape=value.shape, dtype=value.dtype, external=where)
        else:
            layout = h5py.VirtualLayout(shape=value.shape, dtype=value.dtype)
            layout[...] = h5py.VirtualSource(str(other), name, shape=value.shape)
            parent.create_virtual_dataset(leaf, layout)

    _edit(path, lambda f: _replace(f, name, make))
    with pytest.raises(DataError, match=r"set\.h5"):
        read_hdf5(path)


@pytest.mark.parametrize("name", ["positions", "numbers", "charge", "labels/fock", "labels/energy"])
def test_claimed_sizes_are_not_believed(path, name):
    """A few bytes can claim a petabyte of fill values; reading allocates what is there."""

    def make(parent, leaf):
        parent.create_dataset(leaf, shape=(10**14, 3), dtype="f8", chunks=(1024, 3))

    _edit(path, lambda f: _replace(f, name, make))
    with pytest.raises(DataError, match=r"set\.h5"):
        read_hdf5(path)


@pytest.mark.parametrize(
    "name",
    [
        "numbers",
        "charge",
        "spin",
        "n_atoms",
        "nao",
        "labels/energy",
        "labels/forces",
        "labels/fock",
    ],
)
@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_lengths_that_disagree_are_refused(path, name, change):
    with h5py.File(path) as f:
        value = f[name][()]
    value = value[:-1] if change == "shorter" else np.concatenate([value, value[-1:]])
    _edit(path, lambda f: _replace(f, name, lambda g, leaf: g.create_dataset(leaf, data=value)))
    with pytest.raises(DataError, match=r"set\.h5"):
        read_hdf5(path)


def test_missing_parts_are_named(path):
    _edit(path, lambda f: f.__delitem__("positions"))
    with pytest.raises(DataError, match=r"set\.h5.*positions"):
        read_hdf5(path)


def test_bad_geometries_are_refused_with_the_file_named(path):
    def spoil(f):
        f["positions"][4, 0] = np.nan

    _edit(path, spoil)
    with pytest.raises(OpmlError, match=r"set\.h5.*structure 1.*finite"):
        read_hdf5(path)


@pytest.mark.parametrize("name", ["energy", "forces", "fock"])
def test_labels_that_are_not_numbers_are_refused(path, name):
    def spoil(f):
        f["labels"][name][0] = np.nan

    _edit(path, spoil)
    with pytest.raises(DataError, match=rf"{name}.*structure 0"):
        read_dataset(path)


def test_writing_is_all_or_nothing(path, dataset, monkeypatch):
    before = path.read_bytes()
    dataset.labels["energy"][1] = np.zeros(2)  # cannot be stacked with the others
    with pytest.raises(ValueError, match="inhomogeneous"):
        write_hdf5(path, dataset)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["set.h5"]


def test_what_was_written_wrong_replaces_nothing(path, dataset):
    """Labels of one molecule in two bases, changed behind the back of the data set."""
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"dm\[1\] must be axes .* as other labels"):
        Dataset(
            dataset.structures,
            {"fock": dataset.labels["fock"], "dm": [dataset.labels["dm"][0]] * 3},
        )
    dataset.labels["dm"] = [dataset.labels["dm"][0]] * 3
    with pytest.raises(DataError, match=r"set\.h5 is as it was: .* cannot be read"):
        write_hdf5(path, dataset)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["set.h5"]
    with pytest.raises(DataError, match="mo up to ao"):
        Dataset([dataset.structures[0]], {"mo_occ": [np.ones(3)], "fock": [np.eye(2)]})
