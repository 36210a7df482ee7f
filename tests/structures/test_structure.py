import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.errors import StructureError, UnitWarning
from opml_jax.structures import (
    Structure,
    StructureBatch,
    centred,
    check_length_unit,
    in_float64,
    pad_structures,
)
from opml_jax.structures.elements import ISOTOPES, WEIGHTS, atomic_number, isotope, masses, symbol
from opml_jax.units import ANGSTROM_PER_BOHR, ELECTRON_MASS_PER_DALTON

H2 = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]
TOO_CLOSE = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.1 / ANGSTROM_PER_BOHR]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"numbers": []}, ["numbers", "at least one atom", "no atoms"]),
        ({"numbers": [1, 0]}, ["numbers[1]", "1 to 118", "got 0"]),
        ({"numbers": [119, 1]}, ["numbers[0]", "1 to 118", "got 119"]),
        ({"numbers": [1.5, 1]}, ["numbers", "1.5", "integer"]),
        ({"numbers": ["O", "O"]}, ["numbers", "O"]),
        ({"positions": np.transpose(H2)}, ["positions", "(2, 3)", "(3, 2)", "transpose"]),
        ({"positions": np.zeros((2, 2))}, ["positions", "(2, 3)", "(2, 2)"]),
        ({"positions": np.zeros((3, 3))}, ["positions", "(2, 3)", "(3, 3)"]),
        ({"positions": [[0, 0, 0], [0, 0]]}, ["positions", "(2, 3)"]),
        ({"positions": [[0, 0, 0], [0, np.nan, 1]]}, ["positions", "finite", "nan", "atom 1"]),
        ({"positions": [[np.inf, 0, 0], [0, 0, 1]]}, ["positions", "finite", "inf", "atom 0"]),
        ({"positions": TOO_CLOSE}, ["positions", "0.3 Angstrom", "0 and 1 at 0.100 Angstrom"]),
        ({"positions": [["a", 0, 0], [0, 0, 1]]}, ["positions", "real numbers", "dtype"]),
        ({"positions": np.array(H2) + 1j}, ["positions", "real numbers", "complex128"]),
        ({"charge": 1}, ["spin=0", "1 electrons", "charge 1", "same parity"]),
        ({"spin": 1}, ["spin=1", "2 electrons", "same parity"]),
        ({"spin": -2}, ["spin=-2", "2 electrons"]),
        ({"spin": 4}, ["spin=4", "2 electrons"]),
        ({"charge": 0.5}, ["charge", "integer", "0.5"]),
        ({"charge": np.nan}, ["charge", "integer", "nan", "OPML-106"]),
        ({"charge": np.inf}, ["charge", "integer", "inf"]),
        ({"charge": "0"}, ["charge", "integer", "0"]),
        ({"charge": None}, ["charge", "integer", "None"]),
        ({"charge": [0, 0]}, ["charge", "integer", "[0, 0]"]),
        ({"charge": True}, ["charge", "integer", "True"]),
        ({"masses": [1.0]}, ["masses", "2 positive numbers", "Dalton"]),
        ({"masses": [1.0, -1.0]}, ["masses", "positive", "-1.0"]),
        ({"masses": [1.0, np.nan]}, ["masses", "positive", "nan"]),
        ({"masses": ["D", "D"]}, ["masses", "positive", "D"]),
        ({"spin": 0.5}, ["spin", "integer", "0.5"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_refuses_what_cannot_be_meant(arguments, says):
    with pytest.raises(StructureError) as caught:
        Structure(**{"numbers": [1, 1], "positions": H2, **arguments})
    for words in says:
        assert words in str(caught.value)


def test_validates_device_arrays_too():
    with pytest.raises(StructureError, match="finite"):
        Structure([1, 1], jnp.array([[0.0, 0.0, 0.0], [0.0, jnp.nan, 1.0]]))


def test_describes_itself(water):
    ion = Structure([6, 1, 1, 1], [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]], charge=1)
    assert repr(water) == "Structure(H2O, charge=0, spin=0)"
    assert repr(ion) == "Structure(CH3, charge=1, spin=0)"
    assert (ion.n_atoms, ion.n_electrons, ion.symbols) == (4, 8, ("C", "H", "H", "H"))


def test_integers_become_float64():
    positions = Structure([1, 1], [[0, 0, 0], [0, 0, 2]]).positions
    assert positions.dtype == np.float64


def test_a_new_geometry_does_not_retrace(water, molecules):
    traces = []

    @jax.jit
    def size(s):
        traces.append(s.numbers)
        return (s.positions**2).sum()

    moved = water.replace(positions=water.positions + 1.0)
    assert size(water) == pytest.approx((water.positions**2).sum())
    assert size(moved) == pytest.approx((moved.positions**2).sum())
    assert traces == [water.numbers]
    size(molecules["hydrogen_sulfide"])  # another composition is another program
    size(Structure(water.numbers, water.positions, charge=2))
    assert len(traces) == 3


def test_only_positions_are_leaves(water):
    leaves, tree = jax.tree.flatten_with_path(water)
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [".positions"]
    assert jax.tree.unflatten(tree, [x for _, x in leaves]).numbers == water.numbers


def test_maps_over_positions(water):
    stack = np.stack([water.positions, 2 * water.positions])
    out = jax.vmap(lambda s: s.positions.sum())(water.replace(positions=stack))
    np.testing.assert_allclose(out, stack.sum(axis=(1, 2)))


def test_can_be_built_and_differentiated_under_jit(water):
    @jax.jit
    @jax.grad
    def force(positions):
        return (Structure(water.numbers, positions).positions ** 3).sum()

    np.testing.assert_allclose(force(water.positions), 3 * water.positions**2)


def test_replace_is_unchecked(water):
    assert np.isnan(water.replace(positions=np.nan * water.positions).positions).all()
    assert water.replace(charge=1).charge == 1
    assert water.charge == 0
    with pytest.raises(TypeError, match="colour"):
        water.replace(colour="blue")


def test_structures_are_frozen(water):
    with pytest.raises(AttributeError):
        water.charge = 1


def test_padding(water, molecules):
    methane = molecules["methane"]
    ion = Structure(water.numbers, water.positions, charge=2)
    batch = pad_structures([water, methane, ion], 6)
    assert isinstance(batch, StructureBatch)
    assert (batch.n_structures, batch.n_atoms) == (3, 6)
    assert batch.numbers.tolist() == [
        [8, 1, 1, 0, 0, 0],
        [6, 1, 1, 1, 1, 0],
        [8, 1, 1, 0, 0, 0],
    ]
    np.testing.assert_array_equal(batch.mask, batch.numbers > 0)
    np.testing.assert_array_equal(batch.positions[0, :3], water.positions)
    np.testing.assert_array_equal(batch.positions[1, :5], methane.positions)
    np.testing.assert_array_equal(batch.positions[~batch.mask], 0.0)
    assert batch.charge.tolist() == [0, 0, 2]
    assert batch.spin.tolist() == [0, 0, 0]


def test_padding_refuses(water):
    with pytest.raises(StructureError, match="structures must be at least one"):
        pad_structures([], 4)
    with pytest.raises(StructureError, match="n_atoms must be at least 3; got 2"):
        pad_structures([water], 2)


def test_bohr_read_as_angstrom_warns(molecules):
    for s in molecules.values():
        with pytest.warns(UnitWarning, match=r"Bohr given as Angstrom.*length_unit='bohr'"):
            check_length_unit(s.numbers, s.positions / ANGSTROM_PER_BOHR)


def test_angstrom_read_as_bohr_warns(molecules):
    for s in molecules.values():
        with pytest.warns(UnitWarning, match=r"Angstrom given as Bohr.*length_unit='angstrom'"):
            check_length_unit(s.numbers, s.positions * ANGSTROM_PER_BOHR)


def test_right_unit_is_quiet(molecules):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for s in molecules.values():
            assert 0.7 < check_length_unit(s.numbers, s.positions) < 1.3
        assert check_length_unit([2], [[0.0, 0.0, 0.0]]) is None
        far = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 20.0]])
        check_length_unit([2, 2], far)  # two atoms far apart are no unit mistake


