import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from opml_jax.data import read_dataset, read_structures
from opml_jax.errors import DataError, DataWarning, OpmlError, StructureError, UnitWarning

# The factors below carry ten digits or more
UNITS = 1e-9

BOHR = 1.8897261246  # Bohr in one Angstrom
EV = 0.036749322176  # Hartree in one eV
KCAL = 0.00159360143764  # Hartree in one kcal/mol

WATER = """3
a comment
O 0.0 0.0 0.117
H 0.0 0.757 -0.469
H 0.0 -0.757 -0.469
"""
POSITIONS = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.469], [0.0, -0.757, -0.469]])


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def _rmd17(n=2):
    coords = POSITIONS + 0.01 * np.arange(n)[:, None, None]
    return {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": coords,
        "energies": np.array([-47000.0, -47001.0])[:n],
        "forces": np.arange(9.0 * n).reshape(n, 3, 3),
    }


# --- what is read -------------------------------------------------------------------------------


def test_xyz(write):
    first, second = read_structures(write("w.xyz", WATER + WATER.replace("0.117", "0.2")))
    assert first.numbers == second.numbers == (8, 1, 1)
    assert (first.charge, first.spin) == (0, 0)
    np.testing.assert_allclose(first.positions, POSITIONS * BOHR, rtol=UNITS)
    assert second.positions[0, 2] == pytest.approx(0.2 * BOHR, rel=UNITS)


def test_xyz_in_bohr(write):
    text = "2\n\nH 0 0 0\nH 0 0 1.4\n"
    s = read_structures(write("h.xyz", text), length_unit="Bohr")[0]
    np.testing.assert_array_equal(s.positions, [[0, 0, 0], [0, 0, 1.4]])


def test_charge_and_spin(write):
    text = "2\n\nO 0 0 0\nH 0 0 0.97\n"
    path = write("oh.xyz", text)
    assert read_structures(path, charge=-1)[0].charge == -1
    assert read_structures(path, spin=1)[0].spin == 1
    extended = write(
        "oh.extxyz", text.replace("\n\n", "\nProperties=species:S:1:pos:R:3 charge=-1\n")
    )
    assert read_structures(extended)[0].charge == -1


EXTENDED = """2
Properties=species:S:1:pos:R:3:forces:R:3 energy=-31.0 dipole="0.0 0.0 0.5" pbc="F F F"
H 0.0 0.0 0.0 0.0 0.0 2.0
H 0.0 0.0 0.74 0.0 0.0 -2.0
"""


@pytest.mark.parametrize("prefix", ["", "REF_"])
def test_extxyz_labels(write, prefix):
    text = EXTENDED
    for key in ("energy", "forces", "dipole"):
        text = text.replace(key, prefix + key)
    ds = read_dataset(write("h.extxyz", text))
    assert ds["energy"][0] == pytest.approx(-31.0 * EV, rel=UNITS)
    # 2 eV/Angstrom = 2 * 0.0367493 Hartree / 1.8897261 Bohr = 0.0388938 atomic units
    np.testing.assert_allclose(ds["forces"][0, :, 2], [0.03889379, -0.03889379], rtol=1e-6)
    np.testing.assert_allclose(ds["dipole"][0], [0, 0, 0.5 * BOHR], rtol=UNITS)


def test_extxyz_units_can_be_named(write):
    text = EXTENDED.replace("0.74", "1.40").replace("2.0", "0.02").replace("-31.0", "-1.25")
    ds = read_dataset(write("h.extxyz", text), energy_unit="Hartree", length_unit="bohr")
    assert ds["energy"][0] == -1.25
    np.testing.assert_array_equal(ds["forces"][0, :, 2], [0.02, -0.02])
    assert ds.structures[0].positions[1, 2] == 1.4


