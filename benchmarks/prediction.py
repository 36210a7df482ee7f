"""What does a prediction cost, and where does the time go?

Trains Op2Prop on a few bundled waters, then times its stages on others: integrals, descriptors,
energy, energy with forces, per molecule in one batch, and as ratios to PySCF in the same run
(int1e_nuc by plain libcint for the integrals, an SCF with gradient for the prediction). Output is
checked against the labels in the same run. Compile time is kept apart.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/prediction.py --json [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from environment import environment

import opml_jax as opml
from opml_jax.data.reference import Method, calculate, molecule
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors


def timed(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of ``repeats`` further ones."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - start
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        runs.append(time.perf_counter() - start)
    return first, statistics.median(runs)


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    args = parser.parse_args()
    repeats = 3 if args.quick else 9
    n = 32
    dataset = opml.read_dataset(opml.bundled("water"))
    splits = {"train": list(range(60)), "validation": list(range(60, 80))}
    model = train(dataset, splits, TrainConfig()).model
    test = dataset.subset(range(100, 100 + n))
    found = errors(model.predict(test.structures), test, model)
    assert found["energy_mae_mev"] < 1.0, found
    assert found["forces_mae_mev_per_angstrom"] < 10.0, found

    definition, params = model.definition, model.params
    basis = definition.basis
    batch = opml.batch(test.structures, basis)
    mols = [molecule(s, basis.name) for s in test.structures]
    reference = np.array([m.intor("int1e_nuc") for m in mols])
    ours = np.array(
        [
            opml.to_pyscf(v, s, basis)
            for v, s in zip(
                np.asarray(opml.integrals.external_potential(batch, basis)),
                test.structures,
                strict=True,
            )
        ]
    )
    assert np.abs(ours - reference).max() < 1e-11

    def energies(positions):
        return definition.apply(params, batch.replace(positions=positions))["energy"]

    stages = {
        "external_potential": jax.jit(
            lambda r: opml.integrals.external_potential(batch.replace(positions=r), basis)
        ),
        "screened_potential": jax.jit(
            lambda r: opml.integrals.screened_potential(batch.replace(positions=r), basis)
        ),
        "descriptors": jax.jit(lambda r: definition.descriptors(batch.replace(positions=r))),
        "energy": jax.jit(energies),
        "energy_and_forces": jax.jit(jax.value_and_grad(lambda r: jnp.sum(energies(r)))),
    }
    positions = jnp.asarray(batch.positions)
    _, libcint = timed(lambda: [m.intor("int1e_nuc") for m in mols], repeats)
    method = Method(**{k: dataset.meta[k] for k in ("method", "basis", "grid_level", "conv_tol")})
    few = test.structures[: 1 if args.quick else 3]
    _, scf = timed(lambda: [calculate(s, method) for s in few], 1)
    scf /= len(few)
    for name, function in stages.items():
        first, run = timed(lambda function=function: function(positions), repeats)
        peer, seconds = (
            ("libcint int1e_nuc", libcint / n)
            if name.endswith("potential")
            else ("PySCF RKS PBE/def2-SVP with gradient", scf)
        )
        row = {
            "name": f"water_{name}",
            "milliseconds_per_molecule": 1e3 * run / n,
            "ratio": seconds / (run / n),
            "peer": peer,
            "batch": n,
            "nao": 24,
            "compile_seconds": first - run,
            "dtype": "float64",
            **environment(),
        }
        if name == "energy_and_forces":
            row |= {k: v for k, v in found.items() if "mae" in k}
        if args.json:
            print(json.dumps(row))
        else:
            print(
                f"{row['name']:<28}{row['milliseconds_per_molecule']:9.3f} ms/molecule   "
                f"{row['ratio']:9.3g} x {peer}   compile {row['compile_seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
