"""Labels under any name and in any unit, and numbers that cannot be meant."""

import numpy as np
import pytest

from opml_jax.data import label_names, read_dataset
from opml_jax.data.labels import parse_labels
from opml_jax.data.plausibility import energy_of_atoms
from opml_jax.data.store import read_hdf5, write_hdf5
from opml_jax.errors import DataError, DataWarning, UnitWarning

# The factors below carry ten digits, and enter up to cubed
UNITS = 5e-9
BOHR = 1.8897261246  # Bohr in one Angstrom
EV = 27.211386246  # eV in one Hartree
KCAL = 627.50947406  # kcal/mol in one Hartree
DEBYE = 2.541746473  # Debye in one e Bohr

WATER = """3
Properties=species:S:1:pos:R:3 {}
O 0.0 0.0 0.117
H 0.0 0.757 -0.469
H 0.0 -0.757 -0.469
"""
AMMONIA = """4
Properties=species:S:1:pos:R:3 {}
N 0.0 0.0 0.11
H 0.0 0.94 -0.26
H 0.81 -0.47 -0.26
H -0.81 -0.47 -0.26
"""
POSITIONS = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.469], [0.0, -0.757, -0.469]])
# Total energies (Hartree) and polarizabilities (Bohr^3) as published for B3LYP
QM9 = WATER.format("mu=1.85 alpha=6.31 U0=-76.404702 id=3")
QM9 += AMMONIA.format("mu=1.63 alpha=9.46 U0=-56.525887 id=4")


@pytest.fixture
def write(tmp_path):
    def write(text, name="q.xyz"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def qm9(write):
    return write(QM9)


def test_chosen_labels(qm9):
    labels = {
        "energy": ("U0", "Hartree"),
        "dipole_norm": ("mu", "debye"),
        "isotropic_polarizability": ("alpha", "bohr^3"),
    }
    ds = read_dataset(qm9, labels=labels)
    assert set(ds.labels) == set(labels)
    np.testing.assert_array_equal(ds["energy"], [-76.404702, -56.525887])
    np.testing.assert_allclose(ds["dipole_norm"], np.array([1.85, 1.63]) / DEBYE, rtol=UNITS)
    np.testing.assert_array_equal(ds["isotropic_polarizability"], [6.31, 9.46])


def test_heats_of_formation(write):
    """QM7: small energies under a name of their own."""
    text = WATER.format("id=0001 hof=-221.0") + AMMONIA.format("id=0002 hof=-277.0")
    ds = read_dataset(write(text), labels={"energy": ("hof", "kcal/mol")})
    np.testing.assert_allclose(ds["energy"], np.array([-221.0, -277.0]) / KCAL, rtol=UNITS)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("hartree/bohr", 1.0),
        ("eV/Angstrom", 1 / EV / BOHR),
        ("kcal/mol/angstrom", 1 / KCAL / BOHR),
        ("hartree/angstrom", 1 / BOHR),
    ],
)
def test_units_of_forces(tmp_path, unit, factor):
    forces = np.linspace(-0.1, 0.1, 18).reshape(2, 3, 3)
    path = tmp_path / "f.npz"
    np.savez(path, z=[8, 1, 1], R=[POSITIONS] * 2, gradient=forces)
    ds = read_dataset(path, labels={"forces": ("gradient", unit)})
    np.testing.assert_allclose(ds["forces"], forces * factor, rtol=UNITS)


@pytest.mark.parametrize(
    ("field", "unit", "factor"),
    [
        ("dipole", "e*Angstrom", BOHR),
        ("dipole", "Debye", 1 / DEBYE),
        ("polarizability", "angstrom^3", BOHR**3),
        ("quadrupole", "debye angstrom", BOHR / DEBYE),
        ("quadrupole", "e angstrom^2", BOHR**2),
    ],
)
def test_units_of_moments(write, field, unit, factor):
    tensor = np.array([[1.2, 0.1, 0.0], [0.1, 1.1, 0.0], [0.0, 0.0, 1.3]])
    if field == "quadrupole":
        tensor -= 1.2 * np.eye(3)
    value = tensor[0] if field == "dipole" else tensor
    text = WATER.format(f'x="{" ".join(map(str, value.ravel()))}"')
    ds = read_dataset(write(text), labels={field: ("x", unit)})
    np.testing.assert_allclose(ds[field][0], value * factor, rtol=UNITS)


