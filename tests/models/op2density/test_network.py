"""Networks on densities of water, and variances: symmetries, starts, files, a dense formula."""

import dataclasses

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import ConfigError, OpmlError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Density, Op2DensityConfig, Op2DensityModel, Op2DensityNetworkConfig
from opml_jax.models.op2density import Op2DensityFit, Op2DensityNetworkFit, closed_form, solver
from opml_jax.models.op2density.environments import environments
from opml_jax.models.op2density.fit_network import train_network
from opml_jax.models.op2density.labels import Labelled, label_dataset, metric_matrices, residuals
from opml_jax.models.op2density.losses import losses, maps_of
from opml_jax.models.op2density.variance import calibrated, variance_parameters

SHELLS = {1: [(0, 2.0), (0, 0.4), (1, 0.7)], 8: [(0, 8.0), (0, 0.4), (1, 1.0), (2, 0.9)]}
AUX, READ = (
    Basis.from_shells(
        name, {z: [Shell(l, np.array([a]), np.ones(1)) for l, a in own] for z, own in sets.items()}
    )
    for name, sets in (("to-d", SHELLS), ("s-p", {z: [(0, 0.5), (1, 0.5)] for z in (1, 8)}))
)
NETWORK = Op2DensityNetworkConfig(components=4, hidden=(8,), gates=4)
CONFIG = Op2DensityConfig(
    powers=(1,),
    components=6,
    references=40,
    baseline="average",
    uncertainty=True,
    network=NETWORK,
)
FIT = Op2DensityFit(penalty=1e-4, tolerance=1e-10)
DESCENT = Op2DensityNetworkFit(epochs=30, batch_size=4, learning_rate=1e-2)
N = 6


@dataclasses.dataclass
class Case:
    definition: Op2Density
    structures: list
    sets: dict[str, Labelled]
    problem: solver.Problem
    bases: dict
    solution: solver.Solution
    params: dict


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(2 * N))
    definition = Op2Density(CONFIG, READ, AUX)
    parts = {"train": range(N), "validation": range(N, 2 * N)}
    sets = {k: label_dataset(definition, data.subset(i), Run()) for k, i in parts.items()}
    problem, bases = closed_form.problem_of(definition, FIT, sets["train"])
    params, solution = closed_form.solve_problem(definition, FIT, problem, bases, Run())
    return Case(definition, data.structures, sets, problem, bases, solution, params)


@pytest.fixture(scope="module")
def fits(case):
    """Networks on the mean and on the kernels."""
    found = {}
    for name in ("alone", "kernels"):
        network = dataclasses.replace(NETWORK, alone=name == "alone")
        config = dataclasses.replace(CONFIG, network=network, uncertainty=name != "alone")
        definition = dataclasses.replace(case.definition, config=config)
        start = case.params
        if name == "alone":
            start = closed_form.subtract_baselines(definition, case.sets["train"])[0]
        fit = train_network(definition, DESCENT, start, case.sets, Run())
        found[name] = definition, start, fit
    return found


def test_networks_fall_below_what_they_start_from(case, fits):
    definition, start, fit = fits["alone"]
    assert fit.history[0]["loss"] < 1.1
    assert fit.history[-1]["loss"] < 0.5 * fit.history[0]["loss"]
    losses = []
    for params in (start, fit.params):
        error = residuals(definition, params, case.sets["validation"])
        losses.append(np.einsum("sp,spq,sq->", error, case.sets["validation"].metric, error))
    # what was reported is what the parameters give, through the function that predicts
    assert losses[1] / losses[0] == pytest.approx(min(fit.chosen.values()), rel=1e-6)
    assert losses[1] < 0.5 * losses[0]
    on_kernels = fits["kernels"][2]
    assert ("network" in on_kernels.params["8"]) == (min(on_kernels.chosen.values()) < 1)


def test_maps_give_dipoles_and_integrals(case):
    """Of the error of a density, whose exact dipole and integral there are functions for."""
    train = case.sets["train"]
    few = dataclasses.replace(
        train, metric=train.metric[:1], target=train.target[:1], structures=train.structures[:1]
    )
    maps = maps_of(case.definition, few, ("dipole", "points"), 10**6, seed=3)  # of all points
    s, e = few.structures[0], few.target[0] - train.target[1]
    expected = density.dipole(few.target[0], s, AUX) - density.dipole(train.target[1], s, AUX)
    np.testing.assert_allclose(maps["dipole"][0] @ e, expected, atol=1e-12)
    # another orientation of the grid: its own error
    percent = 100 * np.abs(maps["points"][0] @ e).sum() / s.n_electrons
    assert percent == pytest.approx(density.density_error_percent(e, s, AUX, level=1), rel=1e-2)


