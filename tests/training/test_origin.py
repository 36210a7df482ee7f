"""Training that starts from a model: what it takes over, what it refuses, what it is worth."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.data.store import write_hdf5
from opml_jax.errors import Code, ConfigError, DataError, DataWarning, OpmlError
from opml_jax.learn.keyed_ridge import KeyedSystem, solve_key
from opml_jax.learn.ridge import CHANGES, ridge_leave_one_out, ridge_validated
from opml_jax.models.op2op import Op2OpConfig
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit, residual
from opml_jax.models.op2prop import fit as fitting
from opml_jax.structures.trained_for import trained_for, union_of
from opml_jax.training import TrainConfig, evaluate, load_config, train
from opml_jax.training.card import card_text
from opml_jax.training.origin import check_origin, hash_of

ROUNDING = 1e-9  # relative: a solution is added to what it is a difference from

GAIN = 0.5  # measured: 12 of 481 meV and 96 of 700 meV/A; 13 of 70 meV and 54 of 130 meV/A

FIT = Op2PropFit(targets=("energy", "forces"), epochs=0)
TINY = Op2PropConfig(basis="sto-3g", powers=(1,), gram_powers=(1,), hidden=(4,), fit=FIT)
FIRST = {"train": [*range(10)], "validation": [*range(10, 16)]}
SECOND = {"train": [*range(16, 22)], "validation": [*range(22, 26)]}


@pytest.fixture(scope="module")
def data():
    return opml.read_dataset(opml.bundled("water"), limit=40)


@pytest.fixture(scope="module")
def model(data):
    return train(data, FIRST, TrainConfig(model=TINY)).model


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """``c.yaml``, which says nothing of the model, and ``first``, a run."""
    folder = tmp_path_factory.mktemp("origin")
    write_hdf5(folder / "water.h5", data)
    sizes = "data: {path: PATH, n_train: 6, n_validation: 4, n_test: 4}\n"
    sizes = sizes.replace("PATH", str(folder / "water.h5"))
    model = "{basis: sto-3g, powers: [1], gram_powers: [1], hidden: [4], fit: FIT}\n"
    fit = "{targets: [energy, forces], epochs: 0}"
    (folder / "first.yaml").write_text(sizes + "model: " + model.replace("FIT", fit))
    (folder / "c.yaml").write_text(sizes + f"seed: 1\nmodel: {{fit: {fit}}}\n")
    assert main(["train", str(folder / "first.yaml"), "-o", str(folder / "first")]) == 0
    return folder


def test_an_infinite_lambda_keeps_what_was():
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(20, 4)), rng.normal(size=20)
    assert CHANGES[-1] == np.inf
    for fit in (
        ridge_validated([(a, y)], (a, y), [np.inf]),
        ridge_leave_one_out(a, y, [np.inf]),
    ):
        np.testing.assert_array_equal(fit.weights, 0.0)
    whole = ridge_validated([(a, y)], (a, y), [1e-10, np.inf])
    assert whole.lam == 1e-10  # the columns say something of these rows
    assert ridge_validated([(a, 0 * y)], (a, 0 * y), CHANGES).lam == np.inf


def test_keyed_weights_are_drawn_to_where_they_start():
    rng = np.random.default_rng(0)
    x, w, c = rng.normal(size=(50, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)
    start = {"weights": w + 1.0, "constant": c - 1.0}
    train, judge = KeyedSystem(), KeyedSystem()
    train.add(x, x @ w + c)
    judge.add(x[:10], x[:10] @ w + c)
    every = solve_key(train, judge, 2, True, start=start)
    for name, kept in start.items():
        np.testing.assert_array_equal(every[-1][0][name], kept)
    assert every[-1][1].lam == np.inf
    np.testing.assert_allclose(every[0][0]["weights"], w, rtol=1e-6)
    np.testing.assert_allclose(every[0][0]["constant"], c, rtol=1e-6)
    left = [fit.rmse for _, fit in every]
    assert left == sorted(left)  # the stronger, the nearer to the start


def test_labels_that_a_model_made_change_nothing(data, model):
    """Energies of another zero of each atom are taken over: they are free."""
    predicted = model.predict(data.structures)
    n = predicted["n_atoms"]
    shift = np.array([s.numbers.count(1) * 0.3 - s.numbers.count(8) * 2.0 for s in data.structures])
    labels = {
        "energy": list(predicted["energy"] + shift),
        "forces": [f[:k] for f, k in zip(predicted["forces"], n, strict=True)],
    }
    other = opml.Dataset(data.structures, labels, {"method": "hf", "basis": "sto-3g"})
    moved = train(other, SECOND, TrainConfig(model=TINY), origin=model).model
    found = moved.predict(data.structures[30:])
    np.testing.assert_allclose(found["energy"], labels["energy"][30:], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found["forces"], predicted["forces"][30:], rtol=0, atol=1e-6)


def test_more_labels_of_the_same_kind_make_it_no_worse(data, model):
    """Six more geometries on ten: no worse than what was there, but for what four can judge."""
    more = train(data, SECOND, TrainConfig(model=TINY), origin=model).model
    test, name = data.subset(range(26, 40)), "forces_mae_mev_per_angstrom"
    assert evaluate(more, test)[name] < 1.1 * evaluate(model, test)[name]


@pytest.mark.slow
def test_ten_labels_on_top_of_a_pretrained_model_beat_ten_labels_alone():
    """Diethyl ether, which pretrained:chno has not seen, PBE/def2-SVP and grid level 3 as there.

    On top: eight train and two validate. Alone all ten train, once two of them have validated.
    """
    data = opml.read_dataset(Path(__file__).with_name("ether.h5"))
    earlier, fit = opml.load_model("pretrained:chno"), dataclasses.replace(FIT, epochs=0)
    config = dataclasses.replace(earlier.definition.config, fit=fit)
    ten, test = {"train": [*range(8)], "validation": [8, 9]}, data.subset(range(10, 22))
    on_top = train(data, ten, TrainConfig(model=config), origin=earlier).model
    assert on_top.card["start"] == "scaling"
    assert on_top.elements == (1, 6, 8)  # ether has no nitrogen
    with pytest.raises(OpmlError, match="got N") as caught:
        on_top.predict(opml.Structure([7, 7], [[0.0, 0.0, 0.0], [0.0, 0.0, 2.1]]))
    assert caught.value.code == Code.UNSEEN_ELEMENT
    alone = train(data, ten, TrainConfig(model=dataclasses.replace(config, last_layer=False))).model
    errors = [evaluate(model, test) for model in (on_top, alone, earlier)]
    for name in ("energy_mae_mev", "forces_mae_mev_per_angstrom"):
        with_origin, without, before = (of_model[name] for of_model in errors)
        assert with_origin < without, name
        assert with_origin < GAIN * before, name


@pytest.mark.slow
def test_weights_that_are_no_help_go():
    """Formamide: errors of pretrained:chno there are 481 meV and 700 meV/A.

    What stays is its scaling of features, and limits are those of the new labels.
    """
    data = opml.read_dataset(Path(__file__).with_name("formamide.h5"))
    earlier = opml.load_model("pretrained:chno")
    config = TrainConfig(model=dataclasses.replace(earlier.definition.config, fit=FIT))
    trained = train(data, {"train": [*range(8)], "validation": [8, 9]}, config, origin=earlier)
    model, card = trained.model, trained.model.card
    assert card["start"] == "scaling"
    assert "residual" not in model.params
    assert earlier.has("dipole")
    assert not model.has("dipole")  # these labels have none
    assert card["trained_for"] == trained_for(data.structures[:8])
    assert hash_of(earlier) == card["origin"]["weights"]
    assert "only the scaling" in card_text({**card, "splits": {}}, "")
    test = data.subset(range(10, 40))
    with pytest.warns(DataWarning, match=r"bonded as none was in training: C\(HNO\)"):
        before = evaluate(earlier, test)
    after = evaluate(model, test)
    for name in ("energy_mae_mev", "forces_mae_mev_per_angstrom"):
        assert after[name] < GAIN * before[name], name


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"members": 2}, {"last_layer": True, "references": 3}])
def test_networks_and_their_doubts_go_on(data, sizes, tmp_path, monkeypatch):
    """From a file, which makes arrays of numbers."""
    monkeypatch.setattr(residual, "PAYS", -np.inf)  # two epochs help little
    config = dataclasses.replace(TINY, **sizes, fit=dataclasses.replace(FIT, epochs=2))
    opml.save_model(tmp_path / "m.safetensors", train(data, FIRST, TrainConfig(model=config)).model)
    first = opml.load_model(tmp_path / "m.safetensors")
    still = dataclasses.replace(config, fit=FIT)
    again = train(data, FIRST, TrainConfig(model=still), origin=first).model
    for a, b in zip(*(jax.tree.leaves(m.params["residual"]) for m in (first, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.doubted == first.doubted
    spread = again.predict(data.structures[30:33], uncertainty=True)["energy_uncertainty"]
    assert np.isfinite(spread).all()
    assert (spread > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("sizes", [{"members": 2}, {"last_layer": True, "references": 3}])
def test_networks_and_their_doubts_are_new_without_the_weights(data, sizes, epochs, monkeypatch):
    monkeypatch.setattr(residual, "PAYS", -np.inf)
    config = dataclasses.replace(TINY, **sizes, fit=dataclasses.replace(FIT, epochs=2))
    first = train(data, FIRST, TrainConfig(model=config)).model
    monkeypatch.setattr(fitting, "WORTH", np.inf)
    again = dataclasses.replace(config, fit=dataclasses.replace(FIT, epochs=epochs))
    splits = {**SECOND, "calibration": [*range(26, 30)]}
    model = train(data, splits, TrainConfig(model=again), origin=first).model
    assert model.card["start"] == "scaling"
    assert ("residual" in model.params) == bool(epochs)
    assert bool(model.doubted) == bool(epochs or "last_layer" in sizes)
    test = data.subset(range(30, 40))
    assert errors_of(model, test) < 0.1 * errors_of(model, test, of=model.baseline)


def errors_of(model, test, of=None):
    predicted = (of or model.predict)(test.structures)
    return np.abs(predicted["forces"] - test["forces"]).mean()


def test_the_card_covers_both(data, model, molecules):
    ions = {"electrons": [{"charge": 1, "spin": 1, "compositions": ["HO"]}], "coordinations": []}
    card = {**model.card, "closest_bohr": {"H-O": 0.5, "O-O": 4.0}, "trained_for": ions}
    before = dataclasses.replace(model, card=card)
    after = train(data, SECOND, TrainConfig(model=TINY), origin=before).model.card
    assert after["closest_bohr"]["H-O"] == 0.5
    assert after["closest_bohr"]["O-O"] == 4.0
    assert after["closest_bohr"]["H-H"] > 2.0
    states = {(e["charge"], e["spin"]) for e in after["trained_for"]["electrons"]}
    assert states == {(0, 0), (1, 1)}
    assert after["origin"]["weights"] == hash_of(model)
    assert after["origin"]["n_train"] == 10
    assert after["n_train"] == 6
    water = {"electrons": [{"charge": 0, "spin": 2, "compositions": ["H2O"]}]}
    with pytest.raises(DataError, match="H2O") as caught:
        union_of(water, trained_for([molecules["water"]]))
    assert caught.value.code == Code.ELECTRONS


@pytest.mark.parametrize(
    ("config", "words", "code"),
    [
        (Op2OpConfig(), "of the same family", Code.CONFIG),
        (dataclasses.replace(TINY, powers=(1, 2), vectors=3), "powers.*vectors", Code.CONFIG),
        (
            dataclasses.replace(TINY, fit=Op2PropFit(targets=("energy", "dipole"))),
            "got dipole",
            Code.CONFIG,
        ),
    ],
)
def test_another_model_is_refused(data, model, config, words, code):
    with pytest.raises(ConfigError, match=words) as caught:
        train(data, FIRST, TrainConfig(model=config), origin=model)
    assert caught.value.code == code


def test_elements_that_it_lacks_are_refused(model, molecules):
    other = opml.Dataset([molecules["methane"]] * 2, {"energy": [0.0, 0.0]})
    with pytest.raises(OpmlError, match="got C") as caught:
        check_origin(model, TINY, {"train": other})
    assert caught.value.code == Code.UNSEEN_ELEMENT


def test_the_command_fills_in_what_the_configuration_leaves_out(run, capsys):
    config, second = str(run / "c.yaml"), str(run / "second")
    command = ["train", config, "-o", second, "--from", str(run / "first")]
    assert main(command) == 0
    written = load_config(run / "second" / "config.yaml")
    assert written.origin == str(run / "first")
    assert written.model.functions == opml.load_model(run / "first").definition.config
    assert set(json.loads((run / "second" / "metrics.json").read_text())) >= {"test"}
    assert "Starts from" in (run / "second" / "card.md").read_text()
    capsys.readouterr()
    assert main(command) == 0
    assert "complete" in capsys.readouterr().out
    assert main(["train", config, "-o", second, "--from", second]) == 2  # another origin
    assert "origin" in capsys.readouterr().err
    assert main([*command[:3], str(run / "no"), "--from", str(run / "nowhere")]) == 2
    assert "OPML-" in capsys.readouterr().err
    assert main([*command[:3], str(run / "no"), "--from", second, "--set", "model.hidden=[5]"]) == 2
    assert "hidden [5] (not [4])" in capsys.readouterr().err
    assert not (run / "no").exists()