def test_elements():
    assert [symbol(z) for z in (1, 16, 118)] == ["H", "S", "Og"]
    assert [atomic_number(x) for x in ("c", "Cl", "8", 53, " Xe ")] == [6, 17, 8, 53, 54]
    for bad in ("Q", "X", 0, 119, -1, ""):
        with pytest.raises(StructureError, match="element must be"):
            atomic_number(bad)
    with pytest.raises(StructureError, match="Did you mean"):
        atomic_number("Sii")


def test_masses_are_ases():
    from ase.data import atomic_masses

    expected = atomic_masses[1:] * ELECTRON_MASS_PER_DALTON
    np.testing.assert_allclose(masses(range(1, 119)), expected, rtol=1e-9)


def test_isotopes():
    assert isotope("D") == isotope("2H") == isotope(" d ") == (1, 2.01410177812)
    assert isotope("T") == isotope("3H") == (1, 3.0160492779)
    assert isotope("C13") == isotope("13C") == isotope("13c") == (6, 13.00335483507)
    assert isotope("37Cl") == (17, 36.965902602)
    for name in ("H", "8", 53, "Cl", "Ti"):
        assert isotope(name) == (atomic_number(name), None)
    for bad in ("H2", "H1", "C1", "5C", "13", "O1", "235U", "C13H", "DD", "X2", "", "1", "13X"):
        if bad.isdigit():
            assert isotope(bad) == (int(bad), None)
            continue
        with pytest.raises(StructureError, match="element must be"):
            isotope(bad)
    with pytest.raises(StructureError, match="an isotope \\(12C, 13C, 14C\\); got 'C1'"):
        isotope("C1")


