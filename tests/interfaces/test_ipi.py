"""A model behind a socket, for i-PI and whatever else speaks its protocol."""

import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.io import read, write
from ase.md.verlet import VelocityVerlet

from opml_jax.interfaces.ase import OPMLCalculator, structure_to_ase

SAME_MOTION = 1e-6  # Angstrom, in 20 steps: constants of the codes differ in the ninth digit
TEN_DIGITS = 1e-9  # relative: what text files and different constants leave

INPUT = """
<simulation verbosity='quiet'>
  <output prefix='water'>
    <trajectory filename='at' stride='1' flush='1'>positions{{angstrom}}</trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket mode='unix' name='model' pbc='False'><address>{socket}</address></ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='xyz' units='angstrom'>start.xyz</file>
      <masses mode='manual' units='dalton'>{masses}</masses>
      <velocities mode='manual' units='atomic_unit'>{velocities}</velocities>
    </initialize>
    <forces><force forcefield='model'></force></forces>
    <motion mode='dynamics'>
      <fixcom>False</fixcom>
      <dynamics mode='nve'><timestep units='femtosecond'>0.25</timestep></dynamics>
    </motion>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
  </system>
</simulation>
"""


@pytest.fixture
def socket():
    name = f"opml-{uuid.uuid4().hex[:8]}"
    yield name
    Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)  # where the protocol's servers put it


def serve(atoms, socket):
    """What a user runs beside the server, once it is there."""
    for _ in range(300):
        if Path(f"/tmp/ipi_{socket}").exists():
            break
        time.sleep(0.1)
    SocketClient(unixsocket=socket, timeout=60).run(atoms)


def test_a_server_gets_the_models_forces(dataset, model, socket):
    server, client = (structure_to_ase(dataset.structures[3]) for _ in range(2))
    client.calc = OPMLCalculator(model)
    with SocketIOCalculator(unixsocket=socket, timeout=60) as behind:
        server.calc = behind
        other = client.copy()
        other.calc = client.calc
        thread = threading.Thread(target=serve, args=(other, socket), daemon=True)
        thread.start()
        for shift in (0.0, 0.01):
            server.positions[1, 2] += shift
            client.positions[1, 2] += shift
            energy = client.get_potential_energy()
            assert server.get_potential_energy() == pytest.approx(energy, rel=TEN_DIGITS)
            np.testing.assert_allclose(server.get_forces(), client.get_forces(), atol=TEN_DIGITS)
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_dynamics_of_i_pi(dataset, model, socket, tmp_path):
    """The trajectory of i-PI is that of ASE's velocity Verlet."""
    pytest.importorskip("ipi")
    program = shutil.which("i-pi", path=str(Path(sys.executable).parent))
    atoms = structure_to_ase(dataset.structures[3])
    atoms.calc = OPMLCalculator(model)
    velocities = np.random.default_rng(0).normal(0, 3e-4, (3, 3))  # atomic units: some 300 K
    write(tmp_path / "start.xyz", atoms, plain=True, comment="CELL(abcABC): 50 50 50 90 90 90")
    numbers = {"masses": atoms.get_masses().tolist(), "velocities": velocities.ravel().tolist()}
    (tmp_path / "input.xml").write_text(INPUT.format(steps=20, socket=socket, **numbers))
    served = atoms.copy()
    served.calc = atoms.calc
    with subprocess.Popen([program, "input.xml"], cwd=tmp_path) as process:
        try:
            serve(served, socket)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    found = [frame.positions for frame in read(tmp_path / "water.at_0.xyz", ":")]

    wanted = []
    atoms.set_velocities(velocities * units.Bohr / (units._aut * units.s))
    motion = VelocityVerlet(atoms, 0.25 * units.fs)
    motion.attach(lambda: wanted.append(atoms.positions.copy()))
    motion.run(20)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME_MOTION)
    assert np.abs(found[-1] - found[0]).max() > 0.01