def test_tensors_are_stored(write, tmp_path):
    text = WATER.format('alpha="9.6 0 0 0 8.1 0.5 0 0.5 8.5" theta="1 0 0 0 -2 0 0 0 1"')
    labels = {"polarizability": ("alpha", "bohr^3"), "quadrupole": ("theta", "e bohr^2")}
    ds = read_dataset(write(text), labels=labels)
    write_hdf5(tmp_path / "t.h5", ds)
    for name in labels:
        np.testing.assert_array_equal(read_hdf5(tmp_path / "t.h5")[name], ds[name])
    assert label_names(tmp_path / "t.h5") == ["polarizability", "quadrupole"]


def test_energies_and_tensors_of_an_npz_may_be_flat(tmp_path):
    path = tmp_path / "f.npz"
    tensors = 10 * np.array([np.eye(3), 1.1 * np.eye(3)])
    np.savez(path, z=[8, 1, 1], R=[POSITIONS] * 2, E=[[-76.3]] * 2, alpha=tensors.reshape(2, 9))
    labels = {"energy": ("E", "hartree"), "polarizability": ("alpha", "bohr^3")}
    ds = read_dataset(path, labels=labels)
    assert ds["energy"].tolist() == [-76.3, -76.3]
    np.testing.assert_array_equal(ds["polarizability"], tensors)


def test_names_of_labels(qm9, tmp_path):
    assert label_names(qm9) == ["U0", "alpha", "id", "mu"]
    np.savez(tmp_path / "f.npz", z=[8, 1, 1], R=[POSITIONS], E=[-76.3], F=[POSITIONS])
    assert label_names(tmp_path / "f.npz") == ["E", "F"]


# --- refused, rather than guessed ---------------------------------------------------------------


def test_unknown_units_are_not_guessed(qm9):
    with pytest.warns(
        DataWarning, match=r"no label of .*q\.xyz is read: .*U0, alpha, id, mu.*labels="
    ):
        ds = read_dataset(qm9)
    assert ds.labels == {}
    assert len(ds) == 2


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"energy": "U0"}, ["labels['energy']", "'U0'", "a pair", "hartree, ev, kcal/mol"]),
        ({"energy": ("U0",)}, ["labels['energy']", "a pair"]),
        ({"energy": ("U0", "hartre")}, ["hartre", "one of hartree", "Did you mean 'hartree'"]),
        ({"dipole": ("mu", "angstrom")}, ["'angstrom'", "e bohr, e angstrom, debye"]),
        ({"enrgy": ("U0", "ev")}, ["'enrgy'", "Did you mean 'energy'"]),
        ({"fock": ("U0", "hartree")}, ["'fock'", "one of energy, forces"]),
        ({"energy": ("u0", "hartree")}, ["'u0' of", "structure 0", "U0", "Did you mean 'U0'"]),
        ({"dipole": ("mu", "debye")}, ["q.xyz", "dipole[0]", "(3,)", "()"]),
        ({"forces": ("forces", "ev/angstrom")}, ["'forces' of", "none in structure 0"]),
    ],
    ids=str,
)
def test_choices_that_cannot_be_read(qm9, labels, says):
    with pytest.raises(DataError) as caught:
        read_dataset(qm9, labels=labels)
    for words in says:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chosen_label_must_be_in_every_structure(write):
    text = QM9.replace("U0=-56.525887", "")
    with pytest.raises(DataError, match="none in structure 1"):
        read_dataset(write(text), labels={"energy": ("U0", "hartree")})


