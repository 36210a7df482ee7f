"""Networks on densities of water, and variances: starts, losses, a dense formula."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

import opml_jax as opml
from opml_jax import density
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.learn.run import Run
from opml_jax.models import Op2Density, Op2DensityConfig, Op2DensityModel, Op2DensityNetworkConfig
from opml_jax.models.op2density import Op2DensityFit, Op2DensityNetworkFit, closed_form
from opml_jax.models.op2density import problem as problem_module
from opml_jax.models.op2density.fit_network import train_network
from opml_jax.models.op2density.labels import (
    Labelled,
    environments,
    label_dataset,
    metric_matrices,
    residuals,
)
from opml_jax.models.op2density.objective import losses, maps_of
from opml_jax.models.op2density.variance import calibrated, variance_parameters

SHELLS = {1: [(0, 2.0), (0, 0.4), (1, 0.7)], 8: [(0, 8.0), (0, 0.4), (1, 1.0), (2, 0.9)]}
AUX, READ = (
    Basis.from_shells(
        name, {z: [Shell(l, np.array([a]), np.ones(1)) for l, a in own] for z, own in sets.items()}
    )
    for name, sets in (("to-d", SHELLS), ("s-p", {z: [(0, 0.5), (1, 0.5)] for z in (1, 8)}))
)
NETWORK = Op2DensityNetworkConfig(components=4, hidden=(8,), gates=4)
KERNELS = {"powers": (1,), "length": 3.0, "components": 6, "references": 40, "baseline": "average"}
CONFIG = Op2DensityConfig(**KERNELS, uncertainty=True, network=NETWORK)
FIT = Op2DensityFit(penalty=1e-4, tolerance=1e-10)
DESCENT = Op2DensityNetworkFit(epochs=30, batch_size=4, learning_rate=1e-2)
N = 6


@dataclasses.dataclass
class Case:
    definition: Op2Density
    structures: list
    sets: dict[str, Labelled]
    problem: problem_module.Problem
    bases: dict
    solution: problem_module.Solution
    params: dict


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(2 * N))
    definition = Op2Density(CONFIG, READ, AUX)
    parts = {"train": range(N), "validation": range(N, 2 * N)}
    sets = {k: label_dataset(definition, data.subset(i), Run()) for k, i in parts.items()}
    problem, bases = closed_form.problem_of(definition, FIT.penalty, sets["train"])
    params, solution = closed_form.solve_problem(definition, FIT, problem, bases, Run())
    return Case(definition, data.structures, sets, problem, bases, solution, params)


@pytest.fixture(scope="module")
def alone(case):
    """A network on the mean: definition, what it starts from, fit."""
    network = dataclasses.replace(NETWORK, alone=True)
    definition = Op2Density(Op2DensityConfig(**KERNELS, network=network), READ, AUX)
    start = closed_form.subtract_baselines(definition, case.sets["train"])[0]
    return definition, start, train_network(definition, DESCENT, start, case.sets, Run())


@pytest.mark.slow
def test_networks_fall_below_what_they_start_from(case, alone):
    definition, start, fit = alone
    assert fit.history[0]["loss"] < 1.1
    assert fit.history[-1]["loss"] < 0.5 * fit.history[0]["loss"]
    losses = []
    for params in (start, fit.params):
        error = residuals(definition, params, case.sets["validation"])
        losses.append(np.einsum("sp,spq,sq->", error, case.sets["validation"].metric, error))
    # what was reported is what the parameters give, through the function that predicts
    assert losses[1] / losses[0] == pytest.approx(min(fit.facts.values()), rel=1e-6)
    assert losses[1] < 0.5 * losses[0]
    on_kernels = train_network(case.definition, DESCENT, case.params, case.sets, Run())
    assert ("network" in on_kernels.params["8"]) == (min(on_kernels.facts.values()) < 1)


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


def test_weights_are_of_losses_in_units_of_the_start(case, alone):
    """What is reported is what the parameters give, through the function that predicts."""
    definition, start, _ = alone
    weight = {"metric": 1.0, "dipole": 3.0, "points": 2.0}
    shares = {"dipole_weight": 3.0, "real_space_weight": 2.0}
    settings = dataclasses.replace(DESCENT, epochs=10, points=50, **shares)
    fit = train_network(definition, settings, start, case.sets, Run())
    assert fit.history[-1]["loss"] < fit.history[0]["loss"] < 1.1
    validation = case.sets["validation"]
    batch = maps_of(definition, validation, weight, 50, 0) | {"metric": validation.metric}
    units, found = (
        losses(residuals(definition, p, validation), batch) for p in (start, fit.params)
    )
    expected = sum(w * found[k] / units[k] for k, w in weight.items()) / 6.0
    assert min(fit.facts.values()) == pytest.approx(float(expected), rel=1e-6)


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
    inverse = scipy.linalg.block_diag(*np.linalg.inv(case.sets["train"].metric))
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
    model = Op2DensityModel(case.definition, case.params)
    before = model.predict(case.structures[N], uncertainty=True)["density_uncertainty"]
    assert found["density_uncertainty"][0] == pytest.approx(factor * before, rel=1e-8)
