"""The loop against closed forms, statistics, interruptions and bad input."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.io import read

from opml_jax.dynamics import (
    DomainError,
    Settings,
    Trajectory,
    simulate,
    simulation,
)
from opml_jax.dynamics.trajectory import Recorder
from opml_jax.errors import ConfigError, DataError, OpmlError, StructureError
from opml_jax.structures import Structure
from opml_jax.structures.elements import masses
from opml_jax.units import (
    ELECTRON_MASS_PER_DALTON,
    EV_PER_HARTREE,
    FEMTOSECOND_PER_ATOMIC_TIME,
    HARTREE_PER_KELVIN,
)

ROUNDING = 1e-9  # relative: 400 steps, each of rounding 1e-16 times what is summed in it
pytest.importorskip("jax_md")


def verlet(omega, dt, n):
    """Velocity Verlet of an oscillator from x = 0, v = 1: positions and velocities, exactly."""
    angle, size = 2 * np.arcsin(omega * dt / 2), np.sqrt(1 - (omega * dt / 2) ** 2)
    n = np.reshape(n, (-1, 1, 1))
    return np.sin(n * angle) / (omega * size), np.cos(n * angle)


def test_nve_is_velocity_verlet(trap):
    settings = Settings(steps=400, stride=4, forces=True)
    found = simulate(trap.properties, trap.start, settings)
    dt = settings.timestep_fs / FEMTOSECOND_PER_ATOMIC_TIME
    x, v = verlet(trap.frequencies, dt, found["step"])
    start = found["velocities"][0, 0]
    shift = found["positions"][:, 0] - trap.start.positions
    np.testing.assert_allclose(shift, start * x, rtol=0, atol=ROUNDING * np.abs(shift).max())
    np.testing.assert_allclose(found["velocities"][:, 0], start * v, atol=ROUNDING * 1e-3)
    np.testing.assert_allclose(found["forces"][:, 0], -trap.stiffness * shift, atol=1e-12)
    energy = (trap.stiffness * shift**2).sum(axis=(1, 2)) / 2
    np.testing.assert_allclose(found["energy"][:, 0], energy, atol=1e-14)


def test_fluctuation_falls_fourfold_with_half_the_step(trimer):
    spread = [
        np.ptp(
            simulate(
                trimer.properties,
                trimer.start,
                Settings(steps=2 * n, timestep_fs=200 / n, stride=1),
            ).total_energy
        )
        for n in (800, 1600)
    ]
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.05)  # the next order is (omega dt)^2


def test_single_precision_is_of_energies_and_forces(trap):
    seen = []

    def properties(params, structure):
        seen.append(structure.positions.dtype)
        return trap.properties(params, structure)

    single, double = (
        simulate(properties, trap.start, Settings(steps=40, forces=True, dtype=d))
        for d in ("float32", "float64")
    )
    assert {np.dtype(d).name for d in seen} == {"float32", "float64"}
    forces = single["forces"]
    np.testing.assert_array_equal(forces, forces.astype(np.float32))  # all they can tell
    assert not np.array_equal(single["positions"], single["positions"].astype(np.float32))
    rounding = np.finfo(np.float32).eps * np.abs(trap.start.positions).max()
    shift = np.abs(single["positions"] - double["positions"]).max()
    # a force off by rounding times the stiffness moves a trapped atom by no more than the rounding
    assert 0 < shift < 10 * rounding


def test_nve_neither_moves_nor_turns(trimer):
    found = simulate(trimer.properties, trimer.start, Settings(steps=400), replicas=2)
    momentum = masses(trimer.start.numbers)[:, None] * found["velocities"]
    assert np.abs(momentum.sum(axis=2)).max() < 1e-10
    assert np.abs(np.cross(found["positions"], momentum).sum(axis=2)).max() < 1e-10
    assert found.degrees_of_freedom == 3
    width = (300 * HARTREE_PER_KELVIN * found.masses[:, None]) ** 0.5
    draw = np.random.default_rng([0, 1]).normal(size=(3, 3)) * width  # replica 1 of seed 0
    assert (draw * momentum[0, 1] / width**2).sum() == pytest.approx(
        (momentum[0, 1] ** 2 / width**2).sum()
    )  # orthogonal projection


def test_langevin_samples_the_canonical_distribution(trap):
    settings = Settings(
        steps=4000, stride=40, ensemble="nvt", coupling_fs=20.0, warmup_fs=200.0, temperature=400.0
    )
    found = simulate(trap.properties, trap.start, settings, replicas=32)
    assert found.degrees_of_freedom == 9
    kT = 400 * HARTREE_PER_KELVIN
    # BAOAB's positions are exact in a harmonic well. Energies decorrelate in 20 fs or less, so 32
    # replicas of 2000 fs and 9 modes are 28800 samples of chi^2, sqrt(2) each: 0.8 % of kT/2.
    potential = 2 * found["energy"].mean() / 9
    assert potential == pytest.approx(kT, rel=4 * 0.008)
    # velocities at the end of a step are cooler by (omega dt)^2 / 4, at most 0.043
    assert found.temperature.mean() == pytest.approx(400, rel=4 * 0.008 + 0.043)


def test_nose_hoover_keeps_the_temperature(trimer):
    settings = Settings(
        steps=4000,
        stride=10,
        timestep_fs=0.25,
        ensemble="nvt",
        thermostat="nose-hoover",
        coupling_fs=20.0,
        warmup_fs=100.0,
    )
    found = simulate(trimer.properties, trimer.start, settings, replicas=32)
    assert found.degrees_of_freedom == 3
    # each replica's mean over 1000 fs is one sample; their scatter says how far off the mean may be
    means = found.temperature.mean(axis=0)
    assert means.mean() == pytest.approx(300, abs=4 * means.std() / 32**0.5)
    # it is held: constant energies would scatter by sqrt(2/3) 300 K / sqrt(2) = 173 K
    assert means.std() < 70


LANGEVIN = Settings(steps=120, stride=4, ensemble="nvt", seed=3, forces=True)


def same(a, b):
    assert a.frames.keys() == b.frames.keys()
    for name in a.frames:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("thermostat", ["langevin", "nose-hoover"])
def test_interrupted_runs_go_on_bit_for_bit(trimer, tmp_path, monkeypatch, thermostat):
    settings = dataclasses.replace(LANGEVIN, thermostat=thermostat, warmup_fs=5.0)
    run = (trimer.properties, trimer.start, settings)
    whole = simulate(*run, replicas=2)

    def interrupt(done, total, note):
        if done >= 50 and note != simulation.COMPILING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(*run, replicas=2, output=tmp_path / "a.h5", on_progress=interrupt)
    assert len(Trajectory.read(tmp_path / "a.h5")["step"]) > 12  # what there was is a file
    with monkeypatch.context() as kill:  # nothing runs after a kill
        kill.setattr(Recorder, "join", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            simulate(*run, replicas=2, output=tmp_path / "a.h5", on_progress=interrupt)
    parts = sorted((tmp_path / "a.h5.parts").glob("*.npz"))
    shutil.copy(parts[-1], tmp_path / "a.h5.parts" / "999999999999999.npz")  # an old one
    parts[-1].write_bytes(parts[-1].read_bytes()[:-99])  # a damaged one
    same(simulate(*run, replicas=2, output=tmp_path / "a.h5"), whole)
    assert not (tmp_path / "a.h5.parts").exists()
    same(simulate(*run, replicas=2, output=tmp_path / "a.h5"), whole)  # nothing is left to do

    half = dataclasses.replace(settings, steps=60)
    short = simulate(*run[:2], half, replicas=2, output=tmp_path / "b.h5")
    assert short["step"][-1] == 60
    same(simulate(*run, replicas=2, output=tmp_path / "b.h5"), whole)
    assert [p.name for p in tmp_path.iterdir()] in (["a.h5", "b.h5"], ["b.h5", "a.h5"])


TWO_DEVICES = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
from conftest import Trimer
from opml_jax.dynamics import simulate, simulation
from test_simulation import LANGEVIN
assert simulation._mesh(3).size == 2 and simulation._mesh(1) is None
simulate(Trimer.properties, Trimer.start, LANGEVIN, replicas=3, output=sys.argv[1])
"""


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(trimer, tmp_path):
    """Three replicas, so that one is padding; the run of two devices goes on where there is one."""
    path = tmp_path / "t.h5"
    subprocess.run([sys.executable, "-c", TWO_DEVICES, path], check=True, cwd=Path(__file__).parent)
    spread = Trajectory.read(path)
    run = (trimer.properties, trimer.start)
    alone = simulate(*run, LANGEVIN, replicas=3)
    assert spread.n_replicas == 3
    for name in alone.frames:
        np.testing.assert_allclose(spread[name], alone[name], rtol=0, atol=1e-10, err_msg=name)
    longer = dataclasses.replace(LANGEVIN, steps=2 * LANGEVIN.steps)
    on, whole = (simulate(*run, longer, replicas=3, output=p) for p in (path, None))
    np.testing.assert_allclose(on["positions"], whole["positions"], rtol=0, atol=1e-10)


