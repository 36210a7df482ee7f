"""What models of earlier code predicted, later code predicts: files in ``golden``.

``golden/README.md`` says what they are, and with which commit they were made.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ModelFileError

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(p.stem for p in GOLDEN.glob("*.npz"))
REMOVED = sorted(p.stem for p in GOLDEN.glob("removed_*.safetensors"))

# Relative to the largest element of each array. Files are of XLA's default flags, tests compile
# with others, and the very code that made the files then differs by up to a quarter of these.
SAME = 1e-12
SUMS = 1e-10  # small differences of large sums: slopes, levels, electrons of an atom
SPREADS = 1e-7  # norms of differences of vectors that agree to five digits and more
LEFT = 1e-4  # what is left of self-consistency, 1e-7 of matrices of order 10
TOLERANCES = {
    "forces": SUMS,
    "dipole": SUMS,
    "polarizability": SUMS,
    "isotropic_polarizability": SUMS,
    "gap": SUMS,
    "dm": SUMS,
    "lowdin_charges": SUMS,
    "mulliken_charges": SUMS,
    "residual": LEFT,
}


def tolerance_of(key):
    quantity = key.split("/")[-1]
    return SPREADS if quantity.endswith("_uncertainty") else TOLERANCES.get(quantity, SAME)


def structures_of(numbers, positions):
    return [opml.Structure(z[z > 0], x[z > 0]) for z, x in zip(numbers, positions, strict=True)]


def predicted(model, structures, option):
    """What the array or the arrays under a name in a file should be."""
    if option == "field_dipole":
        dipole = jax.jit(model.field_dipole_fn())
        return {option: np.array([dipole(s) for s in structures])}
    options = {"uncertainty": True} if option == "uncertainty" else {}
    found = model.parts.get(option, model).predict(structures, **options)
    return {f"{option}/{k}": v for k, v in found.items()}


QUICK = (
    "op2prop_invariants",
    "op2op_dm",
    "density",
    "density2prop",
    "pretrained_water",
)
"""One of each family; the others with ``-m slow``, each has programs of its own to compile."""


@pytest.mark.filterwarnings("ignore:atoms are bonded")  # formamide is not among chno's molecules
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_predictions_are_those_of_earlier_code(name):
    kind, _, own = name.partition("_")
    path = f"pretrained:{own}" if kind == "pretrained" else GOLDEN / f"{name}.safetensors"
    model = opml.load_model(path)
    with np.load(GOLDEN / f"{name}.npz") as file:
        expected = dict(file)
    structures = structures_of(expected.pop("numbers"), expected.pop("positions"))
    found = {}
    for option in {k.split("/")[0]: None for k in expected}:
        found |= predicted(model, structures, option)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        atol = tolerance_of(key) * np.nanmax(np.abs(array))
        np.testing.assert_allclose(found[key], array, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("pretrained")])
def test_files_of_every_kind_are_written_again(name, tmp_path):
    """In today's format, with the very same functions and parameters."""
    model = opml.load_model(GOLDEN / f"{name}.safetensors")
    opml.save_model(tmp_path / "m.safetensors", model)
    again = opml.load_model(tmp_path / "m.safetensors")
    assert type(again) is type(model)
    assert again.definition == model.definition
    assert hash(again.definition) == hash(model.definition)
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert again.card == model.card


@pytest.mark.parametrize("name", REMOVED)
def test_removed_kinds_are_refused_by_name(name):
    with pytest.raises(ModelFileError, match=r"operator_network|matrix"):
        opml.load_model(GOLDEN / f"{name}.safetensors")
