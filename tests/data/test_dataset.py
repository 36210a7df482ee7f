import json

import numpy as np
import pytest

from opml_jax.basis import layout_of, load_basis
from opml_jax.data import Dataset, concatenate, random_split, read_splits
from opml_jax.data.splits import write_splits
from opml_jax.errors import ConventionError, DataError


@pytest.fixture
def pair(molecules):
    structures = [molecules["water"], molecules["hydrogen_cyanide"], molecules["methane"]]
    forces = [np.full((s.n_atoms, 3), float(i)) for i, s in enumerate(structures)]
    return Dataset(structures, {"energy": [1.0, 2.0, 3.0], "forces": forces}, {"method": "hf"})


def test_access(pair):
    assert len(pair) == 3
    np.testing.assert_array_equal(pair["energy"], [1.0, 2.0, 3.0])
    assert isinstance(pair["forces"], list)  # shapes differ
    assert isinstance(pair.subset([0, 1])["forces"], np.ndarray)
    structure, labels = pair[1]
    assert structure.numbers == (6, 1, 7)
    assert labels["energy"] == 2.0
    assert "energy" in pair
    assert "dipole" not in pair
    assert pair.elements == (1, 6, 7, 8)
    assert repr(pair) == "Dataset(3 structures, energy, forces, hf)"
    assert len(list(pair)) == 3


def test_subset_keeps_order(pair):
    part = pair.subset([2, 0])
    assert part["energy"].tolist() == [3.0, 1.0]
    assert [s.n_atoms for s in part.structures] == [5, 3]
    assert part.meta == pair.meta
    for bad in ([3], [-1]):
        with pytest.raises(DataError, match=r"indices.*0 to 2.*split file"):
            pair.subset(bad)


def test_refuses_what_does_not_fit(water):
    with pytest.raises(
        DataError, match=r"label must be one of .*energy, .*; got 'enrgy'.*'energy'"
    ):
        Dataset([water], {"enrgy": [1.0]})
    with pytest.raises(DataError, match="energy must be one for each of 1 structure; got 2"):
        Dataset([water], {"energy": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"forces\[0\].*3 atoms.*\(2, 3\)"):
        Dataset([water], {"forces": [np.zeros((2, 3))]})
    with pytest.raises(DataError, match=r"dipole\[0\]"):
        Dataset([water], {"dipole": [np.zeros(2)]})
    with pytest.raises(DataError, match=r"one of: none; got 'energy', not in this data set"):
        Dataset([water])["energy"]


def test_ao_matrices_must_be_square(water):
    with pytest.raises(DataError, match=r"fock\[0\]"):
        Dataset([water], {"fock": [np.zeros((7, 6))]})


def test_concatenate_keeps_what_is_common(pair, water):
    other = Dataset([water], {"energy": [9.0]}, {"method": "hf", "basis": "sto-3g"})
    both = concatenate([pair, other])
    assert both["energy"].tolist() == [1.0, 2.0, 3.0, 9.0]
    assert "forces" not in both
    assert both.meta == {"method": "hf"}


def test_layouts_are_checked(water, molecules):
    small, large = (load_basis(n, [1, 6, 7, 8]) for n in ("sto-3g", "def2-svp"))
    structures = [water, molecules["hydrogen_cyanide"]]
    stored = [layout_of(s, small).hash for s in structures]
    one = Dataset(structures, layout_hashes=stored)
    one.check_layout(small)
    one.subset([1]).check_layout(small)
    concatenate([one, one]).check_layout(small)
    assert concatenate([one, Dataset([water])]).layout_hashes is None
    with pytest.raises(ConventionError, match=r"layout hash of structure 0.*H2O.*def2-svp"):
        one.check_layout(large)
    with pytest.raises(ConventionError, match="structure 1"):
        Dataset(structures, layout_hashes=[stored[0], "f" * 16]).check_layout(small)


def test_one_layout_hash_for_each_structure(water):
    with pytest.raises(DataError, match="layout_hashes must be one for each of 1 structure"):
        Dataset([water], layout_hashes=[])


def test_random_split():
    split = random_split(20, 10, 4, 6, seed=1)
    assert {k: len(v) for k, v in split.items()} == {"train": 10, "validation": 4, "test": 6}
    assert sorted(i for v in split.values() for i in v) == list(range(20))
    assert split == random_split(20, 10, 4, 6, seed=1)
    assert split != random_split(20, 10, 4, 6, seed=2)
    assert random_split(20, 10, 4, 0, seed=1)["test"] == []
    more = random_split(20, 10, 4, 3, seed=1, calibration=3)
    assert list(more) == ["train", "validation", "calibration", "test"]
    assert sorted(more["calibration"] + more["test"]) == split["test"]
    assert more["train"] == split["train"]


@pytest.mark.parametrize("sizes", [(10, 4, 7), (0, 4, 6), (10, 0, 6), (10, 4, -1)])
def test_impossible_splits_are_refused(sizes):
    with pytest.raises(DataError, match="at most 20"):
        random_split(20, *sizes, seed=0)


def test_split_files(tmp_path):
    path = tmp_path / "s.json"
    split = random_split(10, 5, 3, 2, seed=0)
    write_splits(path, split)
    assert read_splits(path) == split
    assert json.loads(path.read_text()) == split


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unreadable"),
        ("[1, 2]", "unreadable"),
        ('{"train": 3, "validation": [1]}', "unreadable"),
        ('{"train": [0], "validation": ["x"]}', "unreadable"),
        ('{"train": [0]}', "splits"),
        ('{"train": [0], "validation": [1], "tset": [2]}', "tset"),
        ('{"train": [0, 1], "validation": [1]}', "two splits"),
        ('{"train": [0, 0], "validation": [1]}', "two splits"),
        ('{"train": [0], "validation": []}', "empty split"),
        ('{"train": [0.5], "validation": [1]}', "0.5"),
        ('{"train": [-1], "validation": [1]}', "-1"),
    ],
)
def test_bad_split_files_are_refused(tmp_path, text, says):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_splits(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_missing_split_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        read_splits(tmp_path / "absent.json")