def test_another_run_is_refused_or_replaced(trimer, tmp_path):
    path = tmp_path / "t.h5"
    simulate(trimer.properties, trimer.start, LANGEVIN, output=path)
    other = dataclasses.replace(LANGEVIN, temperature=310.0)
    with pytest.raises(OpmlError, match=r"another model, start or setting.*--restart"):
        simulate(trimer.properties, trimer.start, other, output=path)
    with pytest.raises(OpmlError, match="another model"):
        simulate(trimer.properties, trimer.start, LANGEVIN, params=np.ones(1), output=path)
    found = simulate(trimer.properties, trimer.start, other, output=path, restart=True)
    assert found.settings["temperature"] == 310.0
    path.write_text("nothing")
    with pytest.raises(DataError, match="trajectory of opml md"):
        simulate(trimer.properties, trimer.start, LANGEVIN, output=path)
    with pytest.raises(DataError, match="trajectory of opml md"):
        Trajectory.read(tmp_path / "none.h5")


def test_replicas_are_independent_runs(trimer):
    geometries = [trimer.start, trimer.start.replace(positions=trimer.start.positions * 1.02)]
    settings = Settings(steps=40, ensemble="nvt")
    both = simulate(trimer.properties, geometries, settings)
    first = simulate(trimer.properties, geometries[0], settings)
    for name in ("positions", "velocities", "energy"):
        np.testing.assert_allclose(both[name][:, 0], first[name][:, 0], rtol=0, atol=1e-12)
    assert np.abs(both["positions"][-1, 1] - both["positions"][-1, 0]).max() > 1e-2


