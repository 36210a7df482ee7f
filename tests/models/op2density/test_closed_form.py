"""Densities of water learned: solvers against each other, symmetries, derivatives, files."""

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
from opml_jax.errors import (
    Code,
    ConfigError,
    ConvergenceError,
    DataError,
    ModelFileError,
    OpmlError,
)
from opml_jax.learn.run import Run
from opml_jax.models import Op2Density, Op2DensityConfig, Op2DensityModel
from opml_jax.models.op2density import Op2DensityFit, closed_form, labels, solver
from opml_jax.models.op2density import model as trained
from opml_jax.models.op2density.environments import environments
from opml_jax.models.op2density.kernels import kernel, reduced

CONFIG = Op2DensityConfig(powers=(1,), components=8, references=6, baseline="average")
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
    problem: solver.Problem
    bases: dict


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5")).subset(range(12))
    definition = Op2Density(CONFIG, READ, AUX)
    coefficients = labels.labelled_coefficients(definition, data)
    labelled = labels.label(definition, data.structures, coefficients, Run())
    problem, bases = closed_form.problem_of(definition, FIT, labelled)
    return Case(definition, data.structures, coefficients, problem, bases)


@pytest.fixture(scope="module")
def solution(case):
    return solver.conjugate_gradients(case.problem, tolerance=FIT.tolerance)


@pytest.fixture(scope="module")
def model(case, solution) -> Op2DensityModel:
    return Op2DensityModel(case.definition, closed_form.parameters(case.bases, solution.weights))


def test_conjugate_gradients_find_the_minimum_of_the_normal_equations(case, solution):
    exact = solver.normal_equations(case.problem)
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
    steps = {}
    for preconditioned in (True, False):
        found = solver.conjugate_gradients(
            case.problem, tolerance=1e-4, cycles=20000, preconditioned=preconditioned
        )
        steps[preconditioned] = found.steps
    assert 3 * steps[True] <= steps[False]


def test_a_killed_solver_goes_on_to_the_same_weights(case, solution, tmp_path, monkeypatch):
    monkeypatch.setattr(solver, "SAVE_EVERY", 0.0)

    def kill(stage, steps, total, note):
        if steps >= 20:
            raise KeyboardInterrupt

    def solve(on_progress, fingerprint="a"):
        run = Run(tmp_path, fingerprint=fingerprint, on_progress=on_progress)
        return solver.conjugate_gradients(case.problem, tolerance=FIT.tolerance, run=run)

    with pytest.raises(KeyboardInterrupt):
        solve(kill)
    assert Run(tmp_path).path("kernels.npz").exists()
    seen = []
    found = solve(lambda stage, steps, *_: seen.append(steps))
    assert seen[0] == 20  # the state of step 10 was the last on disk
    assert found.steps == solution.steps
    for k, w in solution.weights.items():
        np.testing.assert_array_equal(found.weights[k], w)
    with pytest.raises(ModelFileError, match="another configuration"):
        solve(lambda *_: None, fingerprint="b")


def test_densities_turn_with_the_molecule(case, model, rng, random_rotation):
    """Every angular momentum to l = 5, improper rotations too."""
    s = case.structures[0]
    layout = layout_of(s, AUX)
    irreps = e3nn.Irreps([ir for a in range(s.n_atoms) for ir in layout.irreps(a)])
    assert irreps.lmax == 5
    here = model.predict(s)
    for improper in (False, True):
        rotation = random_rotation(rng, improper=improper)
        there = model.predict(s.replace(positions=np.asarray(s.positions) @ rotation.T))
        turned = e3nn.IrrepsArray(irreps, jnp.asarray(here["coefficients"]))
        turned = turned.transform_by_matrix(jnp.asarray(rotation_to_e3nn(rotation))).array
        np.testing.assert_allclose(there["coefficients"], turned, atol=1e-10)
        np.testing.assert_allclose(there["dipole"], rotation @ here["dipole"], atol=1e-10)
    order = [0, 2, 1]
    swapped = opml.Structure([8, 1, 1], np.asarray(s.positions)[order])
    blocks = np.split(here["coefficients"], layout.offsets[1:-1])
    np.testing.assert_allclose(
        model.predict(swapped)["coefficients"],
        np.concatenate([blocks[i] for i in order]),
        atol=1e-10,
    )


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