def test_labels_that_not_all_structures_have_are_dropped(write):
    path = write("h.extxyz", EXTENDED + EXTENDED.replace("energy=-31.0 ", ""))
    with pytest.warns(DataWarning, match=r"energy of .*1 of 2 structures lack it, first.* 1\."):
        ds = read_dataset(path)
    assert len(ds) == 2
    assert "forces" in ds
    assert "energy" not in ds


def test_rmd17(tmp_path):
    arrays = _rmd17()
    ds = read_dataset(_npz(tmp_path / "r.npz", **arrays))
    assert [s.numbers for s in ds.structures] == [(8, 1, 1)] * 2
    np.testing.assert_allclose(ds.structures[1].positions, arrays["coords"][1] * BOHR, rtol=UNITS)
    np.testing.assert_allclose(ds["energy"], arrays["energies"] * KCAL, rtol=UNITS)
    # 1 kcal/mol/Angstrom = 0.00159360 / 1.88972612 = 0.000843297 Hartree/Bohr
    np.testing.assert_allclose(ds["forces"], arrays["forces"] * 0.000843297, rtol=1e-5)
    assert len(read_structures(tmp_path / "r.npz")) == 2
    assert "frame" not in ds
    _npz(tmp_path / "r.npz", **arrays, old_indices=np.array([7, 400000]))
    assert read_dataset(tmp_path / "r.npz")["frame"].tolist() == [7, 400000]


def test_md17(tmp_path):
    arrays = _rmd17()
    path = _npz(
        tmp_path / "m.npz",
        z=arrays["nuclear_charges"],
        R=arrays["coords"],
        E=arrays["energies"][:, None],
        F=arrays["forces"],
        name=np.array("water"),
        theory=np.array(b"unknown"),
    )
    ds = read_dataset(path)
    assert ds["energy"].shape == (2,)
    np.testing.assert_allclose(ds["energy"], arrays["energies"] * KCAL, rtol=UNITS)


def test_npz_with_symbols_and_with_padding(tmp_path):
    numbers = np.array([[8, 1, 1, 0], [9, 1, 0, 0]])
    coords = np.zeros((2, 4, 3))
    coords[0, :3], coords[1, 1] = POSITIONS, [0.0, 0.0, 0.92]
    padded = read_structures(_npz(tmp_path / "p.npz", z=numbers, R=coords))
    assert [s.numbers for s in padded] == [(8, 1, 1), (9, 1)]
    named = read_structures(
        _npz(tmp_path / "s.npz", z=np.array(["O", "H", "H"]), R=POSITIONS[None])
    )
    assert named[0].numbers == (8, 1, 1)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.xyz", "", "empty file"),
        ("w.h5", "", "empty file"),
        ("w.npz", "", "empty file"),
        ("w.xyz", "\n\n", "w.xyz"),
        ("w.xyz", "\n".join(WATER.split("\n")[:4]), "xyz"),
        ("w.xyz", WATER.replace("0.757", "O.757"), "xyz"),
        ("w.xyz", WATER.replace("O 0", "Qq 0"), "element"),
        ("w.xyz", "three\n" + WATER[2:], "xyz"),
        ("w.xyz", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "xyz"),
        ("w.npz", "PK\x03\x04 no zip", "unreadable"),
        ("w.npz", b"\x80\x04\x95", "w.npz"),
        ("w.pdb", WATER, "one of .xyz"),
        ("w.XYZ2", WATER, "Did you mean '.xyz'"),
    ],
)
def test_files_that_are_not_what_they_say(write, name, content, says):
    path = write(name, content)
    for read in (read_structures, read_dataset):
        with pytest.raises(OpmlError) as caught:
            read(path)
        assert says in str(caught.value)
        assert name in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path, says in (tmp_path / "absent.xyz", "no such file"), (tmp_path, "a folder, not a file"):
        with pytest.raises(DataError, match=says):
            read_structures(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("0.117", "nan"), "finite"),
        (("0.117", "inf"), "finite"),
        (("H 0.0 -0.757 -0.469", "H 0.0 0.757 -0.569"), "atoms 1 and 2 at 0.100 Angstrom"),
        (("H 0.0 -0.757", "C 0.0 -0.757"), "15 electrons"),
    ],
)
def test_geometries_that_cannot_be_meant(write, change, says):
    path = write("w.xyz", WATER + WATER.replace(*change))
    with pytest.raises(StructureError) as caught:
        read_structures(path)
    for words in ("w.xyz, structure 1", says):
        assert words in str(caught.value)


