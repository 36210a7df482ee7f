"""Densities of water learned: solvers against each other, symmetries, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density
from opml_jax.basis import Basis, Shell
from opml_jax.errors import ConfigError, ConvergenceError, DataError, OpmlError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Density, Op2DensityConfig, Op2DensityModel, Op2DensityNetworkConfig
from opml_jax.models.op2density import Op2DensityFit, Op2DensityNetworkFit, closed_form, labels
from opml_jax.models.op2density import problem as problem_module
from opml_jax.models.op2density.functions import kernel, reduced
from opml_jax.models.op2density.variance import hessian_matrix

CONFIG = Op2DensityConfig(powers=(1,), length=3.0, components=8, references=6, baseline="average")
FIT = Op2DensityFit(penalty=1e-8, tolerance=1e-9)
SHELLS = {
    1: [(0, 2.0), (0, 0.4), (1, 0.7)],
    8: [(0, 60.0), (0, 8.0), (0, 1.5), (0, 0.4), (1, 1.0), (2, 0.9), (3, 1.0), (4, 1.0), (5, 1.2)],
}
AUX = Basis.from_shells(
    "to-h", {z: [Shell(l, np.array([a]), np.ones(1)) for l, a in own] for z, own in SHELLS.items()}
)
"""Every angular momentum to l = 5."""


READ = Basis.from_shells(
    "s-d-f", {z: [Shell(l, np.array([0.5]), np.ones(1)) for l in (0, 2, 3)] for z in (1, 8)}
)
"""Fewest functions whose blocks have irreps to l = 5."""


@dataclasses.dataclass
class Case:
    definition: Op2Density
    structures: list
    coefficients: list
    labelled: labels.Labelled
    problem: problem_module.Problem
    bases: dict


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(12))
    definition = Op2Density(CONFIG, READ, AUX)
    coefficients = labels.labelled_coefficients(definition, data)
    labelled = labels.label(definition, data.structures, coefficients, Run())
    problem, bases = closed_form.problem_of(definition, FIT.penalty, labelled)
    return Case(definition, data.structures, coefficients, labelled, problem, bases)


@pytest.fixture(scope="module")
def solution(case):
    return problem_module.conjugate_gradients(case.problem, tolerance=FIT.tolerance)


@pytest.fixture(scope="module")
def model(case, solution) -> Op2DensityModel:
    return Op2DensityModel(case.definition, closed_form.parameters(case.bases, solution.weights))


def test_conjugate_gradients_find_the_minimum_of_the_normal_equations(case, solution):
    matrix, parts = hessian_matrix(case.problem)
    right = jax.tree.map(np.asarray, case.problem.right())
    flat = np.linalg.solve(matrix, np.concatenate([right[k].ravel() for k in parts]))
    exact = {k: flat[at].reshape(right[k].shape) for k, at in parts.items()}
    losses = [float(case.problem.loss(b)) for b in (solution.weights, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    nothing = jax.tree.map(np.zeros_like, solution.weights)
    assert losses[0] < 1e-2 * float(case.problem.loss(nothing))  # something was learned


def test_hessian_and_slope_are_derivatives_of_the_loss(case, rng):
    """By JAX, of the loss as it is written in the module."""
    problem = case.problem
    b = {
        k: rng.normal(size=(p.shape[-1], problem.places[k].shape[-1]))
        for k, p in problem.psi.items()
    }
    nothing = jax.tree.map(jnp.zeros_like, b)
    slope = jax.grad(problem.loss)(nothing)
    product = jax.jvp(jax.grad(problem.loss), (nothing,), (b,))[1]
    for k in b:
        np.testing.assert_allclose(-2 * problem.right()[k], slope[k], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(2 * problem.hessian(b)[k], product[k], rtol=1e-9, atol=1e-9)


def test_the_preconditioner_takes_less_than_a_third_of_the_steps(case):
    plain = {
        k: (np.eye(len(u)), np.eye(len(v)), np.ones((len(u), len(v))))
        for k, (u, v, _) in case.problem.factors.items()
    }
    steps = [
        problem_module.conjugate_gradients(problem, tolerance=1e-4, cycles=20000).steps
        for problem in (case.problem, dataclasses.replace(case.problem, factors=plain))
    ]
    assert 3 * steps[0] <= steps[1]


def test_a_killed_solver_goes_on_to_the_same_weights(case, solution, tmp_path, monkeypatch):
    monkeypatch.setattr(problem_module, "SAVE_EVERY", 0.0)
    seen = []

    def report(stage, steps, total, note):
        seen.append(steps)
        if seen == [0, 10, 20]:  # the first one says that it compiles
            raise KeyboardInterrupt

    solve = functools.partial(problem_module.conjugate_gradients, case.problem, tolerance=1e-9)
    with pytest.raises(KeyboardInterrupt):
        solve(run=Run(tmp_path, on_progress=report))
    found = solve(run=Run(tmp_path, on_progress=report))
    assert seen[3:5] == [10, 20]  # the state of step 10 was the last on disk
    assert found.steps == solution.steps
    jax.tree.map(np.testing.assert_array_equal, found.weights, solution.weights)


@pytest.mark.slow
def test_predictions_are_the_solution_with_all_electrons(case, solution, model):
    """What the solver minimised is what the model predicts, up to the constraint."""
    c = np.array(case.problem.densities(solution.weights)) - np.asarray(case.problem.target)
    c += np.stack(case.coefficients)
    found = model.predict(case.structures)
    assert found["naux"].tolist() == [len(case.coefficients[0])] * 12
    for i, s in enumerate(case.structures):
        own = found["coefficients"][i]
        assert abs(density.electron_number(own, s, AUX) - 10) < 1e-10
        assert np.abs(own - c[i]).max() < 1e-2  # the constraint moves little
        metric = density.metric_matrix(s, AUX)
        q = density.charges(s, AUX)
        np.testing.assert_allclose(own, density.with_electrons(c[i], metric, q, 10), atol=1e-8)
    np.testing.assert_allclose(
        found["dipole"][0],
        density.dipole(found["coefficients"][0], case.structures[0], AUX),
        atol=1e-12,
    )


def test_polynomial_kernel_is_the_product_of_unit_vectors(case):
    """Its definition, element by element."""
    config = dataclasses.replace(CONFIG, kernel="polynomial", zeta=3)
    definition = dataclasses.replace(case.definition, config=config)
    found = labels.environments(definition, case.structures[:3])[8].features
    components = closed_form.principal_components(definition, found)
    x = reduced(components, found, "polynomial")
    k = np.asarray(kernel(config, 2, x, x))
    scalars = found[0][..., 0]
    unit = scalars / np.linalg.norm(scalars, axis=1, keepdims=True)
    # all channels at once are as many components as there are: 8 keep nearly everything
    approximate = np.einsum("iqm,jqp->imjp", found[2], found[2])
    norm = np.linalg.norm(found[2].reshape(3, -1), axis=1)
    expected = (unit @ unit.T)[:, None, :, None] ** 2 * approximate
    expected /= norm[:, None, None, None] * norm[None, None, :, None]
    np.testing.assert_allclose(k, expected, atol=1e-5)


def test_irreps_that_vanish_say_nothing(case):
    """Rounding errors are not magnified to features: nothing of that degree is learned."""
    labelled = labels.label(case.definition, case.structures, case.coefficients, Run())
    for own in labelled.environments.values():
        own.features[2][:] = 1e-17 * np.random.default_rng(0).normal(size=own.features[2].shape)
    problem, bases = closed_form.problem_of(case.definition, FIT.penalty, labelled)
    params, solution = closed_form.solve_problem(case.definition, FIT, problem, bases, Run())
    assert not params["8"]["components"]["2"]["matrix"].any()
    assert set(case.problem.psi) - set(problem.psi) == {"8_2"}
    nothing = jax.tree.map(np.zeros_like, solution.weights)
    assert float(problem.loss(solution.weights)) < 0.5 * float(problem.loss(nothing))
    assert np.isfinite(labels.residuals(case.definition, params, labelled)).all()


def test_refusals(case):
    with pytest.raises(ConvergenceError, match=r"Raise model\.fit\.penalty"):
        problem_module.conjugate_gradients(case.problem, tolerance=1e-14, cycles=10)
    with pytest.raises(DataError, match=r"coefficients of structure 0.*numbers"):
        labels.label(case.definition, case.structures, [c[:-1] for c in case.coefficients], Run())
    nan = [np.where(np.arange(len(c)) == 3, np.nan, c) for c in case.coefficients]
    with pytest.raises(DataError, match="NaN"):
        labels.label(case.definition, case.structures, nan, Run())
    config = dataclasses.replace(CONFIG, baseline="atoms")
    with pytest.raises(DataError, match="free atoms"):
        closed_form.problem_of(Op2Density(config, READ, AUX), FIT.penalty, case.labelled)
    flat = Op2Density(CONFIG, opml.load_basis("sto-3g", [1, 8]), AUX)
    with pytest.raises(OpmlError, match="irreps up to 2"):
        flat.features(case.structures[0])


NETWORK = Op2DensityNetworkConfig()
ALONE = Op2DensityNetworkConfig(alone=True)
WIDTHS = Op2DensityNetworkConfig(widths=0.4)
FEW_POINTS = Op2DensityNetworkConfig(fit=Op2DensityNetworkFit(points=50))
UNCERTAIN = Op2DensityConfig(uncertainty=True, length=3.0, network=NETWORK)


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (CONFIG, {"length": 0.0}, "length"),
        (CONFIG, {"kernel": "linear"}, "kernel"),
        (CONFIG, {"metric": "x"}, "metric"),
        (CONFIG, {"references": 0}, "references"),
        *((FIT, {name: 0}, rf"model\.fit\.{name}") for name in ("penalty", "tolerance", "cycles")),
        (NETWORK, {"gates": 0}, "gates"),
        *(
            (NETWORK, {"widths": wrong}, r"model\.network\.widths.*from 0.*to 1")
            for wrong in (-0.1, 1.5, float("nan"))
        ),
        (Op2DensityNetworkFit(), {"points": 0}, r"model\.network\.fit\.points"),
        (UNCERTAIN, {"network": ALONE}, "alone"),
        (UNCERTAIN, {"network": WIDTHS}, r"model\.uncertainty.*fixed basis"),
        # settings without a part
        (Op2DensityConfig(fit=FIT), {"network": ALONE}, "left out"),
        (Op2DensityConfig(fit=FIT), {"network": FEW_POINTS}, "left out"),
    ],
)
def test_settings_that_are_refused(config, wrong, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **wrong).check()
