"""Fock matrices of ethanol: how many molecules a second, and where the time goes.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/op2op_inference.py DIR --json

DIR holds ``ethanol_pbe_def2svp.npz``, see ``op2op.py``; ``--n-train`` of its geometries train, the
others are predicted, repeated where there are not enough. ``predict`` is the whole way from
positions to levels, dipoles and charges, for batches of ``--batches`` (it goes through them eight
at a time). The stages of the one-shot model, at one and at eight molecules, are functions of
positions that each do what the one before does and more: integrals, features (irreps of all
words), the matrix, levels and density. PySCF's SCF of some of the same molecules, from minao, at
the labels' grid level 1, is timed in the same run. Compilation is kept apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from environment import record
from op2op import SPLITS, read

import opml_jax as opml
from opml_jax.data.reference import Method, mean_field
from opml_jax.models.op2op import Op2Op, Op2OpConfig
from opml_jax.models.op2op.inputs import n_electrons
from opml_jax.observables import density_matrix, orbitals
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors

ONE_SHOT, WHOLE = Op2OpConfig(density_words=()), Op2OpConfig()


def stages(definition: Op2Op, params, batch) -> dict[str, Callable]:
    """Functions of positions for a first guess, each doing more than the one before."""
    table, electrons, mask = definition.table(batch), n_electrons(batch), batch.layout.ao_mask

    def at(r):
        structure = batch.replace(positions=r)
        return structure, definition.operators(structure)

    def features(r):
        return definition.known_irreps(at(r)[1], table)

    def matrix(r):
        structure, operators = at(r)
        x = definition.known_irreps(operators, table)
        fock = definition.baseline(params, structure, operators, table)
        return operators["S"], fock + definition.learned_guess(params, x, table, operators["S"])

    def levels(r):
        s, fock = matrix(r)
        return orbitals(fock, s, mask=mask)[0], density_matrix(fock, s, electrons, mask=mask)

    found = {"integrals": lambda r: at(r)[1], "features": features}
    found |= {"matrix": matrix, "levels": levels}
    return {name: jax.jit(f) for name, f in found.items()}


def measured(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a call, medians, after a first one that compiles."""
    jax.block_until_ready(function())
    runs = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        runs.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = 1e3 * np.median(runs, axis=0)
    return {"ms": float(wall), "cpu_ms": float(cpu)}


def scf(structures, grid_level: int = 1) -> dict[str, float]:
    """PySCF's own way to the same matrices."""
    method = Method("pbe", "def2-svp", grid_level, 1e-9, forces=False)
    fields = [mean_field(structure, method) for structure in structures]
    todo = iter([fields[0], *fields])
    row = measured(lambda: next(todo).kernel(), len(fields))
    return {**row, "cycles": float(np.mean([mf.cycles for mf in fields])), "grid_level": grid_level}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Fock matrices (npz)")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32, 256])
    parser.add_argument("--n-train", type=int, default=130)
    parser.add_argument("--one-shot", action="store_true", help="no self-consistent model")
    parser.add_argument("--n-scf", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    data = read(args.folder / "ethanol_pbe_def2svp.npz")
    split = SPLITS["ethanol"]
    splits = {"train": range(args.n_train), "validation": split["validation"]}
    test = data.subset(split["test"])
    many = (test.structures * 6)[: max(args.batches)]

    def report(name: str, **row) -> None:
        record({"name": name, **row}, "op2op_inference", args.json)

    report("scf", **scf(test.structures[: args.n_scf]))
    kinds = {"one-shot": ONE_SHOT} if args.one_shot else {"one-shot": ONE_SHOT, "whole": WHOLE}
    for kind, config in kinds.items():
        model = train(data, splits, TrainConfig(model=config)).model
        found = errors(model.predict(test.structures), test, model)
        report(f"{kind} errors", n_train=args.n_train, **found)
        for n in args.batches:
            row = measured(lambda n=n, model=model: model.predict(many[:n]), args.repeats)
            row = {f"{k}_per_molecule": v / n for k, v in row.items()}
            report(f"{kind} predict", batch=n, **row)
        for n in (1, 8) if kind == "one-shot" else ():
            batch = opml.batch(many[:n], model.definition.basis)
            for name, f in stages(model.definition, model.params, batch).items():
                row = measured(lambda f=f, batch=batch: f(batch.positions), args.repeats)
                row = {f"{k}_per_molecule": v / n for k, v in row.items()}
                report(f"{kind} {name}", batch=n, **row)


if __name__ == "__main__":
    main()
