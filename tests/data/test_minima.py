"""Relaxations and force constants by PySCF: killed, gone on with, refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.data.minima import Journal, hessian, relax
from opml_jax.data.reference import Method, converge, mean_field
from opml_jax.errors import Code, DataError
from opml_jax.structures import Structure

HF = Method("hf", "sto-3g", forces=False)
WATER = "3\n\nO 0 0 0.1\nH 0 0.8 -0.5\nH 0 -0.75 -0.45\n"
SAME = 1e-6
"""Hartree/Bohr^2: response equations of few atoms at a time are solved to 1e-9 or better."""


def test_each_step_is_kept_and_taken_from_there(tmp_path, water):
    path, steps, again = tmp_path / "m.npz", [], []
    minimum = relax(water, HF, journal=Journal(path, water, HF), on_step=lambda *x: steps.append(x))
    assert [n for n, *_ in steps] == list(range(1, len(steps) + 1))
    energies, forces = np.array(steps)[:, 1:].T
    assert energies[-1] < energies[0]
    assert forces[-1] < 1e-5
    relaxed = relax(water, HF, journal=Journal(path, water, HF), on_step=again.append)
    assert again == []
    np.testing.assert_array_equal(relaxed.positions, minimum.positions)


def test_scf_begins_with_the_density_of_the_step_before(water):
    """Fewer cycles than from PySCF's guess, to the same energy."""
    moved = water.replace(positions=1.01 * np.asarray(water.positions))
    fresh, after = (converge(mean_field(s, HF))[0] for s in (moved, water))
    guessed, _ = converge(mean_field(moved, HF), after.make_rdm1())
    assert guessed.cycles < fresh.cycles
    assert guessed.e_tot == pytest.approx(fresh.e_tot, abs=1e-9)  # converged to 1e-10


@pytest.mark.parametrize(
    "method",
    [HF, Method("pbe", "sto-3g", 1), Method("pbe", "sto-3g", 1, density_fit=True)],
    ids=str,
)
def test_force_constants_atom_by_atom_are_pyscfs(monkeypatch, tmp_path, water, method):
    wanted = converge(mean_field(water, method))[0].Hessian().kernel()
    wanted = wanted.transpose(0, 2, 1, 3).reshape(9, 9)
    monkeypatch.setattr("opml_jax.data.minima.AT_ONCE", 2)
    calls, path = [], tmp_path / "h.npz"
    found = hessian(
        water,
        method,
        journal=Journal(path, water, method),
        on_progress=lambda *x: calls.append(x),
    )
    assert calls == [(0, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME)
    np.testing.assert_allclose(hessian(water, method), wanted, rtol=0, atol=SAME)


def test_force_constants_go_on(monkeypatch, tmp_path, water):
    """From a kill between two groups of atoms: what was solved is not solved again."""
    monkeypatch.setattr("opml_jax.data.minima.AT_ONCE", 1)
    path = tmp_path / "h.npz"

    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        hessian(water, HF, journal=Journal(path, water, HF), on_progress=kill)
    half = Journal(path, water, HF).arrays
    assert {"fixed", "response_0", "response_1"} <= half.keys()
    assert "response_2" not in half
    found = hessian(water, HF, journal=Journal(path, water, HF))
    np.testing.assert_allclose(found, hessian(water, HF), rtol=0, atol=SAME)
    left = Journal(path, water, HF).arrays
    assert "hessian" in left
    assert "response_0" not in left


def test_steps_of_something_else_are_refused(tmp_path, water):
    path = tmp_path / "m.npz"
    Journal(path, water, HF).keep(x=[])
    other = Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    for structure, method in (
        (other, HF),
        (water.replace(positions=water.positions + 1e-12), HF),
        (water, Method("hf", "6-31g", forces=False)),
    ):
        with pytest.raises(DataError, match="geometry or level of theory") as caught:
            Journal(path, structure, method)
        assert caught.value.code is Code.OTHER_RUN
    assert Journal(path, water, Method("hf", "sto-3g", max_cycle=99))["x"].shape == (0,)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="Delete it") as caught:
        Journal(path, water, HF)
    assert caught.value.code is Code.DAMAGED


def _command(output, n=3):
    level = ["--method", "pbe", "--basis", "6-31g", "--grid-level", "1", "--workers", "1"]
    return ["generate", "w.xyz", "-o", output, *level, "--no-forces", "--sample", str(n)]


@pytest.mark.slow
def test_sigkill_half_way_gives_the_same_geometries(tmp_path, monkeypatch, capsys):
    """A process killed while it relaxes, then the same command; and one that was never killed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.xyz").write_text(WATER)
    state = tmp_path / "killed.h5.minimum.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order
    process = subprocess.Popen(
        [sys.executable, "-m", "opml_jax", *_command("killed.h5")],
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while _steps(state) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = _steps(state)
    assert not (tmp_path / "killed.h5").exists()
    other = [*_command("killed.h5")]
    other[other.index("6-31g")] = "sto-3g"
    assert main(other) == 2
    assert "OPML-601" in capsys.readouterr().err
    found = []
    for name in ("killed.h5", "whole.h5"):
        command = [sys.executable, "-m", "opml_jax", *_command(name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found.append([x for x in done.stderr.splitlines() if x.startswith("step ")])
    assert found[1][kept:] == found[0]
    assert found[0][-1].startswith("step ")
    assert "largest force" in found[0][-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.h5", "w.xyz", "whole.h5"]
    killed, whole = (opml.read_dataset(tmp_path / f"{n}.h5") for n in ("killed", "whole"))
    for a, b in zip(killed.structures, whole.structures, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    # more of them begin with those, and relax nothing
    assert main(_command("killed.h5", 4)) == 0
    printed = capsys.readouterr()
    assert "1 labelled, 3 found" in printed.out
    assert "step 1:" not in printed.err
    more = opml.read_dataset(tmp_path / "killed.h5")
    np.testing.assert_array_equal(more.structures[2].positions, whole.structures[2].positions)
    assert json.dumps(more.meta["sampling"]) == json.dumps(whole.meta["sampling"])


def _steps(path):
    try:
        with np.load(path) as file:
            return len(file["energy"])
    except FileNotFoundError:
        return 0
