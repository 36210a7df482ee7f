"""``opml train``: killed and started again, another configuration, templates, uncertainty."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.cli.runs import train_run
from opml_jax.data.store import write_hdf5
from opml_jax.learn.calibration import WITHIN
from opml_jax.learn.history import read_history
from opml_jax.models import load_model
from opml_jax.training import load_config

# energies in a small basis: little to compile
CONFIG = """
data: {n_train: 20, n_validation: 10, n_test: 0}
model:
  basis: sto-3g
  powers: [1]
  gram_powers: [1]
  hidden: [8]
  members: 2
  fit: {targets: [energy], epochs: 400, batch_size: 4}
"""


def _tensors(run):
    return jax.tree.leaves(load_model(run).params)


def _refused(capsys, arguments, *says):
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("opml: error: ")
    assert error.count("\n") == 1
    for words in says:
        assert words in error


def test_sigkill_costs_no_bit(tmp_path, capsys):
    """The real thing: a process killed without warning, then the same command again."""
    path, run, whole = tmp_path / "c.yaml", tmp_path / "run", tmp_path / "whole"
    path.write_text(CONFIG)
    command = [sys.executable, "-m", "opml_jax.cli", "train", str(path), "-o", str(run)]
    command.append("--tensorboard")
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (run / "state/network.npz").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    rows = read_history(run / "history.jsonl")
    assert len(rows) >= 1
    assert rows[-1].keys() >= {"epoch", "loss", "validation_energy_rmse_mev"}
    assert not (run / "model.safetensors").exists()
    assert any(f.name.startswith("events.out") for f in (run / "tensorboard").iterdir())

    # another configuration in the same directory
    other = ["train", path, "-o", run, "--set", "seed=1", "--set", "model.hidden=[9]"]
    _refused(capsys, other, "seed 0 (not 1)", "model.hidden [8] (not [9])", "--restart")

    config = load_config(path)
    trained = train_run(config, str(run))[0]
    assert [r["epoch"] for r in trained.history] == list(range(1, 401))
    assert trained.history == read_history(run / "history.jsonl")
    train_run(config, str(whole))
    assert trained.history == read_history(whole / "history.jsonl")
    for a, b in zip(_tensors(run), _tensors(whole), strict=True):
        np.testing.assert_array_equal(a, b)


class _Ensemble:
    """Stands for a model with an ensemble: what it predicts is known."""

    definition = None  # nothing of it is in a file of energies

    def predict(self, structures, *, uncertainty):
        n, atoms = len(structures), max(s.n_atoms for s in structures)
        found = {"energy": np.arange(n) - 1.0, "forces": np.ones((n, atoms, 3))}
        found |= {"n_atoms": np.array([s.n_atoms for s in structures])}
        if uncertainty:
            found["energy_uncertainty"] = np.full(n, 0.25)
            found["forces_uncertainty"] = np.full((n, atoms, 3), 0.5)
        return found


@pytest.mark.parametrize("uncertainty", [False, True])
def test_predictions_with_uncertainty(tmp_path, monkeypatch, uncertainty):
    from ase.io import read
    from ase.units import Bohr, Hartree

    monkeypatch.setattr("opml_jax.models.load_model", lambda path: _Ensemble())
    (tmp_path / "m.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.74\n3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    for name in ("p.extxyz", "p.h5"):
        options = ["--uncertainty"] * uncertainty
        command = ["predict", "run", str(tmp_path / "m.xyz"), "-o", str(tmp_path / name)]
        assert main([*command, *options]) == 0
    stored, frames = opml.read_dataset(tmp_path / "p.h5"), read(tmp_path / "p.extxyz", ":")
    assert stored["energy"].tolist() == [-1.0, 0.0]
    assert [f.shape for f in stored["forces"]] == [(2, 3), (3, 3)]
    assert ("energy_uncertainty" in stored) == uncertainty
    assert ("opml_forces_uncertainty" in frames[0].arrays) == uncertainty
    if uncertainty:
        assert frames[1].info["opml_energy_uncertainty"] == pytest.approx(0.25 * Hartree, rel=1e-6)
        own = frames[0].arrays["opml_forces_uncertainty"]
        np.testing.assert_allclose(own, 0.5 * Hartree / Bohr, rtol=1e-6)
        assert stored["forces_uncertainty"][1].tolist() == [[0.5] * 3] * 3


@pytest.mark.slow
def test_standard_deviations_are_judged(tmp_path, capsys):
    """By molecules that neither trained nor scaled them, in metrics and in a picture."""
    path, run = tmp_path / "c.yaml", tmp_path / "run"
    path.write_text(CONFIG)
    sizes = ("data.n_calibration=30", "data.n_test=40", "model.fit.epochs=0")
    more = ("model.members=1", "model.last_layer=true")
    options = [x for setting in (*sizes, *more) for x in ("--set", setting)]
    assert not main(["train", str(path), "-o", str(run), *options])
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["test"]["energy_within_sigma_percent"] <= 100
    assert "energy_within_sigma_percent" not in metrics["calibration"]
    assert "<h2>Standard deviations</h2>" in (run / "report.html").read_text()
    assert len(json.loads((run / "splits.json").read_text())["calibration"]) == 30
    model = load_model(run)
    part = opml.read_dataset(opml.bundled("water")).subset(
        json.loads((run / "splits.json").read_text())["calibration"]
    )
    found = model.predict(part.structures, uncertainty=True)
    within = np.abs(found["energy"] - part["energy"]) < found["energy_uncertainty"]
    assert within.mean() == pytest.approx(WITHIN, abs=1 / 30)
    assert "scaled on the calibration set" in (run / "card.md").read_text()
    assert len(model.card["data_hash"]) == 16
    assert model.card["data_hash"] in (run / "card.md").read_text()


def test_a_finished_run_and_what_it_was_not_trained_on(tmp_path, capsys):
    """Another file at the path of its data, and molecules of another charge."""
    path, run, file = tmp_path / "c.yaml", tmp_path / "run", tmp_path / "water.h5"
    path.write_text(CONFIG)
    water = opml.read_dataset(opml.bundled("water"), limit=40)
    write_hdf5(file, water)
    settings = (f"data.path={file}", "model.fit.epochs=0", "model.members=1")
    command = ["train", str(path), "-o", str(run)]
    command += [x for setting in settings for x in ("--set", setting)]
    assert main(command) == 0
    assert (
        "Molecules of the elements above with charge 0 and spin 0" in (run / "card.md").read_text()
    )
    capsys.readouterr()
    assert main(command) == 0
    assert "complete" in capsys.readouterr().out

    shifted = {**water.labels, "energy": np.asarray(water["energy"]) + 1e-3}
    write_hdf5(file, opml.Dataset(water.structures, shifted, water.meta))
    _refused(capsys, command, str(file), "OPML-601", "--restart")
    write_hdf5(file, water)
    assert main(command) == 0

    xyz = tmp_path / "w.xyz"
    xyz.write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    predict = ["predict", run, xyz, "-o", tmp_path / "p.extxyz", "--charge"]
    capsys.readouterr()
    _refused(capsys, [*predict, 2], "charge 0, spin 0, as in training", "OPML-106")


@pytest.mark.slow
def test_an_ensemble_from_training_to_predictions(tmp_path, capsys):
    path, run = tmp_path / "c.yaml", str(tmp_path / "run")
    path.write_text(CONFIG)
    assert main(["train", str(path), "-o", run, "--set", "model.fit.epochs=5", "--curve"]) == 0
    assert "history.jsonl" in capsys.readouterr().out
    found = [r["n_train"] for r in read_history(tmp_path / "run" / "learning_curve.jsonl")]
    assert found == [10, 20]
    assert main(["evaluate", run, "bundled:water", "--split", "validation"]) == 0
    assert "validation (model)" in capsys.readouterr().out
    (tmp_path / "w.xyz").write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    command = ["predict", run, str(tmp_path / "w.xyz"), "-o", str(tmp_path / "p.h5")]
    assert main([*command, "--uncertainty"]) == 0
    stored = opml.read_dataset(tmp_path / "p.h5")
    assert stored["energy_uncertainty"][0] > 0
    assert np.abs(stored["forces_uncertainty"]).max() > 0
    assert main(["train", str(path), "-o", run, "--set", "model.members=1", "--restart"]) == 0
    capsys.readouterr()
    _refused(capsys, [*command, "--uncertainty"], "ensemble", "model.members=4")


@pytest.mark.slow  # minutes: every feature of a basis with f functions is compiled
def test_densities_from_a_configuration(tmp_path, capsys, monkeypatch):
    """Trained, judged, predicted, and read again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.yaml").write_text(
        "data: {n_train: 30, n_validation: 5, n_test: 10}\n"
        "model: {family: op2density, references: 20, uncertainty: true, network: {gates: 4,\n"
        "  fit: {epochs: 3, batch_size: 10, learning_rate: 0.01}}}\n"
    )
    assert main(["train", "d.yaml", "-o", "run"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["density_error_percent"] < 0.1  # superposed atoms: 11
    assert "density" in (tmp_path / "run" / "card.md").read_text()
    assert len(read_history(tmp_path / "run" / "history.jsonl")) == 3
    assert not (tmp_path / "run" / "state").exists()  # only a killed run needs it
    capsys.readouterr()
    assert main(["evaluate", "run", "bundled:water", "--split", "test", "--scf", "1"]) == 0
    out = capsys.readouterr().out
    assert "density %" in out
    assert "one shot" in out
    command = ["predict", "run", str(opml.bundled("water", ".h5")), "--uncertainty"]
    assert main([*command, "-o", "p.h5"]) == 0
    found = opml.read_dataset(tmp_path / "p.h5")
    assert found.meta["aux_basis"] == "def2-universal-jkfit"
    model = load_model(tmp_path / "run")
    np.testing.assert_allclose(
        found.labels["coefficients"][3], model.predict(found.structures[3])["coefficients"]
    )
