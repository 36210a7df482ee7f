"""Do energies and forces of short chains carry over to longer ones? Alkanes.

    python benchmarks/chains.py make DIR
    opml generate DIR/train.xyz -o DIR/train.h5 --method pbe --basis sto-3g --grid-level 1
    opml generate DIR/test.xyz -o DIR/test.h5 --method pbe --basis sto-3g --grid-level 1
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/chains.py fit DIR --json
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/chains.py md DIR --json

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

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import record

import opml_jax as opml
from opml_jax.data import read_dataset
from opml_jax.dynamics import Settings, simulate
from opml_jax.models import Op2PropConfig
from opml_jax.structures.elements import symbol
from opml_jax.training import TrainConfig, train
from opml_jax.training.config import OptimConfig
from opml_jax.units import (
    ANGSTROM_PER_BOHR,
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
)

SHORT, LONG = (1, 2, 3, 4), (6, 8)
N_SHORT, N_LONG = 60, 20
CC, CH = 1.53 / ANGSTROM_PER_BOHR, 1.10 / ANGSTROM_PER_BOHR
STRETCH, BEND = 0.35, 0.15  # Hartree/Bohr^2 and Hartree/rad^2, typical of force fields
REPULSION, CONTACT = 0.4, 2.3 / ANGSTROM_PER_BOHR  # Hartree, and where it ends
TEMPERATURE, FRICTION_FS = 500.0, 50.0


def alkane(n: int) -> tuple[opml.Structure, np.ndarray]:
    """All-trans C_n H_{2n+2}, and its bonds ``(n_bonds, 2)``."""
    half = np.deg2rad(112.0) / 2
    ahead, up = CC * np.sin(half), CC * np.cos(half)
    carbons = np.array([[k * ahead, (k % 2) * up, 0.0] for k in range(n)])
    positions, bonds = list(carbons), [(k, k + 1) for k in range(n - 1)]
    for k, at in enumerate(carbons):
        near = [carbons[j] - at for j in (k - 1, k + 1) if 0 <= j < n]
        for way in _free_directions(near, k):
            bonds.append((k, len(positions)))
            positions.append(at + CH * way)
    return opml.Structure([6] * n + [1] * (2 * n + 2), positions), np.array(bonds)


def _free_directions(near: list[np.ndarray], k: int) -> list[np.ndarray]:
    """Corners of a tetrahedron that bonds to neighbours leave."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    if not near:
        return list(corners)
    if len(near) == 1:
        first = near[0] / np.linalg.norm(near[0])
        side = np.cross(first, [0.0, 0.0, 1.0])
        side /= np.linalg.norm(side)
        third = np.cross(first, side)
        turns = 2 * np.pi * (np.arange(3) + 0.5 * (k > 0)) / 3
        return [-first / 3 + 8**0.5 / 3 * (np.cos(t) * side + np.sin(t) * third) for t in turns]
    middle = -(near[0] + near[1])
    middle /= np.linalg.norm(middle)
    across = np.cross(near[0], near[1])
    across /= np.linalg.norm(across)
    return [0.577 * middle + s * 0.816 * across for s in (1, -1)]


def force_field(bonds: np.ndarray):
    """``properties(params, structure)`` of harmonic bonds and angles, and repulsion."""
    n = bonds.max() + 1
    neighbours = [[*bonds[bonds[:, 0] == i, 1], *bonds[bonds[:, 1] == i, 0]] for i in range(n)]
    angles = np.array(
        [(a, i, b) for i in range(n) for a, b in itertools.combinations(neighbours[i], 2)]
    )
    close = {tuple(sorted(p)) for p in [*bonds.tolist(), *angles[:, [0, 2]].tolist()]}
    apart = np.array([p for p in itertools.combinations(range(n), 2) if p not in close] or [(0, 0)])

    def properties(params, structure):
        x, z = structure.positions, np.array(structure.numbers)
        rest = np.where((z[bonds] == 6).all(axis=1), CC, CH)
        stretch = jnp.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) - rest
        u, v = x[angles[:, 0]] - x[angles[:, 1]], x[angles[:, 2]] - x[angles[:, 1]]
        cosine = jnp.sum(u * v, axis=1) / jnp.linalg.norm(u, axis=1) / jnp.linalg.norm(v, axis=1)
        bend = jnp.arccos(jnp.clip(cosine, -0.9999, 0.9999)) - np.deg2rad(109.5)
        distance = jnp.sqrt(jnp.sum((x[apart[:, 0]] - x[apart[:, 1]]) ** 2, axis=1) + 1e-12)
        overlap = jnp.where(apart[:, 0] == apart[:, 1], 0.0, jnp.maximum(1 - distance / CONTACT, 0))
        energy = STRETCH * jnp.sum(stretch**2) / 2 + BEND * jnp.sum(bend**2) / 2
        return {"energy": energy + REPULSION * jnp.sum(overlap**2)}

    return properties


def make(args) -> None:
    """Write the geometries."""
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, sizes, n in (("train", SHORT, N_SHORT), ("test", LONG, N_LONG)):
        lines = []
        for size in sizes:
            start, bonds = alkane(size)
            settings = Settings(
                steps=400 * n,
                stride=400,
                temperature=TEMPERATURE,
                ensemble="nvt",
                coupling_fs=FRICTION_FS,
                warmup_fs=500.0,
                seed=size,
            )
            frames = simulate(force_field(bonds), start, settings)["positions"][1:, 0]
            for x in frames * ANGSTROM_PER_BOHR:
                lines += [str(len(x)), f"C{size}"]
                lines += [
                    f"{symbol(z)} " + " ".join(f"{c:.6f}" for c in at)
                    for z, at in zip(start.numbers, x, strict=True)
                ]
        (args.folder / f"{name}.xyz").write_text("\n".join(lines) + "\n")


def config(operator: str, metric: str) -> TrainConfig:
    """The same model of one operator or the other."""
    other = "overlap" if operator != "overlap" else "kinetic"
    model = Op2PropConfig(
        basis="even-tempered",
        operator=operator,
        metric=metric,
        powers=(1,),
        others=(other,) if operator != "overlap" else (),
        channels=48,
    )
    return TrainConfig(model=model, optim=OptimConfig(epochs=0), targets=("energy", "forces"))


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
            sizes = np.array([s.n_atoms for s in part.structures])
            energy = (found["energy"] - np.array(part["energy"])) / sizes
            forces = [
                f[:n] - g for f, n, g in zip(found["forces"], sizes, part["forces"], strict=True)
            ]
            force = np.abs(np.concatenate(forces)).mean()
            line[f"{name}_mev_per_atom"] = 1e3 * EV_PER_HARTREE * float(np.abs(energy).mean())
            line[f"{name}_spread_mev_per_atom"] = 1e3 * EV_PER_HARTREE * float(energy.std())
            line[f"{name}_mev_per_angstrom"] = 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * float(force)
        record(line, "chains", args.json)


def md(args) -> None:
    """Constant energy at 300 K, twice the length of training."""
    model = trained(args.folder, "screened_potential", args.metric)
    start, _ = alkane(LONG[-1])
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
    parser.add_argument("part", choices=["make", "fit", "md"])
    parser.add_argument("folder", type=Path)
    names = ["screened_potential", "overlap"]
    parser.add_argument("--operators", nargs="*", default=names, help="of fit")
    parser.add_argument("--metric", default="damped", help="of the model's operators")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of md")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    {"make": make, "fit": fit, "md": md}[args.part](args)


if __name__ == "__main__":
    main()
