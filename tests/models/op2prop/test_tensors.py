"""Heads of one L and derivatives in a field: what ridges recover, and water from labels to file."""

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.conventions import e3nn_to_cartesian
from opml_jax.data import Dataset
from opml_jax.data.moments import centred_quadrupoles
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit, Op2PropModel, residual
from opml_jax.models.op2prop.closed_form import fit_closed_form, fit_energy, fit_irreps, fit_scalar
from opml_jax.models.op2prop.descriptors import Cache, Labelled
from opml_jax.models.op2prop.residual import make_inputs, predict_residual
from opml_jax.training import TrainConfig, evaluate, train
from opml_jax.training.metrics import errors

EXACT = 1e-6  # relative: planted weights back through the weakest lambda, 1e-10
CHAIN_RULE = 1e-9  # relative: cached and direct derivatives are the same sums in another order


def _cache(rng, n=60, n_atoms=3, n_invariants=4, n_irreps=5, n_elements=2) -> Cache:
    """Random descriptors; the last atom of the first structure is padding."""
    one_hot = np.eye(n_elements)[rng.integers(0, n_elements, (n, n_atoms))]
    one_hot[0, -1] = 0.0
    real = one_hot.sum(axis=-1)[..., None]
    x = rng.normal(size=(n, n_atoms, n_invariants)) * real
    dx = rng.normal(size=(n, 3 * n_atoms + 3, n_atoms, n_invariants)) * real[:, None]
    v = {l: rng.normal(size=(n, n_atoms, n_irreps, 2 * l + 1)) for l in (1, 2)}
    return Cache(x, dx, {l: own * real[..., None] for l, own in v.items()}, one_hot)


@pytest.mark.parametrize("l", [1, 2])
def test_ridge_recovers_planted_irreps(rng, l):
    cache, weights = _cache(rng), rng.normal(size=(2, 5))
    labels = np.einsum("nie,ec,nicm->nm", cache.one_hot, weights, cache.v[l])
    found, fit = fit_irreps(cache, labels)
    np.testing.assert_allclose(found["weights"], weights, rtol=EXACT)
    assert fit.score < EXACT


def test_ridge_recovers_planted_scalars(rng):
    cache, weights, offsets = _cache(rng), rng.normal(size=(2, 4)), np.array([3.0, -1.0])
    counts = cache.one_hot.sum(axis=1)
    part = np.einsum("nie,ek,nik->n", cache.one_hot, weights, cache.x)
    part -= counts @ np.linalg.lstsq(counts, part, rcond=None)[0]  # what offsets cannot hold
    labels = counts @ offsets + part
    found, _ = fit_scalar(cache, labels)
    rows = np.einsum("nie,ek,nik->n", cache.one_hot, found["weights"], cache.x)
    np.testing.assert_allclose(found["offsets"], offsets, rtol=EXACT)
    assert np.std(rows + counts @ found["offsets"] - labels) < np.std(part)


def test_joint_ridge_recovers_planted_weights(rng):
    """Energies, forces and dipoles of one set of weights, which the 1o irreps share."""
    cache, weights, head = _cache(rng), rng.normal(size=(2, 4)), rng.normal(size=(2, 5))
    per_atom = np.einsum("nie,ek->nik", cache.one_hot, weights)
    counts = cache.one_hot.sum(axis=1)
    dipole = np.einsum("nie,ec,nicm->nm", cache.one_hot, head, cache.v[1])
    dipole = e3nn_to_cartesian(dipole)
    # let the first invariant of the first atom carry what is missing in the field
    missing = dipole + np.einsum("ndik,nik->nd", cache.dx[:, -3:], per_atom)
    cache.dx[:, -3:, 0, 0] -= missing / per_atom[:, :1, 0]
    slopes = -np.einsum("ndik,nik->nd", cache.dx, per_atom)
    energy = np.einsum("nik,nik->n", cache.x, per_atom)
    cache.x[:, 0, 1] -= energy / per_atom[:, 0, 1]  # energies vanish: offsets do too
    labels = {
        "energy": np.zeros(len(counts)),
        "forces": slopes[:, :-3].reshape(-1, 3, 3),
        "field_dipole": slopes[:, -3:],
        "dipole": slopes[:, -3:],
    }
    sigma = {"energy": 0.1, "forces": 0.2, "field_dipole": 0.01, "consistency": 0.001}
    part = Labelled(cache, labels)
    linear, kernel, found, _ = fit_energy(part, part, sigma, 0.0)
    assert kernel is None
    np.testing.assert_allclose(linear["weights"], weights, rtol=EXACT)
    np.testing.assert_allclose(found["weights"], head, rtol=EXACT)


def _tensors(structures):
    """Moments of point charges and a polarizability of bonds: smooth functions of the geometry."""
    out = {"dipole": [], "quadrupole": [], "polarizability": []}
    for s in structures:
        x = np.asarray(s.positions)
        square = np.einsum("i,ix,iy->xy", [-0.8, 0.4, 0.4], x, x)
        bonds = x[1:] - x[0]
        out["dipole"].append(0.4 * (x[1] + x[2] - 2 * x[0]))
        out["quadrupole"].append(1.5 * square - 0.5 * np.trace(square) * np.eye(3))
        out["polarizability"].append(8 * np.eye(3) + 0.5 * np.einsum("bx,by->xy", bonds, bonds))
    return out


TARGETS = ("energy", "dipole", "quadrupole", "polarizability")
CONFIG = TrainConfig(
    model=Op2PropConfig(
        basis="sto-3g",
        fit=Op2PropFit(targets=TARGETS, epochs=3, field_dipole_sigma=0.01, consistency_sigma=1e-4),
    )
)
SPLITS = {"train": list(range(40)), "validation": list(range(40, 50))}


