"""Do energies and forces of short chains carry over to longer ones? Alkanes.

    python benchmarks/chains.py make DIR
    opml generate DIR/train.xyz -o DIR/train.h5 --method pbe --basis sto-3g --grid-level 1
    opml generate DIR/test.xyz -o DIR/test.h5 --method pbe --basis sto-3g --grid-level 1
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/chains.py fit DIR --json
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/chains.py md DIR --json
    python benchmarks/chains.py pack DIR

``make`` draws geometries of C1 to C4 (training) and C6 and C8 (test) by Langevin dynamics of a
valence force field (harmonic bonds and angles, repulsion of other pairs, free torsions), run by
this library. ``fit`` trains Op2Prop on the short ones with the screened potential, and the same
model on the overlap in its place: what is learned without V. ``md`` runs the first at constant
energy for the longest chain.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import record
from integrals import alkane

import opml_jax as opml
from opml_jax.data import Dataset, read_dataset
from opml_jax.data.splits import write_splits
from opml_jax.data.store import write_hdf5
from opml_jax.dynamics import Settings, simulate
from opml_jax.dynamics.domain import bonds
from opml_jax.interfaces.ase import structure_to_ase
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors
from opml_jax.units import (
    ANGSTROM_PER_BOHR,
    EV_PER_HARTREE,
)

SHORT, LONG = (1, 2, 3, 4), (6, 8)
N_SHORT, N_LONG = 60, 20
CC, CH = 1.53 / ANGSTROM_PER_BOHR, 1.10 / ANGSTROM_PER_BOHR
STRETCH, BEND = 0.35, 0.15  # Hartree/Bohr^2 and Hartree/rad^2, typical of force fields
REPULSION, CONTACT = 0.4, 2.3 / ANGSTROM_PER_BOHR  # Hartree, and where it ends
TEMPERATURE, FRICTION_FS = 500.0, 50.0


def all_trans(n: int) -> opml.Structure:
    """C_n H_{2n+2}."""
    return opml.Structure(*alkane(n))


def force_field(pairs: np.ndarray):
    """``properties(params, structure)`` of harmonic bonds and angles, and repulsion."""
    n = pairs.max() + 1
    neighbours = [[*pairs[pairs[:, 0] == i, 1], *pairs[pairs[:, 1] == i, 0]] for i in range(n)]
    angles = np.array(
        [(a, i, b) for i in range(n) for a, b in itertools.combinations(neighbours[i], 2)]
    )
    close = {tuple(sorted(p)) for p in [*pairs.tolist(), *angles[:, [0, 2]].tolist()]}
    apart = [p for p in itertools.combinations(range(n), 2) if p not in close]
    apart = np.array(apart, dtype=int).reshape(-1, 2)

    def properties(params, structure):
        x, z = structure.positions, np.array(structure.numbers)
        rest = np.where((z[pairs] == 6).all(axis=1), CC, CH)
        stretch = jnp.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) - rest
        u, v = x[angles[:, 0]] - x[angles[:, 1]], x[angles[:, 2]] - x[angles[:, 1]]
        cosine = jnp.sum(u * v, axis=1) / jnp.linalg.norm(u, axis=1) / jnp.linalg.norm(v, axis=1)
        bend = jnp.arccos(jnp.clip(cosine, -0.9999, 0.9999)) - np.deg2rad(109.5)
        distance = jnp.linalg.norm(x[apart[:, 0]] - x[apart[:, 1]], axis=1)
        overlap = jnp.maximum(1 - distance / CONTACT, 0.0)
        energy = STRETCH * jnp.sum(stretch**2) / 2 + BEND * jnp.sum(bend**2) / 2
        return {"energy": energy + REPULSION * jnp.sum(overlap**2)}

    return properties


def make(args) -> None:
    """Write the geometries."""
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, sizes, n in (("train", SHORT, N_SHORT), ("test", LONG, N_LONG)):
        found = []
        for size in sizes:
            start = all_trans(size)
            settings = Settings(
                steps=400 * n,
                stride=400,
                temperature=TEMPERATURE,
                ensemble="nvt",
                coupling_fs=FRICTION_FS,
                warmup_fs=500.0,
                seed=size,
            )
            trajectory = simulate(force_field(bonds(start)[0]), start, settings)
            found += [structure_to_ase(trajectory.structure(i)) for i in range(1, n + 1)]
        ase.io.write(args.folder / f"{name}.xyz", found)


def config(operator: str, metric: str) -> TrainConfig:
    """The same model of one operator or the other."""
    model = Op2PropConfig(
        basis="even-tempered",
        operator=operator,
        metric=metric,
        powers=(1,),
        others=() if operator == "overlap" else ("overlap",),
        channels=48,
        fit=Op2PropFit(targets=("energy", "forces"), epochs=0),
    )
    return TrainConfig(model=model)


def trained(folder: Path, operator: str, metric: str) -> opml.Model:
    """The model of short chains, made and kept if there is none."""
    path = folder / f"{operator}_{metric}.safetensors"
    if not path.exists():
        data = read_dataset(folder / "train.h5")
        order = np.random.default_rng(0).permutation(len(data))
        splits = {"train": order[24:].tolist(), "validation": order[:24].tolist()}
        model = train(data, splits, config(operator, metric), folder=folder / path.stem).model
        opml.save_model(path, model)
    return opml.load_model(path)


def pack(args) -> None:
    """One file of both, short chains first."""
    both = [read_dataset(args.folder / f"{name}.h5") for name in ("train", "test")]
    labels = {k: [x for part in both for x in part[k]] for k in ("energy", "forces")}
    structures = [s for part in both for s in part.structures]
    meta = {**both[0].meta, "source": "benchmarks/chains.py"}
    write_hdf5(args.folder / "alkanes.h5", Dataset(structures, labels, meta))
    order = np.random.default_rng(0).permutation(len(both[0]))
    test = np.arange(len(both[0]), len(structures))
    splits = {"train": order[24:], "validation": order[:24], "test": test}
    write_splits(args.folder / "alkanes.splits.json", splits)


def fit(args) -> None:
    """Errors by length, with V and without."""
    parts = {"validation": read_dataset(args.folder / "train.h5")}
    order = np.random.default_rng(0).permutation(len(parts["validation"]))
    parts["validation"] = parts["validation"].subset(order[:24])
    test = read_dataset(args.folder / "test.h5")
    carbons = np.array([s.numbers.count(6) for s in test.structures])
    parts |= {f"C{n}": test.subset(np.flatnonzero(carbons == n)) for n in LONG}
    for operator in args.operators:
        model = trained(args.folder, operator, args.metric)
        line = {"name": "fit", "operator": operator, "metric": args.metric}
        for name, part in parts.items():
            found = model.predict(part.structures)
            own = errors(found, part, model)
            energy = found["energy"] - np.array(part["energy"])
            spread = (energy / [s.n_atoms for s in part.structures]).std()
            line[f"{name}_mev_per_atom"] = own["energy_mae_mev_per_atom"]
            line[f"{name}_spread_mev_per_atom"] = 1e3 * EV_PER_HARTREE * float(spread)
            line[f"{name}_mev_per_angstrom"] = own["forces_mae_mev_per_angstrom"]
        record(line, "chains", args.json)


def md(args) -> None:
    """Constant energy at 300 K, twice the length of training."""
    model = trained(args.folder, "screened_potential", args.metric)
    start = all_trans(LONG[-1])
    steps = int(args.picoseconds * 2000)
    settings = Settings(steps=steps, stride=20, warmup_fs=200.0)
    began = time.process_time()
    trajectory = simulate(model, start, settings, output=args.folder / "c8.h5")
    energy = trajectory.total_energy[:, 0] / start.n_atoms * EV_PER_HARTREE * 1e3
    clock = trajectory.time_fs / 1e3
    record(
        {
            "name": "md",
            "molecule": f"C{LONG[-1]}H{2 * LONG[-1] + 2}",
            "picoseconds": float(clock[-1]),
            "temperature_kelvin": float(trajectory.temperature.mean()),
            "drift_mev_per_atom_per_ps": float(np.polyfit(clock, energy, 1)[0]),
            "fluctuation_mev_per_atom": float(energy.std()),
            "cpu_ms_per_step": 1e3 * (time.process_time() - began) / steps,
        },
        "chains",
        args.json,
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"make": make, "fit": fit, "md": md, "pack": pack}
    parser.add_argument("part", choices=[*parts])
    parser.add_argument("folder", type=Path)
    names = ["screened_potential", "overlap"]
    parser.add_argument("--operators", nargs="*", default=names, help="of fit")
    parser.add_argument("--metric", default="damped", help="of the model's operators")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of md")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    parts[args.part](args)


if __name__ == "__main__":
    main()
