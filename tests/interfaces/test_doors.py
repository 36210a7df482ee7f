"""What needs energies refuses models without them at the door, with one code; so for densities."""

from pathlib import Path

import jax
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.dynamics import harmonic, relax, simulate
from opml_jax.errors import Code, OpmlError, StructureError
from opml_jax.interfaces.ase import OPMLCalculator, structure_to_ase
from opml_jax.interfaces.density import compare_energies
from opml_jax.interfaces.export import export_energy
from opml_jax.interfaces.jax_md import energy_fn
from opml_jax.interfaces.pyscf import compare_guesses, guess

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
MATRICES, DENSITIES, ENERGIES = (
    GOLDEN / f"{name}.safetensors" for name in ("op2op_dm", "density", "op2prop_products")
)

NEED_ENERGIES = {
    "ase": lambda model, water: OPMLCalculator(model),
    "jax-md": lambda model, water: energy_fn(model, water.numbers),
    "export": lambda model, water: export_energy(model, water.numbers),
    "dynamics": lambda model, water: simulate(model, water),
    "relax": relax,
    "harmonic": harmonic,
    "energy_fn": lambda model, water: model.energy_fn(),
}


DOORS = {
    "predict": lambda model, water: model.predict([water, water]),
    "ase": lambda model, water: OPMLCalculator(model).get_potential_energy(structure_to_ase(water)),
    "jax-md": lambda model, water: jax_md_energy(model, water),
    "export": lambda model, water: export_energy(
        model, water.numbers, charge=water.charge, spin=water.spin
    ),
    "dynamics": lambda model, water: simulate(model, water),
    "relax": relax,
    "harmonic": harmonic,
    "energy_fn": lambda model, water: jax.eval_shape(model.energy_fn(), water),
    "dipole_fn": lambda model, water: jax.eval_shape(model.dipole_fn(), water),
}


def jax_md_energy(model, water):
    return energy_fn(model, water.numbers, charge=water.charge, spin=water.spin)


@pytest.mark.parametrize("change", [{"charge": 2}, {"charge": -2}, {"spin": 2}], ids=str)
@pytest.mark.parametrize("door", DOORS)
def test_charges_and_spins_that_training_had_not_are_refused(door, change, water):
    """By a file that does not say what it was trained on, as all those of version 0.1."""
    with pytest.raises(StructureError, match=r"charge 0, spin 0") as caught:
        DOORS[door](opml.load_model(ENERGIES), water.replace(**change))
    assert caught.value.code == Code.ELECTRONS


def refused(door, *arguments):
    with pytest.raises(OpmlError, match="does not predict") as caught:
        door(*arguments)
    assert caught.value.code == Code.CAPABILITY


@pytest.mark.parametrize("path", [MATRICES, DENSITIES], ids=lambda p: p.stem)
@pytest.mark.parametrize("door", NEED_ENERGIES)
def test_a_model_without_energies_is_refused(door, path, water):
    refused(NEED_ENERGIES[door], opml.load_model(path), water)


def test_a_path_is_refused_like_a_model():
    refused(OPMLCalculator, MATRICES)  # what a client of i-PI is made of


@pytest.mark.parametrize("path", [DENSITIES, ENERGIES], ids=lambda p: p.stem)
def test_a_guess_needs_density_matrices(path):
    refused(guess, None, opml.load_model(path))
    refused(compare_guesses, opml.load_model(path), None)


@pytest.mark.parametrize("path", [MATRICES, ENERGIES], ids=lambda p: p.stem)
def test_energies_of_densities_need_densities(path):
    refused(compare_energies, opml.load_model(path), None)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        (MATRICES, "md {model} {water} -o {out}"),
        (MATRICES, "md {model} {water} -o {out} --relax"),
        (DENSITIES, "md {model} {water} -o {out}"),
        (MATRICES, "export {model} {water} -o {out}"),
        (ENERGIES, "evaluate {model} bundled:water --scf 1"),
        (DENSITIES, "predict {model} {water} -o {out}.h5 --allow-unconverged"),
        (ENERGIES, "predict {model} {water} -o {out}.h5 --allow-unconverged"),
        (ENERGIES, "predict {model} {water} -o {out}.h5 --certify"),
        (MATRICES, "predict {model} {water} -o {out}.h5 --certify"),
    ],
)
def test_commands_say_so_in_one_line(path, command, tmp_path, capsys):
    xyz = tmp_path / "water.xyz"
    xyz.write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    names = {"model": path, "water": xyz, "out": tmp_path / "out"}
    assert main([word.format(**names) for word in command.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("opml: error:")
    assert error.count("\n") == 1
    assert Code.CAPABILITY in error
    assert list(tmp_path.iterdir()) == [xyz]