def test_one_program_serves_every_run(trimer):
    from opml_jax.dynamics import simulation

    simulate(trimer.properties, trimer.start, Settings(steps=8))
    before = simulation._run._cache_size()
    settings = Settings(
        steps=300, stride=3, timestep_fs=0.25, temperature=77.0, warmup_fs=10.0, coupling_fs=9.0
    )
    moved = trimer.start.replace(positions=trimer.start.positions * 1.01)
    simulate(trimer.properties, moved, settings)
    assert simulation._run._cache_size() == before


def test_extxyz_is_what_ase_reads(spring, tmp_path):
    found = simulate(spring.properties, spring.start, Settings(steps=40, forces=True), replicas=2)
    found.write_extxyz(tmp_path / "t.extxyz", replica=1)
    frames = read(tmp_path / "t.extxyz", ":")
    assert len(frames) == 11
    assert frames[-1].info["time_fs"] == 20.0
    for atoms, kinetic, energy in zip(frames, found["kinetic"], found["energy"], strict=True):
        assert atoms.get_kinetic_energy() == pytest.approx(kinetic[1] * EV_PER_HARTREE, rel=1e-5)
        assert atoms.get_potential_energy() == pytest.approx(energy[1] * EV_PER_HARTREE)
        assert atoms.get_forces().shape == (2, 3)
        assert atoms.get_dipole_moment().shape == (3,)


def test_isotopes_move_by_their_masses(spring, tmp_path):
    """Period, temperature, files: all of them know that the molecule is heavier."""
    heavy = Structure(spring.start.numbers, spring.start.positions, masses=[18.998403, 2.014102])
    settings = Settings(steps=40, timestep_fs=0.2, stride=1, temperature=300.0)
    light, found = (simulate(spring.properties, s, settings) for s in (spring.start, heavy))
    assert found.masses.sum() == pytest.approx((18.998403 + 2.014102) * ELECTRON_MASS_PER_DALTON)
    assert found.structure(3).masses == pytest.approx(heavy.masses)
    assert light.structure(3).masses is None
    mass = heavy.atomic_masses
    omega = (0.6 * mass.sum() / mass.prod()) ** 0.5
    step = 0.2 / FEMTOSECOND_PER_ATOMIC_TIME
    bond = np.linalg.norm(np.diff(found["positions"][:, 0], axis=1)[:, 0], axis=-1) - 1.7
    turned = (bond[2:] + bond[:-2]) / (2 * bond[1:-1])  # cos(omega dt) of Verlet's oscillator
    strong = np.abs(bond[1:-1]) > 0.5 * np.abs(bond).max()
    np.testing.assert_allclose(turned[strong], 1 - (omega * step) ** 2 / 2, rtol=1e-6)
    found.write_extxyz(tmp_path / "t.extxyz")
    for atoms, kinetic in zip(read(tmp_path / "t.extxyz", ":"), found["kinetic"], strict=True):
        assert atoms.get_masses() == pytest.approx(heavy.masses)
        assert atoms.get_kinetic_energy() == pytest.approx(kinetic[0] * EV_PER_HARTREE, rel=1e-5)


def test_another_isotopologue_is_another_run(spring, tmp_path):
    heavy = spring.start.replace(masses=(18.998403, 2.014102))
    ion = spring.start.replace(charge=2)
    settings = Settings(steps=8)
    simulate(spring.properties, spring.start, settings, output=tmp_path / "t.h5")
    for other in (heavy, ion):
        with pytest.raises(OpmlError, match="another model, start or setting"):
            simulate(spring.properties, other, settings, output=tmp_path / "t.h5")
    simulate(spring.properties, ion, settings, output=tmp_path / "ion.h5")
    assert Trajectory.read(tmp_path / "ion.h5").structure(0).charge == 2


