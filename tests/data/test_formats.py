"""Files as other programs write them: ASE, sGDML, PhysNet, SchNetPack, SPICE, ANI."""

import ase
import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from opml_jax.data import label_names, read_dataset, read_structures
from opml_jax.data.foreign import smiles_charge
from opml_jax.errors import Code, DataError, DataWarning, OpmlError

UNITS = 1e-9  # factors carry ten digits or more
EV = 0.036749322176  # Hartree in one eV
KCAL = 0.00159360143764
BOHR = 1.8897261246  # Bohr in one Angstrom

X = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.469], [0.0, -0.757, -0.469]])
FORCES = np.array([[0.0, 0, 0.3], [0.0, 0.1, -0.15], [0.0, -0.1, -0.15]])
ENERGY, DIPOLE = -2078.5, np.array([0.0, 0.0, -0.38])  # eV, e Angstrom


def water(charge=None, **info):
    atoms = ase.Atoms("OH2", X, info=info, charges=charge and [charge, 0, 0])
    atoms.calc = SinglePointCalculator(atoms, energy=ENERGY, forces=FORCES, dipole=DIPOLE)
    return atoms


def check(data, energy=ENERGY * EV, forces=FORCES * EV / BOHR):
    np.testing.assert_allclose(data.structures[0].positions, X * BOHR, rtol=UNITS)
    assert data["energy"][0] == pytest.approx(energy, rel=UNITS)
    np.testing.assert_allclose(data["forces"][0], forces, rtol=UNITS)


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.traj", "a.db"])
def test_what_ase_writes(tmp_path, name):
    frames = [water(), water(charge=-2.0)]
    if name.endswith("db"):
        with ase.db.connect(tmp_path / name) as db:
            for atoms in frames:
                db.write(atoms, tag="x", data={"alpha": 9.5})
    else:
        ase.io.write(tmp_path / name, frames)
    data = read_dataset(tmp_path / name)
    check(data)
    np.testing.assert_allclose(data["dipole"][0], DIPOLE * BOHR, rtol=UNITS)
    assert [s.charge for s in data.structures] == [0, -2]
    assert [s.charge for s in read_structures(tmp_path / name)] == [0, -2]
    if name.endswith("db"):
        alpha = read_dataset(
            tmp_path / name, labels={"isotropic_polarizability": ("alpha", "bohr^3")}
        )
        assert alpha["isotropic_polarizability"].tolist() == [9.5, 9.5]
        assert "alpha" in label_names(tmp_path / name)


def test_info_that_ase_writes_comes_back(tmp_path):
    """Arrays, texts with quotes and equal signs, JSON, truth values beside what is read."""
    info = {
        "smiles": "[NH3+]CC(=O)[O-]",
        "note": 'say "energy=5" twice',
        "weights": np.arange(6.0).reshape(2, 3),
        "flags": np.array([True, False]),
        "table": {"energy": 1.0, "charge": 7},
        "done": True,
        "name": "energy charge=9",
    }
    ase.io.write(tmp_path / "a.extxyz", [water(total_charge=0, **info)])
    with pytest.warns(DataWarning, match="not read in .*: weights"):
        data = read_dataset(tmp_path / "a.extxyz")
    check(data)
    assert data.structures[0].charge == 0


def test_periodic_cells_of_ase(tmp_path):
    atoms = water()
    atoms.set_cell([9.0, 9.0, 9.0])
    atoms.pbc = True
    for name in ("a.extxyz", "a.traj", "a.db"):
        ase.io.write(tmp_path / name, atoms)
        with pytest.raises(DataError, match="periodic cell") as caught:
            read_structures(tmp_path / name)
        assert caught.value.code == Code.PERIODIC
    atoms.pbc = False
    ase.io.write(tmp_path / "box.extxyz", atoms)
    check(read_dataset(tmp_path / "box.extxyz"))


@pytest.mark.parametrize(
    ("units", "energy", "forces"),
    [
        ({}, KCAL, KCAL / BOHR),
        ({"e_unit": "eV", "r_unit": "Ang"}, EV, EV / BOHR),
        ({"e_unit": "Hartree"}, 1.0, 1.0 / BOHR),
    ],
)
@pytest.mark.filterwarnings("ignore::opml_jax.errors.UnitWarning")
def test_sgdml(tmp_path, units, energy, forces):
    """With the keys of its data sets, most of which mean nothing here."""
    about = {"type": "d", "code_version": "1.0", "name": "water", "theory": "pbe", "md5": "0"}
    arrays = {"z": [8, 1, 1], "R": X[None], "E": np.array([-7.0]), "F": 0.1 * FORCES[None]}
    np.savez(tmp_path / "a.npz", **arrays, **about, **units, E_min=-7.0)
    check(read_dataset(tmp_path / "a.npz"), -7.0 * energy, 0.1 * FORCES * forces)


