"""Energies for jax-md: transformations, units, refusals; and jax-md itself where installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.errors import OpmlError
from opml_jax.interfaces.jax_md import energy_fn
from opml_jax.models import EnergyModel
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE, KCAL_MOL_PER_HARTREE

SAME_SUMS = 1e-10  # Hartree, Hartree/Bohr: padded and unpadded sums in another order
NVE_FLUCTUATION = 1e-5  # Hartree: see test_ase.py; here of the molecule


def test_energies_and_forces_are_the_models(model, dataset):
    structures = dataset.structures[:2]
    energy = energy_fn(model, (8, 1, 1), length_unit="angstrom", energy_unit="ev")
    positions = np.array([s.positions for s in structures]) * ANGSTROM_PER_BOHR
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(energy)))(positions)
    per_angstrom = EV_PER_HARTREE / ANGSTROM_PER_BOHR
    for s, value, gradient in zip(structures, values, gradients, strict=True):
        predicted = model.predict(s)
        assert value / EV_PER_HARTREE == pytest.approx(predicted["energy"], abs=SAME_SUMS, rel=0)
        np.testing.assert_allclose(
            -gradient / per_angstrom, predicted["forces"], rtol=0, atol=SAME_SUMS
        )


class Springs(EnergyModel):
    """An energy one can do in one's head: the sum of squared coordinates, times ``params``."""

    def energy_fn(self, params=None):
        return lambda structure: (
            (1.0 if params is None else params) * jnp.sum(structure.positions**2)
        )


def test_units_and_parameters(model):
    springs = Springs(model.definition, model.params)
    ones = jnp.ones((2, 3), jnp.float32)
    energy = energy_fn(springs, (1, 1))
    assert energy(ones, neighbor=None, t=0.0) == 6.0
    assert energy(ones).dtype == jnp.float64
    assert energy_fn(springs, (1, 1), params=2.0)(ones) == 12.0
    converted = energy_fn(springs, (1, 1), length_unit="angstrom", energy_unit="kcal/mol")
    expected = 6 / ANGSTROM_PER_BOHR**2 * KCAL_MOL_PER_HARTREE
    assert converted(ones) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        ((8, 1, 1), {"length_unit": "angstroms"}, "length_unit must be .*Did you mean 'angstrom'"),
        ((8, 1, 1), {"energy_unit": "joule"}, "energy_unit must be one of hartree, ev, kcal/mol"),
        ((16, 1, 1), {}, "only elements seen in training"),
        ((8, 1), {}, "spin must be"),
        ((), {}, "at least one atom"),
    ],
)
def test_refusals_are_one_line(model, numbers, options, message):
    with pytest.raises(OpmlError, match=message) as caught:
        energy_fn(model, numbers, **options)
    assert "\n" not in str(caught.value)


def test_positions_of_another_molecule_are_refused(model):
    with pytest.raises(OpmlError, match=r"positions must be of shape \(3, 3\); got shape \(4, 3\)"):
        energy_fn(model, (8, 1, 1))(np.zeros((4, 3)))


def test_dynamics_in_jax_md(model, minimum):
    pytest.importorskip("jax_md")
    from jax_md import quantity, simulate, space

    from opml_jax.units import ELECTRON_MASS_PER_DALTON, HARTREE_PER_KELVIN

    energy = energy_fn(model, minimum.numbers)
    _, shift = space.free()
    dt = 10.3  # 0.25 fs
    init, step = simulate.nve(energy, shift, dt=dt)
    mass = np.array([15.999, 1.008, 1.008]) * ELECTRON_MASS_PER_DALTON
    start = jnp.asarray(minimum.positions)
    kT = 300 * HARTREE_PER_KELVIN
    state = jax.jit(lambda key: init(key, start, kT=kT, mass=mass))(jax.random.key(1))

    def total(state):
        return energy(state.position) + quantity.kinetic_energy(
            momentum=state.momentum, mass=state.mass
        )

    def one(state, _):
        state = step(state)
        return state, total(state)

    state, energies = jax.jit(lambda s: jax.lax.scan(one, s, None, length=50))(state)
    assert np.ptp(energies) < NVE_FLUCTUATION
    assert np.abs(state.position - start).max() > 0.02  # it moved
    forces = jax.jit(quantity.force(energy))(start)
    np.testing.assert_allclose(forces, model.predict(minimum)["forces"], rtol=0, atol=SAME_SUMS)
