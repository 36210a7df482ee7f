"""Bad input on the command line: one clear line, exit code 2, and nothing left behind."""

import json
import pickle
import re

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from opml_jax.cli import main
from opml_jax.data import Dataset
from opml_jax.data.store import write_hdf5
from opml_jax.structures import Structure

BOHR = 1.8897261246  # Bohr in one Angstrom
WATER = "3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n"


def _text(text):
    return lambda path: path.write_text(text)


def _npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def _labelled_npz(**changes):
    """Two waters as in rMD17, in kcal/mol and Angstrom, with something changed."""
    water = np.array([[0, 0, 0.117], [0, 0.757, -0.469], [0, -0.757, -0.469]])
    arrays = {
        "nuclear_charges": np.array([8, 1, 1]),
        "coords": np.array([water, 1.01 * water]),
        "energies": np.array([-47900.0, -47901.0]),
        "forces": np.ones((2, 3, 3)),
    }
    return _npz(**(arrays | changes))


def _truncated(path):
    s = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    write_hdf5(path, Dataset([s] * 50, {"energy": [-1.1] * 50}))
    path.write_bytes(path.read_bytes()[:-500])


def _objects(path):
    np.savez(path, nuclear_charges=np.array([1, 1]), coords=np.array([[{}]], dtype=object))


def _hydrogens(numbers, positions=((0, 0, 0), (0, 0, 0.74))):
    """An npz of one molecule."""
    return _npz(nuclear_charges=np.array(numbers), coords=np.array([positions], float))


def _cut(make, n):
    """The same file without its last n bytes."""

    def cut(path):
        make(path)
        path.write_bytes(path.read_bytes()[:-n])

    return cut


def _flipped(make, at):
    """The same file with one byte changed, at a share of its length."""

    def flipped(path):
        make(path)
        data = bytearray(path.read_bytes())
        data[int(at * len(data))] ^= 0xFF
        path.write_bytes(bytes(data))

    return flipped


def _pickle(path):
    path.write_bytes(pickle.dumps({"coords": [[0.0, 0.0, 0.0]]}))


def _hdf5(change):
    """A whole file of this library with something changed."""

    def make(path):
        s = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
        write_hdf5(path, Dataset([s] * 3, {"energy": [-1.1] * 3}))
        with h5py.File(path, "r+") as f:
            change(f)

    return make


def _linked(f):
    del f["positions"]
    f["positions"] = h5py.ExternalLink("/etc/hostname", "/positions")


def _soft(f):
    del f["positions"]
    f["positions"] = h5py.SoftLink("/numbers")


def _outside(f):
    shape = f["positions"].shape
    del f["positions"]
    f.create_dataset("positions", shape, "f8", external=[("/etc/hostname", 0, 8 * 18)])


def _huge(f):
    del f["positions"]
    f.create_dataset("positions", (10**11, 3), "f8", chunks=(1024, 3))


def _newer(f):
    f.attrs["format_version"] = 99


def _labels_lost(f):
    del f["labels/energy"]
    f["labels/energy"] = np.array([np.nan, 1.0, 1.0])


