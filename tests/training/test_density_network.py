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
from opml_jax.models import DensityModel, Op2Density, Op2DensityConfig, Op2DensityNetworkConfig
from opml_jax.training import density as training
from opml_jax.training import density_solver as solver
from opml_jax.training.config import OptimConfig
from opml_jax.training.density_losses import losses, maps_of
from opml_jax.training.density_network import train_density_network
from opml_jax.training.density_variance import variance_parameters

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
    penalty=1e-4,
    tolerance=1e-10,
    baseline="average",
    uncertainty=True,
    network=NETWORK,
)
N = 6


@dataclasses.dataclass
class Case:
    definition: Op2Density
    structures: list
    train: training.Labelled
    validation: training.Labelled
    problem: solver.Problem
    bases: dict
    solution: solver.Solution
    params: dict


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(2 * N))
    definition = Op2Density(CONFIG, READ, AUX)
    train, validation = (
        training.label_dataset(definition, data.subset(i)) for i in (range(N), range(N, 2 * N))
    )
    problem, bases = training.problem_of(definition, train)
    params, solution = training.solve_problem(definition, problem, bases)
    return Case(definition, data.structures, train, validation, problem, bases, solution, params)


@pytest.fixture(scope="module")
def fits(case):
    """Networks on the mean and on the kernels."""
    found = {}
    optim = OptimConfig(epochs=30, batch_size=4, learning_rate=1e-2)
    for name in ("alone", "kernels"):
        network = dataclasses.replace(NETWORK, alone=name == "alone")
        config = dataclasses.replace(CONFIG, network=network, uncertainty=name != "alone")
        definition = dataclasses.replace(case.definition, config=config)
        start = case.params
        if name == "alone":
            start = training.subtract_baselines(definition, case.train)[0]
        fit = train_density_network(definition, start, case.train, case.validation, optim, 0)
        found[name] = definition, start, fit
    return found


def test_networks_fall_below_what_they_start_from(case, fits):
    definition, start, fit = fits["alone"]
    assert fit.history[0]["loss"] < 1.1
    assert fit.history[-1]["loss"] < 0.5 * fit.history[0]["loss"]
    losses = []
    for params in (start, fit.params):
        error = training.left_over(definition, params, case.validation)
        losses.append(np.einsum("sp,spq,sq->", error, case.validation.metric, error))
    # what was reported is what the parameters give, through the function that predicts
    assert losses[1] / losses[0] == pytest.approx(min(fit.chosen.values()), rel=1e-6)
    assert losses[1] < 0.5 * losses[0]
    on_kernels = fits["kernels"][2]
    assert ("network" in on_kernels.params["8"]) == (min(on_kernels.chosen.values()) < 1)


def test_maps_give_dipoles_and_integrals(case):
    """Of the error of a density, whose exact dipole and integral there are functions for."""
    network = dataclasses.replace(NETWORK, points=10**6)  # all points of the grid
    definition = dataclasses.replace(
        case.definition, config=dataclasses.replace(CONFIG, network=network)
    )
    few = dataclasses.replace(
        case.train,
        metric=case.train.metric[:1],
        target=case.train.target[:1],
        structures=case.train.structures[:1],
    )
    maps = maps_of(definition, few, ("dipole", "points"), seed=3)
    s, e = few.structures[0], few.target[0] - case.train.target[1]
    expected = density.dipole(few.target[0], s, AUX) - density.dipole(case.train.target[1], s, AUX)
    np.testing.assert_allclose(maps["dipole"][0] @ e, expected, atol=1e-12)
    # another orientation of the grid: its own error
    percent = 100 * np.abs(maps["points"][0] @ e).sum() / s.n_electrons
    assert percent == pytest.approx(density.density_error_percent(e, s, AUX, level=1), rel=1e-2)