def test_a_unit_is_given_once(qm9, tmp_path, water):
    labels = {"energy": ("U0", "hartree")}
    with pytest.raises(DataError, match=r"energy_unit must be left out.*got 'ev'"):
        read_dataset(qm9, labels=labels, energy_unit="ev")
    from opml_jax.data import Dataset

    write_hdf5(tmp_path / "w.h5", Dataset([water]))
    with pytest.raises(DataError, match="HDF5 states"):
        read_dataset(tmp_path / "w.h5", labels=labels)


def test_labels_as_text():
    assert parse_labels([]) is None
    assert parse_labels(["energy=U0:hartree", "dipole = <mu:x> : e bohr"]) == {
        "energy": ("U0", "hartree"),
        "dipole": ("<mu:x>", "e bohr"),
    }
    for bad in (["U0:hartree"], ["energy=U0"], ["energy=U0:ev", "energy=U:ev"]):
        with pytest.raises(DataError, match="FIELD=NAME:UNIT"):
            parse_labels(bad)


# --- plausibility -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "energy"),  # Hartree-Fock limits of the free atoms; helium is the worst
    [((1,), -0.5), ((6,), -37.689), ((8,), -74.809), ((16,), -397.505), ((36,), -2752.055)],
)
def test_energies_of_free_atoms(numbers, energy):
    assert energy_of_atoms(numbers) == pytest.approx(energy, rel=0.01)
    assert energy_of_atoms(numbers * 3) == pytest.approx(3 * energy_of_atoms(numbers))


@pytest.mark.parametrize(
    ("believed", "meant"),
    [("ev", "kcal/mol"), ("hartree", "ev"), ("hartree", "kcal/mol")],
)
def test_energies_below_any_molecule(write, believed, meant):
    factor = {"ev": EV, "kcal/mol": KCAL}[meant]
    text = QM9.replace("-76.404702", str(-76.404702 * factor))
    text = text.replace("-56.525887", str(-56.525887 * factor))
    with pytest.raises(DataError, match=rf"energies of .*q\.xyz.* as {believed}.*fit {meant}"):
        read_dataset(write(text), labels={"energy": ("U0", believed)})


@pytest.mark.parametrize("believed", ["ev", "kcal/mol"])
def test_energies_that_fit_another_unit(qm9, believed):
    with pytest.warns(UnitWarning, match=rf"energies of .*q\.xyz.* as {believed}.*fit hartree"):
        read_dataset(qm9, labels={"energy": ("U0", believed)})


def test_energies_of_the_wrong_sign(write):
    with pytest.raises(DataError, match=r"energies of .*q\.xyz"):
        read_dataset(write(QM9.replace("U0=-", "U0=")), labels={"energy": ("U0", "hartree")})


@pytest.mark.parametrize("value", [-17.2, -0.35, 0.0, 0.02])
def test_valence_and_relative_energies_pass(write, value):
    text = WATER.format(f"e={value}")
    assert read_dataset(write(text), labels={"energy": ("e", "hartree")})["energy"] == [value]


@pytest.mark.parametrize(("believed", "factor"), [("angstrom^3", 1.0), ("bohr^3", BOHR**-3)])
def test_polarizabilities_in_another_unit(write, believed, factor):
    text = WATER.format(f"alpha={9.6 * factor}")
    meant = {"angstrom^3": "Bohr", "bohr^3": "Angstrom"}[believed]
    with pytest.warns(UnitWarning, match=rf"polarizabilities of .*q\.xyz.*look like {meant}\^3"):
        read_dataset(write(text), labels={"isotropic_polarizability": ("alpha", believed)})


def test_tensors_that_are_none(write):
    odd = WATER.format('t="9 0 0 1 9 0 0 0 9"')
    with pytest.raises(DataError, match=r"polarizability\[0\] .* symmetric tensor; .* asymmetric"):
        read_dataset(write(odd), labels={"polarizability": ("t", "bohr^3")})
    second_moments = WATER.format('t="9 0 0 0 9 0 0 0 9"')
    with pytest.raises(DataError, match=r"quadrupole\[0\] .* traceless tensor; .* trace 27"):
        read_dataset(write(second_moments), labels={"quadrupole": ("t", "e bohr^2")})
