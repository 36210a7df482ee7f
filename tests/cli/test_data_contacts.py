"""``opml data contacts``: bonds of a training file, and what of another file to label for them."""

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.structures.contacts import closest_pairs, lacking_bonds
from opml_jax.units import ANGSTROM_PER_BOHR

WRITTEN = 2e-8  # Bohr: eight decimals of Angstrom

TRAINING = ("H2O", "NH3", "CH4", "HCN", "H3CNH2", "CH3OH", "H2CO")
OTHERS = ("CH4", "H2O2", "N2", "C2H6", "CH3CHO", "C2H2")


@pytest.fixture
def files(tmp_path):
    """Geometries without labels; HCN and NH3 side by side have nitrogens that are not bonded."""
    frames = [molecule(name) for name in TRAINING]
    apart = frames[3] + frames[1]
    apart.positions[3:] += [0, 0, 3.2]
    ase.io.write(tmp_path / "train.xyz", [*frames, apart])
    ase.io.write(tmp_path / "new.xyz", [molecule(n) for n in OTHERS])
    return tuple(str(tmp_path / f"{name}.xyz") for name in ("train", "new", "label"))


def test_bonds_of_a_file(files, capsys):
    train = files[0]
    assert main(["data", "contacts", train]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{train}: 8 structures of H C N O"
    named = dict(line.split(": ", 1) for line in lines[1:])
    assert len(named) == 10  # every pair of four elements
    shortest = molecule("HCN").get_distance(0, 1), molecule("H3CNH2").get_distance(0, 1)
    assert named["C-N"] == f"bonded in 3 structures, {shortest[0]:.2f} to {shortest[1]:.2f} A"
    distance = closest_pairs(opml.read_structures(train))["N-N"] * ANGSTROM_PER_BOHR
    assert named["N-N"] == f"never bonded; closest {distance:.2f} A"
    assert named["N-O"] == named["C-C"] == "never in one structure"


def test_what_to_label(files, capsys):
    """Acetaldehyde has the bond of ethane too, ethyne's is another; then nothing is lacking."""
    train, new, out = files
    assert main(["data", "contacts", train, "--against", new, "-o", out]) == 0
    *_, first, carbon, nitrogen, oxygen, chosen, written = capsys.readouterr().out.splitlines()
    assert first == f"{new}: 5 of 6 structures have bonds that {train} lacks"
    assert re.fullmatch(r"C-C at 1\.2\d A \(training: never\) in 3, 4, 5", carbon)
    assert re.fullmatch(r"N-N at 1\.1\d A \(training: 2\.65 A\) in 2", nitrogen)
    assert re.fullmatch(r"O-O at 1\.4\d A \(training: never\) in 1", oxygen)
    assert chosen == "to label: 4, 2, 1, 5"
    assert written == f"{out}: 4 structures"
    label, others = opml.read_structures(out), opml.read_structures(new)
    for structure, i in zip(label, (4, 2, 1, 5), strict=True):
        assert structure.numbers == others[i].numbers
        assert np.abs(structure.positions - others[i].positions).max() < WRITTEN
    together = closest_pairs([*opml.read_structures(train), *label])
    assert not any(lacking_bonds(s, together) for s in others)


def test_what_has_nothing_new_is_not_written(files, capsys):
    train, _, out = files
    assert main(["data", "contacts", train, "--against", train, "-o", out]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"{train}: none of 8 structures has a bond that {train} lacks"
    assert not Path(out).exists()


def test_data_sets_and_ions_are_read(files, tmp_path, capsys):
    """Of a data set the geometries; a charge is written as it was read."""
    atoms = molecule("N2H4")
    atoms.info["charge"] = 2
    ase.io.write(tmp_path / "ion.xyz", atoms, format="extxyz")
    ion, out = str(tmp_path / "ion.xyz"), files[2]
    waters = str(opml.bundled("water"))
    assert main(["data", "contacts", waters, "--against", ion, "-o", out]) == 0
    assert "H-O: bonded in 500 structures" in capsys.readouterr().out
    assert opml.read_structures(out)[0].charge == 2


@pytest.mark.parametrize("given", ["-o {out}", "--against {new} -o {out}.h5"])
def test_files_that_cannot_be_meant_are_refused(files, capsys, given):
    train, new, out = files
    words = given.format(new=new, out=out).split()
    assert main(["data", "contacts", train, *words]) == 2
    error = capsys.readouterr().err
    assert "--output must be" in error
    assert not Path(out).exists()
