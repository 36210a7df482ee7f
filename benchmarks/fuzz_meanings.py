"""Are files understood or refused, and never misread? Random files of which the meaning is known.

    python benchmarks/fuzz_meanings.py --cases 20000 --json

Molecules with energies, forces, charges and spins are written as many programs do: extended xyz,
npz, ASE's database and trajectory; with units that the file states or that its format means, under
names of many spellings, with words in comments, blank lines, carriage returns, unknown columns,
free atoms, and sometimes with statements that contradict each other. A case is right if everything
comes back, refused if the library says so with a code, warned if what does not come back is named
in a warning, silent if it is not, and a crash if anything but ``OpmlError`` is raised. Cases are
numbered: ``--first N --cases 1`` repeats case N. ``--writers N`` starts two ``opml generate`` into
one output N times, up to three seconds apart: those that end with 0 must find all their labels in
it, and others must name the process that was first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

MOLECULES = {  # symbols, Angstrom, charge, spin
    "water": ("OHH", [[0, 0, 0.117], [0, 0.757, -0.469], [0, -0.757, -0.469]], 0, 0),
    "hydroxide": ("OH", [[0, 0, 0], [0, 0, 0.97]], -1, 0),
    "oxygen": ("OO", [[0, 0, 0], [0, 0, 1.21]], 0, 2),
    "ammonium": (
        "NHHHH",
        [
            [0, 0, 0],
            [0.59, 0.59, 0.59],
            [-0.59, -0.59, 0.59],
            [-0.59, 0.59, -0.59],
            [0.59, -0.59, -0.59],
        ],
        1,
        0,
    ),
}
NUMBERS = {"H": 1, "N": 7, "O": 8}
HARTREE = {"eV": 27.211386245981, "Hartree": 1.0, "Ha": 1.0, "kcal/mol": 627.5094740631}
BOHR = {"Angstrom": 0.529177210544, "Ang": 0.529177210544, "bohr": 1.0, "Bohr": 1.0}
CHARGES = ("charge", "total_charge", "Charge", "TOTAL_CHARGE", "net_charge")
ENERGY_UNITS = ("energy_unit", "energy_units", "e_unit")
LENGTH_UNITS = ("length_unit", "distance_unit", "pos_unit", "r_unit")
WORDS = "final energy charge T spin frame -76.4 = step: 5th forces 3)".split()


class Molecule:
    """A random molecule and what is true of it, in atomic units."""

    def __init__(self, rng: np.random.Generator, name: str):
        symbols, x, self.charge, self.spin = MOLECULES[name]
        self.symbols = symbols
        self.numbers = [NUMBERS[s] for s in symbols]
        self.positions = (np.array(x) + rng.normal(0, 0.01, (len(x), 3))) / BOHR["Angstrom"]
        atoms = {1: -0.5, 7: -54.4, 8: -74.8}
        self.energy = sum(atoms[z] for z in self.numbers) - 0.3 + rng.normal(0, 0.01)
        self.forces = rng.normal(0, 0.01, (len(x), 3))


def stated(rng: np.random.Generator, m: Molecule) -> dict[str, object]:
    """Keys that say charge and spin, right ones or, seldom, wrong ones."""
    keys: dict[str, object] = {}
    if m.charge or rng.random() < 0.5:
        keys[str(rng.choice(CHARGES))] = m.charge if rng.random() > 0.03 else m.charge + 0.5
    if m.spin or rng.random() < 0.4:
        kind = rng.integers(3)
        keys[("multiplicity", "spin", "spin_multiplicity")[kind]] = int(m.spin + (kind != 1))
    if rng.random() < 0.05:
        keys["total_charge"] = m.charge + 1  # contradicts, if another key says it
    return keys


def xyz(rng: np.random.Generator, molecules: list[Molecule], folder: Path) -> Path:
    """Extended xyz, written by hand."""
    energy, length = rng.choice([*HARTREE]), rng.choice([*BOHR])
    declared = rng.random() < 0.6
    if not declared:
        energy, length = "eV", "Angstrom"
    names = (str(rng.choice(ENERGY_UNITS)), str(rng.choice(LENGTH_UNITS)))
    prefix = "REF_" if rng.random() < 0.3 else ""
    newline = "\r\n" if rng.random() < 0.2 else "\n"
    lines: list[str] = []
    for m in molecules:
        keys = {f"{prefix}energy": f"{m.energy * HARTREE[energy]:.10f}", **stated(rng, m)}
        if declared:
            keys |= dict(zip(names, (energy, length), strict=True))
        column = (
            f"{prefix}forces" if rng.random() > 0.05 else str(rng.choice(["force", "gradient"]))
        )
        keys["Properties"] = f"species:S:1:pos:R:3:{column}:R:3"
        gap = " = " if rng.random() < 0.1 else "="
        parts = [f"{k}{gap}{v}" for k, v in keys.items()]
        for _ in range(rng.integers(4) if rng.random() < 0.5 else 0):
            parts.insert(int(rng.integers(len(parts) + 1)), str(rng.choice(WORDS)))
        if rng.random() < 0.3:
            lines += [" " * int(rng.integers(3))] * int(rng.integers(1, 3))
        lines += [str(len(m.symbols)), " ".join(parts)]
        x, f = m.positions * BOHR[length], m.forces * HARTREE[energy] / BOHR[length]
        rows = zip(m.symbols, x, f, strict=True)
        lines += [f"{s} " + " ".join(f"{v:.10f}" for v in (*r, *g)) for s, r, g in rows]
    if rng.random() < 0.05:
        lines.insert(
            int(rng.integers(len(lines) + 1)), str(rng.choice(["end", "2", "# 3", "H 0 0 0"]))
        )
    path = folder / str(rng.choice(["a.xyz", "a.extxyz", "A.XYZ", "a@1.xyz"]))
    path.write_bytes((newline.join(lines) + newline).encode())
    return path


def npz(rng: np.random.Generator, molecules: list[Molecule], folder: Path) -> Path:
    """npz as MD17's and sGDML's: one molecule, many geometries."""
    of_one = [m for m in molecules if m.symbols == molecules[0].symbols]
    molecules[:] = of_one
    units: dict[str, str] = {}
    energy, length = "kcal/mol", "Angstrom"
    if rng.random() < 0.6:
        energy, length = str(rng.choice([*HARTREE])), str(rng.choice([*BOHR]))
        units = {"e_unit": energy, "r_unit": length}
    m, keys = of_one[0], stated(rng, of_one[0])
    arrays = {
        "z": m.numbers,
        "R": np.array([m.positions for m in of_one]) * BOHR[length],
        "E": np.array([m.energy for m in of_one]) * HARTREE[energy],
        "F": np.array([m.forces for m in of_one]) * HARTREE[energy] / BOHR[length],
    }
    whole = {k: np.full(len(of_one), v) if rng.random() < 0.5 else v for k, v in keys.items()}
    np.savez(folder / "a.npz", **arrays, **units, **whole)
    return folder / "a.npz"


def ase_files(rng: np.random.Generator, molecules: list[Molecule], folder: Path) -> Path:
    """Database and trajectory of ASE, in its units."""
    import ase.db
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    frames, keys = [], []
    for m in molecules:
        atoms = ase.Atoms(m.symbols, m.positions * BOHR["Ang"])
        keys.append(stated(rng, m))
        if rng.random() < 0.3:
            first = np.arange(len(atoms)) == 0
            keys[-1] = {}
            atoms.set_initial_charges(first * m.charge)
            atoms.set_initial_magnetic_moments(first * m.spin)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=m.energy * HARTREE["eV"],
            forces=m.forces * HARTREE["eV"] / BOHR["Ang"],
        )
        frames.append(atoms)
    if rng.random() < 0.5:
        with ase.db.connect(folder / "a.db") as db:
            for atoms, own in zip(frames, keys, strict=True):
                db.write(atoms, data=own)
        return folder / "a.db"
    for atoms, own in zip(frames, keys, strict=True):
        atoms.info.update(own)
    ase.io.write(folder / "a.traj", frames)
    return folder / "a.traj"


def differences(molecules: list[Molecule], data) -> list[str]:
    """What of the truth did not come back."""
    if len(data) != len(molecules):
        return [f"{len(data)} of {len(molecules)} structures"]
    found = []
    for i, (m, s) in enumerate(zip(molecules, data.structures, strict=True)):
        if (s.charge, s.spin) != (m.charge, m.spin):
            found.append(f"charge and spin {s.charge}, {s.spin} of {m.charge}, {m.spin}")
        if not np.allclose(s.positions, m.positions, rtol=0, atol=1e-6):
            found.append("positions")
        for name in ("energy", "forces"):
            if name not in data:
                found.append(f"no {name}")
            elif not np.allclose(data.labels[name][i], getattr(m, name), rtol=0, atol=1e-6):
                found.append(name)
    return found


def case(number: int) -> tuple[str, str]:
    """How a case ends, and what is wrong with it."""
    import opml_jax as opml
    from opml_jax.errors import DataWarning, OpmlError

    rng = np.random.default_rng(number)
    molecules = [Molecule(rng, str(rng.choice([*MOLECULES]))) for _ in range(rng.integers(1, 5))]
    make = (xyz, xyz, npz, ase_files)[number % 4]
    with tempfile.TemporaryDirectory() as folder:
        path = make(rng, molecules, Path(folder))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                data = opml.read_dataset(path)
            except OpmlError as err:
                return str(err.code), ""
            except Exception as err:  # what is looked for
                return "crash", f"{type(err).__name__}: {err}"
    wrong = differences(molecules, data)
    if not wrong:
        return "right", ""
    named = any(issubclass(w.category, DataWarning) for w in caught)
    return ("warned" if named else "silent"), "; ".join(wrong[:3])


def two_writers(number: int) -> str:
    """How two processes end that write one output; empty if nothing is lost."""
    import opml_jax as opml

    wait = float(np.random.default_rng(number).uniform(0, 3))
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for first in (0, 4):
            path = Path(folder, f"{first}.xyz")
            path.write_text(
                "".join(f"2\n\nH 0 0 0\nH 0 0 {0.7 + 0.01 * (first + i)}\n" for i in range(6))
            )
            command = [sys.executable, "-m", "opml_jax.cli", "generate", str(path)]
            command += ["-o", f"{folder}/o.h5", "--method", "hf", "--basis", "sto-3g", "--workers"]
            running.append(subprocess.Popen([*command, "1"], stderr=subprocess.PIPE, text=True))
            time.sleep(wait * (first == 0))
        ends = [(process.communicate()[1], process.returncode) for process in running]
        stored = opml.read_dataset(f"{folder}/o.h5")
        lengths = {round(float(s.positions[1, 2]) * BOHR["Ang"], 3) for s in stored.structures}
    for first, (text, code) in zip((0, 4), ends, strict=True):
        wanted = {round(0.7 + 0.01 * (first + i), 3) for i in range(6)}
        if code == 0 and not wanted <= lengths:
            return f"{len(wanted - lengths)} labels lost"
        if code and "OPML-803" not in text:
            return f"exit {code}: {text[:200]}"
    return ""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--writers", type=int, default=0, help="pairs of processes")
    parser.add_argument("--json", action="store_true", help="append a line to results")
    args = parser.parse_args()
    from environment import record

    ends: Counter[str] = Counter()
    bad = []
    for number in range(args.first, args.first + args.cases):
        end, wrong = case(number)
        ends[end] += 1
        if end in ("silent", "crash"):
            bad.append({"case": number, "end": end, "what": wrong[:300]})
    for number in range(args.writers):
        if lost := two_writers(number):
            bad.append({"writers": number, "what": lost})
    ends["pairs of writers"] = args.writers
    result = {"first": args.first, "cases": args.cases, "ends": dict(ends), "bad": bad}
    record(result, "fuzz_meanings", args.json)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
