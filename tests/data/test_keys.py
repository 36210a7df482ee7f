"""Charge, spin, units and words of files: read by one table, or refused by name.

Most cases are from reports that users of neighbouring packages filed in public.
"""

import gzip

import numpy as np
import pytest

from opml_jax.cli import main
from opml_jax.data import Dataset, read_dataset, read_structures
from opml_jax.data.keys import integer
from opml_jax.data.store import write_hdf5
from opml_jax.errors import Code, DataError, DataWarning, OpmlError, StructureError

UNITS = 1e-9  # factors carry ten digits or more
EV = 0.036749322176  # Hartree in one eV
KCAL = 0.00159360143764
BOHR = 1.8897261246  # Bohr in one Angstrom

WATER = "O 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n"
HYDROXIDE = "O 0 0 0\nH 0 0 0.97\n"
OXYGEN = "O 0 0 0\nO 0 0 1.21\n"
ENERGY = -76.4 / EV  # eV


@pytest.fixture
def xyz(tmp_path):
    """Writes frames ``(comment, atoms)`` and gives the path."""

    def write(*frames, name="a.extxyz", between=""):
        texts = [f"{atoms.count(chr(10))}\n{comment}\n{atoms}" for comment, atoms in frames]
        (tmp_path / name).write_text(between.join(texts))
        return tmp_path / name

    return write


def columns(atoms, name, kind, *values):
    """``Properties`` and atoms with one more column."""
    lines = [f"{line} {v}" for line, v in zip(atoms.splitlines(), values, strict=True)]
    return f"Properties=species:S:1:pos:R:3:{name}:{kind}:1", "\n".join(lines) + "\n"


# --- charge and spin ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "atoms", "charge", "spin"),
    [
        ("charge=-1", HYDROXIDE, -1, 0),
        ("total_charge=-1", HYDROXIDE, -1, 0),
        ("Total_Charge=-1.0", HYDROXIDE, -1, 0),
        ('charge="-1"', HYDROXIDE, -1, 0),
        ("hydroxide charge -1", HYDROXIDE, -1, 0),
        ("hydroxide, charge: -1", HYDROXIDE, -1, 0),
        ('{"charge": -1, "multiplicity": 1, "name": "hydroxide"}', HYDROXIDE, -1, 0),
        ("multiplicity=3", OXYGEN, 0, 2),
        ("spin_multiplicity=3 charge=0", OXYGEN, 0, 2),
        ("triplet multiplicity 3", OXYGEN, 0, 2),
        ("charge 0 multiplicity 3", OXYGEN, 0, 2),
        ("spin=2", OXYGEN, 0, 2),
        ("charge=0 multiplicity=2", HYDROXIDE, 0, 1),
        ("charge=0 spin=1", HYDROXIDE, 0, 1),
        (*columns(OXYGEN, "initial_magmoms", "R", 1.0, 1.0), 0, 2),
        (*columns(OXYGEN, "initial_magmoms", "R", 1.0, -1.0), 0, 0),
        (*columns(HYDROXIDE, "initial_charges", "R", -1.2, 0.2), -1, 0),
        (*columns(WATER, "initial_charges", "R", -0.8, 0.4, 0.4), 0, 0),
        ("a discharge of 3 charged ions", WATER, 0, 0),
        ("T = spin=2", OXYGEN, 0, 2),
        ("-76.4 = multiplicity=3", OXYGEN, 0, 2),
        ("charge Charge=-1 5", HYDROXIDE, -1, 0),
        ("step with charge 3 Charge=-1", HYDROXIDE, -1, 0),
        ("charge", WATER, 0, 0),
    ],
)
def test_charge_and_spin_are_read(xyz, comment, atoms, charge, spin):
    s = read_structures(xyz((comment, atoms)))[0]
    assert (s.charge, s.spin) == (charge, spin)


