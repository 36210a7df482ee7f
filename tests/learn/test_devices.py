"""Training on several devices and in several processes: the numbers of one.

Two processes find each other over the loopback, as ``opml train --coordinator`` starts them, each
with four devices that share its CPU; run as a script this file is one of them.
"""

import dataclasses
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ConfigError, OpmlError
from opml_jax.learn import devices as parallel
from opml_jax.learn.config import DescentConfig
from opml_jax.learn.history import read_history
from opml_jax.models.op2op import Op2OpConfig
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train

SAME = 1e-6  # atomic units
SINGLE = 2e-5  # relative: networks are single precision, and sums over devices have another order

FIT = Op2PropFit(targets=("energy", "dipole"), epochs=10, batch_size=16, ema=0.9)
MODEL = Op2PropConfig(basis="sto-3g", gram_powers=(1,), components=16, hidden=(16,), fit=FIT)
SPLITS = {"train": list(range(96)), "validation": list(range(96, 120))}


WATERS = {"train": list(range(20)), "validation": list(range(20, 30))}


def _converged_matrices(**given):
    return _matrices(cycles=(), **given)


def _matrices(cycles=(1,), **given):
    """Op2Op of a few words, with densities that might be those of cycles."""
    data = opml.read_dataset(opml.bundled("water"), limit=30)
    basis = opml.load_basis("sto-3g", [1, 8])
    overlaps = [opml.integrals.overlap(s, basis) for s in data.structures]
    kinetic = [opml.integrals.kinetic(s, basis) for s in data.structures]
    w = [opml.integrals.neutral_atom_potential(s, basis) for s in data.structures]
    fock = [np.asarray(t + 0.9 * v) for t, v in zip(kinetic, w, strict=True)]
    dm = [
        np.asarray(opml.observables.density_matrix(f, s, 10))
        for f, s in zip(fock, overlaps, strict=True)
    ]
    labels = {"fock": fock}
    for cycle in cycles:
        labels |= {f"dm_cycle_{cycle}": dm, f"fock_cycle_{cycle}": fock}
    dataset = opml.Dataset(data.structures, labels, {"method": "pbe", "basis": "sto-3g"})
    words = {"words": ("W", "W S"), "density_words": ("P", "U", "U S"), "exponents": ()}
    model = Op2OpConfig(basis="sto-3g", projection="none", **words)
    return train(dataset, WATERS, TrainConfig(model=model), **given)


def _train(fit=FIT, **given):
    dataset = opml.read_dataset(opml.bundled("water"), limit=120)
    config = TrainConfig(model=dataclasses.replace(MODEL, fit=fit))
    return train(dataset, SPLITS, config, **given)


def _processes(folder, n, devices, of="_train"):
    """Run this file in ``n`` processes of so many devices; the folder is shared."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # programs kept for one process must not be taken up by one of several
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    given = [of, folder, f"127.0.0.1:{port}", n]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, given), str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(n)
    ]
    try:
        out = [p.communicate(timeout=300)[0] for p in running]
    finally:
        for p in running:
            p.kill()
    assert not any(p.returncode for p in running), "\n".join(out)


def _rows(history):
    """Losses and errors of every epoch: of the weights on the way, which were not all kept."""
    names = ("loss", "validation_loss", "validation_dipole_rmse_debye")
    return np.array([[row[k] for k in names] for row in history])


@pytest.mark.parametrize(
    ("n", "devices"),
    [
        (2, 4),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(1, 8, marks=pytest.mark.slow),
    ],
)
def test_processes_and_devices_train_the_model_of_one(tmp_path, n, devices):
    alone = _train()
    _processes(tmp_path, n, devices)
    together = opml.load_model(tmp_path / "model.safetensors")
    test = opml.read_dataset(opml.bundled("water")).structures[200:210]
    one, several = alone.model.predict(test), together.predict(test)
    for name in ("energy", "forces", "dipole"):
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=SAME)
    # the first process alone wrote, every epoch once
    history = read_history(tmp_path / "history.jsonl")
    assert [row["epoch"] for row in history] == list(range(1, FIT.epochs + 1))
    rows = _rows(alone.history)
    np.testing.assert_allclose(_rows(history), rows, rtol=SINGLE)
    assert rows[-1, 0] < 0.95 * rows[0, 0]  # networks learned on the way


@pytest.mark.slow
@pytest.mark.parametrize("of", ["_matrices", "_converged_matrices"])
def test_rows_of_matrices_are_those_of_all_processes(tmp_path, of):
    alone = globals()[of]().model
    _processes(tmp_path, 2, 1, of)
    together = opml.load_model(tmp_path / "model.safetensors")
    test = opml.read_dataset(opml.bundled("water")).structures[200:205]
    one, several = alone.predict(test), together.predict(test)
    for name in ("fock", "mo_energy"):
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=SAME)


def test_accumulated_batches_are_one_larger_batch():
    """Of molecules of one size, so that a mean of means is the mean."""

    def rows(**settings):
        return _rows(_train(dataclasses.replace(FIT, **settings)).history)

    whole = rows(batch_size=16)
    np.testing.assert_allclose(rows(batch_size=4, accumulate=4), whole, rtol=SINGLE)
    assert np.abs(rows(batch_size=4) / whole - 1).max() > 1e-2


def test_what_does_not_fit_is_refused():
    for given in (("127.0.0.1:1", None, 0), ("127.0.0.1:1", 2, 2), ("auto", 2, 0)):
        with pytest.raises(OpmlError, match="coordinator"):
            parallel.join(*given)
    with pytest.raises(ConfigError, match="accumulate"):
        DescentConfig(accumulate=0)


def main(of, folder, coordinator, n, process):
    """One of the processes."""
    if int(n) > 1:
        parallel.join(coordinator, int(n), int(process))
    jax.config.update("jax_enable_x64", True)
    assert jax.process_count() == int(n)
    model = globals()[of](folder=folder).model
    if parallel.is_first():
        opml.save_model(os.path.join(folder, "model.safetensors"), model)
    parallel.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
