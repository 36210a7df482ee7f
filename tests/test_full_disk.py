"""A disk that fills up: one line, nothing finished lost, and the same command goes on."""

import os
import subprocess
import sys

import pytest

import opml_jax as opml
from opml_jax.dynamics import Trajectory

OPML = [sys.executable, "-m", "opml_jax.cli"]
TRAINING = """
data: {n_train: 20, n_validation: 10, n_test: 0}
model: {basis: sto-3g, powers: [1], gram_powers: [1], hidden: [8]}
targets: [energy, forces]
optim: {epochs: 40, batch_size: 4}
"""


def _water():
    found = opml.read_dataset(opml.bundled("water")).structures[:20]
    frames = []
    for s in found:
        rows = zip("OHH", s.positions * opml.units.ANGSTROM_PER_BOHR, strict=True)
        frames.append("3\n\n" + "".join(f"{z} {x} {y} {w}\n" for z, (x, y, w) in rows))
    return frames


@pytest.fixture
def disk(tmp_path):
    """A folder, and a function that sets the size of the disk it is on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("disks of a chosen size need the right to mount them")

    def resize(size):
        command = ["mount", "-o", f"remount,size={size}", str(folder)]
        subprocess.run(command, check=True)

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _refused(command):
    done = subprocess.run([*OPML, *command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("opml: error: ")
    assert "No space left" in last
    assert last.endswith("[OPML-801]")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_commands_go_on(disk, tmp_path):
    folder, resize = disk
    frames = _water()
    (tmp_path / "w.xyz").write_text("".join(frames))
    (tmp_path / "one.xyz").write_text(frames[0])
    (tmp_path / "c.yaml").write_text(TRAINING)
    out, parts, run = folder / "out.h5", folder / "out.h5.parts", folder / "run"
    generate = ["generate", tmp_path / "w.xyz", "-o", out, "--method", "hf", "--basis", "6-31g"]

    _refused(generate)  # while it writes labels
    finished = len(list(parts.glob("*.npz")))
    assert 0 < finished < len(frames)
    pages = -(-max(p.stat().st_size for p in parts.iterdir()) // 4096)
    resize(4096 * (pages * len(frames) + 2))
    _refused(generate)  # while it joins them
    assert len(list(parts.glob("*.npz"))) == len(frames)
    assert not out.exists()
    resize("2m")
    subprocess.run([*OPML, *generate], check=True)
    assert len(opml.read_dataset(out)) == len(frames)
    out.unlink()

    train = ["train", tmp_path / "c.yaml", "-o", run]
    resize("60k")
    _refused(train)
    resize("4m")
    subprocess.run([*OPML, *train], check=True)
    assert opml.load_model(run).elements

    path = folder / "md.h5"
    md = ["md", run, tmp_path / "one.xyz", "-o", path, "--steps", "20000", "--stride", "2"]
    used = int(subprocess.run(["du", "-sk", folder], capture_output=True).stdout.split()[0])
    resize(f"{used + 200}k")
    _refused(md)
    assert list(folder.glob("md.h5.parts/*.npz"))
    resize("60m")
    subprocess.run([*OPML, *md], check=True)
    assert len(Trajectory.read(path)["step"]) == 10_001
