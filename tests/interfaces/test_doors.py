"""What needs energies refuses models without them at the door, with one code; so for densities."""

from pathlib import Path

import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.dynamics import harmonic, relax, simulate
from opml_jax.errors import Code, OpmlError
from opml_jax.interfaces.ase import OPMLCalculator
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