@pytest.fixture(scope="module")
def dataset():
    bundled = opml.read_dataset(opml.bundled("water")).subset(range(60))
    shifts = np.random.default_rng(0).normal(size=(60, 3))
    pairs = zip(bundled.structures, shifts, strict=True)
    structures = [s.replace(positions=s.positions + r) for s, r in pairs]
    return Dataset(structures, {"energy": bundled.labels["energy"], **_tensors(structures)})


@pytest.fixture(scope="module")
def trained(dataset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "PAYS", -np.inf)  # few epochs help little
        return train(dataset, SPLITS, CONFIG)


@pytest.fixture(scope="module")
def read(trained, dataset, described):
    """What the training has read."""
    return described(trained, CONFIG, dataset, SPLITS)


@pytest.fixture(scope="module")
def dipole_in_field(trained, dataset):
    """``(params) -> (n, 3)`` for the validation set, one program for every test."""
    definition = trained.model.definition
    batch = opml.batch(dataset.subset(SPLITS["validation"]).structures, definition.basis)
    return jax.jit(lambda params: definition.dipole_in_field(params, batch))


def test_it_learns_every_head(trained, dataset):
    test = dataset.subset(range(50, 60))
    found = evaluate(trained.model, test)
    at_rest = errors({k: np.mean(test[k], axis=0) for k in TARGETS[1:]}, test, trained.model)
    for name in ("dipole_mae_debye", "polarizability_mae_bohr3"):
        assert found[name] < 0.05 * at_rest[name]
    assert found["quadrupole_mae_ebohr2"] < 0.05 * np.std(centred_quadrupoles(test))
    assert {f"{h}_lambda" for h in ("energy", "dipole", "quadrupole")} <= trained.model.card.keys()


def test_energy_and_head_agree_on_the_dipole(trained, dataset, dipole_in_field):
    """Solved apart, they differ by 5e-4 in this basis."""
    model = trained.model.closed_form
    structures = dataset.subset(SPLITS["validation"]).structures
    gap = dipole_in_field(model.params) - model.predict(structures)["dipole"]
    assert np.median(np.linalg.norm(gap, axis=1)) < 5e-5


def test_cached_field_derivatives_equal_autodiff(trained, read, dipole_in_field):
    model, validation = trained.model, read.sets["validation"]
    inputs = make_inputs(model.params, validation)

    def network(z, one_hot):
        found = model.definition.networks(model.params["residual"], z, one_hot, dipole=True)
        return found[0][0], found[1][0]

    found = predict_residual(network, model.params["scale"], inputs)
    left = inputs["field_dipole"] - np.asarray(found["field_dipole"])
    direct = dipole_in_field(model.params)
    np.testing.assert_allclose(validation.labels["field_dipole"] - left, direct, atol=CHAIN_RULE)


def test_traces_alone_can_be_learned(trained, read):
    """QM9 holds no tensors; what it holds becomes a head of L = 0 and nothing else."""
    definition, name = trained.model.definition, "isotropic_polarizability"

    def traces(part):
        trace = np.trace(part.labels["polarizability"], axis1=1, axis2=2)
        return Labelled(part.cache, {"energy": part.labels["energy"], name: trace / 3})

    sets = {k: traces(part) for k, part in read.sets.items()}
    fit = fit_closed_form(definition, Op2PropFit(targets=("energy", name)), sets, read.noise)
    cache = sets["validation"].cache
    out = definition.readout(fit.params, cache.x, cache.v, cache.one_hot)
    expected = sets["validation"].labels[name]
    assert np.abs(out[name] - expected).mean() < 0.05 * np.std(expected)
    assert "polarizability" not in out
    with pytest.raises(ValueError, match="does not predict polarizability"):
        Op2PropModel(definition, fit.params).property_fn("polarizability")


def test_metrics_of_scalars(trained, water):
    labels = {"dipole_norm": [1.0], "isotropic_polarizability": [10.0]}
    predicted = {"dipole": np.array([[0, 0.6, 0.9]]), "isotropic_polarizability": np.array([10.5])}
    found = errors(predicted, Dataset([water], labels), trained.model)
    length = (0.6**2 + 0.9**2) ** 0.5
    assert found["dipole_norm_mae_debye"] == pytest.approx((length - 1) * 2.541746473)
    assert found["isotropic_polarizability_mae_bohr3"] == pytest.approx(0.5)


def _train(dataset, target):
    """A training that is refused."""
    config = TrainConfig(model=Op2PropConfig(fit=Op2PropFit(targets=("energy", target))))
    train(dataset, {"train": [0, 1], "validation": [2]}, config)


@pytest.mark.parametrize("target", ["forces", "quadrupole", "polarizability"])
def test_missing_label_is_named(target, water):
    bare = Dataset([water] * 3, {"energy": [0.0] * 3})
    with pytest.raises(ValueError, match=f"'{target}', which the data set lacks") as info:
        _train(bare, target)
    assert "\n" not in str(info.value)


def test_quadrupoles_of_ions_are_refused():
    ion = opml.Structure([8, 1], [[0, 0, 0], [0, 0, 1.8]], charge=-1)
    labels = {"energy": [0.0] * 3, "quadrupole": [np.zeros((3, 3))] * 3}
    with pytest.raises(ValueError, match="an ion's quadrupole depends on the origin"):
        _train(Dataset([ion] * 3, labels), "quadrupole")
