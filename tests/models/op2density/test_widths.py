"""Widths learned from true densities of water: starts, symmetries, errors, killed descents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import density, integrals
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.errors import OpmlError
from opml_jax.learn.run import Run
from opml_jax.models import Op2Density, Op2DensityConfig, Op2DensityModel, Op2DensityNetworkConfig
from opml_jax.models.op2density import Op2DensityFit, Op2DensityNetworkFit
from opml_jax.models.op2density.closed_form import problem_of, solve_problem
from opml_jax.models.op2density.fit_network import train_widths, true_densities
from opml_jax.models.op2density.functions import atoms_of, channels
from opml_jax.models.op2density.labels import (
    check_densities,
    density_matrix,
    free_atoms,
    label_dataset,
    labelled_coefficients,
    residuals,
)
from opml_jax.models.op2density.metrics import density_errors
from opml_jax.models.op2density.objective import (
    columns_and_inputs,
    initial_weights,
    with_networks,
)
from opml_jax.testing import assert_grad_matches_fd

pytestmark = pytest.mark.slow  # the descent takes most of a minute, and golden files have widths

SHELLS = {
    1: [(0, 3.0), (0, 0.5), (1, 0.7)],
    8: [(0, 60.0), (0, 8.0), (0, 1.5), (0, 0.4), (1, 1.0), (2, 0.9)],
}
AUX, READ = (
    Basis.from_shells(
        name, {z: [Shell(l, np.array([a]), np.ones(1)) for l, a in own] for z, own in sets.items()}
    )
    for name, sets in (("to-d", SHELLS), ("s-p", {z: [(0, 0.5), (1, 0.5)] for z in (1, 8)}))
)
"""Coarse: what this auxiliary basis misses is what widths are for."""
NETWORK = Op2DensityNetworkConfig(components=4, hidden=(8,), gates=4, widths=0.4)
CONFIG = Op2DensityConfig(powers=(1,), length=3.0, components=6, references=20, network=NETWORK)
FIT = Op2DensityFit(penalty=1e-4, tolerance=1e-10)
DESCENT = Op2DensityNetworkFit(epochs=60, batch_size=4, learning_rate=2e-2, points=200)
N = 12
SAME = 1e-9  # e Bohr^-3 and relative widths: what rotations may change


@dataclasses.dataclass
class Case:
    definition: Op2Density
    test: opml.data.Dataset
    sets: dict
    kernels: dict
    fit: object


@pytest.fixture(scope="module")
def case() -> Case:
    data = opml.read_dataset(opml.bundled("water", ".h5"))
    data = data.subset(np.random.default_rng(0).permutation(len(data))[: 3 * N])
    definition = Op2Density(CONFIG, READ, AUX)
    train, validation, test = (data.subset(range(k * N, (k + 1) * N)) for k in range(3))
    sets = {}
    for seed, (name, part) in enumerate({"train": train, "validation": validation}.items()):
        true = true_densities(definition, part, DESCENT.points, seed, Run())
        sets[name] = label_dataset(definition, part, Run()), true
    problem = problem_of(definition, FIT.penalty, sets["train"][0], free_atoms(definition, train))
    kernels, _ = solve_problem(definition, FIT, *problem, Run())
    fit = train_widths(definition, DESCENT, kernels, sets, Run())
    return Case(definition, test, sets, kernels, fit)


@pytest.fixture(scope="module")
def model(case) -> Op2DensityModel:
    return Op2DensityModel(case.definition, case.fit.params)


def errors(case, params=None, level=2) -> np.ndarray:
    """Percent of electrons misplaced, against the density matrices; of fits, without a model."""
    basis, found = check_densities(case.definition, case.test), []
    for i, s in enumerate(case.test.structures):
        points, weights = density.grid(s, level)
        dm = density_matrix(case.test, i, basis)
        exact = density.matrix_on_points(dm, s, basis, points)
        if params is None:
            own = {"coefficients": density.fit(dm, s, basis, AUX)}
        else:
            own = Op2DensityModel(case.definition, params).predict(s)
        rho = density.on_points(own["coefficients"], s, AUX, points, own.get("widths"))
        found.append(100 * (weights @ np.abs(rho - exact)) / s.n_electrons)
    return np.array(found)


def untrained(case, params):
    """A network whose readouts are zero, on every element."""
    sets = {name: labelled for name, (labelled, _) in case.sets.items()}
    columns, x = columns_and_inputs(case.definition, params, sets)
    coefficients = {
        str(z): {str(l): np.eye(p.shape[1]) for l, p in atoms.places.items()}
        for z, atoms in sets["train"].environments.items()
    }
    weights = initial_weights(NETWORK, params, x["train"], coefficients, seed=0)
    for own in weights.values():
        n = len(own["readout"]["0"])
        own["widths"] = {l: np.zeros((n, r.shape[1])) for l, r in own["readout"].items()}
        assert not any(r.any() for r in own["readout"].values())
    return with_networks(params, columns, weights)


def test_true_densities_fall_below_what_a_fixed_basis_can(case, model):
    """On molecules that were in neither set: below kernels, and below the fits themselves."""
    kernels, trained = errors(case, case.kernels), errors(case, case.fit.params)
    assert trained.mean() < 0.8 * min(kernels.mean(), errors(case).mean())
    assert case.fit.facts["validation"] < 0.8
    factors = np.abs(np.log(model.predict(case.test.structures[0])["widths"]))
    assert 0.1 < factors.max() < NETWORK.widths


def uncounted(definition, params, s):
    """Coefficients and widths of a molecule before electrons are counted."""
    layout, own = layout_of(s, AUX), _on_atoms(definition, params, s)
    c, w = np.zeros(layout.nao), np.ones(layout.n_shells)
    for atoms in atoms_of(s.numbers).values():
        for l, x in own.coefficients.items():
            at = channels(layout, atoms, l)
            c[at] = np.asarray(x)[atoms, : at.shape[1]]
            if own.widths:
                w[layout.shell[at[..., 0]]] = np.asarray(own.widths[l])[atoms, : at.shape[1]]
    return c, w


_on_atoms = jax.jit(Op2Density.on_atoms, static_argnums=0)


def test_what_was_reported_is_what_is_predicted(case):
    """The loss of the validation set written down for whole molecules."""
    labelled, true = case.sets["validation"]
    found = {}
    for name, params in (("start", case.kernels), ("end", case.fit.params)):
        total = 0.0
        for i, s in enumerate(labelled.structures):
            c, w = uncounted(case.definition, params, s)
            rho = density.on_points(c, s, AUX, true["points"][i], w)
            total += true["weights"][i] @ np.abs(rho - true["values"][i])
            q = density.charges(s, AUX)
            answer = np.linalg.solve(labelled.metric[i], q)  # what one electron is corrected by
            rho = density.on_points(answer / (q @ answer), s, AUX, true["points"][i])
            excess = density.electron_number(c, s, AUX, w) - s.n_electrons
            total += abs(excess) * (true["weights"][i] @ np.abs(rho))
        found[name] = total
    assert found["end"] / found["start"] == pytest.approx(case.fit.facts["validation"], rel=1e-8)


def test_dipoles_beside_the_density(case):
    """With a weight they count, in units of the start, as molecules written down have them."""
    settings = dataclasses.replace(DESCENT, dipole_weight=1.0)
    fit = train_widths(case.definition, settings, case.kernels, case.sets, Run())
    labelled, _ = case.sets["validation"]

    def squares(params):
        total = 0.0
        for s, target in zip(labelled.structures, labelled.target, strict=True):
            c, w = uncounted(case.definition, params, s)
            total += np.sum((density.dipole(c, s, AUX, w) - density.dipole(target, s, AUX)) ** 2)
        return total

    start, without, beside = map(squares, (case.kernels, case.fit.params, fit.params))
    assert beside < 0.5 * without
    # the rest of the mean of both is the density's part
    points = 2 * fit.facts["validation"] - beside / start
    assert 0.5 < points < 1.0
    assert errors(case, fit.params).mean() < 0.95 * errors(case, case.kernels).mean()


def test_widths_leave_moments_as_they_were(case, rng):
    """Of single functions: charges and dipoles of the kernels, whatever the widths."""
    s, params = case.test.structures[0], untrained(case, case.kernels)
    plain, ones = uncounted(case.definition, params, s)
    for own in params.values():
        widths = own["network"]["widths"]
        own["network"]["widths"] = {l: rng.normal(size=w.shape) for l, w in widths.items()}
    c, w = uncounted(case.definition, params, s)
    assert np.abs(np.log(w)).max() > 0.1
    for function in (density.electron_number, density.dipole):
        np.testing.assert_allclose(
            function(c, s, AUX, w), function(plain, s, AUX, ones), rtol=0, atol=1e-12
        )


def test_an_untrained_model_is_what_it_starts_from(case):
    s = case.test.structures[0]
    here, there = (
        Op2DensityModel(case.definition, p).predict(s)
        for p in (case.kernels, untrained(case, case.kernels))
    )
    for k in ("coefficients", "dipole"):
        np.testing.assert_allclose(here[k], there[k], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(here["widths"], 1.0)
    np.testing.assert_array_equal(there["widths"], 1.0)
    # a network alone begins with superposed atoms
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(NETWORK, alone=True))
    alone = {z: {k: p[k] for k in ("baseline", "components")} for z, p in case.kernels.items()}
    definition = dataclasses.replace(case.definition, config=config)
    found = Op2DensityModel(definition, untrained(case, alone)).predict(s)
    basis = check_densities(definition, case.test)
    expected = density.superposed_atoms(s, basis, AUX)
    np.testing.assert_allclose(found["coefficients"], expected, rtol=0, atol=1e-12)


def test_electrons_and_dipoles_are_those_of_the_functions_with_widths(case, model):
    s = case.test.structures[0]
    found = model.predict(s)
    c, w = found["coefficients"], found["widths"]
    assert abs(density.electron_number(c, s, AUX, w) - 10) < 1e-11
    assert abs(density.electron_number(c, s, AUX) - 10) > 1e-3  # of others they are not
    np.testing.assert_allclose(found["dipole"], density.dipole(c, s, AUX, w), atol=1e-12)
    several = model.predict(case.test.structures[:2])
    np.testing.assert_array_equal(several["widths"][0], w)
    assert several["n_shells"].tolist() == [layout_of(s, AUX).n_shells] * 2


def test_densities_turn_with_the_molecule(case, model, rng, random_rotation):
    """Turned, reflected, and with its atoms in another order: the same electrons everywhere."""
    s, points, order = case.test.structures[1], rng.normal(size=(50, 3)), [2, 0, 1]
    here, x = model.predict(s), np.asarray(s.positions)
    values = density.on_points(here["coefficients"], s, AUX, points, here["widths"])
    moved = [(opml.Structure(np.array(s.numbers)[order], x[order]), points)]
    for improper in (False, True):
        q = random_rotation(rng, improper=improper)
        moved.append((s.replace(positions=x @ q.T), points @ q.T))
    for other, at in moved:
        there = model.predict(other)
        rho = density.on_points(there["coefficients"], other, AUX, at, there["widths"])
        np.testing.assert_allclose(rho, values, rtol=0, atol=SAME)
        if other.numbers == s.numbers:
            np.testing.assert_allclose(there["widths"], here["widths"], rtol=0, atol=SAME)


def test_derivatives_in_positions(case, model):
    """Of coefficients, widths and dipole together, through counting and metrics with widths."""
    s, rng = case.test.structures[2], np.random.default_rng(0)
    found = model.predict(s)
    weights = {k: rng.normal(size=v.shape) for k, v in found.items()}
    apply = model.density_fn()

    def scalar(x):
        out = apply(s.replace(positions=x))
        return sum(jnp.sum(weights[k] * out[k]) for k in weights)

    # with steps of 1e-3 it is the differences that are 1e-6 off
    assert_grad_matches_fd(scalar, jnp.asarray(s.positions), step=3e-4)


def test_a_killed_descent_goes_on_to_the_same_weights(case, tmp_path):
    def kill(stage, epoch, total, note):
        if epoch == 2:
            raise KeyboardInterrupt

    def train(run):
        return train_widths(case.definition, DESCENT, case.kernels, case.sets, run)

    with pytest.raises(KeyboardInterrupt):
        train(Run(tmp_path, fingerprint="x", on_progress=kill))
    assert Run(tmp_path).path("widths.npz").exists()
    again = train(Run(tmp_path, fingerprint="x"))
    assert again.history == case.fit.history
    jax.tree.map(np.testing.assert_array_equal, again.params, case.fit.params)


def test_widths_are_kept_only_if_validation_improves(case):
    """A step that is far too long."""
    settings = dataclasses.replace(DESCENT, epochs=2, learning_rate=30.0, ema=0.0)
    fit = train_widths(case.definition, settings, case.kernels, case.sets, Run())
    assert fit.facts["validation"] == 1.0
    assert fit.params is case.kernels


def test_a_network_that_was_there_goes_on(case):
    """The start has its density: the loss of the first steps is about one."""
    once = jax.tree.map(np.copy, case.fit.params)
    for own in once.values():
        own["network"].pop("widths")
    settings = dataclasses.replace(DESCENT, epochs=1, learning_rate=1e-6)
    fit = train_widths(case.definition, settings, once, case.sets, Run())
    assert fit.history[0]["loss"] == pytest.approx(1.0, abs=1e-3)
    s = case.test.structures[0]
    here, there = (
        Op2DensityModel(case.definition, p).predict(s)["coefficients"] for p in (once, fit.params)
    )
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-3)


def test_errors_against_fits_are_of_both_kinds_of_functions(case, model):
    """Quadratic forms beside sums on a grid; the projection is nearer to the fit."""
    few = case.test.subset(range(2))
    predicted = model.predict(few.structures)
    found = density_errors(predicted, few, model.definition)
    assert found["density_error_total_percent"] == pytest.approx(
        errors(case, case.fit.params)[:2].mean(), rel=1e-2
    )
    assert found["electron_number_error"] < 1e-10
    references = labelled_coefficients(model.definition, few)
    energies, percent = [], []
    for i, s in enumerate(few.structures):
        c, w = predicted["coefficients"][i], predicted["widths"][i]
        own, fixed = integrals.coulomb_metric(s, AUX, w), integrals.coulomb_metric(s, AUX)
        cross = integrals.cross_metric(s, AUX, w)
        r = references[i]
        energies.append(0.5 * (c @ own @ c - 2 * c @ cross @ r + r @ fixed @ r))
        points, weights = density.grid(s, 1)
        e = density.on_points(c, s, AUX, points, w) - density.on_points(r, s, AUX, points)
        percent.append(10 * (weights @ np.abs(e)))
    assert found["density_self_energy_mae_uha"] == pytest.approx(1e6 * np.mean(energies), rel=1e-6)
    assert found["density_error_percent"] == pytest.approx(np.mean(percent), rel=1e-9)


def test_batches_and_fixed_functions(case, model):
    """What energies read: coefficients of fixed functions, the same of a batch."""
    s = case.test.structures[0]
    on_atoms = jax.jit(model.definition.on_atoms)
    one = on_atoms(model.params, s)
    several = on_atoms(model.params, opml.batch(case.test.structures[:3], model.definition.basis))
    for name in ("coefficients", "widths", "fixed"):
        for l, x in getattr(one, name).items():
            got = np.asarray(getattr(several, name)[l])[0, : s.n_atoms]
            np.testing.assert_allclose(got, x, rtol=0, atol=1e-10, err_msg=name)
    oxygen = {l: sum(k == l for k, _ in SHELLS[8]) for l in one.widths}
    c = {l: np.asarray(one.coefficients[l])[:1, :n] for l, n in oxygen.items()}
    w = {l: np.asarray(one.widths[l])[:1, :n] for l, n in oxygen.items()}
    expected = density.on_own_atom(c, w, AUX, 8)
    for l, n in oxygen.items():
        np.testing.assert_allclose(one.fixed[l][:1, :n], expected[l], rtol=0, atol=1e-10)
    # some shells have hardly another width; all together are no longer what they were
    assert max(np.abs(expected[l] - c[l]).max() / np.abs(c[l]).max() for l in oxygen) > 1e-2


def test_residuals_are_of_a_fixed_basis(case):
    with pytest.raises(OpmlError, match="widths of functions"):
        residuals(case.definition, case.fit.params, case.sets["train"][0])
