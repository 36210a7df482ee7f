"""How fast is a step, how well is energy kept, and are spectra right?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/md.py DIR --cache DIR --json

DIR holds the published split of rMD17 (``rmd17_ethanol_train_01.npz``). Models are trained once and
kept in ``--cache``: ethanol, the closed form on products of 64 channels, 200 geometries and 20 for
validation; water, the default configuration on 150 and 50 bundled geometries.

- ``speed``: steps per second of ethanol in the jitted loop, as users call it, frames recorded and
  domain checked, for replicas at once, beside ASE's velocity Verlet with the same model in the same
  run. Forces of both are compared first.
- ``conservation``: total energy of ethanol at constant energy; slope of a linear fit per replica,
  and the fluctuation with half the step.
- ``water``: harmonic wavenumbers and intensities beside PySCF's Hessian and differences of its
  dipoles, and peaks of infrared spectra at two temperatures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import record

import opml_jax as opml
from opml_jax.data import read_dataset
from opml_jax.data.reference import Method, calculate
from opml_jax.data.sampling import normal_modes
from opml_jax.dynamics import Settings, harmonic, infrared, peaks, relax, simulate
from opml_jax.dynamics.spectra import INTENSITY
from opml_jax.models import Op2PropConfig
from opml_jax.training import TrainConfig, train
from opml_jax.training.config import OptimConfig
from opml_jax.units import (
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
    WAVENUMBER_PER_HARTREE,
)

PRODUCTS = Op2PropConfig(
    basis="even-tempered", metric="lifted", others=("overlap",), powers=(1,), channels=64
)
N_TRAIN, N_VALIDATION, N_TEST = 200, 20, 50


def cached(path: Path, make) -> opml.Model:
    """The model of a file, made and saved if there is none."""
    if not path.exists():
        opml.save_model(path, make())
    return opml.load_model(path)


def ethanol(args) -> tuple[opml.Model, opml.Dataset]:
    """Model, and geometries it was not trained on."""
    n = N_TRAIN + N_VALIDATION
    pool = read_dataset(args.folder / "rmd17_ethanol_train_01.npz").subset(range(n + N_TEST))

    def make():
        config = TrainConfig(
            model=PRODUCTS, optim=OptimConfig(epochs=0), targets=("energy", "forces")
        )
        splits = {"train": list(range(N_TRAIN)), "validation": list(range(N_TRAIN, n))}
        return train(pool.subset(range(n)), splits, config, folder=args.cache / "ethanol").model

    model = cached(args.cache / "ethanol.safetensors", make)
    return model, pool.subset(range(n, n + N_TEST))


def errors(model: opml.Model, test: opml.Dataset) -> dict[str, float]:
    """Mean absolute errors."""
    found = model.predict(test.structures)
    force = np.abs(found["forces"] - np.array(test["forces"])).mean()
    energy = np.abs(found["energy"] - np.array(test["energy"])).mean()
    return {
        "energy_mae_mev": 1e3 * EV_PER_HARTREE * energy,
        "forces_mae_mev_per_angstrom": 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * force,
    }


def timed(function):
    """Result, CPU seconds and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def speed(args) -> None:
    """Steps per second, and their ratios."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from opml_jax.interfaces.ase import OPMLCalculator, structure_to_ase

    model, test = ethanol(args)
    start = test.structures[0]
    steps = 20 if args.quick else 50
    few = Settings(steps=10, stride=10, forces=True)
    first = simulate(model, start, few)

    atoms = structure_to_ase(start)
    atoms.calc = OPMLCalculator(model)
    atoms.get_forces()
    speed_unit = opml.units.ANGSTROM_PER_BOHR / (opml.units.FEMTOSECOND_PER_ATOMIC_TIME * units.fs)
    atoms.set_velocities(first["velocities"][0, 0] * speed_unit)
    verlet = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    verlet.run(10)
    forces = atoms.get_forces() / EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    difference = np.abs(forces - first["forces"][-1, 0]).max()
    assert difference < 1e-6, difference  # Hartree/Bohr, after ten steps
    ase, loop = [], []
    for _ in range(1 if args.quick else 3):
        ase.append(timed(lambda: verlet.run(steps))[1:])
        long = Settings(steps=10 * steps, stride=10, forces=True)
        loop.append(timed(lambda: simulate(model, start, long))[1:])  # noqa: B023
    cpu, wall = np.min(ase, axis=0) / steps
    peer = {"name": "ethanol_ase_loop", "quick": args.quick, "steps_per_second": 1 / cpu}
    peer |= {"steps_per_second_wall": 1 / wall, "forces_difference": difference}
    record({**peer, **errors(model, test)}, "md", args.json)
    one, wall = np.min(loop, axis=0) / (10 * steps)
    line(args, 1, one, wall, cpu, one)
    for n in (16, 64):
        simulate(model, start, few, replicas=n)
        long = Settings(steps=max(10, 16 * steps // n // 10 * 10), stride=10, forces=True)
        runs = [
            timed(lambda: simulate(model, start, long, replicas=n))[1:]  # noqa: B023
            for _ in range(1 if args.quick else 2)
        ]
        line(args, n, *np.min(runs, axis=0) / (long.steps * n), cpu, one)


def line(args, n: int, cpu: float, wall: float, ase: float, one: float) -> None:
    """One line of speed: steps are those of a replica."""
    row = {
        "name": "ethanol_jitted_loop",
        "quick": args.quick,
        "replicas": n,
        "steps_per_second": 1 / cpu,
    }
    row |= {"steps_per_second_wall": 1 / wall, "nanoseconds_per_day": 0.5e-6 * 86400 / cpu}
    row |= {"ratio_to_ase": ase / cpu, "ratio_to_one_replica": one / cpu}
    record({**row, "timestep_fs": 0.5, "dtype": "float64"}, "md", args.json)


def conservation(args) -> None:
    """Drift and fluctuation of the total energy."""
    model, test = ethanol(args)
    start = test.structures[0]
    scale = 1e3 * EV_PER_HARTREE / start.n_atoms
    picoseconds = 0.05 if args.quick else args.picoseconds
    steps = round(2000 * picoseconds) // 20 * 20
    settings = Settings(steps=steps, stride=20, warmup_fs=20.0 if args.quick else 500.0)
    found = simulate(model, start, settings, replicas=args.replicas, on_progress=progress)
    energy, time_ps = scale * found.total_energy, found.time_fs / 1e3
    slope, _ = np.polyfit(time_ps, energy, 1)
    kinetic = scale * found["kinetic"].std(axis=0)
    record(
        {
            "name": "ethanol_nve_drift",
            "picoseconds": float(time_ps[-1]),
            "replicas": args.replicas,
            "timestep_fs": 0.5,
            "temperature_kelvin": found.temperature.mean(axis=0).round(1).tolist(),
            "slope_mev_per_atom_per_ps": slope.tolist(),
            "slope_largest": float(np.abs(slope).max()),
            "fluctuation_mev_per_atom": energy.std(axis=0).mean(),
            "drift_over_kinetic_spread": float(np.abs(slope * time_ps[-1] / kinetic).max()),
        },
        "md",
        args.json,
    )
    spread = {}
    for dt in (0.5, 0.25):
        n = round((50 if args.quick else 150) / dt)
        short = Settings(steps=n, timestep_fs=dt, stride=1)
        short = simulate(model, start, short, replicas=args.replicas)
        spread[dt] = scale * short.total_energy.std(axis=0).mean()
    row = {f"fluctuation_mev_per_atom_{dt}_fs": x for dt, x in spread.items()}
    ratio = spread[0.5] / spread[0.25]
    record({"name": "ethanol_half_step", **row, "ratio": ratio}, "md", args.json)


def progress(done: int, total: int, note: str) -> None:
    """A line now and then."""
    print(f"{done}/{total} {note}", flush=True)


def water(args) -> None:
    """Harmonic lines beside PySCF's, and spectra beside harmonic lines."""
    dataset = read_dataset(opml.bundled("water"))

    def make():
        splits = {"train": list(range(150)), "validation": list(range(150, 200))}
        return train(dataset, splits, TrainConfig()).model

    model = cached(args.cache / "water.safetensors", make)
    how = dataset.meta["sampling"]
    reference = opml.Structure(how["numbers"], how["minimum_bohr"])
    minimum = relax(model, reference)
    lines = harmonic(model, minimum)
    frequencies, modes = normal_modes(reference, np.array(how["hessian"]))
    frequencies = frequencies * WAVENUMBER_PER_HARTREE
    method = Method(**{k: dataset.meta[k] for k in ("method", "basis", "grid_level", "conv_tol")})
    change, h = [], 0.02 * 1822.888486**0.5  # a hundredth of an Angstrom of a hydrogen
    for mode in modes:
        ends = [reference.positions + sign * h * mode for sign in (1, -1)]
        plus, minus = (calculate(reference.replace(positions=x), method)["dipole"] for x in ends)
        change.append((plus - minus) / (2 * h))
    intensities = INTENSITY * (np.array(change) ** 2).sum(axis=1)
    row = {
        "name": "water_harmonic",
        "peer": "PySCF Hessian, PBE/def2-SVP",
        "wavenumbers": lines.wavenumbers.round(2).tolist(),
        "wavenumbers_pyscf": frequencies.round(2).tolist(),
        "wavenumbers_mae_per_cm": np.abs(lines.wavenumbers - frequencies).mean(),
        "intensities_km_per_mol": lines.intensities.round(3).tolist(),
        "intensities_pyscf": intensities.round(3).tolist(),
        "intensities_mae_km_per_mol": np.abs(lines.intensities - intensities).mean(),
    }
    record(row, "md", args.json)
    for temperature in (10.0, 300.0):
        settings = Settings(
            steps=2000 if args.quick else 4000, temperature=temperature, warmup_fs=250.0
        )
        n = 1 if args.quick else 16
        found = simulate(model, minimum, settings, replicas=n, on_progress=progress)
        wavenumbers, absorption = infrared(found, resolution=20.0)
        bands = [
            float(np.trapezoid(absorption[part], wavenumbers[part]))
            for part in (wavenumbers < 2500, (wavenumbers > 3000) & (wavenumbers < 4500))
        ]
        row = {
            "name": "water_infrared",
            "picoseconds": settings.steps * settings.timestep_fs / 1e3,
            "replicas": n,
            "temperature_kelvin": float(found.temperature.mean()),
            "resolution_per_cm": 20.0,
            "peaks": peaks(wavenumbers, absorption).round(1).tolist(),
            "harmonic": lines.wavenumbers.round(1).tolist(),
            "bend_km_per_mol": bands[0],
            "stretches_km_per_mol": bands[1],
            "harmonic_bend_km_per_mol": float(lines.intensities[0]),
            "harmonic_stretches_km_per_mol": float(lines.intensities[1:].sum()),
        }
        record(row, "md", args.json)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="published splits of rMD17 (npz)")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models")
    parts = {"speed": speed, "conservation": conservation, "water": water}
    parser.add_argument("--parts", nargs="*", choices=[*parts], default=[*parts])
    parser.add_argument("--picoseconds", type=float, default=2.0, help="of conservation")
    parser.add_argument("--replicas", type=int, default=3, help="of conservation")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, shorter runs")
    parser.add_argument("--json", action="store_true", help="append lines to results/md.jsonl")
    args = parser.parse_args()
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
