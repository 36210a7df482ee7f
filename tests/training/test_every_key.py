"""Every combination of keys that a configuration accepts trains, or is refused at once.

Configurations are drawn at random over every key of every family, and trained on four real waters:
what is drawn becomes a finished run directory with a model that predicts numbers, or an error with
a code before anything is computed.
"""

import dataclasses
import typing
import warnings

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis import to_pyscf
from opml_jax.cli.runs import DONE, evaluate_run, train_run
from opml_jax.data.reference import Method, calculate, molecule, polarizability
from opml_jax.data.store import write_hdf5
from opml_jax.errors import Code, OpmlError
from opml_jax.models.family import FOLDERS, family
from opml_jax.training.config import flat, read_mapping

DRAWS, MANY = 8, 60
"""Configurations a family: those that the quick test ends with, and all of the slow one."""

LEVEL = Method("hf", "sto-3g")

DESCENT = {
    "epochs": [0, 1, 2],
    "patience": [0, 1],
    "batch_size": [1, 2, 16],
    "accumulate": [1, 2, 3],
    "learning_rate": [1e-3, "1e-4"],
    "schedule": ["cosine", "exponential", "constant"],
    "warm_up": [0.0, 0.5],
    "weight_decay": [0.0, 1e-2],
    "clip": [0.1, 10.0],
    "ema": [0.0, 0.9],
}
TARGETS = ["forces", "dipole", "quadrupole", "polarizability", "isotropic_polarizability"]


def some(rng, names):
    """Any of them, in any order."""
    return [str(n) for n in rng.permutation(names)[: rng.integers(len(names) + 1)]]


def targets(rng):
    return [*some(rng, TARGETS), "energy"]


def words(*names):
    return lambda rng: some(rng, names)


ATOMWISE_FIT = {
    **DESCENT,
    "targets": targets,
    "loss": ["mse", "mae"],
    "energy_weight": [0.0, 1.0],
    "forces_weight": [0.0, 1.0],
    "force_sigma": [0.2, 2.0],
    "energy_sigma": [0.04, 0.4],
    "force_precision": [0.0, 5e-5],
}
INPUTS = {
    "operator": ["screened_potential", "external_potential", "neutral_atom_potential", "overlap"],
    "powers": [[1], [1, 2], [1, 2], [2]],
    "metric": ["plain", "lowdin", "overlap", "lifted", "damped"],
    "resolve": ["none", "none", "none", "charges", "intermediates"],
    "others": words("overlap", "kinetic"),
}
READOUT = {
    "references": [0, 0, 1, 3],
    "components": [1, 3, 48],
    "hidden": [[], [2], [3, 2]],
    "members": [1, 2, 4],
    "last_layer": [False, True],
}
DENSITY_NETWORK = {
    "alone": [False, False, True],
    "components": [1, 3],
    "hidden": [[], [2]],
    "gates": [1, 2],
    "widths": [0.0, 0.0, 0.1],
    "fit": {
        **DESCENT,
        "dipole_weight": [0.0, 1.0],
        "real_space_weight": [0.0, 0.1],
        "points": [500],
    },
}
MATRIX_NETWORK = {
    "alone": [False, True],
    "components": [1, 2],
    "inputs": [1, 2],
    "hidden": [[], [2]],
    "gates": [0, 2],
    "fit": {
        **DESCENT,
        "losses": {
            "matrix": [0.0, 1.0],
            "occupied": [0.0, 1.0],
            "mixing": [0.0, 1.0],
            "levels": [0.0, 1.0],
            "commutator": [0.0, 1.0],
            "frontier": [0, 1, 100],
        },
    },
}
KEYS: dict[str, dict[str, typing.Any]] = {
    "op2prop": {
        **INPUTS,
        **READOUT,
        "basis": ["sto-3g"],
        "gram_powers": [[1], [2], [1, 2]],
        "channels": [0, 0, 1, 2],
        "vectors": [0, 1, 12],
        "fit": {
            **ATOMWISE_FIT,
            "dipole_weight": [0.0, 1.0],
            "field_dipole_sigma": [0.0, 0.0, 0.0, 0.1],
            "consistency_sigma": [0.0, 0.0, 0.0, 0.1],
            "dipole_precision": [0.0, 1e-4],
        },
    },
    "op2op": {
        "basis": ["sto-3g"],
        "words": [["S"], ["S", "W", "E"], ["V", "S T", "W S^-1 W"]],
        "density_words": [[], [], ["U"], ["P", "U", "S P S"]],
        "stages": [0, 0, 1, 2],
        "exponents": [[], [1.0], [2.0, 0.2]],
        "projection": ["auto", "auto", "none", "local"],
        "exchange": [0.0, 1.0, 1.0],
        "extrapolation": ["commutator", "difference"],
        "cycles": [40],
        "tolerance": [1e-7, 1e-6],
        "history": [2, 8],
        "network": MATRIX_NETWORK,
        "target": ["fock", "fock", "dm"],
        "baseline": ["neutral_atoms", "hcore", "superposed", "none"],
        "window": ["lowest", "lowest", "homo"],
        "input_basis": [None, None, "6-31g"],
        "uncertainty": [False, True],
        "fit": {
            "observables": {
                "targets": lambda rng: some(
                    rng, ["mo_energy", "dipole", "lowdin_charges", "polarizability"]
                ),
                "components": [1, 3],
                "steps": [1, 2],
                "penalty": [0.0, 1e-6],
                "occupied_weight": [0.0, 1.0],
                "virtual_weight": [0.0, 0.1],
                "virtuals": [0, 1],
                "dipole_weight": [0.0, 1.0],
                "charges_weight": [0.0, 1.0],
                "polarizability_weight": [0.0, 1.0],
            },
            "iterates": [0.0, 0.25],
            "bits": [64, 16],
        },
    },
    "op2density": {
        "aux_basis": ["def2-svp"],
        "basis": ["sto-3g"],
        "operator": INPUTS["operator"],
        "powers": INPUTS["powers"],
        "components": [1, 3],
        "references": [1, 2, 100],
        "kernel": ["gaussian", "polynomial"],
        "length": [0.5, 3.0, None],
        "zeta": [1, 2],
        "baseline": ["atoms", "average"],
        "metric": ["coulomb", "overlap", "hartree+external"],
        "fit_metric": ["coulomb", "overlap", "hartree+external"],
        "uncertainty": [False, True],
        "network": DENSITY_NETWORK,
        "fit": {"penalty": [1e-6, 1e-3, None], "tolerance": [1e-6, 1e-3], "cycles": [3000]},
    },
    "density2prop": {
        **READOUT,
        "density": ["DENSITY"],
        "beside": INPUTS,
        "channels": [1, 2],
        "fit": {**ATOMWISE_FIT, "targets": lambda rng: [*some(rng, TARGETS), "energy"]},
    },
}
"""What each key is drawn from; of sections in ``MAYBE`` there may be none."""

