"""Bad input on the command line: one clear line, exit code 2, and nothing left behind."""

import numpy as np
import pytest

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


def _truncated(path):
    s = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    write_hdf5(path, Dataset([s] * 50, {"energy": [-1.1] * 50}))
    path.write_bytes(path.read_bytes()[:-500])


def _objects(path):
    np.savez(path, nuclear_charges=np.array([1, 1]), coords=np.array([[{}]], dtype=object))


FILES = {
    "NaN coordinate": ("w.xyz", _text(WATER.replace("0.757", "nan", 1)), ["finite", "nan"]),
    "contact": ("w.xyz", _text("2\n\nH 0 0 0\nH 0 0 0.1\n"), ["atoms 0 and 1 at 0.100 Angstrom"]),
    "shape (3, n)": (
        "w.npz",
        _npz(nuclear_charges=np.array([1, 1]), coords=np.array([[[0, 0], [0, 0], [0, 0.74]]])),
        ["(1, 3, 2)", "(n_structures, n_atoms, 3)"],
    ),
    "odd electrons": ("w.xyz", _text("2\n\nO 0 0 0\nH 0 0 0.97\n"), ["9 electrons", "spin"]),
    "empty xyz": ("w.xyz", _text(""), ["empty file"]),
    "empty npz": ("w.npz", _text(""), ["empty file"]),
    "empty hdf5": ("w.h5", _text(""), ["empty file"]),
    "truncated hdf5": ("w.h5", _truncated, ["truncated"]),
    "no hdf5": ("w.h5", _text(WATER), ["HDF5"]),
    "object arrays": ("w.npz", _objects, ["object arrays"]),
    "unknown symbol": ("w.xyz", _text(WATER.replace("O", "Qq")), ["Qq"]),
    "half an xyz": ("w.xyz", _text(WATER[:-25]), ["xyz"]),
    "unknown suffix": ("w.pdb", _text(WATER), ["w.pdb", ".xyz"]),
    "missing file": ("w.xyz", lambda path: None, ["not a file"]),
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
    assert err.endswith("\n")
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


@pytest.mark.parametrize(
    ("symbol", "basis", "says"),
    [
        ("O", "def2-spv", ["'def2-spv'", "Did you mean 'def2svp'"]),
        ("Po", "6-31g*", ["'6-31g*'", "lacks Po"]),
        ("Po", "def2-svp", ["'def2-svp'", "60 core electrons of Po", "all-electron"]),
        ("O", "gth-szv", ["'gth-szv'", "all-electron"]),
        ("O", "cc-pv5z", ["'cc-pv5z'", "l=4 (g)"]),
    ],
    ids=["unknown", "missing element", "core potential", "pseudopotential", "l above g"],
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
def test_bohr_given_as_angstrom_is_a_warning(run, tmp_path):
    z, x = "OHH", np.array([[0, 0, 0.117], [0, 0.757, -0.469], [0, -0.757, -0.469]]) * BOHR
    lines = "".join(f"{a} {r[0]} {r[1]} {r[2]}\n" for a, r in zip(z, x, strict=True))
    (tmp_path / "b.xyz").write_text(f"3\n\n{lines}")
    code, out, err = run("data", "check", "b.xyz")
    assert code == 0
    assert "1 structures" in out
    assert err.startswith("opml: warning: ")
    assert "Bohr given as Angstrom" in err
    assert err.count("\n") == 1
    assert run("data", "check", "b.xyz", "--length-unit", "bohr")[2] == ""


def test_tracebacks_are_for_debugging(run, tmp_path):
    from opml_jax.errors import DataError

    for argv in (("--debug", "data", "check", "w.xyz"), ("data", "--debug", "check", "w.xyz")):
        with pytest.raises(DataError, match="not a file"):
            run(*argv)


def test_good_input_is_no_error(run, tmp_path):
    (tmp_path / "w.xyz").write_text(WATER)
    code, out, err = run("data", "check", "w.xyz")
    assert (code, err) == (0, "")
    assert "1 structures, 3 to 3 atoms of H O" in out
    code, out, err = run("generate", "w.xyz", *GENERATE)
    assert code == 0
    assert "1 labelled, 0 found, 0 failed (hf/sto-3g)" in out
    code, out, err = run("data", "check", "out.h5")
    assert (code, err) == (0, "")
    assert "no problems found" in out
    code, out, err = run("data", "pack", "out.h5", "-o", "small.h5", "--fields", "energy,enrgy")
    _is_one_clear_line((code, out, err), ["enrgy"])
    assert not (tmp_path / "small.h5").exists()