@pytest.mark.parametrize(
    ("comment", "atoms", "says"),
    [
        ("charge=0.9", WATER, "charge must be an integer; got 0.9"),
        ("charge=T", WATER, "charge must be an integer"),
        ("charge=neutral", WATER, "charge must be an integer"),
        ('charge="0 0 0"', WATER, "charge must be an integer"),
        ("charge=0 Charge=-1", HYDROXIDE, "one value; got 0 by charge and -1 by Charge"),
        ("charge=-1 total_charge=0", HYDROXIDE, "one value; got -1 by charge and 0 by total_"),
        ("spin=1", OXYGEN, r"2S; got 1 for 16 electrons.* multiplicity=spin:1"),
        ("multiplicity=3 spin=0", OXYGEN, r"spin \(2S\) must be one value"),
        ("multiplicity=2", OXYGEN, "unpaired electrons of the same parity"),
        (*columns(WATER, "initial_charges", "R", -0.5, 0.1, 0.1), "sum of initial_charges"),
        (*columns(OXYGEN, "initial_magmoms", "R", 0.5, 0.2), "sum of initial_magmoms"),
    ],
)
def test_what_is_no_charge_or_spin_is_refused(xyz, comment, atoms, says):
    with pytest.raises(StructureError, match=rf"structure 0: .*{says}") as caught:
        read_structures(xyz((comment, atoms)))
    assert caught.value.code == Code.ELECTRONS


def test_a_user_may_say_what_a_name_means(xyz):
    path = xyz(("spin=3", OXYGEN))
    assert read_dataset(path, labels={"multiplicity": ("spin", "1")}).structures[0].spin == 2


def test_what_is_given_and_what_is_stated_agree(xyz):
    path = xyz(("charge=-1", HYDROXIDE))
    assert read_structures(path, charge=-1)[0].charge == -1
    with pytest.raises(StructureError, match="got 1 for a structure that states -1"):
        read_structures(path, charge=1)
    neutral = xyz(("charge=0", WATER))  # stated, not only the default
    with pytest.raises(StructureError, match="got 2 for a structure that states 0"):
        read_structures(neutral, charge=2)


@pytest.mark.parametrize("value", ["0", 0, 0.0, np.int64(0), np.array(0), np.array([0.0]), " 0 "])
def test_integers_however_they_are_kept(value):
    assert integer("charge", value) == 0


@pytest.mark.parametrize("value", [0.5, "x", True, np.zeros(2), np.nan, np.inf, [1, 2], {}, "1e9"])
def test_what_is_no_integer(value):
    with pytest.raises(StructureError, match="charge must be an integer"):
        integer("charge", value)


# --- words of a comment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "comment", ["energy -2075.39", "Energy: -2075.39 eV", '{"energy": -2075.39, "done": true}']
)
def test_a_word_is_no_label(xyz, comment):
    with pytest.warns(DataWarning, match=r"not read in .*: [eE]nergy -2075\.39"):
        data = read_dataset(xyz((comment, WATER)))
    assert "energy" not in data


@pytest.mark.parametrize(("comment", "name"), [("free_energy=-2075.4", "free_energy")])
def test_results_beside_an_energy_are_named_without_one(xyz, comment, name):
    with pytest.warns(DataWarning) as warned:
        read_dataset(xyz((comment, WATER)))
    assert any(name in str(w.message) for w in warned)
    assert "energy" in read_dataset(xyz((f"energy={ENERGY} {comment}", WATER)))


def test_charges_of_atoms_are_no_charge(xyz):
    properties, atoms = columns(WATER, "charge", "R", -0.8, 0.4, 0.4)
    with pytest.warns(DataWarning, match="not read in .*: charge"):
        assert read_dataset(xyz((f"energy={ENERGY} {properties}", atoms))).structures[0].charge == 0


def test_a_unit_behind_a_number(xyz):
    assert read_dataset(xyz(("energy=-76.4 Hartree", WATER)))["energy"][0] == -76.4
    assert read_dataset(xyz(("energy = -76.4 Ha done", WATER)))["energy"][0] == -76.4
    with pytest.raises(DataError, match="'ev' of a file that states 'hartree'"):
        read_dataset(xyz(("energy=-76.4 Hartree", WATER)), energy_unit="ev")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_encodings(xyz, encoding):
    path = xyz((f"energy={ENERGY} r in Å", WATER))
    path.write_bytes(path.read_text().encode(encoding))
    assert read_dataset(path)["energy"][0] == pytest.approx(-76.4, rel=UNITS)


