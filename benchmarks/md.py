"""How fast is a step, how well is energy kept, and are spectra right?

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/md.py DIR --cache DIR --labels LABELS.h5 --json

DIR holds the published split of rMD17 (``rmd17_ethanol_train_01.npz``), LABELS what ``opml generate
rmd17_ethanol_train_01.npz --no-forces --grid-level 3`` wrote for it: dipoles. Models are trained
once and kept in ``--cache``: ethanol, the closed form on products of 64 channels, energies, forces
and dipoles of 800 geometries and 100 for validation (200 and 20, no dipoles, without LABELS);
water, the default configuration on 150 and 50 bundled geometries. Trajectories are kept there too,
and go on when killed.

- ``speed``: steps per second of ethanol in the jitted loop, as users call it, frames recorded and
  domain checked, for replicas at once, beside ASE's velocity Verlet with the same model in the same
  run. Forces of both are compared first.
- ``conservation``: total energy of ethanol at constant energy, each replica from a geometry of its
  own; slope of a linear fit per replica, and the fluctuation with half the step. ``single``: with
  energies and forces in float32. ``long``: one replica, five times as long.
- ``water``: harmonic wavenumbers and intensities beside PySCF's Hessian and differences of its
  dipoles, and peaks of infrared spectra at two temperatures.
- ``ethanol``: likewise, from the minimum of the trans conformer; spectra beside PySCF's lines of
  the same width.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import record

import opml_jax as opml
from opml_jax.data import read_dataset
from opml_jax.data.minima import hessian
from opml_jax.data.minima import relax as relax_with_pyscf
from opml_jax.data.reference import Method, calculate
from opml_jax.data.sampling import normal_modes
from opml_jax.dynamics import (
    Settings,
    Trajectory,
    harmonic,
    infrared,
    peaks,
    relax,
    simulate,
)
from opml_jax.dynamics.domain import bonds
from opml_jax.dynamics.spectra import INTENSITY
from opml_jax.interfaces.ase import structure_from_ase
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train
from opml_jax.units import (
    DEBYE_PER_EBOHR,
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
    WAVENUMBER_PER_HARTREE,
)

PRODUCTS = Op2PropConfig(
    basis="even-tempered", metric="lifted", others=("overlap",), powers=(1,), channels=64
)
SIZES = {False: (200, 20, 50), True: (800, 100, 100)}
"""For training, validation and test, without and with labels of dipoles."""
PBE = Method("pbe", "def2-svp", conv_tol=1e-10)
DIPOLES = Method("pbe", "def2-svp", conv_tol=1e-10, forces=False)
COLD, WARM = 10.0, 300.0
RESOLUTION = 20.0  # cm^-1, of spectra


def cached(path: Path, make) -> opml.Model:
    """The model of a file, made and saved if there is none."""
    if not path.exists():
        opml.save_model(path, make())
    return opml.load_model(path)


def ethanols(args) -> opml.Dataset:
    """Published energies and forces, and dipoles if there are labels."""
    pool = read_dataset(args.folder / "rmd17_ethanol_train_01.npz")
    if args.labels is None:
        return pool
    own = read_dataset(args.labels, lazy=True)
    x, y = (np.array([s.positions for s in d.structures]) for d in (pool, own))
    assert np.abs(x - y).max() < 1e-6  # Bohr
    labels = {**pool.labels, "dipole": np.array(own["dipole"])}
    return opml.Dataset(pool.structures, labels, pool.meta)


def ethanol(args) -> tuple[opml.Model, opml.Dataset]:
    """Model, and geometries it was not trained on."""
    n_train, n_validation, n_test = SIZES[args.labels is not None]
    n = n_train + n_validation
    pool = ethanols(args).subset(range(n + n_test))
    targets = [k for k in ("energy", "forces", "dipole") if k in pool]

    def make():
        fit = Op2PropFit(targets=tuple(targets), epochs=0)
        config = TrainConfig(model=dataclasses.replace(PRODUCTS, fit=fit))
        splits = {"train": list(range(n_train)), "validation": list(range(n_train, n))}
        return train(pool.subset(range(n)), splits, config, folder=args.cache / "ethanol").model

    model = cached(args.cache / f"ethanol_{n_train}.safetensors", make)
    return model, pool.subset(range(n, n + n_test))


def errors(model: opml.Model, test: opml.Dataset) -> dict[str, float]:
    """Mean absolute errors."""
    found = model.predict(test.structures)
    force = np.abs(found["forces"] - np.array(test["forces"])).mean()
    energy = np.abs(found["energy"] - np.array(test["energy"])).mean()
    out = {
        "energy_mae_mev": 1e3 * EV_PER_HARTREE * energy,
        "forces_mae_mev_per_angstrom": 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * force,
    }
    if "dipole" in found and "dipole" in test:
        out["dipole_mae_debye"] = DEBYE_PER_EBOHR * np.abs(found["dipole"] - test["dipole"]).mean()
    return out


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
    single = np.min(loop, axis=0) / (10 * steps)
    line(args, 1, single, np.array([cpu, wall]), single)
    for n in (16, 64):
        simulate(model, start, few, replicas=n)
        long = Settings(steps=max(10, 16 * steps // n // 10 * 10), stride=10, forces=True)
        runs = [
            timed(lambda: simulate(model, start, long, replicas=n))[1:]  # noqa: B023
            for _ in range(1 if args.quick else 2)
        ]
        line(args, n, np.min(runs, axis=0) / (long.steps * n), np.array([cpu, wall]), single)


def line(args, n: int, own: np.ndarray, ase: np.ndarray, single: np.ndarray) -> None:
    """One line of speed: CPU and wall seconds of a step of a replica, of ASE's and of one alone."""
    row = {
        "name": "ethanol_jitted_loop",
        "quick": args.quick,
        "replicas": n,
        "devices": args.devices,
        "steps_per_second": 1 / own[0],
        "steps_per_second_wall": 1 / own[1],
        "nanoseconds_per_day": 0.5e-6 * 86400 / own[1],
    }
    row |= dict(zip(("ratio_to_ase", "ratio_to_ase_wall"), ase / own, strict=True))
    names = "ratio_to_one_replica", "ratio_to_one_replica_wall"
    row |= dict(zip(names, single / own, strict=True))
    record({**row, "timestep_fs": 0.5, "dtype": "float64"}, "md", args.json)


