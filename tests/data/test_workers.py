"""Workers that die, parents that are killed, and a Dask cluster on this machine."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.data.generate import Outcome, generate
from opml_jax.data.reference import Method, calculate
from opml_jax.data.workers import Workers
from opml_jax.errors import Code, DataError
from opml_jax.structures import Structure

HF = Method("hf", "sto-3g", forces=False)


@pytest.fixture(scope="module")
def molecules():
    return [Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.2 + 0.1 * i]]) for i in range(8)]


def test_a_death_costs_one_call():
    with Workers(2) as workers:
        before = {workers.submit(os.getpid).result() for _ in range(6)}
        lost, others = workers.submit(os._exit, 3), [workers.submit(abs, -i) for i in range(5)]
        with pytest.raises(DataError, match="its process died") as found:
            lost.result()
        assert [f.result() for f in others] == [0, 1, 2, 3, 4]
        assert workers.submit(os.getpid).result() not in {os.getpid()}
    assert found.value.code is Code.WORKER
    assert os.getpid() not in before


def test_a_killed_worker_costs_one_geometry(tmp_path, molecules):
    path = tmp_path / "out.h5"
    with Workers(1) as workers:
        (pid,) = {workers.submit(os.getpid).result() for _ in range(2)}
        outcome = generate(
            molecules,
            path,
            HF,
            executor=workers,
            on_progress=lambda done, *_: done == 2 and os.kill(pid, signal.SIGKILL),
        )
    assert [reason for _, reason in outcome.failed] == ["its process died (out of memory?)"]
    assert outcome.done == len(molecules) - 1
    assert generate(molecules, path, HF) == Outcome(1, len(molecules) - 1, ())
    wanted = [calculate(s, HF)["energy"] for s in molecules]
    np.testing.assert_allclose(opml.read_dataset(path)["energy"], wanted, rtol=0, atol=1e-9)


ORPHAN = """
import os, time
from opml_jax.data.workers import Workers
if __name__ == "__main__":
    workers = Workers(1)
    print(workers.submit(os.getpid).result(), flush=True)
    workers.submit(time.sleep, 600).result()
"""


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as f:
        return f.read().split()[2] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "run.py").write_text(ORPHAN)
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_dask_cluster_calculates(tmp_path, molecules, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)  # not where the cluster's workers are
    (tmp_path / "h2.xyz").write_text(
        "".join(f"2\n\nH 0 0 0\nH 0 0 {0.65 + 0.05 * i}\n" for i in range(6))
    )
    command = ["generate", "h2.xyz", "--method", "hf", "--basis", "sto-3g", "-o"]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "dask"
    ) as cluster:
        assert main([*command, "dask.h5", "--scheduler", cluster.scheduler_address]) == 0
    assert "6 labelled, 0 found, 0 failed" in capsys.readouterr().out
    assert main([*command, "own.h5", "--workers", "1"]) == 0
    found, wanted = (opml.read_dataset(tmp_path / f"{n}.h5") for n in ("dask", "own"))
    for name in wanted.labels:
        for a, b in zip(found.labels[name], wanted.labels[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere"])
def test_no_scheduler_is_one_line(tmp_path, capsys, monkeypatch, address):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h2.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert distributed
        assert main(["generate", "h2.xyz", "-o", "out.h5", "--scheduler", address]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a Dask scheduler that answers" in error
    assert f"[{Code.DEVICE}]" in error
