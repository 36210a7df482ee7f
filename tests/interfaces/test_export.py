"""Programs that need JAX alone: the same numbers in a process that has nothing else."""

import subprocess
import sys

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli.main import main
from opml_jax.errors import OpmlError
from opml_jax.interfaces.export import export_energy
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

SAME_SUMS = 1e-9  # eV, eV/A: sums in another order

RUN = """
import sys
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
path, where, out = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(path, "rb").read()))
energy, forces = program.call(np.load(where))
assert "opml_jax" not in sys.modules and "pyscf" not in sys.modules
np.savez(out, energy=energy, forces=forces)
"""


def test_a_program_runs_without_the_library(model, dataset, tmp_path, capsys):
    structures = dataset.structures[:3]
    opml.save_model(tmp_path / "m.safetensors", model)
    xyz = tmp_path / "water.xyz"
    r = [np.asarray(s.positions) * ANGSTROM_PER_BOHR for s in structures]
    lines = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip("OHH", r[0], strict=True)]
    xyz.write_text("\n".join(["3", "", *lines, ""]))
    out = tmp_path / "water.stablehlo"
    command = ["export", str(tmp_path / "m.safetensors"), str(xyz), "-o", str(out)]
    assert main([*command, "--platforms", "cpu", "cuda"]) == 0
    assert "positions (n, 3, 3) in angstrom" in capsys.readouterr().out
    np.save(tmp_path / "r.npy", np.array(r))
    paths = [str(tmp_path / name) for name in ("water.stablehlo", "r.npy", "out.npz")]
    subprocess.run([sys.executable, "-I", "-c", RUN, *paths], check=True)
    with np.load(tmp_path / "out.npz") as f:
        found = dict(f)
    wanted = model.predict(structures)
    assert np.abs(found["energy"] - wanted["energy"] * EV_PER_HARTREE).max() < SAME_SUMS
    forces = wanted["forces"] * EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    assert np.abs(found["forces"] - forces).max() < SAME_SUMS


def test_refusals(model):
    with pytest.raises(OpmlError, match="platform must be one of cpu, cuda, rocm, tpu; got 'gpu'"):
        export_energy(model, (8, 1, 1), platforms=["gpu"])
    with pytest.raises(OpmlError, match="platforms must be at least one; got none"):
        export_energy(model, (8, 1, 1), platforms=[])
    with pytest.raises(OpmlError, match="element"):
        export_energy(model, (9, 1))
