"""One writer at a time, with real processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import opml_jax
from opml_jax.cli import main
from opml_jax.data import bundled, read_dataset
from opml_jax.data.files import locked
from opml_jax.data.generate import generate
from opml_jax.data.reference import Method
from opml_jax.data.shards import merge
from opml_jax.errors import Code, OpmlError
from opml_jax.structures import Structure

HOLD = """
import sys
from opml_jax.data.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
HYDROGEN = Structure([1, 1], [[0, 0, 0], [0, 0, 1.4]])


@pytest.fixture
def holder():
    """Start a process that holds a lock until it is told to end; all have ended afterwards."""
    started = []

    def start(output):
        command = [sys.executable, "-c", HOLD, str(output)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize("folder", [True, False])
def test_the_second_is_refused_and_told_of_the_first(tmp_path, holder, folder):
    output = tmp_path if folder else tmp_path / "out.h5"
    process = holder(output)
    with pytest.raises(OpmlError, match=f"{process.pid} on {socket.gethostname()}") as caught:
        locked(output).__enter__()
    assert caught.value.code is Code.BUSY
    with locked(tmp_path / "other.h5"):
        pass
    process.communicate()  # ends
    assert os.listdir(tmp_path) == []
    with locked(output):
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    process = holder(tmp_path / "out.h5")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) == [".out.h5.lock"]
    with locked(tmp_path / "out.h5"):
        pass
    assert os.listdir(tmp_path) == []


def test_writers_of_labels(tmp_path, holder):
    """What is there stays as it is while another process writes."""
    output = tmp_path / "out.h5"
    generate([HYDROGEN], output, Method("hf", "sto-3g"))
    before = output.read_bytes()
    process = holder(output)
    more = [HYDROGEN.replace(positions=1.1 * HYDROGEN.positions)]
    for call in (
        lambda: generate(more, output, Method("hf", "sto-3g")),
        lambda: merge([output], output),
    ):
        with pytest.raises(OpmlError, match=f"process {process.pid}"):
            call()
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".out.h5.lock", "out.h5"]
    process.communicate()
    generate(more, output, Method("hf", "sto-3g"))
    assert os.listdir(tmp_path) == ["out.h5"]


LABEL = """
import sys
from opml_jax.data.generate import generate
from opml_jax.data.reference import Method
from opml_jax.structures import Structure
structures = [Structure([1, 1], [[0, 0, 0], [0, 0, 1.2 + 0.1 * i]]) for i in range(6)]
generate(structures, sys.argv[1], Method("hf", "6-31g"))
"""


def test_two_at_once_lose_no_label(tmp_path):
    """Of two that start together one works; the other comes after it, or says why not."""
    command = [sys.executable, "-c", LABEL, str(tmp_path / "out.h5")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "OPML-803" in error
    assert not main(["data", "verify", str(tmp_path / "out.h5")])
    assert len(read_dataset(tmp_path / "out.h5")) == 6
    assert os.listdir(tmp_path) == ["out.h5"]


def test_run_directories(tmp_path, holder, capsys):
    config, run = tmp_path / "train.yaml", tmp_path / "run"
    config.write_text("data: {path: 'bundled:water', n_train: 10, n_validation: 5}\n")
    run.mkdir()
    process = holder(run)
    assert main(["train", str(config), "-o", str(run)]) == 2
    assert f"process {process.pid}" in capsys.readouterr().err
    assert main(["quickstart", "--out", str(run)]) == 2
    assert f"process {process.pid}" in capsys.readouterr().err
    assert os.listdir(run) == [".lock"]


def test_trajectories(tmp_path, holder, capsys):
    process = holder(tmp_path / "t.h5")
    start = bundled("water", ".xyz")
    model = str(Path(opml_jax.__file__).parent / "models/pretrained/water.safetensors")
    assert main(["md", model, str(start), "-o", str(tmp_path / "t.h5"), "--steps", "4"]) == 2
    assert f"process {process.pid}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [".t.h5.lock"]
