"""Energies and forces of ethanol: where the time goes, and how long MACE takes.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/inference.py RMD17_FOLDER --json --mace PYTHON

Trains Op2Prop (products of random mixtures, closed form) on 100 geometries, checks it on others,
and times its stages, each from coordinates, per molecule in one batch. Energies and forces are
timed in single precision too, with their difference from double precision. ``--mace`` is a Python
that has mace-torch: a MACE of the size of its training defaults, untrained (time does not depend on
weights), on the same geometries, one thread, its forces checked against differences of its energy.
Compilation is kept apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import environment
from prediction import timed
from rmd17 import PRODUCTS

import opml_jax as opml
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

MACE = """
import json, statistics, sys, time
import numpy as np, torch
torch.serialization.add_safe_globals([slice])  # what e3nn's tables hold
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric
torch.set_num_threads(1)
found = np.load(sys.argv[1])
numbers, positions, batches = found["numbers"], found["positions"], json.loads(sys.argv[2])
table = tools.AtomicNumberTable(sorted(set(numbers.tolist())))
for dtype in ("float64", "float32"):
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block,
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2, num_elements=len(table), hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu, correlation=3,
        atomic_energies=np.zeros(len(table)), avg_num_neighbors=8.0,
        atomic_numbers=table.zs, atomic_inter_scale=1.0, atomic_inter_shift=0.0)
    def batch(part):
        configs = [data.Configuration(atomic_numbers=numbers, positions=x, properties={},
            property_weights={}) for x in part]
        graphs = [data.AtomicData.from_config(c, z_table=table, cutoff=5.0) for c in configs]
        loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(part))
        return next(iter(loader)).to_dict()
    for n in batches:
        graph, runs = batch(positions[:n]), []
        for i in range(8):
            start = time.perf_counter()
            out = model(graph, compute_force=True)
            runs.append(time.perf_counter() - start)
        moved, h = [], 1e-3
        for step in (-h, h):
            x = positions[:1].copy()
            x[0, 2, 1] += step
            moved.append(float(model(batch(x), compute_force=False)["energy"]))
        slope = -(moved[1] - moved[0]) / (2 * h)
        error = abs(float(out["forces"][2, 1]) - slope)
        assert dtype == "float32" or error < 1e-5, error
        import mace
        print(json.dumps({"dtype": dtype, "batch": n, "version": mace.__version__,
            "torch": torch.__version__, "force_check": error,
            "milliseconds_per_molecule": 1e3 * statistics.median(runs[2:]) / n}), flush=True)
