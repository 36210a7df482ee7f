"""Geometry to density to energy: commands, symmetries, forces, files, motion."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density
from opml_jax.cli import main
from opml_jax.cli.runs import load_data
from opml_jax.errors import ConfigError, OpmlError
from opml_jax.learn.history import read_history
from opml_jax.learn.run import Run
from opml_jax.learn.states import STATES
from opml_jax.models import Density2PropConfig, Op2Density, Op2DensityModel
from opml_jax.models.density2prop import family as reader
from opml_jax.models.op2density.closed_form import subtract_baselines
from opml_jax.models.op2density.labels import free_atoms, label_dataset
from opml_jax.testing import random_rotation
from opml_jax.training import load_config, train

pytestmark = pytest.mark.slow  # commands from a configuration to motion; the contract has the rest

SAME = 1e-9  # Hartree, Hartree/Bohr, e Bohr: what rotations may change
APART = 1e-8  # Hartree: potentials are screened, not cut

# small bases, and an operator of few integrals: little to compile
DENSITY = """
data: {n_train: 12, n_validation: 4, n_test: 4}
model: {family: op2density, aux_basis: def2-svp, basis: sto-3g, operator: overlap, powers: [2],
        components: 6, references: 8, fit: {penalty: 1.0e-4}}
"""
ENERGY = """
data: {n_train: 40, n_validation: 10, n_test: 10}
model: {family: density2prop, channels: 6, density: DENSITY, beside: BESIDE,
        fit: {epochs: 0, targets: [energy, forces]}}
"""
BESIDE = "{metric: lifted, others: [overlap], powers: [1]}"


def _train(config, run, *options):
    assert main(["train", str(config), "-o", str(run), *options]) == 0


def _good_energies(run):
    """The metrics of a run, whose energies are learned."""
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    data = opml.read_dataset(opml.bundled("water"))
    assert metrics["energy_mae_mev"] < 0.05 * 27211 * np.std(data["energy"])
    return metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model ``density``, moved away once it was read, and the run directory ``energy``."""
    folder = tmp_path_factory.mktemp("density-energy")
    (folder / "density.yaml").write_text(DENSITY)
    text = ENERGY.replace("DENSITY", str(folder / "density")).replace("BESIDE", "null")
    (folder / "energy.yaml").write_text(text)
    config = load_config(folder / "density.yaml")
    (folder / "density").mkdir()
    inner = train(*load_data(config.data), config).model
    opml.save_model(folder / "density" / "model.safetensors", inner)
    with pytest.MonkeyPatch.context() as patch:
        read, load = [], reader.load_model
        patch.setattr(reader, "load_model", lambda path: read.append(path) or load(path))
        _train(folder / "energy.yaml", folder / "energy")
    assert len(read) == 1
    (folder / "density").rename(folder / "moved")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return opml.load_model(folder / "energy")


@pytest.fixture(scope="module")
def water(folder) -> opml.Structure:
    return opml.read_dataset(opml.bundled("water")).structures[100]


def _steps(structure):
    """The structure, one atom moved by -2, -1, 1 and 2 steps of 1e-3 Bohr."""
    for k in (-2, -1, 1, 2):
        x = np.array(structure.positions)
        x[1, 2] += k * 1e-3
        yield structure.replace(positions=x)


def _slope(energies):
    """The derivative of the energies of such steps."""
    minus2, minus1, plus1, plus2 = energies
    return (8 * (plus1 - minus1) - (plus2 - minus2)) / (12 * 1e-3)


def test_runs_say_how_good_they_are(folder):
    """Energies and forces; the density is fitted in a basis that can do little."""
    metrics = _good_energies(folder / "energy")
    assert metrics["forces_mae_mev_per_angstrom"] < 5.0
    assert (folder / "energy" / "report.html").exists()
    assert "predicted density in def2-svp" in (folder / "energy" / "report.html").read_text()


def test_forces_are_differences_of_energies(model, water):
    found = model.predict([water, *_steps(water)])
    slope = _slope(found["energy"][1:])
    assert abs(slope + found["forces"][0, 1, 2]) < 1e-6
    assert abs(slope) > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pairs of elements are closer")  # two oxygens were never seen
def test_molecules_far_apart_do_not_notice_each_other(model, water):
    """Were electrons counted first, the multiplier would reach from one to the other."""
    x = np.asarray(water.positions)
    other = x @ random_rotation(5).T
    both = np.concatenate([x, np.add(other, [0.0, 60.0, 0.0])])
    one, two = (
        model.predict(opml.Structure(water.numbers * n, y))["energy"]
        for n, y in ((1, x), (2, both))
    )
    assert abs(two - 2 * one) < APART


@pytest.mark.slow
def test_motion_records_the_dipole_of_the_density(folder, model, water):
    pytest.importorskip("jax_md")
    from opml_jax.interfaces.ase import structure_to_ase

    structure_to_ase(water).write(folder / "water.xyz")
    md = ["md", str(folder / "energy"), str(folder / "water.xyz"), "-o", str(folder / "t.h5")]
    assert main([*md, "--steps", "8", "--stride", "4", "--forces"]) == 0
    from opml_jax.dynamics import Trajectory

    found = Trajectory.read(folder / "t.h5")
    last = model.predict(found.structure(2, 0))
    for name in ("energy", "forces", "dipole"):  # one molecule and a padded batch
        np.testing.assert_allclose(found[name][2, 0], last[name], rtol=0, atol=SAME)