def conservation(args) -> None:
    """Drift and fluctuation of the total energy."""
    drift(args, "nve", Settings(**length(args, args.picoseconds)), args.replicas)
    model, test = ethanol(args)
    spread = {}
    for dt in (0.5, 0.25):
        n = round((50 if args.quick else 150) / dt)
        short = Settings(steps=n, timestep_fs=dt, stride=1)
        short = simulate(model, test.structures[: args.replicas], short)
        spread[dt] = scale(short) * short.total_energy.std(axis=0).mean()
    row = {f"fluctuation_mev_per_atom_{dt}_fs": x for dt, x in spread.items()}
    ratio = spread[0.5] / spread[0.25]
    record({"name": "ethanol_half_step", **row, "ratio": ratio}, "md", args.json)


def single(args) -> None:
    """The same in single precision."""
    settings = Settings(**length(args, args.picoseconds), dtype="float32")
    drift(args, "nve_float32", settings, args.replicas)


def long(args) -> None:
    """One replica for longer."""
    drift(args, "nve_long", Settings(**length(args, 5 * args.picoseconds)), 1)


def length(args, picoseconds: float) -> dict:
    """Of a run at 0.5 fs."""
    steps = round(2000 * (0.05 if args.quick else picoseconds)) // 20 * 20
    return {"steps": steps, "stride": 4, "warmup_fs": 20.0 if args.quick else 500.0}


def scale(found: Trajectory) -> float:
    """meV per atom of a Hartree."""
    return 1e3 * EV_PER_HARTREE / len(found.numbers)


