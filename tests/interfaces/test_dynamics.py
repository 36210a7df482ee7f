"""A model in motion: one force behind every door, the commands, and a run that is killed."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ase.io import read

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.dynamics import Settings, Trajectory, harmonic, relax, simulate
from opml_jax.errors import OpmlError, PrecisionError
from opml_jax.interfaces.ase import OPMLCalculator, structure_to_ase
from opml_jax.interfaces.jax_md import energy_fn
from opml_jax.units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE

SAME_SUMS = 1e-10  # Hartree/Bohr: padded and unpadded sums in another order
SINGLE = 1e-4  # Hartree/Bohr, 5 meV/Angstrom: what single precision may change

pytest.importorskip("jax_md")


@pytest.fixture(scope="module")
def motion(model, dataset):
    settings = Settings(steps=40, stride=20, forces=True, temperature=500.0)
    return simulate(model, dataset.structures[:2], settings)


def test_every_door_opens_on_the_same_forces(motion, model):
    gradient = jax.jit(jax.grad(energy_fn(model, motion.numbers)))
    for frame, replica in ((0, 0), (2, 1)):
        structure = motion.structure(frame, replica)
        predicted = model.predict(structure)
        atoms = structure_to_ase(structure)
        atoms.calc = OPMLCalculator(model)
        forces = {
            "loop": motion["forces"][frame, replica],
            "jax-md": -np.asarray(gradient(structure.positions)),
            "ase": atoms.get_forces() / EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
        }
        for name, found in forces.items():
            np.testing.assert_allclose(
                found, predicted["forces"], rtol=0, atol=SAME_SUMS, err_msg=name
            )
        for name in ("energy", "dipole"):
            np.testing.assert_allclose(
                motion[name][frame, replica], predicted[name], rtol=0, atol=SAME_SUMS
            )


@pytest.mark.slow
def test_forces_in_single_precision_are_nearly_those_in_double(motion, model):
    start, settings = motion.structure(0), Settings(steps=4, stride=4, forces=True, dtype="float32")
    shipped = opml.load_model(opml.pretrained("water"))
    found, exact = simulate(shipped, start, settings), shipped.predict(start)
    error = np.abs(found["forces"][0, 0] - exact["forces"]).max()
    assert 0 < error < SINGLE
    assert found["energy"][0, 0] == pytest.approx(exact["energy"], rel=1e-6)  # of 76 Hartree
    # a model of few molecules has large weights, which cancel
    with pytest.raises(PrecisionError, match="float32, which changes a force of this model by"):
        simulate(model, start, settings)


def test_an_unseen_element_and_one_network_are_refused(model, minimum):
    sulfide = opml.Structure([16, 1, 1], np.asarray(minimum.positions) * 1.3)
    with pytest.raises(OpmlError, match="only elements seen in training"):
        simulate(model, sulfide)
    with pytest.raises(
        OpmlError, match="an ensemble or one with a last layer, for max_uncertainty_mev"
    ):
        simulate(model, minimum, Settings(max_uncertainty_mev=1.0))


@pytest.fixture(scope="module")
def files(model, minimum, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dynamics")
    opml.save_model(folder / "model.safetensors", model)
    structure_to_ase(minimum).write(folder / "water.xyz")
    return folder


def test_commands(files, capsys, dataset):
    out, spectra = files / "t.h5", files / "spectra"
    md = ["md", str(files / "model.safetensors"), str(files / "water.xyz"), "-o", str(out)]
    more = ["--stride", "2", "--timestep-fs", "0.25", "--extxyz", str(files / "t.extxyz")]
    assert main([*md, *more, "--steps", "2000"]) == 0
    assert "1001 frames to 0.5 ps" in capsys.readouterr().out
    assert len(read(files / "t.extxyz", ":")) == 1001
    assert main(["spectrum", str(out), "-o", str(spectra), "--resolution", "80"]) == 0
    assert {p.name for p in spectra.iterdir()} == {
        *("infrared.csv", "infrared.png", "summary.json"),
        *("vibrational_dos.csv", "vibrational_dos.png"),
    }
    summary = json.loads((spectra / "summary.json").read_text())
    assert summary["vibrational_dos"]["integral"] == pytest.approx(3.0, rel=1e-6)
    raman = ["spectrum", str(out), "-o", str(spectra), "--raman", "fock"]
    assert main(raman) == 2
    assert "the model of the lines" in capsys.readouterr().err
    table = np.loadtxt(spectra / "infrared.csv", delimiter=",", skiprows=1)
    # PBE/def2-SVP water bends at 1609 cm^-1 (the data set's Hessian, see test_harmonic_lines)
    low = table[(table[:, 0] > 1000) & (table[:, 0] < 2500)]
    assert low[np.argmax(low[:, 1]), 0] == pytest.approx(1609, abs=40)
    assert np.trapezoid(table[:, 1], table[:, 0]) == pytest.approx(
        summary["infrared"]["integral"], rel=1e-5
    )

    assert main([*md, *more, "--steps", "200", "--temperature", "5"]) == 2
    assert "opml: error:" in capsys.readouterr().err
    flown = [*md[:-1], str(files / "flown.h5"), "--temperature", "500000"]
    assert main(flown) == 2
    error = capsys.readouterr().err
    assert "left the domain of the model at" in error
    assert len(read(files / "flown.h5.left.extxyz")) == 3
    assert main(["spectrum", str(files / "flown.h5"), "-o", str(spectra)]) == 2
    assert main(["spectrum", str(files / "none.h5"), "-o", str(spectra)]) == 2
    assert "trajectory of opml md" in capsys.readouterr().err


@pytest.mark.slow
def test_raman_lines(files, capsys):
    """Equal bonds at the minimum: the third mode, out of phase, is depolarised whatever the model.

    The polarizability is of T + W alone, of an Op2Op model that has learned nothing.
    """
    basis = opml.load_basis("sto-3g", [1, 8])
    config = opml.models.Op2OpConfig(basis="sto-3g", words=("S",), density_words=())
    weights = {"1_1_1_0_1": {"weights": np.zeros((1, 1))}}  # of the pair H-H, and of O-H
    weights["2_1_8_0_1"] = {"weights": np.zeros((2, 2))}
    bare = opml.models.Op2OpModel(
        opml.models.Op2Op(config, basis), {"guess": weights}, {"elements": ["H", "O"]}
    )
    opml.save_model(files / "fock.safetensors", bare)
    model, water, out = files / "model.safetensors", files / "water.xyz", files / "short.h5"
    assert main(["md", str(model), str(water), "-o", str(out), "--steps", "200"]) == 0
    spectrum = ["spectrum", str(out), "-o", str(files / "lines"), "--resolution", "400"]
    more = ["--harmonic", str(model), "--raman", str(files / "fock.safetensors")]
    assert main([*spectrum, *more]) == 0
    found = json.loads((files / "lines" / "summary.json").read_text())["harmonic"]
    assert len(found["raman_angstrom4_per_dalton"]) == 3
    assert found["depolarization"][2] == pytest.approx(0.75, abs=1e-6)
    assert max(found["depolarization"][:2]) < 0.74


@pytest.mark.slow
def test_harmonic_lines(model, minimum, dataset):
    """Against PySCF's Hessian, in the data set's meta data, and ASE's finite differences."""
    from ase.vibrations import Vibrations

    from opml_jax.data.sampling import normal_modes
    from opml_jax.units import WAVENUMBER_PER_HARTREE

    found = harmonic(model, relax(model, minimum))
    reference, _ = normal_modes(minimum, np.array(dataset.meta["sampling"]["hessian"]))
    reference = reference * WAVENUMBER_PER_HARTREE
    np.testing.assert_allclose(found.wavenumbers, reference, atol=10)  # of the model
    atoms = structure_to_ase(relax(model, minimum))
    atoms.calc = OPMLCalculator(model)
    vibrations = Vibrations(atoms, name="vibrations", delta=0.003)
    vibrations.run()
    numerical = vibrations.get_frequencies()[6:].real
    vibrations.clean()
    np.testing.assert_allclose(found.wavenumbers, numerical, atol=0.5)  # second order
    assert found.intensities.argmax() == 0  # water's bend, in PBE/def2-SVP
    assert (found.intensities > 0).all()


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(files):
    command = [sys.executable, "-m", "opml_jax.cli", "md", str(files / "model.safetensors")]
    command += [str(files / "water.xyz"), "--steps", "40000", "--ensemble", "nvt", "-o"]
    path = files / "killed.h5"
    parts = path.with_name("killed.h5.parts")
    for n_parts in (2, 12):  # early, and later
        run = subprocess.Popen([*command, str(path)], stderr=subprocess.DEVNULL)
        start = time.monotonic()
        while len(list(parts.glob("*.npz"))) < n_parts and time.monotonic() - start < 300:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not path.exists()
    subprocess.run([*command, str(path)], check=True)
    subprocess.run([*command, str(files / "whole.h5")], check=True)
    killed, whole = Trajectory.read(path), Trajectory.read(files / "whole.h5")
    assert not parts.exists()
    for name in whole.frames:
        np.testing.assert_array_equal(killed[name], whole[name], err_msg=name)