def test_weights_are_of_losses_in_units_of_the_start(case, fits):
    """What is reported is what the parameters give, through the function that predicts."""
    definition, start, _ = fits["alone"]
    weight = {"metric": 1.0, "dipole": 3.0, "points": 2.0}
    settings = dataclasses.replace(
        DESCENT, epochs=10, dipole_weight=3.0, real_space_weight=2.0, points=50
    )
    fit = train_network(definition, settings, start, case.sets, Run())
    assert fit.history[-1]["loss"] < fit.history[0]["loss"] < 1.1
    validation = case.sets["validation"]
    batch = maps_of(definition, validation, weight, 50, 0) | {"metric": validation.metric}
    units, found = (
        losses(residuals(definition, p, validation), batch) for p in (start, fit.params)
    )
    expected = sum(w * found[k] / units[k] for k, w in weight.items()) / 6.0
    assert min(fit.chosen.values()) == pytest.approx(float(expected), rel=1e-6)


def test_an_untrained_network_is_what_it_starts_from(case, fits):
    """To rounding: the sums are compiled apart."""
    definition, start, fit = fits["alone"]
    silent = {
        z: {**own, "network": {**own["network"], "readout": _zeros(own["network"]["readout"])}}
        for z, own in fit.params.items()
    }
    s = case.structures[0]
    here, there = (Op2DensityModel(definition, p).predict(s) for p in (start, silent))
    np.testing.assert_allclose(here["coefficients"], there["coefficients"], atol=1e-14)


def _zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


def test_networks_turn_with_the_molecule(case, fits, rng, random_rotation):
    definition, _, fit = fits["alone"]
    model, s = Op2DensityModel(definition, fit.params), case.structures[1]
    layout = layout_of(s, AUX)
    irreps = e3nn.Irreps([ir for a in range(s.n_atoms) for ir in layout.irreps(a)])
    here = model.predict(s)["coefficients"]
    for improper in (False, True):
        rotation = random_rotation(rng, improper=improper)
        there = model.predict(s.replace(positions=np.asarray(s.positions) @ rotation.T))
        turned = e3nn.IrrepsArray(irreps, jnp.asarray(here))
        turned = turned.transform_by_matrix(jnp.asarray(rotation_to_e3nn(rotation))).array
        np.testing.assert_allclose(there["coefficients"], turned, atol=1e-10)


def test_files_hold_networks_and_variances(case, fits, tmp_path):
    definition, _, fit = fits["alone"]
    for name, model, options in (
        ("network", Op2DensityModel(definition, fit.params), {}),
        ("variance", Op2DensityModel(case.definition, case.params), {"uncertainty": True}),
    ):
        path = tmp_path / f"{name}.safetensors"
        opml.save_model(path, model)
        again = opml.load_model(path)
        assert again.definition.config == model.definition.config
        here, there = (m.predict(case.structures[:2], **options) for m in (model, again))
        for k in here:
            np.testing.assert_array_equal(here[k], there[k], err_msg=k)


def test_a_killed_network_goes_on_to_the_same_weights(case, fits, tmp_path):
    definition, start, fit = fits["alone"]

    def kill(stage, epoch, total, note):
        if epoch == 2:
            raise KeyboardInterrupt

    def train(run):
        return train_network(definition, DESCENT, start, case.sets, run)

    with pytest.raises(KeyboardInterrupt):
        train(Run(tmp_path, fingerprint="x", on_progress=kill))
    assert Run(tmp_path).path("network.npz").exists()
    again = train(Run(tmp_path, fingerprint="x"))
    assert again.history == fit.history
    jax.tree.map(np.testing.assert_array_equal, again.params, fit.params)