@pytest.mark.slow
def test_derivatives_of_densities(case, model):
    s, weights = case.structures[1], np.random.default_rng(3).normal(size=len(case.coefficients[1]))

    @jax.jit
    def scalar(positions):
        return weights @ model.density_fn()(s.replace(positions=positions))["coefficients"]

    opml.testing.assert_grad_matches_fd(scalar, jnp.asarray(s.positions))


def test_files_hold_the_whole_model(case, model, tmp_path):
    path = tmp_path / "m.safetensors"
    opml.save_model(path, dataclasses.replace(model, card={"n": 1}))
    again = opml.load_model(path)
    assert isinstance(again, Op2DensityModel)
    assert again.definition == model.definition
    assert again.definition.config == CONFIG.functions
    s = case.structures[2]
    np.testing.assert_array_equal(
        again.predict(s)["coefficients"], model.predict(s)["coefficients"]
    )


def test_polynomial_kernel_is_the_product_of_unit_vectors(case):
    """Its definition, element by element."""
    config = dataclasses.replace(CONFIG, kernel="polynomial", zeta=3)
    definition = dataclasses.replace(case.definition, config=config)
    found = environments(definition, case.structures[:3])[8].features
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
    problem, bases = closed_form.problem_of(case.definition, FIT, labelled)
    params, solution = closed_form.solve_problem(case.definition, FIT, problem, bases, Run())
    assert not params["8"]["components"]["2"]["matrix"].any()
    assert set(case.problem.psi) - set(problem.psi) == {"8_2"}
    nothing = jax.tree.map(np.zeros_like, solution.weights)
    assert float(problem.loss(solution.weights)) < 0.5 * float(problem.loss(nothing))
    assert np.isfinite(labels.residuals(case.definition, params, labelled)).all()


def test_refusals(case):
    problem = case.problem
    with pytest.raises(ConvergenceError, match=r"Raise model\.fit\.penalty"):
        solver.conjugate_gradients(problem, tolerance=1e-14, cycles=10)
    short = [c[:-1] for c in case.coefficients]
    with pytest.raises(DataError, match=r"coefficients of structure 0.*60 numbers|numbers"):
        labels.label(case.definition, case.structures, short, Run())
    nan = [np.where(np.arange(len(c)) == 3, np.nan, c) for c in case.coefficients]
    with pytest.raises(DataError, match="NaN"):
        labels.label(case.definition, case.structures, nan, Run())
    atoms = dataclasses.replace(
        case.definition, config=dataclasses.replace(CONFIG, baseline="atoms")
    )
    labelled = labels.label(atoms, case.structures, case.coefficients, Run())
    with pytest.raises(DataError, match="free atoms"):
        closed_form.problem_of(atoms, FIT, labelled)
    flat = Op2Density(CONFIG, opml.load_basis("sto-3g", [1, 8]), AUX)
    with pytest.raises(OpmlError, match="irreps up to 2"):
        flat.features(case.structures[0])
    for wrong in ({"length": 0.0}, {"kernel": "linear"}, {"metric": "x"}, {"references": 0}):
        with pytest.raises(ConfigError):
            dataclasses.replace(CONFIG, **wrong)
    for wrong in ({"penalty": 0.0}, {"tolerance": 0.0}, {"cycles": 0}):
        with pytest.raises(ConfigError, match=r"model\.fit"):
            Op2DensityFit(**wrong)


def test_what_a_model_of_densities_has(case, model):
    assert all(model.has(k) for k in ("coefficients", "density", "dipole"))
    assert not any(model.has(k) for k in ("energy", "forces", "widths"))
    with pytest.raises(OpmlError, match=r"interfaces\.density\.energies"):
        model.energy_fn()
    with pytest.raises(OpmlError, match="standard deviation") as refused:
        model.doubt(model.predict(case.structures[:2]))
    assert refused.value.code == Code.CAPABILITY


def test_a_reloaded_model_does_not_compile_again(case, model, tmp_path):
    opml.save_model(tmp_path / "m.safetensors", model)
    model.predict(case.structures[0])
    compiled = trained._apply._cache_size()
    for config in (CONFIG, dataclasses.replace(CONFIG, fit=FIT)):  # functions alone count
        assert Op2Density(config, READ, AUX) == case.definition
    again = opml.load_model(tmp_path / "m.safetensors")
    assert again.definition is not model.definition
    assert hash(again.definition) == hash(model.definition)
    again.predict(case.structures[0])
    assert trained._apply._cache_size() == compiled
    other = dataclasses.replace(CONFIG, length=2.0)
    assert Op2Density(other, READ, AUX) != case.definition
