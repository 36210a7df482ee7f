"""The commands, end to end on real input: quickstart, then everything one can do with its run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.cli.runs import complete
from opml_jax.data.store import write_hdf5
from opml_jax.testing import assert_equivariant
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One quickstart, run as a user would."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "opml_jax.cli", "quickstart", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_quickstart_is_as_accurate_as_promised(run):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    for name, slack in (("test", 1.0), ("fresh", 2.0)):
        assert metrics[name]["energy_mae_mev"] <= 1.0 * slack
        assert metrics[name]["forces_mae_mev_per_angstrom"] <= 10.0 * slack
        assert metrics[name]["dipole_mae_debye"] <= 0.005 * slack
    assert metrics["test"]["n_structures"] == 50
    assert metrics["fresh"]["n_structures"] == 8
    assert metrics["test_linear"]["n_structures"] == 50


def test_quickstart_leaves_everything_it_names(run):
    folder, printed = run
    for name in (
        "report.html",
        "model.safetensors",
        "card.md",
        "metrics.json",
        "predictions.extxyz",
    ):
        assert name in printed
        assert (folder / name).stat().st_size > 500
    assert "test (linear)" in printed
    assert "fresh PySCF labels" in printed
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


def test_report_is_self_contained(run):
    text = (run[0] / "report.html").read_text()
    assert text.count("<svg") + text.count("data:image/") >= 6
    for elsewhere in ('src="http', 'href="http', "url(http", "@import"):
        assert elsewhere not in text


def test_fresh_geometries_are_new(run):
    """None of the geometries labelled on the spot is in the bundled set, up to rotation."""

    def shapes(structures):
        x = np.array([s.positions for s in structures])
        return np.linalg.norm(x[:, [0, 0, 1]] - x[:, [1, 2, 2]], axis=-1)

    bundled = shapes(opml.read_structures(opml.bundled("water")))
    fresh = shapes(opml.read_structures(run[0] / "fresh.h5"))
    assert np.abs(fresh[:, None] - bundled[None]).max(axis=-1).min() > 1e-4


def test_evaluate(run, capsys, tmp_path):
    out = tmp_path / "errors.json"
    arguments = ["evaluate", str(run[0]), "bundled:water", "--split", "test", "--json", str(out)]
    assert main(arguments) == 0
    found = json.loads(out.read_text())
    expected = json.loads((run[0] / "metrics.json").read_text())
    assert found["test"]["forces_mae_mev_per_angstrom"] == pytest.approx(
        expected["test"]["forces_mae_mev_per_angstrom"], rel=1e-6
    )
    assert "test (linear)" in capsys.readouterr().out


def test_predict_writes_both_formats(run, tmp_path):
    xyz, n = tmp_path / "water.xyz", 9  # in one chunk of 32, which test_evaluate compiles
    xyz.write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n" * n)
    for name in ("out.extxyz", "out.h5"):
        assert main(["predict", str(run[0]), str(xyz), "-o", str(tmp_path / name)]) == 0
    stored = opml.read_dataset(tmp_path / "out.h5")
    direct = opml.load_model(run[0]).predict(opml.read_structures(xyz))
    np.testing.assert_allclose(stored["energy"], direct["energy"], rtol=1e-14)
    from ase.io import read

    frames = read(tmp_path / "out.extxyz", ":")
    assert len(frames) == n
    assert frames[0].info["opml_energy"] == pytest.approx(direct["energy"][0] * EV_PER_HARTREE)
    forces = direct["forces"][0] * EV_PER_HARTREE / ANGSTROM_PER_BOHR
    np.testing.assert_allclose(frames[0].arrays["opml_forces"], forces, atol=1e-7)


def test_forces_and_symmetry_of_the_quickstart_model(run):
    """With d functions, which models of other tests lack for the sake of compile time."""
    model = opml.load_model(run[0])
    water = opml.read_structures(opml.bundled("water"))[0]

    def predict(s):
        found = model.predict([s] * 9)  # also in a chunk of 32
        return {k: found[k][0] for k in ("energy", "forces", "dipole")}

    assert_equivariant(predict, water, rtol=1e-10)
    h, x = 1e-3, np.asarray(water.positions)
    shifts = [k * h * e.reshape(3, 3) for e in np.eye(9) for k in (2, -2, 1, -1)]
    energies = model.predict([water.replace(positions=x + d) for d in shifts])["energy"]
    finite = np.array([(8 * (c - d) - (a - b)) / (12 * h) for a, b, c, d in energies.reshape(9, 4)])
    np.testing.assert_allclose(predict(water)["forces"].ravel(), -finite, rtol=0, atol=1e-6)


def test_train_from_a_configuration(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    assert main(["config", "template"]) == 0
    config.write_text(capsys.readouterr().out)
    assert main(["config", "validate", str(config)]) == 0
    assert capsys.readouterr().out.endswith(": valid\n")
    assert main(["config", "validate", str(config), "--data", "--set", "data.n_train=20"]) == 0
    assert "of the 500 structures of bundled:water 20 for train" in capsys.readouterr().out
    _one_line(
        capsys,
        ["config", "validate", str(config), "--data", "--set", "data.n_train=501"],
        "data.n_train + data.n_validation must be at most 500",
    )
    # More than 8 of each, so that one program predicts them all; the quickstart has d functions.
    settings = ["data.n_train=20", "data.n_validation=10", "data.n_test=10", "model.fit.epochs=3"]
    settings.append("model.basis=sto-3g")
    arguments = [x for s in settings for x in ("--set", s)]
    assert main(["train", str(config), "-o", str(tmp_path / "run"), "--curve", *arguments]) == 0
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert left == {
        *("config.yaml", "splits.json", "history.jsonl", "learning_curve.jsonl"),
        *("metrics.json", "model.safetensors", "report.html", "card.md"),
    }
    assert (tmp_path / "run" / "report.html").stat().st_size < 1e6
    card = (tmp_path / "run" / "card.md").read_text()
    for text in ("pbe/def2-svp", "train 20, validation 10, test 10", "Seeds", "test (model)"):
        assert text in card
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["energy_mae_mev"] < 5.0
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert [len(splits[k]) for k in ("train", "validation", "test")] == [20, 10, 10]
    capsys.readouterr()
    again = ["train", str(config), "-o", str(tmp_path / "run")]
    assert main([*again, *arguments]) == 0  # nothing is computed
    assert "complete; --restart" in capsys.readouterr().out
    _one_line(capsys, again, "data.n_train 20 (not 400)", "--restart", "601")
    (tmp_path / "run" / "state").mkdir()
    assert not complete(tmp_path / "run", curve=True)  # begun anew, and killed


def test_more_is_asked_for_than_there_is(tmp_path, capsys):
    water = opml.read_dataset(opml.bundled("water")).subset(range(40))
    write_hdf5(tmp_path / "mine.h5", water, ["energy", "forces", "dipole"])
    assert main(["config", "template", "own"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    path = f"data.path={tmp_path / 'mine.h5'}"
    arguments = ["train", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run"), "--set", path]
    says = ("400 + 50", "at most 40", "--set data.n_train=32 --set data.n_validation=4", "409")
    _one_line(capsys, arguments, *says)


def test_structures_without_labels_are_not_evaluated(run, tmp_path, capsys):
    (tmp_path / "w.xyz").write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    says = ("without labels", "opml generate", "405")
    _one_line(capsys, ["evaluate", str(run[0]), str(tmp_path / "w.xyz")], *says)


def test_a_missing_file_is_named_with_the_nearest(tmp_path, capsys):
    (tmp_path / "mine.h5").touch()
    _one_line(
        capsys, ["data", "check", str(tmp_path / "mien.h5")], "Did you mean", "mine.h5", "401"
    )
    _one_line(capsys, ["spectrum", str(tmp_path / "t.h5"), "-o", str(tmp_path)], "Check", "401")
    says = ("no such file", "no.yaml", "opml config template own", "401")
    _one_line(capsys, ["train", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "r")], *says)


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("ok ") == 3
    assert "FAILED" not in out


def test_doctor_goes_on_without_the_device_asked_for():
    command = [sys.executable, "-m", "opml_jax.cli", "doctor"]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which JAX set here, louder than the command's
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "FAILED  JAX devices: JAX_PLATFORMS" in done.stdout
    assert done.stdout.count("ok ") == 3
    assert done.stderr == ""


def _one_line(capsys, arguments, *expected):
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("opml: error:")
    assert error.count("\n") == 1
    for text in expected:
        assert text in error


def test_output_that_cannot_be_a_directory(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    config = tmp_path / "c.yaml"
    config.write_text("")
    for out in ("file", "file/run"):
        _one_line(capsys, ["train", str(config), "-o", str(tmp_path / out)], "directory")


def test_other_level_of_theory_is_refused(run, tmp_path, capsys):
    dataset = opml.read_dataset(opml.bundled("water")).subset(range(3))
    from opml_jax.data.store import write_hdf5

    for key, value in (("method", "b3lyp"), ("basis", "sto-3g"), ("convention", "pyscf")):
        dataset.meta = {**opml.read_dataset(opml.bundled("water")).meta, key: value}
        write_hdf5(tmp_path / "other.h5", dataset)
        _one_line(capsys, ["evaluate", str(run[0]), str(tmp_path / "other.h5")], key, value)


def test_unknown_command_and_missing_argument(capsys):
    _one_line(capsys, ["trian"], "trian")
    _one_line(capsys, ["train"], "config")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        main(["--debug", "data", "check", str(tmp_path / "none.xyz")])


def test_help_is_light():
    """``opml --help`` loads neither JAX nor PySCF."""
    code = (
        "import sys\ntry:\n from opml_jax.cli.main import main; main(['--help'])\n"
        "except SystemExit: pass\nprint([m for m in ('pyscf', 'ase') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "quickstart" in done.stdout


def test_package_data_is_small():
    """CONTRIBUTING: 8 MB with the shipped models, and no file above 4 MB."""
    folder = Path(opml.__file__).parent
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.suffix not in (".py", ".pyc")]
    assert sum(sizes) < 8e6
    assert max(sizes) < 4e6