def test_masses_of_isotopes_are_pyscfs_and_average_to_the_weights():
    from pyscf.data.elements import COMMON_ISOTOPE_MASSES, ISOTOPE_MAIN

    for z, known in ISOTOPES.items():
        assert known[ISOTOPE_MAIN[z]] == pytest.approx(COMMON_ISOTOPE_MASSES[z], abs=2e-6)
        for a, mass in known.items():
            assert abs(mass - a) < 0.04  # the binding energy of a light nucleus
        natural = [m for a, m in known.items() if (z, a) not in ((1, 3), (6, 14))]
        assert min(natural) - 1e-3 < WEIGHTS[z] < max(natural) + 1e-3
    # abundances of Berglund and Wieser, Pure Appl. Chem. 83, 397 (2011)
    for z, share in ((17, {35: 0.7576, 37: 0.2424}), (5, {10: 0.199, 11: 0.801})):
        mean = sum(x * ISOTOPES[z][a] for a, x in share.items())
        assert mean == pytest.approx(WEIGHTS[z], abs=5e-3)


def test_masses_stay_with_the_molecule(water):
    d2o = Structure(water.numbers, water.positions, masses=[15.999, 2.014, 2.014])
    assert d2o.masses == (15.999, 2.014, 2.014)
    for same in (d2o.replace(positions=d2o.positions + 1.0), centred(d2o), in_float64(d2o)):
        assert same.masses == d2o.masses
    assert jax.jit(lambda s: s)(d2o).masses == d2o.masses
    np.testing.assert_allclose(d2o.atomic_masses, np.array(d2o.masses) * ELECTRON_MASS_PER_DALTON)
    np.testing.assert_array_equal(water.atomic_masses, masses(water.numbers))
    standard = Structure(water.numbers, water.positions, masses=WEIGHTS[list(water.numbers)])
    assert standard.masses is None  # the same molecule, and the same compiled programs


def test_positions_are_promoted(water):
    single = water.replace(positions=np.asarray(water.positions, np.float32))
    assert in_float64(water) is water
    for s in (single, single.replace(positions=jnp.asarray(single.positions))):
        assert in_float64(s).positions.dtype == np.float64
        np.testing.assert_array_equal(in_float64(s).positions, single.positions)
    gradient = jax.jit(jax.grad(lambda x: in_float64(water.replace(positions=x)).positions.sum()))
    assert gradient(single.positions).dtype == np.float32
    batch = pad_structures([water], 4)
    low = batch.replace(positions=batch.positions.astype(np.float32))
    assert in_float64(low).positions.dtype == np.float64
