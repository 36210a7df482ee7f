"""Effective operators on bundled water (PBE/def2-SVP): observables of a larger basis."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml

import opml_jax as opml
from opml_jax import observables
from opml_jax.cli import main
from opml_jax.data import Dataset
from opml_jax.data.reference import (
    Method,
    calculate,
    cross_overlap,
    mean_field,
    reference_observables,
)
from opml_jax.errors import ConfigError, DataError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op import FAMILY, ObservablesFit, Op2OpFit, Op2OpNetworkConfig
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.effective import projected
from opml_jax.models.op2op.fit_observables import fit_observables
from opml_jax.models.op2op.metrics import all_errors, observable_errors
from opml_jax.training.config import TrainConfig
from opml_jax.training.metrics import errors

FEW = Op2OpConfig(
    basis="sto-3g",
    words=("S", "T", "W", "W S", "W W", "T W", "S S", "S W S", "E", "E S"),
    density_words=(),
)
TARGETS = ("mo_energy", "dipole", "lowdin_charges")
LABELS = 5e-7  # Hartree and e Bohr; what the SCF's convergence and packed labels leave


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water")).subset(range(60))


@pytest.fixture(scope="module")
def parts(water):
    cuts = np.split(np.arange(len(water)), [40, 55])
    return dict(zip(("train", "validation", "test"), map(water.subset, cuts), strict=True))


def fitted(parts, config, targets, **settings):
    observables_fit = ObservablesFit(targets, **{"steps": 150, **settings})
    config = dataclasses.replace(config, fit=Op2OpFit(observables_fit))
    definition = FAMILY.define(config, parts["train"].elements)
    sets = {name: parts[name] for name in ("train", "validation")}
    FAMILY.check(definition, config, sets)
    fit = FAMILY.fit(definition, config, sets, Run())
    return Op2OpModel(definition, fit.params, {"targets": list(targets)}), fit


@pytest.fixture(scope="module")
def trained(parts):
    return fitted(parts, FEW, TARGETS)


@pytest.mark.slow
def test_virtuals_that_count(parts):
    """With the first alone the gap is learned, and the other levels are left to themselves."""
    found = []
    for virtuals in (0, 1):
        settings = {"virtuals": virtuals, "virtual_weight": 1.0, "steps": 60}
        model, _ = fitted(parts, FEW, ("mo_energy",), **settings)
        found.append(observable_errors(model.predict(parts["test"].structures), parts["test"]))
    every, first = found
    assert first["gap_mae_uha"] < 0.01 * first["eigenvalue_virtual_mae_uha"]
    assert every["eigenvalue_virtual_mae_uha"] < 0.01 * first["eigenvalue_virtual_mae_uha"]


def test_projection_keeps_the_operator(water):
    """Least squares give the projection a second formula; the full basis gives itself."""
    part = water.subset([3])
    structure, fock = part.structures[0], part.labels["fock"][0]
    large, small = (opml.load_basis(b, (1, 8)) for b in ("def2-svp", "sto-3g"))
    assert np.abs(projected(part, large).labels["fock"][0] - fock).max() < 1e-10
    own = np.asarray(opml.integrals.overlap(structure, large))
    inside = np.linalg.solve(own, cross_overlap(structure, small, large).T)
    found = projected(part, small).labels["fock"][0]
    assert np.abs(found - inside.T @ fock @ inside).max() < 1e-10


def test_references_are_those_of_pyscf(water):
    part = water.subset([0, 7])
    found = reference_observables(part)
    basis = opml.load_basis("def2-svp", (1, 8))
    for i, structure in enumerate(part.structures):
        assert np.abs(found["mo_energy"][i] - part.labels["mo_energy"][i]).max() < LABELS
        assert np.abs(found["dipole"][i] - part.labels["dipole"][i]).max() < 100 * LABELS
        overlap = opml.integrals.overlap(structure, basis)
        dm = observables.density_matrix(part.labels["fock"][i], overlap, 10)
        charges = observables.lowdin_charges(dm, overlap, structure, basis)
        assert np.abs(found["lowdin_charges"][i] - charges).max() < 1e-10


@pytest.mark.slow
def test_closer_to_the_larger_basis_than_the_small_one_itself(trained, parts):
    model, _ = trained
    test = parts["test"]
    predicted = model.predict(test.structures)
    found = errors(predicted, test, model)
    own = [
        calculate(s, Method(basis="sto-3g", grid_level=3, forces=False)) for s in test.structures
    ]
    small = {
        k: np.array([o[k] for o in own]) for k in ("fock", "dm", "overlap", "mo_energy", "dipole")
    }
    charges = [
        opml.observables.lowdin_charges(o["dm"], o["overlap"], s, model.definition.basis)
        for o, s in zip(own, test.structures, strict=True)
    ]
    itself = all_errors(
        {**small, "nao": predicted["nao"], "lowdin_charges": np.array(charges)},
        test,
    )
    for key in (
        "eigenvalue_occupied_mae_uha",
        "eigenvalue_virtual_mae_uha",
        "gap_mae_uha",
        "lowdin_charges_mae_e",
        "dipole_mae_debye",
    ):
        assert found[key] < itself[key] / 10, key


@pytest.mark.slow
def test_the_last_stage_is_what_moves(parts):
    words = ("P", "S P S", "U", "U S", "U P S")
    config = dataclasses.replace(FEW, density_words=words, stages=1)
    model, fit = fitted(parts, config, TARGETS)
    assert min(row["validation_loss"] for row in fit.history) < 0.05
    test = parts["test"]
    found, guess = (errors(m.predict(test.structures), test, m) for m in (model, model.first_guess))
    for key in ("eigenvalue_occupied_mae_uha", "dipole_mae_debye", "lowdin_charges_mae_e"):
        assert found[key] < 0.1 * guess[key], key
    plain = Op2Op(FEW, model.definition.basis)
    small = {k: projected(parts[k], plain.basis) for k in ("train", "validation")}
    for name, own in fit_closed_form(plain, small, Run()).params["guess"].items():
        np.testing.assert_array_equal(model.params["guess"][name]["weights"], own["weights"])


@pytest.mark.slow
def test_validation_chooses(trained):
    _, fit = trained
    losses = [row["validation_loss"] for row in fit.history]
    assert min(losses) < 0.05  # of what the projected operator leaves
    assert len(losses) <= 2 * 150  # most steps, of each of two ways


@pytest.mark.slow
def test_levels_around_the_highest_occupied_one(parts):
    model, _ = fitted(parts, dataclasses.replace(FEW, window="homo"), ("mo_energy",))
    test = parts["test"]
    predicted = model.predict(test.structures)
    assert (predicted["first_level"] == 1).all()
    assert "dipole" not in predicted
    wanted = np.array(test.labels["mo_energy"])[:, 1:8]
    left = np.abs(predicted["mo_energy"] - wanted).mean()
    found = observable_errors(predicted, test)
    both = (
        4 * found["eigenvalue_occupied_mae_uha"] + 3 * found["eigenvalue_virtual_mae_uha"]
    ) / 7e6
    assert abs(left - both) < LABELS
    assert left < 2e-3  # Hartree; levels vary by 0.02


@pytest.mark.slow
def test_polarizabilities(parts):
    """Of Hartree-Fock in a field, which electrons answer together; 6-31G keeps it cheap."""
    method = Method("hf", "6-31g", forces=False)

    def labelled(part):
        out = {"fock": [], "polarizability": []}
        for s in part.structures:
            mf = mean_field(s, method)
            r, h = mf.mol.intor("int1e_r"), mf.get_hcore()
            moments = []
            for axis in range(3):
                ends = []
                for step in (1e-3, -1e-3):
                    mf.get_hcore = lambda *_, v=h + step * r[axis]: v
                    mf.kernel()
                    assert mf.converged
                    ends.append(-np.einsum("xij,ji->x", r, mf.make_rdm1()))
                moments.append((ends[0] - ends[1]) / 2e-3)
            out["polarizability"].append(np.array(moments))
            out["fock"].append(calculate(s, method)["fock"])
        return Dataset(part.structures, out, method.meta())

    sizes = {"train": 24, "validation": 8, "test": 5}
    sets = {k: labelled(parts[k].subset(range(n))) for k, n in sizes.items()}
    model, _ = fitted(sets, FEW, ("mo_energy", "polarizability"))
    found = errors(model.predict(sets["test"].structures), sets["test"], model)
    spread = np.std(np.array(sets["test"].labels["polarizability"]), axis=0).mean()
    assert found["polarizability_mae_bohr3"] < spread / 2


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    config = {
        "data": {"n_train": 30, "n_validation": 10, "n_test": 10},
        "model": {
            "family": "op2op",
            "basis": "sto-3g",
            "words": list(FEW.words),
            "density_words": [],
            "fit": {"observables": {"steps": 5}},
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["train", str(file), "-o", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"train", "validation", "test"}
    assert metrics["test"]["lowdin_charges_mae_e"] < 0.1
    assert "<img" in (tmp_path / "run" / "report.html").read_text()
    model = opml.load_model(tmp_path / "run")
    assert model.definition.config.density_words == ()


@pytest.mark.slow
@pytest.mark.parametrize("stages", [0, 1], ids=["first guess", "stage"])
def test_what_it_starts_from_stays_as_it_is(water, stages):
    """Fades are left out of a copy, and weights move in one."""
    words = {"words": ("S", "W"), "exponents": (), "density_words": ("P",) if stages else ()}
    fit = ObservablesFit(("mo_energy",), steps=2)
    config = dataclasses.replace(FEW, **words, stages=stages, fit=Op2OpFit(fit))
    definition = FAMILY.define(config, (1, 8))
    sets = {"train": water.subset(range(6)), "validation": water.subset(range(6, 9))}
    small = {name: projected(part, definition.basis) for name, part in sets.items()}
    params = fit_closed_form(definition, small, Run()).params
    last, fade = (params["stages"]["0"], "functional_fade") if stages else (params, "fade")
    last[fade] = np.array(0.01)
    before = jax.tree.map(np.array, params)
    found = fit_observables(definition, params, sets, fit, Run()).params
    assert jax.tree.structure(params) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    moved = found["stages"]["0"] if stages else found
    assert fade not in moved
    name = "density" if stages else "guess"
    assert any(np.any(w["weights"] != last[name][k]["weights"]) for k, w in moved[name].items())


def test_refusals(water):
    def config(targets=TARGETS, **changes):
        fit = Op2OpFit(observables=ObservablesFit(targets))
        return dataclasses.replace(FEW, fit=fit, **changes)

    assert TrainConfig(model=config()).model.targets == TARGETS
    with pytest.raises(ConfigError, match="opml config template effective"):
        ObservablesFit(targets=("fock",))
    for change in (
        {"density_words": ("P",)},
        {"network": Op2OpNetworkConfig()},
        {"target": "dm"},
        {"uncertainty": True},
        {"window": "homo"},
    ):
        with pytest.raises(ConfigError, match="opml config template effective"):
            TrainConfig(model=config(**change))
    TrainConfig(model=config(("mo_energy",), window="homo"))
    with pytest.raises(ConfigError, match="lowest, homo"):
        Op2OpConfig(window="highest")
    bare = Dataset(water.structures[:4], {"energy": water.labels["energy"][:4]}, water.meta)
    with pytest.raises(DataError, match="opml generate"):
        fitted(dict.fromkeys(("train", "validation"), bare), FEW, TARGETS)