@pytest.mark.parametrize(
    "comment", ["energy = -2078.5", "energy=-2.0785E+03", "energy=-2.0785D+03", "energy=-2.0785*^3"]
)
def test_numbers_as_programs_print_them(xyz, comment):
    data = read_dataset(xyz((comment, WATER.replace("0.117", "1.17D-01"))))
    assert data["energy"][0] == pytest.approx(-2078.5 * EV, rel=UNITS)
    assert data.structures[0].positions[0, 2] == pytest.approx(0.117 * BOHR, rel=UNITS)


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        ("energy=-2078.5 energy=-2079.5", "energy of a comment must be one value"),
        ("energy=T", "True for energy"),
        ("energy = -2078.5 = frame = 5", "got energy and an equal sign"),
        ("energy=-2078.5 energy = T", r"one value; got -2078\.5 and True"),
    ],
)
def test_what_is_said_twice_or_is_no_number(xyz, comment, says):
    with pytest.raises(DataError, match=says):
        read_dataset(xyz((comment, WATER)))


def test_a_comma_is_no_decimal_point(xyz):
    with pytest.raises(DataError, match="'-2078,5'"):
        read_dataset(xyz(("energy=-2078,5", WATER)))


def test_columns_that_sound_like_labels_are_named(xyz):
    for name in ("force", "gradient", "DFT_forces"):
        properties, _ = columns(WATER, name, "R", 0, 0, 0)
        atoms = WATER.replace("\n", " 0.0 0.0 0.1\n")
        comment = f"energy={ENERGY} {properties[:-1]}3"
        with pytest.warns(DataWarning, match=rf"not read in .*: {name}\. .*--label"):
            data = read_dataset(xyz((comment, atoms)))
        assert data.meta["unread"] == [name]
        chosen = read_dataset(xyz((comment, atoms)), labels={"forces": (name, "ev/angstrom")})
        assert chosen["forces"][0, 0, 2] == pytest.approx(0.1 * EV / BOHR, rel=UNITS)


def test_one_name_serves_the_whole_file(xyz):
    both, one = f"REF_energy={ENERGY} energy=-2000.0", "energy=-2000.0"
    assert read_dataset(xyz((both, WATER)))["energy"][0] == pytest.approx(-76.4, rel=UNITS)
    path = xyz((one, WATER), (both, WATER.replace("0.117", "0.118")))
    with pytest.raises(DataError, match="got REF_energy in structure 1, and energy in 0"):
        read_dataset(path)
    assert len(read_dataset(path, labels={"energy": ("energy", "ev")})["energy"]) == 2


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", "\n", "\n\n", "  \t\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_frames_do_not_vanish(xyz, between, newline):
    path = xyz(*[("c", WATER.replace("0.117", f"0.11{i}")) for i in range(5)], between=between)
    path.write_bytes(path.read_text().replace("\n", newline).encode())
    found = read_structures(path)
    assert [round(s.positions[0, 2] / BOHR, 6) for s in found] == [0.11, 0.111, 0.112, 0.113, 0.114]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"3\nc\n{WATER}the end\n", "after 1 frame, near line 6: 'the end'"),
        (f"3\nc\n{WATER}3\nc\n{WATER[:20]}", "within frame 1, after 2 of 3 atoms"),
        (f"3\nc\n{WATER}\n3\n", "within frame 1"),
        (f"3\nc\n{WATER}4\nc\n{WATER}", "within frame 1, after 3 of 4 atoms"),
        (f"2\nc\n{WATER}", "after 1 frame, near line 5: 'H 0 -0.757"),
        (f"3\nc\n{WATER.replace(chr(10), chr(10) * 2)}", "atom 1 has '' in place of 4 columns"),
        ("0\nc\n", "frame 0 must be at least one; got no atoms"),
    ],
)
def test_text_that_is_no_frame_is_counted(tmp_path, text, says):
    path = tmp_path / "a.xyz"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_structures(path)