FILES = {
    "NaN coordinate": ("w.xyz", _text(WATER.replace("0.757", "nan", 1)), ["finite", "nan", "101"]),
    "infinite coordinate": ("w.xyz", _text(WATER.replace("0.757", "inf", 1)), ["finite", "101"]),
    "overflowed coordinate": ("w.xyz", _text(WATER.replace("0.757", "*****", 1)), ["xyz", "402"]),
    "contact": (
        "w.xyz",
        _text("2\n\nH 0 0 0\nH 0 0 0.1\n"),
        ["atoms 0 and 1 at 0.100 Angstrom", "102"],
    ),
    "identical atoms": ("w.xyz", _text("2\n\nH 0 0 0\nH 0 0 0\n"), ["atoms 0 and 1", "102"]),
    "contact in an npz": ("w.npz", _hydrogens([1, 1], [[0, 0, 0], [0, 0, 0.2]]), ["0.200", "102"]),
    "shape (3, n)": (
        "w.npz",
        _npz(nuclear_charges=np.array([1, 1]), coords=np.array([[[0, 0], [0, 0], [0, 0.74]]])),
        ["(1, 3, 2)", "(n_structures, n_atoms, 3)", "103"],
    ),
    "numbers of other atoms": ("w.npz", _hydrogens([1, 1, 1, 1]), ["atomic numbers", "103"]),
    "half a proton": ("w.npz", _hydrogens([1.5, 0.5]), ["whole numbers", "103"]),
    "coordinates as text": (
        "w.npz",
        _npz(nuclear_charges=np.array([1, 1]), coords=np.array([[["0"] * 3] * 2])),
        ["coordinates of w.npz", "103"],
    ),
    "no atoms": ("w.xyz", _text("0\n\n"), ["no atoms", "104"]),
    "no structures": (
        "w.npz",
        _npz(nuclear_charges=np.array([1, 1]), coords=np.zeros((0, 2, 3))),
        ["structures of w.npz", "at least one", "104"],
    ),
    "unknown symbol": ("w.xyz", _text(WATER.replace("O", "Qq")), ["Qq"]),
    "ghost atom": ("w.xyz", _text(WATER.replace("O", "X")), ["element", "105"]),
    "negative number": ("w.npz", _hydrogens([2, -1]), ["1 to 118", "105"]),
    "number beyond the table": ("w.npz", _hydrogens([1, 119]), ["119", "105"]),
    "odd electrons": (
        "w.xyz",
        _text("2\n\nO 0 0 0\nH 0 0 0.97\n"),
        ["9 electrons", "spin", "106"],
    ),
    "periodic cell": (
        "w.xyz",
        _text(WATER.replace("\n\n", '\nLattice="9 0 0 0 9 0 0 0 9" pbc="T T T"\n', 1)),
        ["a periodic cell", "pbc", "107"],
    ),
    "empty xyz": ("w.xyz", _text(""), ["empty file", "402"]),
    "empty npz": ("w.npz", _text(""), ["empty file", "402"]),
    "empty hdf5": ("w.h5", _text(""), ["empty file", "402"]),
    "truncated hdf5": ("w.h5", _truncated, ["truncated", "402"]),
    "truncated npz": ("w.npz", _cut(_hydrogens([1, 1]), 100), ["unreadable", "402"]),
    "flipped npz": ("w.npz", _flipped(_hydrogens([1, 1]), 0.25), ["unreadable", "402"]),
    "no hdf5": ("w.h5", _text(WATER), ["HDF5", "402"]),
    "no npz": ("w.npz", _text(WATER), ["w.npz"]),
    "another npz": ("w.npz", _npz(x=np.ones(3)), ["w.npz", "nuclear_charges", "400"]),
    "half an xyz": ("w.xyz", _text(WATER[:-25]), ["xyz", "402"]),
    "prose": ("w.xyz", _text("Dear reader,\n\nO is for oxygen.\n"), ["xyz", "402"]),
    "bytes": ("w.xyz", lambda path: path.write_bytes(bytes(range(256))), ["xyz", "402"]),
    "huge claim": ("w.h5", _hdf5(_huge), ["w.h5", "402"]),
    "object arrays": ("w.npz", _objects, ["object arrays", "403"]),
    "pickle": ("w.npz", _pickle, ["can run code", "403"]),
    "external link": ("w.h5", _hdf5(_linked), ["a link", "403"]),
    "soft link": ("w.h5", _hdf5(_soft), ["a link", "403"]),
    "data outside the file": ("w.h5", _hdf5(_outside), ["outside", "403"]),
    "newer format": ("w.h5", _hdf5(_newer), ["format_version 99", "Upgrade", "404"]),
    "unknown suffix": ("w.pdb", _text(WATER), ["w.pdb", ".xyz"]),
    "missing file": ("w.xyz", lambda path: None, ["no such file", "401"]),
    "a folder": ("w.xyz", lambda path: path.mkdir(), ["not a file", "401"]),
}


