"""What a model is, in words: the title of its report, and lines that use it."""

from __future__ import annotations

import html
import json
import shlex
import urllib.parse

from ..data import Dataset
from ..models.base import Model
from ..models.family import family_of
from ..units import ANGSTROM_PER_BOHR
from . import page

NAMES = {"H2O": "water", "CH4": "methane", "H3N": "ammonia", "CH2O": "formaldehyde"}
"""Of formulas that chemists read as one molecule."""
PLURALS = {
    "energy": "energies",
    "fock": "Fock matrices",
    "dm": "density matrices",
    "mo_energy": "levels",
    "density": "electron densities",
    "polarizability": "polarizabilities",
    "lowdin_charges": "charges",
    "property": "properties",
}
"""Of targets that do not only take an s."""
FILE = "molecules.xyz"
"""Geometries in the lines that are copied."""

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def title(model: Model) -> str:
    """What of what by which model: "Energies and forces of water: Op2Prop, PBE/def2-SVP"."""
    card, family = model.card, family_of(model)
    targets = card.get("targets") or ["property"]
    *most, last = (PLURALS.get(x, x.replace("_", " ").rstrip("s") + "s") for x in targets)
    words = f"{', '.join(most)} and {last}" if most else last
    name = getattr(family, "about", family.name).split(":")[0]
    ends = ", ".join(filter(None, (name, level(model))))
    return f"{words[0].upper()}{words[1:]}{_of_molecules(model)}: {ends}"


def _of_molecules(model: Model) -> str:
    """The molecules of the training set, if the card knows them."""
    states = model.card.get("trained_for", {}).get("electrons", [])
    formulas = [name for state in states for name in state["compositions"]]
    if not formulas:
        return ""
    if len(formulas) == 1:
        return f" of {NAMES.get(formulas[0], formulas[0].translate(_SUBSCRIPTS))}"
    *most, last = model.card.get("elements", ["unknown elements"])
    elements = f"{', '.join(most)} and {last}" if most else last
    return f" of {len(formulas)} compositions of {elements}"


def level(model: Model) -> str:
    """The level of theory of a model's labels as chemists write it; empty if it is not stated."""
    reference = model.card.get("reference", {})
    method, basis = (str(reference.get(k, "")) for k in ("method", "basis"))
    if method[:1] not in ("r", "w"):  # r2SCAN and omega-B97X are no words
        method = method.upper()
    if basis.startswith("def2-"):
        basis = "def2-" + basis.removeprefix("def2-").upper()
    elif basis.startswith(("sto-", "3-", "6-")):
        basis = basis.upper()
    return "/".join(filter(None, (method, basis)))


def use(model: Model, run: str, example: Dataset) -> str:
    """A box with lines to copy that use a model, and a file of molecules to try them with.

    Args:
      model: that is used.
      run: its folder.
      example: a data set whose first molecule is the example.
    """
    molecule = example.structures[0]
    rows = zip(molecule.symbols, molecule.positions * ANGSTROM_PER_BOHR, strict=True)
    atoms = (f"{name} " + " ".join(f"{x:.8f}" for x in place) for name, place in rows)
    state = f"charge={molecule.charge} multiplicity={molecule.spin + 1}"
    xyz = "\n".join([str(molecule.n_atoms), state, *atoms, ""])
    file = f"data:text/plain;charset=utf-8,{urllib.parse.quote(xyz)}"
    before = (
        f'<p class="note">In the folder that holds <code>{html.escape(run)}</code>, with your'
        f" molecules, in Angstrom, in <code>{FILE}</code>"
        f' (<a download="{FILE}" href="{file}">an example</a>).</p>'
    )
    return page.copyable("Use this model", before, lines(model, run))


def lines(model: Model, run: str) -> list[str]:
    """What to copy: for a shell, for Python, and for the program that models like it serve."""
    name = json.dumps(run, ensure_ascii=False)
    suffix = "h5" if model.has("coefficients") or model.has("fock") or model.has("dm") else "extxyz"
    start = (
        "import jax, opml_jax as opml\n"
        'jax.config.update("jax_enable_x64", True)\n'
        f"model = opml.load_model({name})\n"
        f'molecule = opml.read_structures("{FILE}")[0]\n'
        "predicted = model.predict(molecule)  # atomic units\n"
    )
    shell = f"opml predict {shlex.quote(run)} {FILE} -o predicted.{suffix}"
    return [shell, f"{start}print(sorted(predicted))", *_elsewhere(model, name, start)]


def _elsewhere(model: Model, name: str, start: str) -> list[str]:
    """The model in another program: ASE, PySCF, or one that draws densities."""
    if model.has("energy"):
        return [
            "import ase.io, jax\n"
            "from opml_jax.interfaces.ase import OPMLCalculator\n"
            'jax.config.update("jax_enable_x64", True)\n'
            f'atoms = ase.io.read("{FILE}")\n'
            f"atoms.calc = OPMLCalculator({name})\n"
            "print(atoms.get_potential_energy())  # eV"
        ]
    if model.has("coefficients"):
        rest = 'predicted["coefficients"], molecule, model.definition.aux_basis'
        widths = ', widths=predicted["widths"]' if model.has("widths") else ""
        return [f'{start}opml.density.write_cube("density.cube", {rest}, spacing=0.4{widths})']
    reference = model.card.get("reference", {})
    basis = model.definition.basis.name
    if model.has("dm") and "method" in reference and reference.get("basis") == basis:
        return [
            f"{start}from opml_jax.data.reference import Method, mean_field\n"
            f"mf = mean_field(molecule, Method({reference['method']!r}, {basis!r}))\n"
            "mf.kernel(dm0=opml.interfaces.pyscf.guess(mf, model))  # PySCF from the prediction"
        ]
    return []
