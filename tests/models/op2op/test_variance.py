"""Standard deviations of Fock matrices: the posterior they are drawn from, and their worth."""

import ase.io
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.data.reference import reference_observables
from opml_jax.errors import ConfigError, DataWarning, OpmlError
from opml_jax.features.couple import key_name
from opml_jax.interfaces.ase import structure_to_ase
from opml_jax.learn.calibration import WITHIN
from opml_jax.learn.keyed_ridge import KeyedSystem, best_of, solve_key, spectrum
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op import Op2OpNetworkConfig
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.variance import N_DRAWS, calibrated, draw
from opml_jax.testing import random_rotation

pytestmark = (
    pytest.mark.slow
)  # training and draws take a minute; golden files have standard deviations

WORDS = ("S", "T", "W", "W S", "T W", "W S^-1 W", "E")
DENSITY_WORDS = ("P", "S P S", "W P S", "U", "U S", "T U", "U U", "U P S")
BETWEEN = (0.60, 0.76)  # of the errors of elements below one standard deviation
OF_OBSERVABLES = (0.50, 0.85)  # their factors are found on 20 molecules only
SAMPLED = 0.06  # of 4000 draws, relative, four sigma
ROUNDING = 1e-6  # relative, of standard deviations 1e-5 of matrices of order 20 Hartree


