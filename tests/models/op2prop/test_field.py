"""Op2Prop in a uniform field: derivatives of its energy, origin, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.models.op2prop import Op2Prop, Op2PropConfig, Op2PropModel
from opml_jax.structures import centre_of_nuclear_charge
from opml_jax.testing import assert_equivariant

FINITE = 1e-6  # relative, of fourth-order differences
INVARIANCE = 1e-10  # relative
BATCH = 1e-11  # relative: the same sums in another order, two derivatives deep


def _model(**config) -> Op2PropModel:
    """A random linear model: what the field does is in the descriptors."""
    config = Op2PropConfig(**{"basis": "sto-3g", "powers": (1, 2), "gram_powers": (1,), **config})
    definition = Op2Prop(config, opml.load_basis("sto-3g", (1, 6, 8)))
    rng, e, f = np.random.default_rng(1), 3, definition.n_invariants
    params = {
        "scaler": {"mean": np.zeros((e, f)), "inverse_std": rng.uniform(0, 0.1, (e, f))},
        "linear": {"offsets": rng.normal(size=e), "weights": 0.01 * rng.normal(size=(e, f))},
    }
    return Op2PropModel(definition, params)


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def moments(model):
    """Dipoles and polarizabilities of structures padded to one shape: one program for all."""
    definition = model.definition

    @jax.jit
    def both(batch):
        return (
            definition.dipole_in_field(model.params, batch),
            definition.polarizability_in_field(model.params, batch),
        )

    def of(*structures):
        full = [*structures, *structures[-1:] * (2 - len(structures))]
        dipole, alpha = both(opml.batch(full, definition.basis, n_atoms=6, nao=16))
        n = len(structures)
        return {"dipole": np.asarray(dipole)[:n], "polarizability": np.asarray(alpha)[:n]}

    return of


def test_descriptors_see_the_position_operator(water):
    """With V itself as the only power, the field adds E.r, about the centre of nuclear charge."""
    definition = _model(powers=(1,)).definition
    field = np.array([0.1, -0.2, 0.3])
    descriptors = jax.jit(lambda f: definition.descriptors(water, field=f)[0])
    x = [descriptors(f) for f in (field, np.zeros(3))]
    origin = centre_of_nuclear_charge(water)
    r = opml.integrals.position(water, definition.basis, origin=origin)
    oxygen = np.einsum("x,xij->ij", field, r)[:2, :2]  # 1s and 2s of the first atom
    expected = [oxygen[0, 0], oxygen[0, 1], oxygen[1, 1]]
    np.testing.assert_allclose((x[0] - x[1])[0, :3], expected, atol=1e-12)


def test_moments_are_derivatives_of_the_energy(model, moments, water):
    energy = jax.jit(lambda f: model.definition.energy_in_field(model.params, water, f))
    found, h, unit = moments(water), 2e-3, np.eye(3)

    def slope(f, i):
        near, far = (energy(f + k * h * unit[i]) - energy(f - k * h * unit[i]) for k in (1, 2))
        return (8 * near - far) / (12 * h)

    zero = np.zeros(3)
    dipole = [-slope(zero, i) for i in range(3)]
    np.testing.assert_allclose(found["dipole"][0], dipole, atol=FINITE * np.abs(dipole).max())
    alpha = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            near, far = (-slope(k * h * unit[j], i) + slope(-k * h * unit[j], i) for k in (1, 2))
            alpha[i, j] = (8 * near - far) / (12 * h)
    scale = np.abs(alpha).max()
    np.testing.assert_allclose(found["polarizability"][0], alpha, atol=1e2 * FINITE * scale)


def test_moments_are_equivariant_and_know_no_origin(moments, water, molecules):
    for s in (water, molecules["methane"]):
        assert_equivariant(
            lambda s: {k: v[0] for k, v in moments(s).items()}, s, n=2, rtol=INVARIANCE, atol=1e-9
        )


def test_companions_change_nothing(moments, water, molecules):
    together = moments(water, molecules["methane"])
    for name, value in moments(water).items():
        np.testing.assert_allclose(together[name][0], value[0], atol=BATCH * np.abs(value).max())


def test_ions_are_refused(model):
    hydroxide = opml.Structure([8, 1], [[0, 0, 0], [0, 0, 1.8]], charge=-1)
    for s in (hydroxide, opml.batch([hydroxide], model.definition.basis)):
        with pytest.raises(ValueError, match="structure must be neutral") as info:
            model.definition.dipole_in_field(model.params, s)
        assert "\n" not in str(info.value)


def test_neutral_atoms_take_no_field(water):
    model = _model(operator="neutral_atom_potential")
    with pytest.raises(ValueError, match="field must be"):
        model.definition.energy_in_field(model.params, water, jnp.zeros(3))


def test_energies_never_trained_in_a_field_are_refused(model):
    def functions(card):
        trained = Op2PropModel(model.definition, model.params, card)
        return trained.field_dipole_fn, trained.field_polarizability_fn

    for card in ({"n_train": 40}, {"config": {"optim": {"field_dipole_sigma": 0.0}}}):
        for function in functions(card):
            with pytest.raises(ValueError, match=r"model\.fit\.field_dipole_sigma"):
                function()
    for card in ({"field_dipole_sigma": 0.1}, {"config": {"optim": {"field_dipole_sigma": 0.1}}}):
        for function in functions(card):
            assert callable(function())
