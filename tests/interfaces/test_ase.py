"""The ASE calculator: numbers, units, one compilation, dynamics, refusals."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet

import opml_jax as opml
from opml_jax.errors import Code, ModelFileError, OpmlError, PrecisionError, StructureError
from opml_jax.interfaces.ase import OPMLCalculator, structure_from_ase, structure_to_ase
from opml_jax.models import EnergyModel
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

SAME_PROGRAM = (
    1e-10  # relative: ASE's copy of a geometry in Angstrom is the geometry but for rounding
)
FINITE_DIFFERENCE = 1e-6  # eV/Angstrom: fourth order, step 0.005 Angstrom; energies carry 1e-11 eV
# eV per atom. Velocity Verlet keeps the energy to (omega dt)^2 / 8 of what a mode has: for an O-H
# stretch, 0.25 fs and 300 K that is 0.004 * 0.026 eV, a third of it an atom; times two, for room.
NVE_FLUCTUATION = 7e-5


@pytest.fixture
def atoms(dataset, model):
    water = structure_to_ase(dataset.structures[3])
    water.calc = OPMLCalculator(model)
    return water


def test_results_are_the_models_in_ases_units(atoms, dataset, model):
    predicted = model.predict(dataset.structures[3])
    per_angstrom = EV_PER_HARTREE / ANGSTROM_PER_BOHR
    expected = {
        "energy": (atoms.get_potential_energy(), predicted["energy"] * EV_PER_HARTREE),
        "free": (atoms.get_potential_energy(force_consistent=True), atoms.get_potential_energy()),
        "forces": (atoms.get_forces(), predicted["forces"] * per_angstrom),
        "dipole": (atoms.get_dipole_moment(), predicted["dipole"] * ANGSTROM_PER_BOHR),
    }
    for name, (found, value) in expected.items():
        np.testing.assert_allclose(found, value, rtol=SAME_PROGRAM, atol=1e-10, err_msg=name)
    # Not only conversions that undo each other: water has a known energy, dipole and hardness.
    assert atoms.get_potential_energy() == pytest.approx(-76.3 * 27.2114, rel=1e-3)
    assert 1.5 < np.linalg.norm(atoms.get_dipole_moment()) / units.Debye < 2.6
    assert set(atoms.calc.results) == {"energy", "free_energy", "forces", "dipole"}


def test_forces_are_the_derivative_of_the_energy(atoms):
    forces, start, h = atoms.get_forces(), atoms.positions.copy(), 5e-3
    finite = np.empty_like(forces)
    for i in np.ndindex(3, 3):
        energies = []
        for k in (2, 1, -1, -2):
            atoms.positions = start
            atoms.positions[i] += k * h
            energies.append(atoms.get_potential_energy())
        finite[i] = -np.dot([-1, 8, -8, 1], energies) / (12 * h)
    np.testing.assert_allclose(forces, finite, rtol=0, atol=FINITE_DIFFERENCE)


def dynamics(minimum, model, steps):
    """Total energies, eV per atom, of water at 300 K."""
    atoms = structure_to_ase(minimum)
    atoms.calc = OPMLCalculator(model)
    atoms.get_potential_energy()
    thermal = (atoms.get_masses() * 300 * units.kB)[:, None] ** 0.5
    atoms.set_momenta(thermal * np.random.default_rng(1).normal(size=(len(atoms), 3)))
    verlet = VelocityVerlet(atoms, timestep=0.25 * units.fs)
    energies = [atoms.get_total_energy() for _ in verlet.irun(steps)]
    return np.array(energies) / len(atoms)


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_dynamics_compile_once_and_conserve_energy(minimum, model, compilations, steps):
    model.predict(minimum)
    with compilations() as count:
        energies = dynamics(minimum, model, steps)
    assert count == []
    assert len(energies) == steps + 1
    assert np.ptp(energies) < NVE_FLUCTUATION


@pytest.mark.filterwarnings("ignore:pairs of elements:opml_jax.errors.DataWarning")
@pytest.mark.filterwarnings("ignore:atoms are bonded:opml_jax.errors.DataWarning")
@pytest.mark.parametrize("capacity", [None, "H2O2"])
def test_molecules_within_the_capacity_share_one_program(atoms, model, compilations, capacity):
    calc = OPMLCalculator(model, capacity=capacity)
    peroxide, hydrogen = molecule("H2O2"), molecule("H2")
    water = atoms.get_potential_energy()
    with compilations() as count:
        calc.get_potential_energy(peroxide)
    if capacity is None:
        assert len(count) >= 1  # the counter counts
    with compilations() as count:
        for other in (peroxide, hydrogen, atoms):
            found = calc.get_potential_energy(other)
    assert count == []
    assert found == pytest.approx(water, rel=SAME_PROGRAM)


@pytest.mark.parametrize("capacity", ["Qq2", "H2O)", "20 atoms"])
def test_a_capacity_is_a_formula(model, capacity):
    with pytest.raises(OpmlError, match="capacity must be a formula such as 'C9H20'; got"):
        OPMLCalculator(model, capacity=capacity)


def test_one_evaluation_serves_every_property(atoms, monkeypatch):
    calls, predict = [], EnergyModel.predict

    def counted(self, structures, **options):
        calls.extend([structures] if isinstance(structures, opml.Structure) else [])
        return predict(self, structures, **options)

    monkeypatch.setattr(EnergyModel, "predict", counted)
    for _ in range(2):
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_dipole_moment()
    assert len(calls) == 1
    atoms.center(vacuum=5.0)  # moves the molecule and puts a box around it
    atoms.get_forces()
    assert len(calls) == 2
    atoms.set_cell([20, 20, 20])
    atoms.get_forces()
    assert len(calls) == 2
    atoms.calc.calculate(atoms, ["energy"], system_changes=[])
    assert len(calls) == 2


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_share_the_program(atoms, duplicate, compilations):
    energy = atoms.get_potential_energy()
    other = atoms.copy()
    other.calc = duplicate(atoms.calc)
    other.positions += 0.1
    with compilations() as count:
        assert other.get_potential_energy() == pytest.approx(energy, rel=1e-10)
    assert count == []
    assert atoms.get_potential_energy() == energy


def test_from_a_file(atoms, model, tmp_path):
    opml.save_model(tmp_path / "model.safetensors", model)
    for path in (tmp_path, str(tmp_path / "model.safetensors")):
        found = OPMLCalculator(path).get_potential_energy(atoms)
        assert found == pytest.approx(atoms.get_potential_energy(), rel=1e-14)
    with pytest.raises(ModelFileError, match="a model file or a run directory"):
        OPMLCalculator(tmp_path / "nothing")


def test_x64_is_asked_for_at_once(model):
    with jax.enable_x64(False), pytest.raises(PrecisionError, match="jax_enable_x64"):
        OPMLCalculator(model)


def test_models_without_dipoles(atoms, model):
    params = {k: v for k, v in model.params.items() if k != "dipole"}
    calc = OPMLCalculator(dataclasses.replace(model, params=params))
    assert "dipole" not in calc.implemented_properties
    assert "dipole" in OPMLCalculator.implemented_properties
    with pytest.raises(NotImplementedError, match="dipole"):
        calc.get_property("dipole", atoms)


class Ensemble(EnergyModel):
    """Stands for a model that knows how uncertain it is."""

    def predict(self, structure, *, uncertainty, bucket):
        out = {"energy": np.array(-76.0), "forces": np.zeros((structure.n_atoms, 3))}
        if uncertainty:
            out["energy_uncertainty"] = np.array(1e-4)
            out["forces_uncertainty"] = np.full((structure.n_atoms, 3), 2e-3)
        return out


def test_uncertainties_in_ases_units(atoms, model, tmp_path):
    ensemble = Ensemble(model.definition, model.params)
    atoms.calc = OPMLCalculator(ensemble)
    atoms.get_potential_energy()
    assert "energy_std" not in atoms.calc.results
    atoms.calc = OPMLCalculator(ensemble, uncertainty=True)
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert results["energy_std"] == pytest.approx(1e-4 * units.Hartree, rel=1e-6)
    expected = np.full((3, 3), 2e-3 * units.Hartree / units.Bohr)
    np.testing.assert_allclose(results["forces_std"], expected, rtol=1e-6)
    for name in ("water.traj", "water.extxyz"):  # ASE's writers take them or leave them
        write(tmp_path / name, atoms)
        assert read(tmp_path / name).get_potential_energy() == pytest.approx(-76.0 * units.Hartree)


def test_trajectories_keep_what_was_computed(atoms, tmp_path):
    atoms.get_forces()
    with Trajectory(tmp_path / "water.traj", "w", atoms) as trajectory:
        trajectory.write()
    stored = read(tmp_path / "water.traj")
    np.testing.assert_array_equal(stored.get_forces(), atoms.get_forces())
    np.testing.assert_array_equal(stored.get_dipole_moment(), atoms.get_dipole_moment())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.set_pbc([True, False, False]), r"atoms must be a molecule; got pbc \[True"),
        (lambda a: a.set_initial_charges([2, 0, 0]), "as in training; got H2O with charge 2"),
        (lambda a: a.info.update(charge=-2), "as in training; got H2O with charge -2"),
        (lambda a: a.set_initial_magnetic_moments([2, 0, 0]), "as in training; got .* spin 2"),
        (lambda a: a.info.update(charge=1), "spin must be"),
        (lambda a: a.positions.__setitem__((1, 2), np.nan), "positions must be finite numbers"),
        (lambda a: a.positions.__setitem__(1, a.positions[2]), "0.3 Angstrom apart"),
        (lambda a: a.numbers.__setitem__(0, 16), r"only elements seen in training \(H, O\); got S"),
        (lambda a: a.numbers.__setitem__(0, 1), "spin must be"),
        (lambda a: a.__delitem__(slice(None)), "at least one atom"),
    ],
    ids=[
        "pbc",
        "charges",
        "charge",
        "moments",
        "odd",
        "nan",
        "contact",
        "element",
        "radical",
        "empty",
    ],
)
def test_refusals_are_one_line(atoms, change, message):
    atoms.get_potential_energy()
    change(atoms)
    with pytest.raises(OpmlError, match=message) as caught:
        atoms.get_potential_energy()
    assert "\n" not in str(caught.value)
    assert atoms.calc.results == {}


def test_structures_go_to_ase_and_back():
    ion = opml.Structure([8, 1], [[0.0, 0.0, 0.1], [0.0, 0.0, 1.9]], charge=-1)
    triplet = opml.Structure([8, 8], [[0.0, 0.0, 0.0], [0.0, 0.0, 2.3]], spin=2)
    for s in (ion, triplet):
        back = structure_from_ase(structure_to_ase(s))
        assert (back.numbers, back.charge, back.spin) == (s.numbers, s.charge, s.spin)
        np.testing.assert_allclose(back.positions, s.positions, rtol=1e-15)
    partial = Atoms("OH2", molecule("H2O").positions, charges=[-0.8, 0.4, 0.4])
    assert structure_from_ase(partial).charge == 0
    assert structure_from_ase(partial).positions[0] == pytest.approx(
        partial.positions[0] / units.Bohr
    )
    with pytest.raises(StructureError, match="sum of initial_charges must be an integer"):
        structure_from_ase(Atoms("H", charges=[0.5]))


def test_four_charges_are_one_answer_and_three_refusals(atoms):
    """``info`` is no state of ASE's own: a result that is kept must not answer another charge."""
    energy = atoms.get_potential_energy()
    for charge in (2, -2, 4):
        atoms.info["charge"] = charge
        for _ in range(2):
            with pytest.raises(StructureError, match=f"H2O with charge {charge}") as caught:
                atoms.get_potential_energy()
            assert caught.value.code == Code.ELECTRONS
    atoms.info["charge"] = "0"
    assert atoms.get_potential_energy() == energy
    atoms.info["charge"] = "zero"
    with pytest.raises(StructureError, match="charge must be an integer; got 'zero'"):
        atoms.get_forces()
    del atoms.info["charge"]
    for charges, moments in (([2, 0, 0], None), (None, [1, 1, 0])):
        other = atoms.copy()
        other.calc = atoms.calc
        other.set_initial_charges(charges)
        other.set_initial_magnetic_moments(moments)
        with pytest.raises(StructureError, match="charge 0, spin 0, as in training"):
            other.get_potential_energy()
    assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize(
    ("value", "charge"),
    [
        *[(None, 0), ("0", 0), ("-1", -1), (" +1 ", 1), ([2], 2)],
        *[(np.array([1]), 1), (np.int64(-1), -1), (1.0, 1), (np.array(-1.0), -1)],
    ],
    ids=repr,
)
def test_charges_that_are_integers_are_read(value, charge):
    atoms = Atoms("H2O" if charge % 2 == 0 else "OH", molecule("H2O").positions[: 3 - charge % 2])
    atoms.info["charge"] = value
    assert structure_from_ase(atoms).charge == charge


@pytest.mark.parametrize(
    "value", [0.9, "0.9", "", "one", [1, 1], [], {}, True, np.nan, "nan", np.inf, 1j], ids=repr
)
def test_charges_that_are_none_are_refused(value):
    atoms = molecule("H2O")
    atoms.info["charge"] = value
    with pytest.raises(StructureError, match="must be an integer") as caught:
        structure_from_ase(atoms)
    assert caught.value.code == Code.ELECTRONS


def test_masses_go_to_ase_and_back(atoms, dataset):
    water = dataset.structures[3]
    d2o = opml.Structure(water.numbers, water.positions, masses=[15.999, 2.014, 2.014])
    heavy = structure_to_ase(d2o)
    assert heavy.get_masses().tolist() == list(d2o.masses)
    assert structure_from_ase(heavy).masses == d2o.masses
    assert structure_from_ase(atoms).masses is None
    atoms.set_masses(atoms.get_masses())  # standard ones, set
    assert structure_from_ase(atoms).masses is None
    energy = atoms.get_potential_energy()
    atoms.set_masses(d2o.masses)
    assert atoms.get_potential_energy() == energy