def _system(x, y):
    system = KeyedSystem()
    system.add(x, y)
    return system


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("n", [12, 200], ids=["fewer rows than columns", "more"])
def test_draws_are_those_of_bayesian_linear_regression(n, constant):
    """Their mean square at any point is the posterior variance, by the normal equations."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n + 60, 20)) * 10.0 ** rng.uniform(-1, 1, size=20) + 0.5
    y = x @ rng.normal(size=(20, 3)) + 0.3 * rng.normal(size=(n + 60, 3))
    train, judge = _system(x[:n], y[:n]), _system(x[n:], y[n:])
    weights, fit = best_of(solve_key(train, judge, 3, constant), floor=1e-3)
    own = spectrum(train, 3, constant)
    found = draw(own, (weights, fit), judge, np.random.default_rng(2), 4000)

    mean = x[:n].mean(axis=0) if constant else np.zeros(20)
    spread = x[:n].std(axis=0) if constant else np.sqrt((x[:n] ** 2).mean(axis=0))
    a = (x - mean) / spread
    covariance = np.linalg.inv(a[:n].T @ a[:n] + fit.lam * n * np.eye(20))
    expected = np.einsum("ni,ij,nj->n", a, covariance, a) + constant / n
    moved = x @ found["directions"] + found.get("constant", 0.0)
    np.testing.assert_allclose((moved**2).mean(axis=1), expected, rtol=2 * SAMPLED)
    np.testing.assert_allclose((moved**2).mean(), expected.mean(), rtol=SAMPLED)

    # what is left of the judge's rows is what their variances are in mean
    left = x[n:] @ weights["weights"] + weights.get("constant", 0.0) - y[n:]
    drawn = moved[n:, None, :] * found["scales"]
    np.testing.assert_allclose((drawn**2).mean(axis=(0, 2)), (left**2).mean(axis=0), rtol=ROUNDING)
    assert ("constant" in found) == constant


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water"))


def _fitted(water, **parts):
    config = Op2OpConfig(words=WORDS, uncertainty=True, **parts)
    definition = Op2Op(config, opml.load_basis("def2-svp", [1, 8]))
    sets = {"train": water.subset(range(60)), "validation": water.subset(range(60, 80))}
    fit = fit_closed_form(definition, sets, Run())
    return Op2OpModel(definition, fit.params, {"elements": ["H", "O"]})


@pytest.fixture(scope="module")
def model(water):
    return _fitted(water, density_words=())


def _check(model, test, far_away):
    """Coverage of held-out errors, ranks, and growth with every stretch."""
    found = model.predict(test.structures, uncertainty=True)
    wanted = reference_observables(test, ("mo_energy", "lowdin_charges"))
    wanted["fock"] = test["fock"]
    for name, reference in wanted.items():
        error, sigma = np.abs(found[name] - np.array(reference)), found[f"{name}_uncertainty"]
        assert sigma.shape == error.shape
        low, high = BETWEEN if name == "fock" else OF_OBSERVABLES
        assert low < (error < sigma).mean() < high, name
    error = np.abs(found["fock"] - np.array(test["fock"])).mean(axis=(1, 2))
    sigma = found["fock_uncertainty"].mean(axis=(1, 2))
    ranks = [np.argsort(np.argsort(x)) for x in (error, sigma)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7  # 0.9 measured
    medians = []
    for stretch in far_away:
        far = [s.replace(positions=stretch * np.asarray(s.positions)) for s in test.structures[:20]]
        own = model.predict(far, uncertainty=True)
        medians.append([np.median(own[f"{k}_uncertainty"]) for k in ("fock", "mo_energy", "gap")])
    assert (np.diff(medians, axis=0) > 0).all()


@pytest.mark.slow
def test_most_errors_are_within_one_and_it_rises_far_away(model, water):
    _check(model, water.subset(range(260, 360)), (1.0, 1.05, 1.1, 1.2))


@pytest.mark.slow
@pytest.mark.parametrize("stages", [0, 1], ids=["self-consistent", "stage"])
def test_of_matrices_of_a_density(water, stages):
    found = _fitted(water, density_words=DENSITY_WORDS, stages=stages)
    _check(found, water.subset(range(260, 360)), (1.0, 1.05, 1.1))


def test_molecules_of_their_own_scale_it(model, water):
    apart = water.subset(range(100, 160))
    params = calibrated(model.definition, model.params, apart)
    found = Op2OpModel(model.definition, params).predict(apart.structures, uncertainty=True)
    wanted = {**reference_observables(apart, ("mo_energy", "dipole")), "fock": apart["fock"]}
    for name, reference in wanted.items():
        share = (np.abs(found[name] - np.array(reference)) < found[f"{name}_uncertainty"]).mean()
        assert share == pytest.approx(WITHIN, abs=1 / 180)  # one of 60 dipoles has three
    again = calibrated(model.definition, params, apart)
    for name, own in params["calibration"].items():
        assert again["calibration"][name] == pytest.approx(float(own), rel=1e-6)


def test_it_is_what_the_weights_may_be(model, water):
    """The spread of predictions of models whose weights are moved by each of the draws."""
    some = water.structures[300:308]  # as many as elsewhere: nothing compiles anew
    found = model.predict(some, uncertainty=True)
    moved, draws = [], model.params["draws"]

    def predict(params):
        own = Op2OpModel(model.definition, params, model.card)
        return own.predict(some, uncertainty=True)["fock"]

    for d in range(N_DRAWS):
        guess = {
            key: {
                name: value
                + (
                    np.outer(draws[key]["directions"][:, d], draws[key]["scales"][:, d])
                    if name == "weights"
                    else draws[key]["constant"][d] * draws[key]["scales"][:, d]
                )
                for name, value in own.items()
            }
            for key, own in model.params["guess"].items()
        }
        moved.append(predict({**model.params, "guess": guess}))
    spread = np.sqrt(np.mean((np.array(moved) - found["fock"]) ** 2, axis=0))
    np.testing.assert_allclose(found["fock_uncertainty"], spread, rtol=ROUNDING, atol=1e-12)


def test_it_does_not_depend_on_the_frame(model, water):
    s = water.structures[310]
    turned = s.replace(positions=np.asarray(s.positions) @ random_rotation(3).T + 1.0)
    found = model.predict([s, turned] * 4, uncertainty=True)  # as many as elsewhere
    one, other = ({k: v[i] for k, v in found.items()} for i in range(2))
    for name in ("mo_energy_uncertainty", "gap_uncertainty", "lowdin_charges_uncertainty"):
        np.testing.assert_allclose(one[name], other[name], rtol=ROUNDING)
    norms = [np.linalg.norm(x["dipole_uncertainty"]) for x in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=ROUNDING)


@pytest.mark.slow
def test_padding_and_company_change_nothing(model, water):
    s = water.structures[320]
    alone = model.predict(s, uncertainty=True)  # a program of its own
    among = model.predict(water.structures[318:326], uncertainty=True)
    for name, value in alone.items():
        np.testing.assert_allclose(among[name][2], value, rtol=ROUNDING, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_pairs_never_seen_have_none(model, water):
    s = water.structures[0]
    apart = np.asarray(s.positions) + np.array([8.0, 0, 0])
    two = opml.Structure((*s.numbers, *s.numbers), np.concatenate([s.positions, apart]))
    with pytest.warns(DataWarning, match="O-O"):
        found = model.predict([s, two], uncertainty=True)
    for name in ("fock", "gap", "dipole"):
        own = found[f"{name}_uncertainty"]
        assert np.isfinite(own[0]).all()
        assert np.isnan(own[1]).all()
        assert np.isfinite(found[name]).all()


@pytest.mark.slow
def test_files_and_the_command_line_keep_it(model, water, tmp_path, capsys):
    opml.save_model(tmp_path / "m.safetensors", model)
    atoms = [structure_to_ase(s) for s in water.structures[300:308]]
    ase.io.write(tmp_path / "w.xyz", atoms)
    run = str(tmp_path / "m.safetensors"), str(tmp_path / "w.xyz")
    assert not main(["predict", *run, "-o", f"{tmp_path}/out.h5", "--uncertainty"])
    assert not main(["predict", *run, "-o", f"{tmp_path}/out.extxyz", "--uncertainty"])
    capsys.readouterr()
    read = opml.read_structures(run[1])
    expected = model.predict(read, uncertainty=True)
    again = opml.read_dataset(tmp_path / "out.h5")
    for name in ("fock_uncertainty", "mo_energy_uncertainty"):
        np.testing.assert_allclose(np.array(again[name]), expected[name], rtol=ROUNDING, atol=1e-12)
    assert "opml_gap_uncertainty=" in (tmp_path / "out.extxyz").read_text()


def test_what_has_none_says_so(model, water):
    bare = {k: v for k, v in model.params.items() if k != "draws"}
    with pytest.raises(OpmlError, match=r"model\.uncertainty=true"):
        Op2OpModel(model.definition, bare).predict(water.structures[0], uncertainty=True)
    with pytest.raises(OpmlError, match="first guess"):
        model.first_guess.predict(water.structures[0], uncertainty=True)
    for parts in ({"target": "dm", "density_words": ()}, {"network": Op2OpNetworkConfig()}):
        with pytest.raises(ConfigError, match=r"model\.uncertainty"):
            Op2OpConfig(uncertainty=True, **parts)


def test_every_key_with_weights_has_draws(model):
    assert model.params["draws"].keys() == model.params["guess"].keys()
    assert key_name((0, 8, 8, 0, 1)) in model.params["draws"]