def drift(args, name: str, settings: Settings, replicas: int) -> None:
    """How well one run keeps its energies; leaving the domain would end it."""
    model, test = ethanol(args)
    output = args.cache / f"ethanol_{name}_{settings.steps}.h5"
    starts = test.structures[:replicas]
    found = simulate(model, starts, settings, output=output, on_progress=progress)
    energy, time_ps = scale(found) * found.total_energy, found.time_fs / 1e3
    slope, _ = np.polyfit(time_ps, energy, 1)
    kinetic = scale(found) * found["kinetic"].std(axis=0)
    first, second = bonds(starts[0])[0].T
    positions = found["positions"]
    length = np.linalg.norm(positions[..., first, :] - positions[..., second, :], axis=-1)
    row = {
        "name": f"ethanol_{name}_drift",
        "picoseconds": float(time_ps[-1]),
        "replicas": replicas,
        "timestep_fs": 0.5,
        "dtype": settings.dtype,
        "temperature_kelvin": found.temperature.mean(axis=0).round(1).tolist(),
        "slope_mev_per_atom_per_ps": slope.tolist(),
        "slope_largest": float(np.abs(slope).max()),
        "fluctuation_mev_per_atom": energy.std(axis=0).mean(),
        "drift_over_kinetic_spread": float(np.abs(slope * time_ps[-1] / kinetic).max()),
        "longest_bond_over_its_mean": float((length / length.mean(axis=(0, 1))).max()),
    }
    record({**row, **errors(model, test)}, "md", args.json)


def progress(done: int, total: int, note: str) -> None:
    """A line now and then."""
    print(f"{done}/{total} {note}", flush=True)


def lines_of(reference: opml.Structure, hessian: np.ndarray) -> dict[str, np.ndarray]:
    """PySCF's wavenumbers and intensities, by differences of dipoles along modes."""
    frequencies, modes = normal_modes(reference, hessian)
    change, h = [], 0.02 * 1822.888486**0.5  # a hundredth of an Angstrom of a hydrogen
    for mode in modes:
        ends = [reference.positions + sign * h * mode for sign in (1, -1)]
        plus, minus = (calculate(reference.replace(positions=x), DIPOLES)["dipole"] for x in ends)
        change.append((plus - minus) / (2 * h))
    intensities = INTENSITY * (np.array(change) ** 2).sum(axis=1)
    return {"wavenumbers": frequencies * WAVENUMBER_PER_HARTREE, "intensities": intensities}


def spectra(args, name: str, model: opml.Model, minimum: opml.Structure, reference: dict) -> None:
    """Harmonic lines, and peaks of spectra cold and warm, beside the reference's lines."""
    lines = harmonic(model, minimum)
    assert lines.intensities is not None
    row = {
        "name": f"{name}_harmonic",
        "peer": "PySCF Hessian, PBE/def2-SVP",
        "wavenumbers": lines.wavenumbers.round(2).tolist(),
        "wavenumbers_pyscf": reference["wavenumbers"].round(2).tolist(),
        "wavenumbers_mae_per_cm": np.abs(lines.wavenumbers - reference["wavenumbers"]).mean(),
        "wavenumbers_max_per_cm": np.abs(lines.wavenumbers - reference["wavenumbers"]).max(),
        "intensities_km_per_mol": lines.intensities.round(3).tolist(),
        "intensities_pyscf": reference["intensities"].round(3).tolist(),
        "intensities_mae_km_per_mol": np.abs(lines.intensities - reference["intensities"]).mean(),
    }
    record(row, "md", args.json)
    n, steps = (1, 2000) if args.quick else (args.replicas, 10_000)
    for temperature in (COLD, WARM):
        settings = Settings(steps=steps, temperature=temperature, warmup_fs=500.0)
        output = args.cache / f"{name}_{temperature:.0f}K_{steps}.h5"
        found = simulate(model, minimum, settings, replicas=n, output=output, on_progress=progress)
        wavenumbers, absorption = infrared(found, resolution=RESOLUTION)
        harmonics = broadened(wavenumbers, reference)
        own, theirs = peaks(wavenumbers, absorption), peaks(wavenumbers, harmonics)
        # each line of the reference's spectrum beside the nearest of the trajectory's
        apart = np.array([own[np.abs(own - x).argmin()] - x for x in theirs])
        row = {
            "name": f"{name}_infrared",
            "picoseconds": settings.steps * settings.timestep_fs / 1e3,
            "replicas": n,
            "temperature_kelvin": float(found.temperature.mean()),
            "resolution_per_cm": RESOLUTION,
            "peaks": own.round(1).tolist(),
            "peaks_of_harmonic_lines_pyscf": theirs.round(1).tolist(),
            "nearest_apart_per_cm": apart.round(1).tolist(),
        }
        for low, high in ((100, 700), (700, 2500), (2500, 4500)):
            here = (wavenumbers > low) & (wavenumbers < high)
            own_lines = (reference["wavenumbers"] > low) & (reference["wavenumbers"] < high)
            row[f"km_per_mol_{low}_{high}"] = float(
                np.trapezoid(absorption[here], wavenumbers[here])
            )
            total = float(reference["intensities"][own_lines].sum())
            row[f"harmonic_km_per_mol_{low}_{high}"] = total
        record(row, "md", args.json)
        draw(args, f"{name}_{temperature:.0f}K", wavenumbers, absorption, harmonics)