QUICK = {
    "op2prop": {
        "powers": [1],
        "gram_powers": [1],
        "channels": 0,
        "references": 0,
        "fit": {"targets": ["energy"], "field_dipole_sigma": 0.0, "consistency_sigma": 0.0},
    },
    "op2op": {
        "words": ["S", "W"],
        "density_words": [],
        "stages": 0,
        "projection": "auto",
        "exchange": 0.0,
        "network": None,
    },
    "op2density": {"powers": [1], "network": None, "uncertainty": False},
    "density2prop": {
        "channels": 1,
        "beside": None,
        "references": 0,
        "fit": {"targets": ["energy"]},
    },
}
"""What the quick test does not draw."""

MAYBE = ("network", "beside", "observables")


def draw(rng, keys):
    """A random configuration, whose values are all of the right type."""
    out = {}
    for name, choices in keys.items():
        if isinstance(choices, dict):
            left_out = name in MAYBE and rng.random() < 0.6
            out[name] = None if left_out else draw(rng, choices)
        else:
            out[name] = choices(rng) if callable(choices) else choices[rng.integers(len(choices))]
    return out


def every_key(cls):
    """All keys of a configuration, those of sections that may be left out too, as nested dicts."""
    out = {}
    for field in dataclasses.fields(cls):
        kind = typing.get_type_hints(cls)[field.name]
        kinds = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        out[field.name] = every_key(kinds[0]) if kinds else None
    return out


@pytest.mark.parametrize("name", FOLDERS)
def test_every_key_is_drawn(name):
    assert {*flat(every_key(family(name).Config))} == {*flat(KEYS[name])}