def test_free_atoms_are_set_aside(xyz):
    free = ("energy=-13.6 config_type=IsolatedAtom", "H 0 0 0\n")
    data = read_dataset(xyz(free, (f"energy={ENERGY}", WATER)))
    assert len(data) == 1
    assert data.meta["isolated_atoms"] == {"H": pytest.approx(-13.6 * EV, rel=UNITS)}
    with pytest.raises(StructureError, match=r"structure 0: .*config_type=IsolatedAtom"):
        read_dataset(xyz(("energy=-13.6", "H 0 0 0\n"), (f"energy={ENERGY}", WATER)))


def test_names_of_files(xyz, tmp_path):
    path = xyz((f"energy={ENERGY}", WATER), name="water@2.xyz")
    (tmp_path / "water").write_text("another file")
    assert read_structures(path)[0].numbers == (8, 1, 1)
    for name in ("W.XYZ", "W.ExtXYZ"):
        path.rename(tmp_path / name)
        path = tmp_path / name
        assert len(read_dataset(path)) == 1
    (tmp_path / "w.xyz.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_dataset(tmp_path / "w.xyz.gz")["energy"][0] == pytest.approx(-76.4, rel=UNITS)
    (tmp_path / "w.npz.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="suffix"):
        read_structures(tmp_path / "w.npz.gz")


# --- units ----------------------------------------------------------------------------------------

FORCES = columns(WATER, "forces", "R", "0 0 0.5", "0 0 0", "0 0 0")
FORCES = (FORCES[0][:-1] + "3", FORCES[1])


@pytest.mark.parametrize(
    ("units", "energy", "forces"),
    [
        ("", EV, EV / BOHR),
        ("energy_unit=Hartree", 1.0, 1 / BOHR),
        ("energy_unit=Ha", 1.0, 1 / BOHR),
        ('energy_units="kcal/mol"', KCAL, KCAL / BOHR),
        ("energy_unit=Hartree length_unit=Ang", 1.0, 1 / BOHR),
        ("energy_unit=Hartree force_unit=Hartree/Bohr", 1.0, 1.0),
        ("energy_unit=eV forces_unit=eV/A", EV, EV / BOHR),
        ("units=metal", EV, EV / BOHR),
        ("units=real", KCAL, KCAL / BOHR),
        ("unit=eV", EV, EV / BOHR),
        ("energy_unit=au", 1.0, 1 / BOHR),
        ("energy_unit=kJ/mol", KCAL / 4.184, KCAL / 4.184 / BOHR),
    ],
)
@pytest.mark.filterwarnings("ignore::opml_jax.errors.UnitWarning")
def test_units_that_a_file_states_are_obeyed(xyz, units, energy, forces):
    data = read_dataset(xyz((f"energy=-10.0 {units} {FORCES[0]}", FORCES[1])))
    assert data["energy"][0] == pytest.approx(-10 * energy, rel=UNITS)
    assert data["forces"][0, 0, 2] == pytest.approx(0.5 * forces, rel=UNITS)
    assert data.structures[0].positions[0, 2] == pytest.approx(0.117 * BOHR, rel=UNITS)


def test_atomic_units(xyz):
    comment = f"energy=-76.4 units=au {FORCES[0]}"
    atoms = "".join(
        f"{z} {float(x) * BOHR} {float(y) * BOHR} {float(w) * BOHR} 0 0 0.5\n"
        for z, x, y, w in (line.split() for line in WATER.splitlines())
    )
    data = read_dataset(xyz((comment, atoms)))
    assert (data["energy"][0], data["forces"][0, 0, 2]) == (-76.4, 0.5)
    assert data.structures[0].positions[0, 2] == pytest.approx(0.117 * BOHR, rel=UNITS)


@pytest.mark.parametrize(
    ("comments", "options", "says"),
    [
        (
            ["energy_unit=hartree"],
            {"energy_unit": "ev"},
            "got 'ev' of a file that states 'hartree'",
        ),
        (["length_unit=bohr"], {"length_unit": "angstrom"}, "of a file that states 'bohr'"),
        (["energy_unit=hartree", "energy_unit=ev"], {}, "hartree, and ev in structure 1"),
        (["energy_unit=hartree e_unit=ev"], {}, "got hartree and ev"),
        (["energy_unit=hartree energy_units=ev"], {}, "got hartree and ev"),
        (["energy_unit=hartree Energy_Unit=ev"], {}, "got hartree and ev"),
        (["energy_unit=erg"], {}, "unit of energy in the file must be one of"),
        (["energy_unit=3"], {}, "energy_unit must be a unit; got 3"),
        (
            ["energy_unit=hartree"],
            {"labels": {"energy": ("energy", "ev")}},
            "another unit than 'hartree', which the file states",
        ),
    ],
)
def test_units_that_contradict_each_other_are_refused(xyz, comments, options, says):
    frames = [
        (f"energy=-76.4 {c}", WATER.replace("0.117", f"0.11{i}")) for i, c in enumerate(comments)
    ]
    with pytest.raises(OpmlError, match=says) as caught:
        read_dataset(xyz(*frames), **options)
    assert caught.value.code == Code.UNIT if "one of" not in says else Code.UNKNOWN_NAME


# --- isotopes -------------------------------------------------------------------------------------

DALTON = {"D": 2.01410177812, "13C": 13.00335483507}


@pytest.mark.parametrize("name", ["D", "d", "2H"])
def test_heavy_water(xyz, tmp_path, name):
    heavy = WATER.replace("H ", f"{name} ")
    s = read_structures(xyz(("c", heavy)))[0]
    assert s.numbers == (8, 1, 1)
    np.testing.assert_allclose(s.masses, [15.999, DALTON["D"], DALTON["D"]], rtol=UNITS)
    write_hdf5(tmp_path / "a.h5", Dataset([s, read_structures(xyz(("c", WATER)))[0]], {}))
    back = read_structures(tmp_path / "a.h5")
    assert (back[0].masses, back[1].masses) == (s.masses, None)


def test_masses_of_a_column(xyz):
    properties, atoms = columns(WATER, "masses", "R", 17.999, 1.008, 2.014)
    assert read_structures(xyz((properties, atoms)))[0].masses == (17.999, 1.008, 2.014)
    with pytest.raises(StructureError, match="positive numbers, in Dalton"):
        read_structures(xyz((properties, atoms.replace("1.008", "-1.0"))))


def test_an_isotope_that_there_is_not(xyz):
    assert read_structures(xyz(("c", "13C 0 0 0\nO 0 0 1.13\n")))[0].masses[0] == DALTON["13C"]
    with pytest.raises(StructureError, match="12C, 13C, 14C"):
        read_structures(xyz(("c", "99C 0 0 0\nO 0 0 1.13\n")))


@pytest.mark.filterwarnings("ignore:not read in")
def test_a_file_is_summed_up(xyz, capsys):
    """What `opml data check` says of units, charges and spins, compositions, and keys unread."""
    stated = f"energy={-76.4 * 627.5094740631} energy_unit=kcal/mol"
    free = ("energy=-313.0 energy_unit=kcal/mol config_type=IsolatedAtom", "H 0 0 0\n")
    path = xyz(
        free,
        (f"{stated} MACE_energy=-1.0", WATER),
        (f"{stated} charge=-1", HYDROXIDE),
        (f"{stated} multiplicity=3", OXYGEN),
    )
    assert main(["data", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    for line in (
        "3 structures, 2 to 3 atoms of H O; labels: energy",
        "format: xyz and extended xyz, positions in angstrom",
        "energy: energy (kcal/mol)",
        "level: not stated",
        "compositions: 3, H2O (1), HO (1), O2 (1)",
        "charge +0, spin 0 (1), charge -1, spin 0 (1), charge +0, spin 2 (1)",
        "free atoms: H -0.498797 Ha",
        "not read: MACE_energy",
    ):
        assert line in printed