def reference_variances(case, structures) -> list[np.ndarray]:
    """The Gaussian process as one writes it: kernels between all functions of all molecules."""
    definition = case.definition
    together = [*case.structures[:N], *structures]
    found = environments(definition, together)
    naux = layout_of(together[0], AUX).nao
    k = np.zeros((len(together) * naux,) * 2)
    for z, own in found.items():
        x = {}
        for l, c in case.bases[str(z)]["components"].items():
            centred = own.features[int(l)] - (c["mean"][:, None] if "mean" in c else 0)
            x[int(l)] = np.einsum("iqm,qk->ikm", centred, c["matrix"])
        for l, at in own.flat(naux).items():
            for i, j in np.ndindex(len(at), len(at)):
                d2 = ((x[0][i] - x[0][j]) ** 2).sum()
                block = np.exp(-0.5 * d2 / CONFIG.length**2) * (x[l][i].T @ x[l][j] if l else 1)
                for n in range(at.shape[1]):
                    k[np.ix_(at[i, n], at[j, n])] = block
    known = N * naux
    inverse = np.zeros((known, known))
    for i, m in enumerate(case.sets["train"].metric):
        inverse[i * naux : (i + 1) * naux, i * naux : (i + 1) * naux] = np.linalg.inv(m)
    total = k[:known, :known] + N * FIT.penalty * inverse
    y = np.asarray(case.problem.target).ravel()
    amplitude = y @ np.linalg.solve(total, y) / known  # largest likelihood of the prior's scale
    out, metrics = [], metric_matrices(definition, structures)
    for i, s in enumerate(structures):
        at = slice(known + i * naux, known + (i + 1) * naux)
        across = k[at, :known]
        sigma = amplitude * (k[at, at] - across @ np.linalg.solve(total, across.T))
        offsets = layout_of(s, AUX).offsets
        parts = [slice(*offsets[a : a + 2]) for a in range(s.n_atoms)]
        out.append(np.array([np.sum(metrics[i][p, p] * sigma[p, p]) for p in parts]))
    return out


def test_variances_are_those_of_the_dense_gaussian_process(case):
    """Known molecules, an unknown one, and one far away."""
    far = case.structures[0]
    far = far.replace(positions=1.6 * np.asarray(far.positions))
    wanted = [case.structures[0], case.structures[N], far]
    expected = reference_variances(case, wanted)
    model = Op2DensityModel(case.definition, case.params)
    found = model.predict(wanted, uncertainty=True)
    np.testing.assert_allclose(found["atom_density_uncertainty"] ** 2, expected, rtol=1e-5)
    whole = found["density_uncertainty"]
    np.testing.assert_allclose(whole**2, np.sum(expected, axis=1), rtol=1e-5)
    assert whole[2] > 10 * whole[:2].max()  # it grows away from the training set


def test_blocks_of_atoms_stand_for_a_large_hessian(case):
    """Of the size of the exact variances, and not smaller than what one atom alone would know."""
    approximate = variance_parameters(case.problem, case.bases, case.solution.weights, exact=0)
    params = {z: {**own, "variance": approximate[z]} for z, own in case.params.items()}
    s = case.structures[N]
    exact, rough = (
        Op2DensityModel(case.definition, p).predict(s, uncertainty=True)["density_uncertainty"]
        for p in (case.params, params)
    )
    assert 0.2 * exact < rough < 5 * exact


def test_calibrated_variances_are_the_errors_of_validation(case):
    params, factor = calibrated(case.definition, case.params, case.sets["validation"])
    found = Op2DensityModel(case.definition, params).predict(case.structures[N:], uncertainty=True)
    error = residuals(case.definition, params, case.sets["validation"])
    squares = np.einsum("sp,spq,sq->s", error, case.sets["validation"].metric, error)
    assert np.mean(found["density_uncertainty"] ** 2) == pytest.approx(squares.mean(), rel=1e-8)
    before = Op2DensityModel(case.definition, case.params).predict(
        case.structures[N], uncertainty=True
    )
    assert found["density_uncertainty"][0] == pytest.approx(
        factor * before["density_uncertainty"], rel=1e-8
    )


def test_refusals(case, fits):
    definition, _, fit = fits["alone"]
    with pytest.raises(OpmlError, match=r"model\.uncertainty=true"):
        Op2DensityModel(definition, fit.params).predict(case.structures[0], uncertainty=True)
    alone = dataclasses.replace(NETWORK, alone=True)
    with pytest.raises(ConfigError, match="alone"):
        dataclasses.replace(CONFIG, network=alone)
    with pytest.raises(ConfigError, match="gates"):
        dataclasses.replace(NETWORK, gates=0)
    with pytest.raises(ConfigError, match=r"model\.network\.fit\.points"):
        Op2DensityNetworkFit(points=0)
    plain = dataclasses.replace(CONFIG, uncertainty=False, fit=FIT)
    plain.check()
    few_points = dataclasses.replace(NETWORK, fit=Op2DensityNetworkFit(points=50))
    for network in (alone, few_points):  # settings without a part
        with pytest.raises(ConfigError, match="left out"):
            dataclasses.replace(plain, network=network).check()