def quadrupole(structure, dm):
    """Traceless, e Bohr^2, from second moments by PySCF."""
    mol, r = molecule(structure, LEVEL.basis), np.asarray(structure.positions)
    matrix = to_pyscf(dm, structure, opml.load_basis(LEVEL.basis, structure.numbers))
    moments = np.einsum("xij,ji->x", mol.intor("int1e_rr"), matrix).reshape(3, 3)
    second = np.einsum("i,ix,iy->xy", structure.numbers, r, r) - moments
    return 1.5 * second - 0.5 * np.trace(second) * np.eye(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``four.h5``, waters with labels of every kind, and ``density``, a model of densities."""
    folder = tmp_path_factory.mktemp("every-key")
    structures = opml.read_dataset(opml.bundled("water"), limit=4).structures
    rows = [calculate(s, LEVEL) for s in structures]
    labels = {k: [row[k] for row in rows] for k in ("energy", "forces", "dipole", "fock")}
    alpha = [polarizability(s, LEVEL) for s in structures]
    labels["polarizability"] = [(a + a.T) / 2 for a in alpha]
    labels["isotropic_polarizability"] = [np.trace(a) / 3 for a in alpha]
    labels["quadrupole"] = [
        quadrupole(s, row["dm"]) for s, row in zip(structures, rows, strict=True)
    ]
    meta = {"method": LEVEL.method, "basis": LEVEL.basis, "convention": "opml-1"}
    write_hdf5(folder / "four.h5", opml.Dataset(structures, labels, meta))
    model = {"family": "op2density", "aux_basis": "def2-svp", "basis": "sto-3g"}
    model |= {"operator": "overlap", "powers": [1], "components": 2, "references": 2}
    config = read_mapping({"data": data(folder, 2, 1, 0), "model": {**model, "fit": {}}})
    train_run(config, str(folder / "density"))
    return folder


def data(folder, n_train, n_validation, n_calibration):
    sizes = {"n_train": n_train, "n_validation": n_validation, "n_calibration": n_calibration}
    return {"path": str(folder / "four.h5"), **sizes, "n_test": -1}


def _coded(err):
    assert isinstance(err.code, Code)
    return str(err)


def check(name, seed, folder, run, **given):
    """One draw, but for what is ``given``: None if it was trained, or why it was refused."""
    rng = np.random.default_rng((list(FOLDERS).index(name), seed))
    model = {"family": name, **draw(rng, KEYS[name])}
    model |= given | ({"fit": {**model["fit"], **given["fit"]}} if "fit" in given else {})
    if "density" in model:
        model["density"] = str(folder / "density")
    sizes = data(folder, int(rng.integers(1, 3)), 1, int(rng.random() < 0.2))
    try:
        config = read_mapping({"data": sizes, "model": model, "seed": seed})
    except OpmlError as err:
        return _coded(err)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trained, dataset, splits = train_run(config, str(run))
        except OpmlError as err:
            if run.exists():  # it is told before the folder is made
                raise AssertionError(f"{err}, late, of {model}") from err
            return _coded(err)
        evaluate_run(str(run), trained, dataset, splits, quiet=True)
        assert (run / DONE).exists()
        loaded = opml.load_model(run)
        options = {"uncertainty": True} if loaded.doubted else {}
        predicted = loaded.predict(dataset.structures, **options, **loaded.tolerant)
    there = np.setdiff1d(range(len(dataset)), loaded.failed(predicted))
    for key, values in predicted.items():
        assert np.isfinite(values[there]).all(), (model, key)
    return None


QUICKEST = ("op2prop", "op2density")
NAMES = [n if n in QUICKEST else pytest.param(n, marks=pytest.mark.slow) for n in FOLDERS]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_trains_or_is_refused(name, folder, tmp_path):
    """Until one is trained; with settings that compile little."""
    for seed in range(DRAWS):
        if check(name, seed, folder, tmp_path / str(seed), **QUICK[name]) is None:
            return
    raise AssertionError("nothing that was drawn could be trained")


def test_no_epochs_of_an_ensemble(folder, tmp_path):
    """The closed form alone, without the standard deviations that networks would give."""
    quick = {**QUICK["op2prop"], "members": 4, "last_layer": False, "metric": "plain"}
    quick |= {"resolve": "none", "operator": "screened_potential", "gram_powers": [1]}
    quick["fit"] = {**quick["fit"], "epochs": 0, "field_dipole_sigma": 0.0}
    assert check("op2prop", 1, folder, tmp_path / "run", **quick) is None
    assert not opml.load_model(tmp_path / "run").doubted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS, MANY))
@pytest.mark.parametrize("name", FOLDERS)
def test_many_more_do(name, seed, folder, tmp_path):
    check(name, seed, folder, tmp_path / "run")
