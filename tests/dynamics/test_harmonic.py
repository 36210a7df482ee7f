"""Frequencies and intensities against closed forms, ASE and the motion itself."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.vibrations import Infrared
from ase.vibrations.placzek import PlaczekStatic
from ase.vibrations.raman import StaticRamanCalculator
from scipy import constants

from opml_jax.dynamics import harmonic, raman, relax
from opml_jax.errors import StructureError
from opml_jax.structures import Structure
from opml_jax.units import (
    ANGSTROM_PER_BOHR,
    ELECTRON_MASS_PER_DALTON,
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
    WAVENUMBER_PER_HARTREE,
)

LENGTH = 1.7  # Bohr, of the diatomic molecule
RELAXED = 1e-6  # relative: what gradients of 1e-7 leave
FINITE_DIFFERENCE = 2e-3  # relative, of ASE's intensities: second order, steps of 0.01 Angstrom


def charged(trimer):
    """The molecule of springs, with a dipole that bends with it."""

    def properties(params, structure):
        x = structure.positions
        found = trimer.properties(params, structure)
        bonds = x[1:] - x[0]
        length = jnp.linalg.norm(bonds, axis=-1, keepdims=True)
        return {**found, "dipole": jnp.sum(bonds * (0.3 + 0.1 * length), axis=0)}

    return properties


def test_a_diatomic_molecule(spring):
    stretched = spring.start.replace(positions=spring.start.positions * 1.1)
    minimum = relax(spring.properties, stretched)
    found = harmonic(spring.properties, minimum)
    assert found.wavenumbers == pytest.approx([spring.omega * WAVENUMBER_PER_HARTREE], rel=RELAXED)
    assert np.linalg.norm(minimum.positions[1] - minimum.positions[0]) == pytest.approx(1.7)
    si = constants.N_A * (0.4 * constants.e) ** 2 / (spring.reduced * constants.m_e)
    expected = si / (12 * constants.epsilon_0 * constants.c**2) * 1e-3
    assert found.intensities == pytest.approx([expected], rel=1e-6)
    np.testing.assert_allclose(found.dipole_derivatives[2, 1], [0, 0, 0.4], atol=1e-12)


class Springs(Calculator):
    implemented_properties = ("energy", "forces", "dipole")

    def __init__(self, properties):
        super().__init__()
        self.properties = properties

    def calculate(self, atoms, properties, system_changes):
        import jax

        super().calculate(atoms, properties, system_changes)

        def energy(x):
            found = self.properties(None, Structure(atoms.numbers, x))
            return found["energy"], found["dipole"]

        x = jnp.asarray(atoms.positions / ANGSTROM_PER_BOHR)
        (value, dipole), gradient = jax.value_and_grad(energy, has_aux=True)(x)
        self.results = {
            "energy": float(value) * EV_PER_HARTREE,
            "forces": -np.asarray(gradient) * EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
            "dipole": np.asarray(dipole) * ANGSTROM_PER_BOHR,
        }


def test_frequencies_and_intensities_are_ases(trimer, tmp_path):
    properties = charged(trimer)
    found = harmonic(properties, trimer.start)
    atoms = Atoms(trimer.start.numbers, trimer.start.positions * ANGSTROM_PER_BOHR)
    atoms.calc = Springs(properties)
    vibrations = Infrared(atoms, name=tmp_path / "ir", delta=0.005)
    vibrations.run()
    frequencies = vibrations.get_frequencies()[6:].real
    np.testing.assert_allclose(found.wavenumbers, frequencies, rtol=1e-4)
    # ASE keeps (D/Angstrom)^2/amu; its own factor to km/mol is 42.255, Wilson's
    np.testing.assert_allclose(
        found.intensities, vibrations.intensities[6:] * 42.255, rtol=FINITE_DIFFERENCE
    )
    assert len(found.wavenumbers) == 3


def of_bonds(structure):
    """Polarizability that is a sum over the bonds of the first atom: along and across each."""
    bonds = structure.positions[1:] - structure.positions[0]
    length = jnp.linalg.norm(bonds, axis=-1)[:, None, None]
    along = bonds[:, :, None] * bonds[:, None, :] / length**2
    across = jnp.eye(3) - along
    return jnp.sum((5.0 + 2.0 * (length - LENGTH)) * along + (4.0 + 0.5 * length) * across, axis=0)


def test_raman_scattering_of_a_diatomic_molecule(spring):
    """The mean changes by 1 and the anisotropy by 1.5 Bohr^2."""
    found = raman(harmonic(spring.properties, spring.start), of_bonds, spring.start)
    per_mass = ANGSTROM_PER_BOHR**4 * ELECTRON_MASS_PER_DALTON / spring.reduced
    assert found.activities == pytest.approx([(45 + 7 * 1.5**2) * per_mass], rel=1e-9)
    assert found.depolarization == pytest.approx([3 * 1.5**2 / (45 + 4 * 1.5**2)], rel=1e-9)


class Polarizable(Springs):
    """What ASE asks for a static Raman spectrum."""

    def __init__(self, properties, polarizability):
        super().__init__(properties)
        self.polarizability = polarizability

    def __call__(self, atoms):
        x = jnp.asarray(atoms.positions / ANGSTROM_PER_BOHR)
        bohr3 = np.asarray(self.polarizability(Structure(atoms.numbers, x)))
        return bohr3 * ANGSTROM_PER_BOHR**3 / (units.Hartree * units.Bohr)  # e^2 Angstrom^2 / eV


def test_raman_activities_are_ases(trimer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    properties = charged(trimer)
    found = raman(harmonic(properties, trimer.start), of_bonds, trimer.start)
    atoms = Atoms(trimer.start.numbers, trimer.start.positions * ANGSTROM_PER_BOHR)
    atoms.calc = calculator = Polarizable(properties, of_bonds)
    options = {"name": "raman", "delta": 0.005, "txt": None}
    StaticRamanCalculator(atoms, lambda: calculator, **options).run()
    wanted = PlaczekStatic(atoms, **options).get_absolute_intensities()
    np.testing.assert_allclose(found.activities, wanted[6:], rtol=FINITE_DIFFERENCE)


def test_no_minimum_is_refused(trimer, trap):
    squeezed = trimer.start.replace(positions=trimer.start.positions * 0.9)
    with pytest.raises(StructureError, match=r"Hartree/Bohr.*Relax it first"):
        harmonic(trimer.properties, squeezed)
    assert harmonic(trap.properties, trap.start).intensities is None
    assert units.Bohr == pytest.approx(ANGSTROM_PER_BOHR, rel=1e-8)


def test_isotopes_vibrate_by_their_masses(trimer):
    """Against NumPy's eigenvalues of differences of an energy that it computes itself."""
    light = trimer.start
    heavy = Structure(light.numbers, light.positions, masses=[17.999, 2.014102, 2.014102])
    x = np.asarray(light.positions).ravel()
    pairs, h = [(0, 1), (0, 2), (1, 2)], 1e-3

    def lengths(x):
        return np.array(
            [np.linalg.norm(x[3 * i : 3 * i + 3] - x[3 * j : 3 * j + 3]) for i, j in pairs]
        )

    def energy(x):
        return 0.6 * np.sum((lengths(x) - lengths(x0)) ** 2) / 2

    x0, e = x.copy(), h * np.eye(9)
    hessian = np.array(
        [
            [
                sum(a * b * energy(x0 + a * e[i] + b * e[j]) for a in (1, -1) for b in (1, -1))
                for j in range(9)
            ]
            for i in range(9)
        ]
    ) / (4 * h**2)
    for molecule, dalton in ((light, [15.999, 1.008, 1.008]), (heavy, heavy.masses)):
        root = np.repeat(np.array(dalton) * ELECTRON_MASS_PER_DALTON, 3) ** 0.5
        squares = np.linalg.eigvalsh(hessian / root[:, None] / root[None])[-3:]
        found = harmonic(trimer.properties, molecule)
        expected = WAVENUMBER_PER_HARTREE * squares**0.5
        np.testing.assert_allclose(found.wavenumbers, expected, rtol=1e-5)  # of second order in h
    stretched = heavy.replace(positions=1.02 * np.asarray(heavy.positions))
    assert relax(trimer.properties, stretched).masses == heavy.masses


def test_positions_in_float32_are_promoted(trimer):
    single = jnp.asarray(trimer.start.positions, jnp.float32)
    rounded = Structure(trimer.start.numbers, np.asarray(single))
    found = harmonic(trimer.properties, Structure(trimer.start.numbers, single))
    expected = harmonic(trimer.properties, rounded)
    np.testing.assert_allclose(found.wavenumbers, expected.wavenumbers, rtol=1e-12)  # rounding
