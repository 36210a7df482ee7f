"""Pairs of elements closer than training has seen them."""

import warnings

import numpy as np
import pytest

from opml_jax.errors import DataWarning
from opml_jax.structures import Structure
from opml_jax.structures.contacts import closest_pairs, warn_of_contacts
from opml_jax.units import ANGSTROM_PER_BOHR


@pytest.fixture
def hydrazine():
    """Two nitrogens at 1.45 Angstrom, and hydrogens somewhere."""
    r = [[0, 0, 0], [1.45, 0, 0], [-0.4, 0.9, 0], [-0.4, -0.9, 0], [1.85, 0.9, 0], [1.85, -0.9, 0]]
    return Structure([7, 7, 1, 1, 1, 1], np.array(r) / ANGSTROM_PER_BOHR)


def test_closest_pairs(water, hydrazine):
    found = closest_pairs([water, hydrazine])
    assert list(found) == ["H-H", "H-N", "H-O", "N-N"]
    r = np.asarray(water.positions)
    assert found["H-O"] == pytest.approx(min(np.linalg.norm(r[0] - r[i]) for i in (1, 2)))
    assert found["N-N"] == pytest.approx(1.45 / ANGSTROM_PER_BOHR)
    assert closest_pairs([Structure([2], [[0.0, 0.0, 0.0]])]) == {}


def test_a_bond_that_no_molecule_had_is_named(water, hydrazine):
    known = {**closest_pairs([hydrazine]), "N-N": 2.2 / ANGSTROM_PER_BOHR}
    with pytest.warns(DataWarning, match=r"N-N at 1.45 A in structure 1 \(training: 2.20 A\)\. Pr"):
        warn_of_contacts([water, hydrazine], known)


def test_pairs_never_met_are_named(water, hydrazine):
    with pytest.warns(DataWarning, match=r"H-N at .* A in structure 0 \(training: never\); N-N at"):
        warn_of_contacts([hydrazine], closest_pairs([water]) | {"H-H": 2.0})


def test_what_is_known_or_never_met_draws_no_warning(water, hydrazine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shorter = hydrazine.replace(positions=0.92 * np.asarray(hydrazine.positions))
        warn_of_contacts([shorter], closest_pairs([hydrazine]))
        warn_of_contacts([water], {"N-N": 2.7, "H-N": 1.9}, unseen=False)
        warn_of_contacts([water], {})
