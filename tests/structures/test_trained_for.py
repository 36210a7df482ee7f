"""Charges, spins, compositions and coordinations that training had, and others."""

import json
import warnings

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import Code, DataError, DataWarning, StructureError
from opml_jax.structures import Structure
from opml_jax.structures.trained_for import (
    check_electrons,
    coordinations,
    electrons_of,
    novel,
    surroundings,
    trained_for,
    warn_of_surroundings,
)
from opml_jax.units import ANGSTROM_PER_BOHR

OXYGEN = Structure([8], [[0.0, 0.0, 0.0]])
HYDROXIDE = Structure([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.83]], charge=-1)
HYDRONIUM = Structure(
    [8, 1, 1, 1], [[0, 0, 0.1], [1.78, 0, -0.5], [-0.89, 1.54, -0.5], [-0.89, -1.54, -0.5]], 1
)


@pytest.fixture(scope="module")
def waters():
    return opml.read_dataset(opml.bundled("water")).structures


def test_thermal_water_has_two_coordinations(waters):
    found = trained_for(waters)
    assert found == {
        "electrons": [{"charge": 0, "spin": 0, "compositions": ["H2O"]}],
        "coordinations": ["H(O)", "O(H2)"],
        "surroundings": ["ec2b1b61", "f6e06ed9"],
    }
    assert json.loads(json.dumps(found)) == found


def test_coordinations_of_molecules(molecules):
    assert set(coordinations(molecules["formamide"])) == {
        "C(HNO)",
        "H(C)",
        "H(N)",
        "N(CH2)",
        "O(C)",
    }
    assert coordinations(molecules["hydrogen_cyanide"]) == {"C(HN)": 0, "H(C)": 1, "N(C)": 2}
    assert coordinations(OXYGEN) == {"O()": 0}


def test_a_composition_has_one_charge_and_spin(water):
    assert electrons_of([water, HYDROXIDE, HYDRONIUM, water]) == [
        {"charge": -1, "spin": 0, "compositions": ["HO"]},
        {"charge": 0, "spin": 0, "compositions": ["H2O"]},
        {"charge": 1, "spin": 0, "compositions": ["H3O"]},
    ]
    turned = Structure([1, 8, 1], np.asarray(water.positions)[[1, 0, 2]], spin=2)  # other order
    for other in (water.replace(charge=2), turned):
        with pytest.raises(DataError, match="H2O with charge 0, spin 0 and with charge") as caught:
            electrons_of([water, HYDROXIDE, other])
        assert caught.value.code == Code.ELECTRONS


@pytest.mark.parametrize(
    ("charge", "spin"), [(2, 0), (-2, 0), (0, 2), (1, 0)], ids=lambda x: str(x)
)
def test_other_charges_and_spins_are_refused(water, charge, spin):
    """Of what training had, of what it had in ions of other compositions, and of the unsaid."""
    other = water.replace(charge=charge, spin=spin)
    dication = Structure([6, 8], [[0.0, 0, 0], [0, 0, 2.1]], charge=2)
    known = [trained_for(part) for part in ([water], [water, dication, HYDRONIUM])]
    for record in (*known, None):
        check_electrons([water], record)
        with pytest.raises(StructureError, match=r"got H2O with .* \(structure 1\)") as caught:
            check_electrons([water, other], record)
        assert caught.value.code == Code.ELECTRONS
    with pytest.raises(StructureError, match="charge 0, spin 0, as in training; got HO with"):
        check_electrons([HYDROXIDE], known[0])
    check_electrons([HYDRONIUM], known[1])
    check_electrons([Structure([1, 1], [[0.0, 0, 0], [0, 0, 1.4]])], known[1])  # larger or smaller
    with pytest.raises(StructureError, match="does not say what it was trained on"):
        check_electrons([HYDROXIDE], None)


def test_unseen_coordinations_draw_one_warning(water, waters):
    known = trained_for(waters)
    with pytest.warns(DataWarning) as caught:
        warn_of_surroundings([water, OXYGEN, HYDROXIDE, HYDRONIUM, OXYGEN], known)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "O() (atom 0 of structure 1), O(H) (atom 0 of structure 2), O(H3) (atom 0" in text


def test_larger_molecules_of_known_coordinations_draw_none(water, waters):
    far = np.asarray(water.positions) + np.array([12.0, 0.0, 0.0])
    two = Structure(water.numbers * 2, np.concatenate([water.positions, far]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_surroundings([two, *waters], trained_for(waters[:1]))
        warn_of_surroundings([OXYGEN], None)


def test_surroundings_reach_two_bonds(molecules):
    """Atoms of propane are bonded as some of butane are; not so those around its middle."""
    propane, butane = (chain(n) for n in (3, 4))
    assert {*coordinations(propane)} == {*coordinations(butane)}
    assert {*surroundings(propane)} - {*surroundings(butane)} == {"C(C(CH3) C(CH3) H(C) H(C))"}
    known = trained_for([butane])
    assert novel([propane, butane, molecules["water"]], known).tolist() == [True, False, True]
    assert not novel([propane], None).any()
    earlier = {k: v for k, v in known.items() if k != "surroundings"}
    assert not novel([propane], earlier).any()
    lacking = r"two bonds far.*C\(C\(CH3\) C\(CH3\).*of structure 1"
    with pytest.warns(DataWarning, match=lacking):
        warn_of_surroundings([butane, propane], known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_surroundings([butane], known)
        warn_of_surroundings([propane], earlier)


def chain(n: int) -> Structure:
    """A straight alkane of n carbons, all trans."""
    half = np.radians(111.5) / 2
    step = 1.53 * np.array([np.sin(half), np.cos(half)])
    carbons = np.array([[i * step[0], (i % 2) * step[1], 0.0] for i in range(n)])
    hydrogens = []
    for i, c in enumerate(carbons):
        up = 1.0 if i % 2 else -1.0
        hydrogens += [c + np.array([0, 0.62 * up, 0.9 * z]) for z in (1, -1)]
        if i in (0, n - 1):
            out = -1.0 if i == 0 else 1.0
            hydrogens.append(c + np.array([1.03 * out, -0.36 * up, 0.0]))
    positions = np.concatenate([carbons, hydrogens]) / ANGSTROM_PER_BOHR
    return Structure([6] * n + [1] * (2 * n + 2), positions)


def test_many_unseen_coordinations_are_counted(molecules, waters):
    with pytest.warns(DataWarning, match=r"and \d+ more\. Predictions"):
        warn_of_surroundings([*molecules.values()], trained_for(waters))


def test_bonds_do_not_depend_on_the_unit_they_are_read_in():
    """C-C of 1.54 Angstrom is a bond, 1.9 is just one, 2.0 is none: 1.25 times 1.52."""
    for length, bonded in ((1.54, True), (1.89, True), (1.91, False)):
        pair = Structure([6, 6], [[0.0, 0, 0], [0, 0, length / ANGSTROM_PER_BOHR]])
        assert (coordinations(pair) == {"C(C)": 1}) == bonded