def test_periodic_cells(write):
    cell = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 pbc="T T T"'
    with pytest.raises(DataError, match="periodic cell"):
        read_structures(write("c.extxyz", WATER.replace("a comment", cell)))
    box = cell.replace("T T T", "F F F")
    assert len(read_structures(write("b.extxyz", WATER.replace("a comment", box)))) == 1


@pytest.mark.parametrize("unit", ["length_unit", "energy_unit"])
def test_unknown_units(write, unit):
    with pytest.raises(DataError, match=rf"{unit} must be one of .*; got 'parsec'"):
        read_dataset(write("w.xyz", WATER), **{unit: "parsec"})
    with pytest.raises(DataError, match="Did you mean 'angstrom'"):
        read_structures(write("w.xyz", WATER), length_unit="angstrim")


def test_coordinates_that_look_like_another_unit(write, tmp_path):
    lines = "\n".join(
        f"{z} {' '.join(map(str, r * BOHR))}" for z, r in zip("OHH", POSITIONS, strict=True)
    )
    path = write("b.xyz", f"3\n\n{lines}\n")
    with pytest.warns(UnitWarning, match=r"b\.xyz.*Bohr given as Angstrom.*length_unit='bohr'"):
        read_structures(path)
    assert len(read_structures(path, length_unit="bohr")) == 1
    with pytest.warns(UnitWarning, match=r"Angstrom given as Bohr"):
        read_structures(write("w.xyz", WATER), length_unit="bohr")
    arrays = _rmd17()
    arrays["coords"] = arrays["coords"] * BOHR
    with pytest.warns(UnitWarning, match="Bohr given as Angstrom") as caught:
        read_dataset(_npz(tmp_path / "b.npz", **arrays))
    assert len(caught) == 1


def test_forces_beyond_any_molecule(write, tmp_path):
    arrays = _rmd17()
    arrays["forces"] *= 23.06 * 50  # as if eV were kcal/mol, and more
    path = _npz(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=r"forces of .*f\.npz.*eV/Angstrom.*energy_unit"):
        read_dataset(path)
    assert len(read_structures(path)) == 2
    text = EXTENDED.replace("2.0", "60.0")
    with pytest.raises(DataError, match="60 eV/Angstrom"):
        read_dataset(write("f.extxyz", text))


