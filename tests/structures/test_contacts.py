"""Pairs of elements closer than training has seen them."""

import warnings

import numpy as np
import pytest

from opml_jax.errors import DataWarning
from opml_jax.structures import Structure
from opml_jax.structures.contacts import (
    bonds_by_pair,
    closest_pairs,
    cover,
    in_words,
    lacking_bonds,
    warn_of_contacts,
)
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


def test_bonds_by_pair(water, hydrazine):
    found = bonds_by_pair([water, hydrazine, hydrazine])
    assert list(found) == ["H-N", "H-O", "N-N"]
    assert [found[k].molecules for k in found] == [2, 1, 2]
    nitrogens = found["N-N"]
    assert nitrogens.shortest == nitrogens.longest == pytest.approx(1.45 / ANGSTROM_PER_BOHR)
    r = np.asarray(water.positions)
    lengths = [np.linalg.norm(r[0] - r[i]) for i in (1, 2)]
    assert found["H-O"][1:] == pytest.approx((min(lengths), max(lengths)))


def test_bonds_that_training_lacks(water, hydrazine):
    """Pairs at any distance are no bonds, and vibrations of known bonds are not lacking."""
    closest = closest_pairs([hydrazine])
    assert lacking_bonds(hydrazine, closest) == {}
    assert lacking_bonds(hydrazine.replace(positions=0.95 * hydrazine.positions), closest) == {}
    assert lacking_bonds(hydrazine, {**closest, "N-N": 4.2}) == {"N-N": closest["N-N"]}
    assert list(lacking_bonds(hydrazine, closest_pairs([water]))) == ["H-N", "N-N"]
    apart = hydrazine.replace(positions=2 * hydrazine.positions)
    assert lacking_bonds(apart, {}) == {}
    text = in_words("N-N", closest["N-N"], {"N-N": 2.24 / ANGSTROM_PER_BOHR}, " here")
    assert text == "N-N at 1.45 A here (training: 2.24 A)"
    assert in_words("N-N", closest["N-N"], {}) == "N-N at 1.45 A (training: never)"


def test_the_fewest_that_have_every_bond():
    """A molecule with two bonds before one with one; a triple bond is no single one."""
    single, double, triple = 1.45, 1.25, 1.10
    assert cover([], []) == []
    assert cover([{}, {}], [3, 3]) == []
    several = [{"N-N": single}, {"N-N": single, "O-O": 1.48}, {"O-O": 1.47}, {}]
    assert cover(several, [4, 9, 4, 2]) == [1]
    assert cover([{"N-N": single}, {"N-N": single}], [9, 4]) == [1]
    assert cover([{"N-N": single}, {"N-N": triple}], [4, 2]) == [1, 0]
    between = 1.18  # within 10 % of both
    assert cover([{"N-N": triple}, {"N-N": double}, {"N-N": between}], [2, 4, 2]) == [2]


def test_a_cover_leaves_nothing_lacking(molecules):
    """Of real molecules, whatever training had."""
    several = list(molecules.values())
    for first in several:
        known = closest_pairs([first])
        lacking = [lacking_bonds(s, known) for s in several]
        chosen = cover(lacking, [s.n_atoms for s in several])
        together = closest_pairs([first, *(several[i] for i in chosen)])
        assert all(not lacking_bonds(s, together) for s in several)
        assert len(chosen) < len(several)