"""


def stages(definition, params, batch) -> dict[str, Callable]:
    """Functions of positions, each doing what the one before does and more."""
    powers = definition.config.powers

    def operators(structure):
        return definition.inputs(structure, definition.basis, powers)

    def energies(r):
        return definition.apply(params, batch.replace(positions=r))["energy"]

    def both(r):
        gradient, energy = jax.grad(lambda r: (jnp.sum(e := energies(r)), e), has_aux=True)(r)
        return energy, -gradient

    from_coordinates = {
        "operators": operators,
        "irreps": lambda s: definition.recipe(operators(s)).array,
        "invariants": lambda s: definition.descriptors(s, params)[0],
    }
    of_positions = {
        name: lambda r, f=f: f(batch.replace(positions=r)) for name, f in from_coordinates.items()
    }
    of_positions |= {"energy": energies, "energy_and_forces": both}
    return {name: jax.jit(f) for name, f in of_positions.items()}


def single(params):
    """Parameters in single precision, except for offsets, which are large."""
    out = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    out["linear"]["offsets"] = params["linear"]["offsets"]
    return out


def differences(a, b) -> dict[str, float]:
    """Largest differences of energies and forces."""
    energy, forces = (
        float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True)
    )
    return {
        "energy_difference_mev": 1e3 * EV_PER_HARTREE * energy,
        "forces_difference_mev_per_angstrom": 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * forces,
    }


def physics(model, structure) -> dict[str, float]:
    """What must hold exactly: two far molecules add up, nothing depends on the orientation."""
    x = np.asarray(structure.positions)
    far = x + np.array([20.0, 0.0, 0.0]) / ANGSTROM_PER_BOHR
    pair = opml.Structure(structure.numbers * 2, np.concatenate([x, far]))
    turn = opml.testing.random_rotation(0, improper=True)
    found = model.predict([structure, structure.replace(positions=x @ turn.T)])
    energy, forces = found["energy"], found["forces"][0]
    return {
        "additivity_mev": 1e3
        * EV_PER_HARTREE
        * abs(float(model.predict(pair)["energy"] - 2 * energy[0])),
        "invariance_relative": abs(float(energy[1] / energy[0] - 1.0)),
        "equivariance_of_forces": float(np.abs(found["forces"][1] - forces @ turn.T).max()),
        "sum_of_forces": float(np.abs(forces.sum(axis=0)).max()),
        "torque": float(np.abs(np.cross(x, forces).sum(axis=0)).max()),
    }


def mace(python: str, structures, batches: list[int]) -> list[dict]:
    """What the script above prints."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "geometries.npz"
        positions = np.array([s.positions for s in structures]) * ANGSTROM_PER_BOHR
        np.savez(file, numbers=np.array(structures[0].numbers), positions=positions)
        command = [python, "-c", MACE, str(file), json.dumps(batches)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="published splits of rMD17 (npz)")
    parser.add_argument("--mace", help="a Python with mace-torch")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    args = parser.parse_args()
    repeats = 3 if args.quick else 11
    pool, test = (
        opml.read_dataset(args.folder / f"rmd17_ethanol_{part}_01.npz").subset(range(n))
        for part, n in (("train", 120), ("test", max(args.batches)))
    )
    splits = {"train": list(range(100)), "validation": list(range(100, 120))}
    model = train(pool, splits, TrainConfig(model=PRODUCTS)).model
    definition = model.definition
    found = errors(model.predict(test.structures), test, model)
    assert found["forces_mae_mev_per_angstrom"] < 60.0, found

    def report(**row) -> None:
        if args.json or "milliseconds_per_molecule" not in row:
            print(json.dumps(row | environment()), flush=True)
            return
        milliseconds = f"{row['milliseconds_per_molecule']:.3g} ms/molecule"
        print(row["name"], row["batch"], row["dtype"], milliseconds, flush=True)

    report(name="ethanol_physics", **physics(model, test.structures[0]))
    ours: dict[tuple[str, int], float] = {}
    for n in args.batches:
        batch, double = opml.batch(test.structures[:n], definition.basis), None
        for dtype in ("float64", "float32"):
            params = model.params if dtype == "float64" else single(model.params)
            r = jnp.asarray(batch.positions, dtype)
            for name, function in stages(definition, params, batch).items():
                if dtype == "float32" and name != "energy_and_forces":
                    continue
                first, run = timed(lambda f=function, r=r: f(r), repeats)
                row = {"name": f"ethanol_{name}", "batch": n, "dtype": dtype}
                row |= {"milliseconds_per_molecule": 1e3 * run / n, "compile_seconds": first - run}
                if name == "energy_and_forces":
                    ours[dtype, n] = 1e3 * run / n
                    double = double or function(r)
                    row |= {k: v for k, v in found.items() if "mae" in k}
                    row |= differences(double, function(r)) if dtype == "float32" else {}
                report(**row, channels=definition.config.channels)
    for row in mace(args.mace, test.structures, args.batches) if args.mace else ():
        ratio = row["milliseconds_per_molecule"] / ours[row["dtype"], row["batch"]]
        peer = "MACE, 128x0e + 128x1o, two layers, correlation 3"
        report(name="ethanol_mace", peer=peer, ratio=ratio, **row)


if __name__ == "__main__":
    main()