def test_an_untrained_density_is_that_of_free_atoms(folder, water):
    """To rounding: free atoms together have all electrons."""
    config = load_config(folder / "density.yaml").model
    bases = [opml.load_basis(n, (1, 8)) for n in (config.basis, config.aux_basis)]
    definition = Op2Density(config, *bases)
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(4))
    labelled = label_dataset(definition, data, Run())
    params, _ = subtract_baselines(definition, labelled, free_atoms(definition, data))
    found = Op2DensityModel(definition, params).predict(water)["coefficients"]
    expected = density.superposed_atoms(water, opml.load_basis("def2-svp", (1, 8)), bases[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_refusals(folder, model, water, capsys):
    def refused(config: str, *says: str):
        (folder / "wrong.yaml").write_text(config)
        assert main(["train", str(folder / "wrong.yaml"), "-o", str(folder / "wrong")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("opml: error: ")
        assert error.count("\n") == 1
        for words in says:
            assert words in error
        assert not (folder / "wrong").exists()

    plain = ENERGY.replace("BESIDE", "null")
    refused(plain.replace("DENSITY", str(folder / "none")), "a model file or a run directory")
    refused(plain.replace("DENSITY", str(folder / "energy")), "an Op2Density model")
    mine = plain.replace("DENSITY", str(folder / "moved"))
    refused(mine.replace("forces]", "forces, dipole]"), "it is that of the density")
    refused(mine.replace("channels: 6", "channels: 0"), "model.channels")
    refused(plain.replace("density: DENSITY, ", ""), "model.density")
    other = opml.load_model(folder / "moved")
    bases = (opml.load_basis(n, (1, 6, 8)) for n in ("sto-3g", "def2-svp"))
    wider = Op2Density(other.definition.config, *bases)
    opml.save_model(folder / "wider.safetensors", Op2DensityModel(wider, other.params))
    refused(plain.replace("DENSITY", str(folder / "wider.safetensors")), "a model of H C O", "H O")
    with pytest.raises(ConfigError, match="with a predicted density"):
        model.definition.descriptors(water, model.params, field=np.zeros(3))
    with pytest.raises(OpmlError, match="never met a field"):
        model.field_dipole_fn()
    with pytest.raises(ConfigError, match=r"model\.channels"):
        Density2PropConfig(density="x", channels=0)


@pytest.mark.slow
def test_density_beside_the_operator(folder, water):
    """Files, forces, and a density model that is still where it was."""
    shutil.copytree(folder / "moved", folder / "again")
    text = ENERGY.replace("DENSITY", str(folder / "again")).replace("BESIDE", BESIDE)
    text = text.replace("epochs: 0", "epochs: 3")  # networks on the closed form too
    (folder / "beside.yaml").write_text(text)
    _train(folder / "beside.yaml", folder / "beside", "--curve")
    model = opml.load_model(folder / "beside")
    definition = model.definition
    x, _ = definition.descriptors(water, model.params)
    assert x.shape == (3, definition.n_invariants)
    assert len(definition.prior) == definition.n_invariants
    energy = jax.jit(model.energy_fn())
    opml.testing.assert_grad_matches_fd(
        lambda r: energy(water.replace(positions=r)), jnp.asarray(water.positions)
    )
    assert definition.config.beside == load_config(folder / "beside.yaml").model.beside is not None


@pytest.mark.slow
def test_widths_from_a_configuration_to_energies(tmp_path, water, capsys):
    """Trained after the network, written beside coefficients, and brought to one basis."""
    fit = "fit: {points: 200, epochs: 20, batch_size: 4, learning_rate: 0.02}"
    network = f"network: {{components: 4, gates: 4, hidden: [8], widths: 0.4, {fit}}}"
    text = DENSITY.replace("fit: {penalty: 1.0e-4}", f"fit: {{penalty: 1.0e-4}}, {network}")
    (tmp_path / "density.yaml").write_text(text)
    run = tmp_path / "density"
    _train(tmp_path / "density.yaml", run)
    rows = read_history(run / "history.jsonl")
    assert [r["epoch"] for r in rows] == list(range(1, 41))  # the network's, then the widths'
    assert not (run / STATES).exists()  # only a killed run needs it
    model = opml.load_model(run)
    assert "widths" in model.params["8"]["network"]
    assert "'widths': 'kept'" in str(model.card)
    assert (
        main(["predict", str(run), str(opml.bundled("water")), "-o", str(tmp_path / "p.h5")]) == 0
    )
    stored = opml.read_dataset(tmp_path / "p.h5")
    found = model.predict(stored.structures[3])
    for name in ("coefficients", "widths"):
        np.testing.assert_allclose(stored.labels[name][3], found[name], rtol=1e-12)
    capsys.readouterr()
    scored = ["evaluate", str(run), "bundled:water", "--split", "test", "--scf", "1"]
    assert main(scored) == 0
    assert "one shot" in capsys.readouterr().out
    (tmp_path / "energy.yaml").write_text(
        ENERGY.replace("DENSITY", str(run)).replace("BESIDE", "null")
    )
    _train(tmp_path / "energy.yaml", tmp_path / "energy")
    _good_energies(tmp_path / "energy")
    energies = opml.load_model(tmp_path / "energy")
    q = random_rotation(3, improper=True)
    turned = water.replace(positions=np.asarray(water.positions) @ q.T)
    found = energies.predict([water, *_steps(water), turned])
    e = found["energy"]
    assert found["forces"][0, 1, 2] == pytest.approx(-_slope(e[1:5]), abs=1e-7)
    assert e[5] == pytest.approx(e[0], abs=SAME)
    np.testing.assert_allclose(found["dipole"][5], q @ found["dipole"][0], rtol=0, atol=SAME)
    np.testing.assert_array_equal(found["dipole"][0], energies.density.predict(water)["dipole"])