LABELS = {
    "energies in another unit": (
        "w.npz",
        _labelled_npz(energies=np.array([-2.0e8, -2.0e8])),
        ["energies of w.npz", "kcal/mol", "energy_unit", "406"],
    ),
    "forces in another unit": (
        "w.npz",
        _labelled_npz(forces=2000 * np.ones((2, 3, 3))),
        ["forces of w.npz", "below 50", "87 eV/Angstrom", "energy_unit", "406"],
    ),
    "NaN label": (
        "w.npz",
        _labelled_npz(energies=np.array([-47900.0, np.nan])),
        ["energy of w.npz", "NaN in structure 1", "407"],
    ),
    "infinite label": (
        "w.npz",
        _labelled_npz(forces=np.full((2, 3, 3), np.inf)),
        ["forces of w.npz", "structure 0", "407"],
    ),
    "labels of another shape": (
        "w.npz",
        _labelled_npz(forces=np.ones((2, 24, 24))),
        ["forces of w.npz", "(2, 3, 3)", "(2, 24, 24)", "labels", "408"],
    ),
    "fewer labels than structures": (
        "w.npz",
        _labelled_npz(energies=np.array([-47900.0])),
        ["energies of w.npz", "408"],
    ),
    "NaN in hdf5": ("w.h5", _hdf5(_labels_lost), ["NaN in structure 0", "407"]),
}
SPLITS = {
    "empty split": ('{"train": [0], "validation": []}', ["s.json", "empty split", "409"]),
    "beyond the data": ('{"train": [0], "validation": [9]}', ["index 9", "below 3", "409"]),
    "unseen element": (
        '{"train": [0], "validation": [1], "test": [2]}',
        ["test split", "elements of the training split", "got S", "409"],
    ),
    "a structure twice": (
        '{"train": [0, 1], "validation": [1]}',
        ["s.json", "an index in two splits", "409"],
    ),
    "negative index": ('{"train": [0], "validation": [-1]}', ["index -1", "409"]),
    "no validation": ('{"train": [0]}', ["s.json", "validation", "409"]),
    "no index": ('{"train": [0.5], "validation": [1]}', ["s.json", "0.5", "402"]),
    "no json": ("train: [0]", ["s.json", "JSON", "402"]),
    "nested without end": ("[" * 100_000, ["s.json", "JSON", "402"]),
}


def _model(header, tensors=None):
    """A safetensors file with this metadata."""

    def make(path):
        data = {k: json.dumps(v) for k, v in header.items()}
        save_file(tensors or {"x": np.ones(3)}, path, metadata=data)

    return make


def _long_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


MODELS = {
    "missing": (lambda path: None, ["no such file", "401"]),
    "empty": (_text(""), ["unreadable", "402"]),
    "text": (_text(WATER), ["unreadable", "402"]),
    "pickle": (_pickle, ["unreadable", "402"]),
    "truncated": (_cut(_model({"format": "opml_jax model"}), 10), ["unreadable", "402"]),
    "header longer than the file": (_long_header, ["unreadable", "402"]),
    "another library's": (_model({}), ["an opml_jax model", "404"]),
    "newer": (
        _model({"format": "opml_jax model", "format_version": 99, "opml_jax_version": "9.1"}),
        ["version 99", "written by opml_jax 9.1", "404"],
    ),
}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def _is_one_clear_line(result, says):
    code, out, err = result
    assert code == 2
    assert err.startswith("opml: error: ")
    assert err.count("\n") == 1
    assert re.search(r" \[OPML-\d{3}\]\n$", err)
    assert err.count("OPML-") == 1
    assert out == ""
    for words in says:
        assert words in err


GENERATE = ("--method", "hf", "--basis", "sto-3g", "--workers", "1", "-o", "out.h5")


@pytest.mark.parametrize(("name", "make", "says"), FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    "command",
    [("data", "check"), ("data", "pack", "-o", "out.h5"), ("generate", *GENERATE)],
    ids=["check", "pack", "generate"],
)
def test_bad_files(run, tmp_path, command, name, make, says):
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    _is_one_clear_line(run(*command, name), says)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "make", "says"), LABELS.values(), ids=LABELS)
@pytest.mark.parametrize(
    "command",
    [("data", "check"), ("data", "pack", "-o", "out.h5", "--fields", "energy")],
    ids=["check", "pack"],
)
def test_bad_labels(run, tmp_path, command, name, make, says):
    make(tmp_path / name)
    _is_one_clear_line(run(*command, name), says)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("text", "says"), SPLITS.values(), ids=SPLITS)
def test_bad_splits(run, tmp_path, text, says):
    (tmp_path / "w.xyz").write_text(2 * WATER + WATER.replace("O", "S"))
    (tmp_path / "s.json").write_text(text)
    (tmp_path / "c.yaml").write_text("data: {path: w.xyz, splits: s.json}")
    code, _, err = run("data", "check", "w.xyz", "--splits", "s.json")
    for words in says:
        assert words in err
    assert (code, err.count("\n")) == (2, 1)
    _is_one_clear_line(run("train", "c.yaml", "-o", "run"), says)