def broadened(wavenumbers: np.ndarray, reference: dict) -> np.ndarray:
    """Lines as wide as those of :func:`infrared`: the transform of a Hann window of lags."""
    longest = 1 / RESOLUTION  # cm, and lines are cosines over the lags up to there
    lag = np.linspace(0, longest, 2001)
    window = np.cos(0.5 * np.pi * lag / longest) ** 2
    apart = wavenumbers[:, None] - reference["wavenumbers"]
    shape = 2 * np.trapezoid(window * np.cos(2 * np.pi * apart[..., None] * lag), lag)
    return shape @ reference["intensities"]


def draw(args, name: str, wavenumbers, absorption, harmonics) -> None:
    """A picture of both."""
    if not args.json or args.quick:
        return
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot(wavenumbers, absorption, label="dynamics", lw=1)
    axes.plot(wavenumbers, -harmonics, label="PySCF, harmonic (downwards)", lw=1)
    axes.set(xlim=(0, 4100), xlabel="wavenumber, cm$^{-1}$", ylabel="km/mol per cm$^{-1}$")
    axes.legend(frameon=False, loc="lower center")
    figure.savefig(Path(__file__).parent / "results" / f"infrared_{name}.png", dpi=110)
    plt.close(figure)


def water(args) -> None:
    """Of water."""
    dataset = read_dataset(opml.bundled("water"))

    def make():
        splits = {"train": list(range(150)), "validation": list(range(150, 200))}
        return train(dataset, splits, TrainConfig()).model

    model = cached(args.cache / "water.safetensors", make)
    how = dataset.meta["sampling"]
    reference = opml.Structure(how["numbers"], how["minimum_bohr"])
    found = lines_of(reference, np.array(how["hessian"]))
    spectra(args, "water", model, relax(model, reference), found)


def ethanol_lines(args) -> None:
    """Of ethanol; PySCF's minimum and lines are kept in the cache."""
    model, _ = ethanol(args)
    path = args.cache / "ethanol_pyscf.npz"
    if not path.exists():
        start = relax(model, trans_ethanol())
        minimum = relax_with_pyscf(start, PBE)
        own = hessian(minimum, PBE)
        np.savez(path, positions=minimum.positions, hessian=own, **lines_of(minimum, own))
    with np.load(path) as f:
        reference = {k: f[k] for k in ("wavenumbers", "intensities")}
        minimum = trans_ethanol().replace(positions=f["positions"])
    spectra(args, "ethanol", model, relax(model, minimum), reference)


def trans_ethanol() -> opml.Structure:
    """Near the minimum of the trans conformer, atoms in rMD17's order."""
    from ase.build import molecule

    own = structure_from_ase(molecule("CH3CH2OH"))
    order = np.argsort([{6: 0, 8: 1, 1: 2}[z] for z in own.numbers], kind="stable")
    return opml.Structure(np.array(own.numbers)[order], np.asarray(own.positions)[order])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="published splits of rMD17 (npz)")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models")
    parser.add_argument("--labels", type=Path, help="dipoles of ethanol, by opml generate")
    parts = {f.__name__: f for f in (speed, conservation, single, long, water)}
    parts["ethanol"] = ethanol_lines
    parser.add_argument("--parts", nargs="*", choices=[*parts], default=[*parts])
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of conservation")
    parser.add_argument("--replicas", type=int, default=5, help="of conservation and spectra")
    parser.add_argument("--devices", type=int, default=1, help="of the CPU, for replicas of speed")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, shorter runs")
    parser.add_argument("--json", action="store_true", help="append lines to results/md.jsonl")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.labels is None and "ethanol" in args.parts:
        args.parts.remove("ethanol")  # no dipoles, no spectra
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