def cut(params, structure):
    """No bond at all, so that atoms fly apart or into each other."""
    return {"energy": 0.0 * jnp.sum(structure.positions)}


def nan_beyond(params, structure):
    bond = jnp.linalg.norm(structure.positions[1] - structure.positions[0])
    return {"energy": jnp.where(bond > 1.72, jnp.nan, 0.3 * (bond - 1.7) ** 2)}


def ensemble(params, structure):
    bond = jnp.linalg.norm(structure.positions[1] - structure.positions[0])
    energy = 0.3 * (bond - 1.7) ** 2
    spread = jnp.array([-1.0, 1.0]) * (bond - 1.7) ** 2
    return {"energy": energy, "energy_members": energy + spread}


@pytest.mark.parametrize(
    ("properties", "settings", "message"),
    [
        (cut, {"seed": 0}, "fs in replica 0: atoms 0 and 1 are [0-9.]+ Angstrom apart"),
        (cut, {"seed": 1}, "fs in replica 0: atoms 0 and 1 are [0-9.]+ Angstrom apart"),
        (nan_beyond, {}, "numbers are not finite"),
        (ensemble, {"max_uncertainty_mev": 1.0}, "networks disagree by [0-9.]+ meV per atom"),
    ],
)
def test_leaving_the_domain_is_told(spring, tmp_path, properties, settings, message):
    settings = Settings(steps=2000, temperature=2000.0, **settings)
    said = []
    for _ in range(2):  # the file ends before; trying again ends at the same place
        with pytest.raises(DomainError, match=f"left the domain of the model at .*{message}") as e:
            simulate(properties, spring.start, settings, output=tmp_path / "t.h5")
        said.append(str(e.value))
        kept = Trajectory.read(tmp_path / "t.h5")
        assert np.isfinite(kept["positions"]).all()
        assert e.value.structure.n_atoms == 2
    assert said[0] == said[1]


def test_both_ends_of_a_bond_are_watched(spring):
    said = set()
    for seed in range(6):
        with pytest.raises(DomainError) as caught:
            simulate(cut, spring.start, Settings(steps=4000, temperature=3000.0, seed=seed))
        said.add("times their bond" in str(caught.value))
    assert said == {True, False}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ensemble": "npt"}, ConfigError, "ensemble must be one of nve, nvt"),
        ({"thermostat": "andersen"}, ConfigError, "thermostat must be one of"),
        ({"steps": 0}, ConfigError, "steps must be at least 1"),
        (
            {"steps": 10, "stride": 4},
            ConfigError,
            "steps must be a multiple of the stride, 4; got 10",
        ),
        ({"dtype": "bfloat16"}, ConfigError, "dtype must be one of float64, float32"),
        ({"timestep_fs": 0.0}, ConfigError, "timestep_fs must be positive"),
        ({"timestep_fs": float("nan")}, ConfigError, "timestep_fs must be positive"),
        ({"temperature": -1.0}, ConfigError, "temperature must be zero or more"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Settings(**settings)


def test_bad_starts_are_refused(trimer):
    cation = trimer.start.replace(charge=2)
    for start, options, message in (
        (Structure([2], [[0.0, 0, 0]]), {}, "start must be of two atoms or more"),
        ([trimer.start, cation], {}, "several molecules"),
        ([trimer.start, trimer.start.replace(masses=(1.0, 1.0, 1.0))], {}, "several molecules"),
        ([trimer.start, Structure([1, 1], [[0.0, 0, 0], [0, 0, 1.4]])], {}, "several molecules"),
        ([trimer.start], {"replicas": 2}, "replicas must be 1"),
        (trimer.start, {"replicas": 0}, "at least one"),
    ):
        with pytest.raises((StructureError, OpmlError), match=message):
            simulate(trimer.properties, start, **options)
    with pytest.raises(OpmlError, match="a model of energies"):
        simulate(42, trimer.start)
    with pytest.raises(
        OpmlError,
        match="an ensemble or one with a last layer, for max_uncertainty_mev; got one of energy",
    ):
        simulate(trimer.properties, trimer.start, Settings(max_uncertainty_mev=1.0))


def test_without_jax_md_it_says_what_to_install(trimer, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_md", None)
    with pytest.raises(OpmlError, match=r"pip install 'jax-md>=.*extra md"):
        simulate(trimer.properties, trimer.start)


def test_x64_is_needed(trimer):
    with jax.enable_x64(False), pytest.raises(OpmlError, match="float64"):
        simulate(trimer.properties, trimer.start)