@pytest.mark.parametrize(("make", "says"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    "command", [("predict", "w.xyz", "-o", "out.h5"), ("evaluate", "w.xyz")], ids=lambda c: c[0]
)
def test_bad_models(run, tmp_path, command, make, says):
    (tmp_path / "w.xyz").write_text(WATER)
    make(tmp_path / "m.safetensors")
    before = sorted(tmp_path.iterdir())
    name, *options = command
    _is_one_clear_line(run(name, "m.safetensors", *options), says)
    assert sorted(tmp_path.iterdir()) == before


CONFIGS = {
    "unknown key": ("modell: {}", ["modell", "Did you mean 'model'"]),
    "unknown inner key": ("model: {fit: {epoch: 3}}", ["model.fit", "epoch"]),
    "text for a number": ("model: {fit: {epochs: many}}", ["model.fit.epochs", "many", "500"]),
    "negative": ("model: {fit: {epochs: -1}}", ["fit.epochs", "500"]),
    "a list": ("- 1\n- 2", ["key: value pairs", "500"]),
    "no yaml": ("a: [1,", ["YAML", "402"]),
    "code": ("data: !!python/object/apply:os.system ['touch ran']", ["YAML", "402"]),
    "unknown target": ("model: {fit: {targets: [energy, colour]}}", ["targets", "colour"]),
    "unknown family": ("model: {family: op2pop}", ["model.family", "Did you mean 'op2prop'"]),
    "the form of version 0.1": ("optim: {epochs: 3}", ["opml config migrate", "model.fit", "500"]),
    "nested without end": ("[" * 50_000, ["YAML", "402"]),
}


@pytest.mark.parametrize(("text", "says"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", [("train",), ("config", "validate")], ids=["train", "validate"])
def test_bad_configurations(run, tmp_path, command, text, says):
    (tmp_path / "c.yaml").write_text(text)
    output = ("-o", "run") if command == ("train",) else ()
    _is_one_clear_line(run(*command, "c.yaml", *output), says)
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


ENERGY_ALONE = WATER.replace("\n\n", "\nProperties=species:S:1:pos:R:3 energy=-2080.0\n")
TRAINING = {
    "missing forces": (
        "w.xyz",
        _text(2 * ENERGY_ALONE),
        "model: {fit: {targets: [energy, forces]}}",
        ["'forces', which the data set lacks", "labels it has: energy"],
    ),
    "missing dipole": ("w.npz", _labelled_npz(), "", ["'dipole', which the data set lacks"]),
    "NaN label": (
        "w.npz",
        _labelled_npz(energies=np.array([-47900.0, np.nan])),
        "model: {fit: {targets: [energy]}}",
        ["energy of w.npz", "NaN in structure 1"],
    ),
    "unknown basis": (
        "w.xyz",
        _text(2 * ENERGY_ALONE),
        "model: {basis: def2-spv, fit: {targets: [energy]}}",
        ["'def2-spv'", "Did you mean 'def2svp'"],
    ),
}


@pytest.mark.parametrize(("name", "make", "text", "says"), TRAINING.values(), ids=TRAINING)
def test_what_cannot_be_trained_on(run, tmp_path, name, make, text, says):
    make(tmp_path / name)
    (tmp_path / "s.json").write_text('{"train": [0], "validation": [1]}')
    (tmp_path / "c.yaml").write_text(text)
    options = ("--set", f"data.path={name}", "--set", "data.splits=s.json")
    _is_one_clear_line(run("train", "c.yaml", "-o", "run", *options), says)
    assert not (tmp_path / "run").exists()
    _is_one_clear_line(run("config", "validate", "c.yaml", "--data", *options), says)


def test_labels_by_name(run, tmp_path):
    text = WATER.replace("\n\n", "\nProperties=species:S:1:pos:R:3 U0=-76.4\n")
    (tmp_path / "w.xyz").write_text(text)
    (tmp_path / "c.yaml").write_text("data: {path: w.xyz, labels: ['energy=U:hartree']}")
    code, out, err = run("data", "check", "w.xyz", "--label", "energy=U0:hartree")
    assert (code, err) == (0, "")
    assert "labels: energy" in out
    bad = run("data", "check", "w.xyz", "--label", "energy=U0:hartre")
    _is_one_clear_line(bad, ["hartre", "Did you mean 'hartree'"])
    _is_one_clear_line(run("train", "c.yaml", "-o", "run"), ["'U' of w.xyz", "U0"])
    bad = run("data", "check", "w.xyz", "--label", "U0")
    _is_one_clear_line(bad, ["FIELD=NAME:UNIT", "'U0'"])


def test_duplicates_and_leaks_are_reported(run, tmp_path):
    shifted = WATER.replace("0.117", "0.217").replace("-0.469", "-0.369")
    stretched = [WATER.replace("0.757", x) for x in ("0.70", "0.72", "0.74")]
    (tmp_path / "w.xyz").write_text("".join([WATER, *stretched, shifted, WATER]))
    (tmp_path / "s.json").write_text('{"train": [0, 1], "validation": [2, 5], "test": [3, 4]}')
    code, out, err = run("data", "check", "w.xyz", "--splits", "s.json")
    assert (code, err) == (0, "")
    assert "s.json: train 2, validation 2, test 2" in out
    assert "2 geometries equal to an earlier one" in out
    assert "(1 of 3 pairs as written): 0 = 4, 0 = 5, 4 = 5" in out
    assert "validation: 1 of 2 are training geometries: 5 = 0" in out
    assert "test: 1 of 2 are training geometries: 4 = 0" in out
    assert "3 problems" in out
    (tmp_path / "v.xyz").write_text(stretched[0] + stretched[1])
    out = run("data", "check", "w.xyz", "--against", "v.xyz")[1]
    assert "v.xyz: 2 of 2 are training geometries: 0 = 1, 1 = 2" in out
    out = run("data", "check", "v.xyz", "--tolerance", "0.1")[1]
    assert "1 geometry equal to" in out
    _is_one_clear_line(run("data", "check", "v.xyz", "--tolerance", "0"), ["--tolerance", "0"])


def test_neighbouring_frames_are_reported(run, tmp_path):
    _labelled_npz(old_indices=np.array([10, 500]))(tmp_path / "a.npz")
    _labelled_npz(old_indices=np.array([505, 900]))(tmp_path / "b.npz")
    out = run("data", "check", "a.npz", "--against", "b.npz")[1]
    assert "b.npz: 1 of 2 are within 10 frames of a training geometry: 0" in out


@pytest.mark.parametrize(
    ("symbol", "basis", "says"),
    [
        ("O", "def2-spv", ["'def2-spv'", "Did you mean 'def2svp'"]),
        ("Po", "6-31g*", ["'6-31g*'", "lacks Po"]),
        ("Po", "def2-svp", ["'def2-svp'", "60 core electrons of Po", "all-electron"]),
        ("O", "gth-szv", ["'gth-szv'", "all-electron"]),
    ],
    ids=["unknown", "missing element", "core potential", "pseudopotential"],
)
def test_bad_bases(run, tmp_path, symbol, basis, says):
    stretch = "1.5" if symbol == "Po" else "0.757"
    (tmp_path / "w.xyz").write_text(WATER.replace("O", symbol).replace("0.757", stretch))
    command = ["generate", "w.xyz", "--method", "hf", "--workers", "1", "-o", "out.h5"]
    _is_one_clear_line(run(*command, "--basis", basis), says)
    assert [p.name for p in tmp_path.iterdir()] == ["w.xyz"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "pbbe"), ["method", "'pbbe'", "Did you mean 'pbe'"]),
        (("--limit", "0"), ["limit", "0"]),
        (("--limit", "-1"), ["limit", "-1"]),
        (("--sample", "-3"), ["sample", "-3"]),
        (("--method", "pbe", "--grid-level", "12"), ["grid", "12"]),
        (("--method", "pbe", "--grid-level", "-1"), ["grid", "-1"]),
        (("--conv-tol", "0"), ["conv", "0"]),
        (("--max-cycle", "0"), ["cycle", "0"]),
        (("--charge", "1"), ["9 electrons", "charge 1"]),
        (("--limit", "many"), ["--limit", "many"]),
        (("--length-unit", "parsec"), ["--length-unit", "parsec"]),
        (("--bassis", "sto-3g"), ["--bassis"]),
        (("--sample", "2", "--temperature", "-5"), ["temperature", "-5"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_bad_options(run, tmp_path, options, says):
    (tmp_path / "w.xyz").write_text(WATER)
    _is_one_clear_line(run("generate", "w.xyz", *GENERATE, *options), says)
    assert [p.name for p in tmp_path.iterdir()] == ["w.xyz"]


@pytest.mark.parametrize(
    "argv", ["", "generrate", "generate", "generate w.xyz", "data", "data chek w.xyz"]
)
def test_incomplete_command_lines(run, argv):
    _is_one_clear_line(run(*argv.split()), ["--help"])


def test_another_level_of_theory(run, tmp_path):
    (tmp_path / "w.xyz").write_text(WATER)
    s = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    meta = {"method": "pbe", "basis": "def2-svp"}
    write_hdf5(tmp_path / "out.h5", Dataset([s], {"energy": [-1.1]}, meta))
    before = (tmp_path / "out.h5").read_bytes()
    _is_one_clear_line(run("generate", "w.xyz", *GENERATE), ["out.h5", "another level of theory"])
    assert (tmp_path / "out.h5").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5", "w.xyz"]


def test_output_that_cannot_be_written(run, tmp_path):
    (tmp_path / "w.xyz").write_text(WATER)
    (tmp_path / "folder").write_text("a file, not a folder")
    options = ("--method", "hf", "--basis", "sto-3g", "--workers", "1", "-o", "folder/out.h5")
    _is_one_clear_line(run("generate", "w.xyz", *options), ["folder"])


@pytest.mark.filterwarnings("default")
def test_bohr_given_as_angstrom_is_a_problem(run, tmp_path):
    z, x = "OHH", np.array([[0, 0, 0.117], [0, 0.757, -0.469], [0, -0.757, -0.469]]) * BOHR
    lines = "".join(f"{a} {r[0]} {r[1]} {r[2]}\n" for a, r in zip(z, x, strict=True))
    (tmp_path / "b.xyz").write_text(f"3\n\n{lines}")
    code, out, err = run("data", "check", "b.xyz")
    assert code == 0
    assert "1 structure," in out
    assert err == ""
    assert "problem: b.xyz: bonds are" in out
    assert "Bohr given as Angstrom" in out
    assert "--length-unit bohr" in out
    assert "1 problem" in out
    assert "no problems found" in run("data", "check", "b.xyz", "--length-unit", "bohr")[1]
    # labels take hours, and are refused until the unit is named
    _is_one_clear_line(run("generate", "b.xyz", *GENERATE), ["Bohr given as Angstrom", "OPML-406"])
    assert not (tmp_path / "out.h5").exists()
    assert run("generate", "b.xyz", *GENERATE, "--length-unit", "bohr")[0] == 0


def test_tracebacks_are_for_debugging(run, tmp_path):
    from opml_jax.errors import DataError

    for argv in (("--debug", "data", "check", "w.xyz"), ("data", "--debug", "check", "w.xyz")):
        with pytest.raises(DataError, match="no such file"):
            run(*argv)


def test_good_input_is_no_error(run, tmp_path):
    (tmp_path / "w.xyz").write_text(WATER)
    code, out, err = run("data", "check", "w.xyz")
    assert (code, err) == (0, "")
    assert "1 structure, 3 to 3 atoms of H O" in out
    code, out, err = run("generate", "w.xyz", *GENERATE)
    assert code == 0
    assert "1 labelled, 0 found, 0 failed (hf/sto-3g)" in out
    code, out, err = run("data", "check", "out.h5")
    assert (code, err) == (0, "")
    assert "no problems found" in out
    code, out, err = run("data", "pack", "out.h5", "-o", "small.h5", "--fields", "energy,enrgy")
    _is_one_clear_line((code, out, err), ["enrgy"])
    assert not (tmp_path / "small.h5").exists()
    for name in ("small.h5", "out.h5"):  # also into the file it is read from
        code, out, err = run("data", "pack", "out.h5", "-o", name, "--fields", "energy,fock")
        assert (code, err) == (0, "")
        assert "1 structure, energy, fock" in out
        code, out, err = run("data", "check", name)
        assert "labels: energy, fock" in out
        assert "no problems found" in out
