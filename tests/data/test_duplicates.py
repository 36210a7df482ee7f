"""Equal geometries are found whatever their frame and order; others are not."""

import numpy as np
import pytest

from opml_jax.data import Dataset, check_splits, duplicates, leakage
from opml_jax.data.duplicates import TOLERANCE, fingerprint
from opml_jax.errors import DataError
from opml_jax.structures import Structure


def _moved(s, rotation, rng):
    """Turned, shifted, and its atoms in another order."""
    order = rng.permutation(s.n_atoms)
    x = np.asarray(s.positions) @ rotation.T + rng.normal(size=3)
    return Structure(np.array(s.numbers)[order], x[order], s.charge, s.spin)


@pytest.mark.parametrize("improper", [False, True])
def test_fingerprints_are_invariant(molecules, rng, random_rotation, improper):
    for s in molecules.values():
        moved = _moved(s, random_rotation(rng, improper), rng)
        np.testing.assert_allclose(fingerprint(moved), fingerprint(s), atol=1e-12)


def test_duplicates_are_found(molecules, rng, random_rotation):
    structures = list(molecules.values())
    n = len(structures)
    structures += [_moved(s, random_rotation(rng), rng) for s in structures]
    assert duplicates(structures).tolist() == [[i, i + n] for i in range(n)]
    assert duplicates(structures[:n]).shape == (0, 2)
    assert duplicates([]).shape == (0, 2)


def test_rounding_does_not_hide_a_duplicate(molecules):
    """Whichever digit a file stops at: there is no bin whose edge could fall between the two."""
    s = molecules["formamide"]
    for digits in (4, 5, 6):
        rounded = s.replace(positions=np.round(s.positions, digits))
        assert len(duplicates([s, rounded])) == 1
    for shift, found in ((0.2, 1), (5.0, 0)):
        moved = np.array(s.positions)
        moved[3, 0] += shift * TOLERANCE
        assert len(duplicates([s, s.replace(positions=moved)])) == found


def test_what_is_no_duplicate(water):
    heavy = Structure([16, 1, 1], water.positions)
    cation = Structure(water.numbers, water.positions, charge=2)
    assert len(duplicates([water, heavy, cation])) == 0
    assert len(duplicates([Structure([2], [[0, 0, 0]]), Structure([2], [[5, 0, 0]])])) == 1


def test_more_than_two(water):
    assert duplicates([water] * 3).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert len(duplicates([water, water], tolerance=1e-12)) == 1


def test_leakage(molecules, rng, random_rotation):
    names = ("water", "methane", "formamide", "hydrogen_cyanide")
    structures = [molecules[n] for n in names]
    held_out = [_moved(structures[2], random_rotation(rng), rng), molecules["fluoromethane"]]
    found = leakage(Dataset(structures), Dataset(held_out))
    assert found.duplicates.tolist() == [[2, 0]]
    assert found.neighbours is None


def test_neighbouring_frames(molecules, rng):
    def trajectory(name, frames):
        s = molecules[name]
        x = [s.positions + 0.1 * rng.normal(size=(s.n_atoms, 3)) for _ in frames]
        return [s.replace(positions=p) for p in x]

    train, test = [100, 500, 300], [89, 90, 110, 111, 301, 700]
    a = Dataset(trajectory("water", train), {"frame": train})
    b = Dataset(trajectory("water", test), {"frame": test})
    found = leakage(a, b)
    assert found.neighbours.tolist() == [1, 2, 4]
    assert found.duplicates.shape == (0, 2)
    assert leakage(a, b, frames=1).neighbours.tolist() == [4]
    other = Dataset(trajectory("methane", test), {"frame": test})
    assert leakage(a, other).neighbours.tolist() == []


def test_splits_are_held_against_the_data(molecules):
    names = ("water", "hydrogen_sulfide", "water", "methane")
    dataset = Dataset([molecules[n] for n in names])
    check_splits(dataset, {"train": [0, 3], "validation": [2]})
    for splits, says in (
        ({"train": [0, 2], "validation": [3]}, "validation split.*elements of the train.* got C"),
        ({"train": [0, 2], "validation": [2], "test": [1]}, "test split.*got S"),
        ({"train": [0, 4], "validation": [1]}, "splits.*indices below 4; got index 4"),
        ({"train": [], "validation": [1]}, "train split.*empty"),
    ):
        with pytest.raises(DataError, match=says):
            check_splits(dataset, splits)