def test_weights_are_of_losses_in_units_of_the_start(case, fits):
    """What is reported is what the parameters give, through the function that predicts."""
    definition, start, _ = fits["alone"]
    weight = {"metric": 1.0, "dipole": 3.0, "points": 2.0}
    network = dataclasses.replace(
        NETWORK, alone=True, dipole_weight=3.0, real_space_weight=2.0, points=50
    )
    config = dataclasses.replace(definition.config, network=network)
    own = dataclasses.replace(definition, config=config)
    optim = OptimConfig(epochs=10, batch_size=4, learning_rate=1e-2)
    fit = train_density_network(own, start, case.train, case.validation, optim, 0)
    assert fit.history[-1]["loss"] < fit.history[0]["loss"] < 1.1
    batch = maps_of(own, case.validation, tuple(weight), 0) | {"metric": case.validation.metric}
    units, found = (
        losses(training.left_over(own, p, case.validation), batch) for p in (start, fit.params)
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
    here, there = (DensityModel(definition, p).predict(s) for p in (start, silent))
    np.testing.assert_allclose(here["coefficients"], there["coefficients"], atol=1e-14)


def _zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


def test_networks_turn_with_the_molecule(case, fits, rng, random_rotation):
    definition, _, fit = fits["alone"]
    model, s = DensityModel(definition, fit.params), case.structures[1]
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
        ("network", DensityModel(definition, fit.params), {}),
        ("variance", DensityModel(case.definition, case.params), {"uncertainty": True}),
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
    optim = OptimConfig(epochs=30, batch_size=4, learning_rate=1e-2)
    path = tmp_path / "network.npz"

    def kill(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    sets = definition, start, case.train, case.validation, optim, 0
    with pytest.raises(KeyboardInterrupt):
        train_density_network(*sets, state=path, fingerprint="x", on_epoch=kill)
    assert path.exists()
    again = train_density_network(*sets, state=path, fingerprint="x")
    assert again.history == fit.history
    jax.tree.map(np.testing.assert_array_equal, again.params, fit.params)


def reference_variances(case, structures) -> list[np.ndarray]:
    """The Gaussian process as one writes it: kernels between all functions of all molecules."""
    definition = case.definition
    together = [*case.structures[:N], *structures]
    found = training.environments(definition, together)
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
    for i, m in enumerate(case.train.metric):
        inverse[i * naux : (i + 1) * naux, i * naux : (i + 1) * naux] = np.linalg.inv(m)
    total = k[:known, :known] + N * CONFIG.penalty * inverse
    y = np.asarray(case.problem.target).ravel()
    amplitude = y @ np.linalg.solve(total, y) / known  # largest likelihood of the prior's scale
    out, metrics = [], training.metrics(definition, structures)
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
    model = DensityModel(case.definition, case.params)
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
        DensityModel(case.definition, p).predict(s, uncertainty=True)["density_uncertainty"]
        for p in (case.params, params)
    )
    assert 0.2 * exact < rough < 5 * exact


def test_calibrated_variances_are_the_errors_of_validation(case):
    params, factor = training.calibrated(case.definition, case.params, case.validation)
    found = DensityModel(case.definition, params).predict(case.structures[N:], uncertainty=True)
    error = training.left_over(case.definition, params, case.validation)
    squares = np.einsum("sp,spq,sq->s", error, case.validation.metric, error)
    assert np.mean(found["density_uncertainty"] ** 2) == pytest.approx(squares.mean(), rel=1e-8)
    before = DensityModel(case.definition, case.params).predict(
        case.structures[N], uncertainty=True
    )
    assert found["density_uncertainty"][0] == pytest.approx(
        factor * before["density_uncertainty"], rel=1e-8
    )


def test_refusals(case, fits):
    definition, _, fit = fits["alone"]
    with pytest.raises(OpmlError, match=r"density\.uncertainty=true"):
        DensityModel(definition, fit.params).predict(case.structures[0], uncertainty=True)
    alone = dataclasses.replace(NETWORK, alone=True)
    with pytest.raises(ConfigError, match="alone"):
        dataclasses.replace(CONFIG, network=alone)
    with pytest.raises(ConfigError, match="gates"):
        dataclasses.replace(NETWORK, gates=0)
