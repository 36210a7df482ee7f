import json

import numpy as np
import pytest

from opml_jax.basis import layout_of, load_basis
from opml_jax.conventions import CONVENTION
from opml_jax.data import bundled, read_dataset, read_splits
from opml_jax.data.reference import Method, calculate
from opml_jax.errors import DataError

# What another build of PySCF, BLAS or libxc may change in an SCF converged to 1e-10 Hartree
# (gradient 1e-5), with derivatives and orbitals an order or two behind the energy
ENERGY, FORCES, DIPOLE, FOCK = 1e-9, 1e-7, 1e-6, 1e-6

MAX_PACKAGE_DATA = 4e6  # bytes


@pytest.fixture(scope="module")
def dataset():
    return read_dataset(bundled("water"))


def test_water_is_complete(dataset):
    assert len(dataset) == 500
    assert {s.numbers for s in dataset.structures} == {(8, 1, 1)}
    assert dataset["energy"].shape == (500,)
    assert dataset["forces"].shape == (500, 3, 3)
    assert dataset["dipole"].shape == (500, 3)
    n = layout_of(dataset.structures[0], load_basis("def2-svp", [1, 8])).nao
    assert dataset["fock"].shape == (500, n, n)
    assert (dataset.meta["method"], dataset.meta["basis"]) == ("pbe", "def2-svp")
    assert dataset.meta["convention"] == CONVENTION
    assert len(dataset.layout_hashes) == 500
    dataset.check_layout(load_basis("def2-svp", [1, 8]))
    assert "pyscf_version" in dataset.meta
    sampling = dataset.meta["sampling"]
    assert sampling["temperature_kelvin"] == 500.0
    assert "Boltzmann" in sampling["how"]


def test_water_is_plausible(dataset):
    assert np.abs(dataset["forces"].sum(axis=1)).max() < 1e-7  # no net force
    spread = dataset["energy"].std() * 27.2114
    assert 0.03 < spread < 0.12  # three classical modes at 500 K: sqrt(3/2) kT = 0.053 eV
    assert 1.5 < np.linalg.norm(dataset["dipole"], axis=1).mean() * 2.5417 < 2.3  # Debye
    distances = [
        np.sort(np.linalg.norm(s.positions[1:] - s.positions[0], axis=1))
        for s in dataset.structures
    ]
    angles = np.round(distances, 8)
    assert len({tuple(a) for a in angles}) == 500  # no geometry twice, whatever its orientation


def test_splits_are_disjoint_and_complete():
    splits = read_splits(bundled("water", ".splits.json"))
    assert {k: len(v) for k, v in splits.items()} == {"train": 400, "validation": 50, "test": 50}
    assert sorted(i for v in splits.values() for i in v) == list(range(500))


def test_package_data_is_small_and_says_how_it_was_made():
    folder = bundled("water").parent
    assert sum(p.stat().st_size for p in folder.iterdir()) < MAX_PACKAGE_DATA
    text = (folder / "water.md").read_text()
    for words in ("opml generate", "pyscf", "500"):
        assert words in text.replace("PySCF", "pyscf")
    json.loads((folder / "water.splits.json").read_text())


def test_alkanes_are_short_ones_and_longer_ones_to_test():
    data, splits = read_dataset(bundled("alkanes")), read_splits(bundled("alkanes", ".splits.json"))
    carbons = [s.numbers.count(6) for s in data.structures]
    assert [carbons.count(n) for n in (1, 2, 3, 4, 6, 8)] == [60] * 4 + [20] * 2
    assert all(
        s.numbers.count(1) == 2 * c + 2 for s, c in zip(data.structures, carbons, strict=True)
    )
    assert sorted(i for v in splits.values() for i in v) == list(range(280))
    assert {carbons[i] for i in splits["train"]} == {1, 2, 3, 4}
    assert {carbons[i] for i in splits["test"]} == {6, 8}
    assert max(np.abs(f.sum(axis=0)).max() for f in data["forces"]) < 1e-7  # no net force
    how = (bundled("alkanes").parent / "alkanes.md").read_text()
    assert "benchmarks/chains.py make" in how


def test_labels_of_alkanes_can_be_made_again():
    data = read_dataset(bundled("alkanes"))
    structure, stored = data[7]  # a methane
    keys = ("method", "basis", "grid_level", "conv_tol", "max_cycle")
    found = calculate(structure, Method(**{k: data.meta[k] for k in keys}))
    assert found["energy"] == pytest.approx(float(stored["energy"]), abs=ENERGY, rel=0)
    np.testing.assert_allclose(found["forces"], stored["forces"], rtol=0, atol=FORCES)


@pytest.mark.parametrize("index", [123])
def test_labels_can_be_made_again(dataset, index):
    method = Method(
        **{k: dataset.meta[k] for k in ("method", "basis", "grid_level", "conv_tol", "max_cycle")}
    )
    structure, stored = dataset[index]
    found = calculate(structure, method)
    assert found["energy"] == pytest.approx(float(stored["energy"]), abs=ENERGY, rel=0)
    for name, tolerance in (("forces", FORCES), ("dipole", DIPOLE), ("fock", FOCK)):
        np.testing.assert_allclose(found[name], stored[name], rtol=0, atol=tolerance)


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match=r"bundled data set must be one of .*'watr'.*'water'"):
        bundled("watr")
    with pytest.raises(DataError, match=r"suffix of a bundled data set must be one of .h5"):
        bundled("water", ".absent")
    with pytest.raises(DataError, match=r"suffix of a bundled data set must be one of .*'.xyz'"):
        bundled("alkanes", ".xyz")
    with pytest.raises(DataError, match="bundled data set"):
        bundled("../../errors", ".py")