def test_physnet(tmp_path):
    """eV and e Angstrom, padded, with numbers of atoms and charges."""
    z = np.array([[8, 1, 1, 0], [8, 1, 0, 0]])
    x = np.zeros((2, 4, 3))
    x[0, :3], x[1, 1] = X, [0, 0, 0.97]
    forces = np.zeros((2, 4, 3))
    forces[0, :3] = FORCES
    np.savez(
        tmp_path / "a.npz",
        N=[3, 2],
        Z=z,
        R=x,
        E=[ENERGY, -2060.0],
        F=forces,
        Q=[0.0, -1.0],
        D=np.array([DIPOLE, DIPOLE]),
    )
    data = read_dataset(tmp_path / "a.npz")
    check(data)
    assert [s.charge for s in data.structures] == [0, -1]
    np.testing.assert_allclose(data["dipole"][0], DIPOLE * BOHR, rtol=UNITS)


@pytest.mark.parametrize(
    ("length", "energy", "forces"),
    [
        ("Ang", "eV", "eV/Ang"),
        ("Bohr", "Hartree", "Hartree/Bohr"),
        ("Ang", "kcal/mol", "kcal/mol/Ang"),
    ],
)
def test_schnetpack(tmp_path, length, energy, forces):
    """The units of its metadata, whatever ASE's are."""
    e = {"eV": EV, "Hartree": 1.0, "kcal/mol": KCAL}[energy]
    r = {"Ang": BOHR, "Bohr": 1.0}[length]
    with ase.db.connect(tmp_path / "a.db") as db:
        db.metadata = {
            "_distance_unit": length,
            "_property_unit_dict": {"energy": energy, "forces": forces, "alpha": "a0^3"},
        }
        f = FORCES * EV / BOHR / e * r
        data = {"energy": np.array([ENERGY * EV / e]), "forces": f, "alpha": np.array([9.5])}
        db.write(ase.Atoms("OH2", X * BOHR / r), data=data)
    check(read_dataset(tmp_path / "a.db"))
    with pytest.raises(OpmlError, match="energy_unit must be left out"):
        read_dataset(tmp_path / "a.db", energy_unit="ev")


@pytest.mark.parametrize("unit", ["bohr", "angstrom"])
def test_spice(tmp_path, unit):
    r = {"bohr": 1.0, "angstrom": BOHR}[unit]
    with h5py.File(tmp_path / "a.hdf5", "w") as f:
        for name, smiles in (("water", "[O:1]([H:2])[H:3]"), ("dianion", "[O-2:1].[H:2].[H:3]")):
            group = f.create_group(name)
            group["atomic_numbers"] = np.array([8, 1, 1], np.int16)
            group["conformations"] = np.array([X, X + 0.001]) * BOHR / r
            group["conformations"].attrs["units"] = unit
            group["dft_total_energy"] = np.array([ENERGY, ENERGY]) * EV
            group["dft_total_energy"].attrs["units"] = "hartree"
            group["dft_total_gradient"] = -np.array([FORCES, FORCES]) * EV / BOHR
            group["dft_total_gradient"].attrs["units"] = "hartree/bohr"
            group["smiles"] = np.array([smiles], dtype=h5py.string_dtype())
    data = read_dataset(tmp_path / "a.hdf5")
    assert len(data) == 4
    assert sorted(s.charge for s in data.structures) == [-2, -2, 0, 0]
    check(data)
    assert data.meta["basis"] == "def2-tzvppd"


def test_ani(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        group = f.create_group("H2O1")
        group["atomic_numbers"] = np.array([8, 1, 1], np.uint8)
        group["coordinates"] = np.array([X, X + 0.001], np.float32)
        group["wb97x_dz.energy"] = np.array([ENERGY * EV, ENERGY * EV])
        group["wb97x_dz.forces"] = np.array([FORCES * EV, np.full((3, 3), np.nan)])
    with pytest.warns(DataWarning, match="forces of .* 1 of 2 structures lack it"):
        data = read_dataset(tmp_path / "x.h5")
    assert data["energy"][1] == pytest.approx(ENERGY * EV, rel=UNITS)
    with h5py.File(tmp_path / "gdb.h5", "w") as f:
        group = f.create_group("gdb11_s01/gdb11_s01-2")
        group["species"] = np.array([b"O", b"H", b"H"])
        group["coordinates"] = X[None]
        group["energies"] = np.array([ENERGY * EV])
    data = read_dataset(tmp_path / "gdb.h5")
    assert data["energy"][0] == pytest.approx(ENERGY * EV, rel=UNITS)
    np.testing.assert_allclose(data.structures[0].positions, X * BOHR, rtol=UNITS)


def test_hdf5_that_nobody_knows(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["somebody/elses"] = np.zeros(3)
    with pytest.raises(DataError, match="data set of opml_jax, SPICE or ANI; got HDF5 with elses"):
        read_structures(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[NH3+]CC(=O)[O-]", 0),
        ("[H:1][N+:2]([H:3])([H:4])[H:5]", 1),
        ("[O-2:1]", -2),
        ("[Mg++]", 2),
        ("[C@@H:7]([NH3+:1])[O-:2].[Na+:3]", 1),
    ],
)
def test_charges_of_smiles(smiles, charge):
    assert smiles_charge(smiles) == charge