@pytest.mark.parametrize("name", ["energies", "forces"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_not_numbers(tmp_path, name, value):
    arrays = _rmd17()
    arrays[name][1] = value
    with pytest.raises(DataError, match=r"n\.npz.*structure 1"):
        read_dataset(_npz(tmp_path / "n.npz", **arrays))


@pytest.mark.parametrize("change", [("-31.0", "-31.0m"), ("0.0 0.0 0.5", "0.0 0.5")])
def test_labels_that_are_something_else(write, change):
    with pytest.raises(DataError, match=r"f\.extxyz"):
        read_dataset(write("f.extxyz", EXTENDED.replace(*change)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coords": _rmd17()["coords"].transpose(0, 2, 1)[:, :, :2]}, "(n_structures, n_atoms, 3)"),
        ({"coords": POSITIONS}, "(n_structures, n_atoms, 3)"),
        ({"energies": np.zeros(3)}, "shape (3,)"),
        ({"forces": np.zeros((2, 2, 3))}, "(2, 3, 3)"),
        ({"forces": np.zeros((1, 3, 3))}, "(2, 3, 3)"),
        ({"nuclear_charges": np.array([8, 1, 1, 1])}, "n.npz"),
        ({"nuclear_charges": np.array([8, 1])}, "n.npz"),
        ({"nuclear_charges": np.array([[8, 1, 1]])}, "n.npz"),
        ({"nuclear_charges": np.array(["O", "H", "Qq"])}, "n.npz"),
        ({"nuclear_charges": np.array([8.5, 1, 0.5])}, "n.npz"),
        ({"coords": np.array([[["a", "b", "c"]] * 3] * 2)}, "n.npz"),
        (
            {"coords": np.zeros((0, 3, 3)), "energies": np.zeros(0), "forces": np.zeros((0, 3, 3))},
            "at least one",
        ),
        ({"coords": None}, "nuclear_charges and coords"),
        ({"nuclear_charges": None}, "nuclear_charges and coords"),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_npz_arrays_that_do_not_fit(tmp_path, changes, says):
    arrays = {k: v for k, v in {**_rmd17(), **changes}.items() if v is not None}
    path = _npz(tmp_path / "n.npz", **arrays)
    with pytest.raises(OpmlError) as caught:
        read_dataset(path)
    assert "n.npz" in str(caught.value)
    assert says in str(caught.value)


def test_transposed_coordinates(tmp_path):
    """(n, 3, n_atoms) of another number of atoms than three."""
    coords = np.random.default_rng(0).normal(size=(2, 3, 4))
    path = _npz(tmp_path / "n.npz", nuclear_charges=np.array([8, 1, 1, 1]), coords=coords)
    with pytest.raises(DataError, match=r"\(2, 3, 4\).*|.*\(n_structures, n_atoms, 3\)"):
        read_structures(path)


class _Payload:
    """Pickled, this touches a file when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.mark.parametrize("key", ["nuclear_charges", "coords", "energies", "forces", "extra"])
def test_object_arrays_are_never_unpickled(tmp_path, key):
    marker, path = tmp_path / "marker", tmp_path / "n.npz"
    payload = np.empty(1, object)
    payload[0] = _Payload(marker)
    np.savez(path, **{**_rmd17(), key: payload})
    if key == "extra":  # of no interest, and not looked at
        assert len(read_dataset(path)) == 2
    else:
        with pytest.raises(DataError, match=r"n\.npz.*object arrays.*run code"):
            read_dataset(path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as f:  # the payload is real
        f[key]
    assert marker.exists()


def test_a_bare_pickle_is_never_loaded(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "n.npz"
    path.write_bytes(pickle.dumps(_Payload(marker)))
    with pytest.raises(DataError, match=r"n\.npz"):
        read_structures(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [10, 0.3, 0.7, 0.99])
def test_truncated_npz(tmp_path, keep):
    path = _npz(tmp_path / "n.npz", **_rmd17())
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(DataError, match=r"n\.npz"):
        read_structures(path)


def test_damaged_npz(tmp_path):
    """Right length, wrong bytes, anywhere in the compressed data."""
    path = tmp_path / "n.npz"
    np.savez_compressed(path, **_rmd17())
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z:
        offset = z.getinfo("coords.npy").header_offset + 60
    for at in range(offset, offset + 40, 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(OpmlError, match=r"n\.npz"):
            read_structures(path)


def test_npy_under_another_name(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, POSITIONS)
    (tmp_path / "n.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"n\.npz"):
        read_structures(tmp_path / "n.npz")


def test_npz_that_claims_to_be_huge(tmp_path):
    """The header of an array is not believed before its bytes are there."""
    path = tmp_path / "n.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 3, 3), }"
    header = header.ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 100
    with zipfile.ZipFile(path, "w") as z:
        for name in ("coords.npy", "nuclear_charges.npy"):
            z.writestr(name, member)
    with pytest.raises(DataError, match=r"n\.npz"):
        read_structures(path)
